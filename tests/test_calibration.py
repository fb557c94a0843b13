"""Ranges of activations from constructed distributions, and where calibration pictures come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_datasets
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, ImageReadError, NumericalError
from leadline.runtimes.base import ExportOptions
from leadline.runtimes.calibration import (
    BINS,
    Activation,
    activation_limits,
    calibration_inputs,
    entropy_clip,
    percentile_clip,
)

CONTRACT = Contract(
    name="c", input=InputSpec(height=32, width=64, dynamic=True), output=OutputSpec(kind=Kind.METRIC_DEPTH)
)


def seen(values: np.ndarray) -> Activation:
    activation = Activation()
    activation.extend(values)
    activation.count(values)
    return activation


def brute_force_entropy(counts: np.ndarray, levels: int) -> int:
    """The rule of SPEC.md section 8, one candidate after the other; ties go to the last."""
    total, best, clip = counts.sum(), np.inf, len(counts)
    for edge in range(levels, len(counts) + 1):
        kept = counts[:edge].astype(float)
        if kept.sum() < 0.99 * total:
            continue
        p = kept.copy()
        p[np.flatnonzero(kept)[-1]] += counts[edge:].sum()
        q = np.zeros(edge)
        level = np.arange(edge) * levels // edge
        for k in range(levels):
            inside = (level == k) & (kept > 0)
            if inside.any():
                q[inside] = kept[level == k].sum() / inside.sum()
        p, q = p / p.sum(), q / q.sum()
        divergence = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
        if divergence <= best + 1e-12:
            best, clip = divergence, edge
    return clip


class TestRules:
    def test_minmax_is_the_extremes_over_all_pictures(self) -> None:
        parts = {"a": [np.array([-1.5, 2.0], np.float32), np.array([0.5, 7.0], np.float32)]}
        calls = iter(parts["a"])
        options = ExportOptions(calibration=(np.zeros(1, np.float32),) * 2)
        assert activation_limits(lambda _: {"a": next(calls)}, options) == {"a": (-1.5, 7.0)}

    def test_ranges_hold_zero(self) -> None:
        assert seen(np.array([2.0, 5.0], np.float32)).limits("minmax") == (0.0, 5.0)
        assert seen(np.array([-5.0, -2.0], np.float32)).limits("minmax") == (-5.0, 0.0)

    @pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
    @pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
    def test_a_constant_activation_has_a_usable_range(self, method: str, value: float) -> None:
        low, high = seen(np.full(100, value, np.float32)).limits(method)  # type: ignore[arg-type]
        assert low <= min(value, 0) <= max(value, 0) <= high
        assert high > low

    def test_percentile_of_uniform_values(self) -> None:
        """99 % of a uniform |x| lie below 0.99 of its largest, to one bin."""
        values = np.linspace(-10, 10, 200_001, dtype=np.float32)
        low, high = seen(values).limits("percentile", 99.0)
        assert high == pytest.approx(9.9, abs=10 / BINS)
        assert low == pytest.approx(-9.9, abs=10 / BINS)
        assert seen(values).limits("percentile", 100.0) == (-10.0, 10.0)

    def test_percentile_counts_zeros(self) -> None:
        counts = np.zeros(BINS, np.int64)
        counts[[9, 99]] = 5, 5
        assert percentile_clip(counts, 0, 50.0) == 10
        assert percentile_clip(counts, 90, 95.0) == 10
        assert percentile_clip(counts, 90, 96.0) == 100

    @pytest.mark.parametrize("seed", range(6))
    def test_entropy_equals_the_plain_search(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        shape = random.exponential(6, 3000) if seed % 2 else np.abs(random.normal(0, 12, 3000))
        counts = np.histogram(shape, 64, range=(0, 64))[0] * (random.random(64) < 0.9)
        assert entropy_clip(counts, 8) == brute_force_entropy(counts, 8)

    def test_entropy_cuts_a_far_outlier_and_keeps_uniform_values(self) -> None:
        values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
        values[0] = 100.0
        assert 2.0 < seen(values).limits("entropy")[1] < 20.0
        assert seen(np.linspace(0.001, 8, 100_000, dtype=np.float32)).limits("entropy") == (0.0, 8.0)

    def test_entropy_does_not_cut_a_tensor_far_from_zero(self) -> None:
        values = np.random.default_rng(0).normal(2.5, 0.05, 100_000).astype(np.float32)
        low, high = seen(values).limits("entropy")
        assert low == 0.0
        assert high > np.quantile(values, 0.98)

    def test_order_of_pictures_does_not_matter(self) -> None:
        random = np.random.default_rng(0)
        parts = [random.normal(0, scale, 1000).astype(np.float32) for scale in (0.01, 3, 1)]
        results = []
        for order in (parts, parts[::-1]):
            options = ExportOptions(calibration=order, method="percentile", percentile=99)
            results.append(activation_limits(lambda values: {"x": values}, options))
        assert results[0] == results[1]

    def test_an_empty_set_nan_and_a_bad_percentile_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="empty"):
            activation_limits(lambda values: {"x": values}, ExportOptions())
        one = (np.array([1.0, np.nan], np.float32),)
        with pytest.raises(NumericalError, match="'x'"):
            activation_limits(lambda values: {"x": values}, ExportOptions(calibration=one))
        with pytest.raises(ConfigError, match="percentile"):
            activation_limits(lambda values: {"x": values}, ExportOptions(calibration=one, percentile=0))


class TestPictures:
    def test_rendered_by_default_and_the_same_again(self) -> None:
        first = calibration_inputs(None, CONTRACT, count=2)
        again = calibration_inputs(None, CONTRACT, count=2)
        other = calibration_inputs(None, CONTRACT, count=2, seed=50)
        assert [each.shape for each in first] == [(1, 3, 32, 64)] * 2
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])

    def test_a_folder_is_searched_and_sampled(self, tmp_path: Path) -> None:
        for index in range(6):
            folder = tmp_path / "deep" / str(index % 2)
            folder.mkdir(parents=True, exist_ok=True)
            picture = np.zeros((30, 40, 3), np.uint8)
            picture[..., 0], picture[:15, :, 1] = index * 40, 90
            Image.fromarray(picture).save(folder / f"{index}.png")
        inputs = calibration_inputs(tmp_path, CONTRACT, (64, 32), 4, seed=3)
        assert [each.shape for each in inputs] == [(1, 3, 64, 32)] * 4
        reds = {round(float(each[0, 0].mean() * 255)) for each in inputs}
        assert len(reds) == 4
        assert reds <= {0, 40, 80, 120, 160, 200}

    def test_a_data_set_gives_its_pictures_not_its_depth_maps(self, tmp_path: Path) -> None:
        root = tiny_datasets.folder(tmp_path, 3)
        assert len(calibration_inputs(str(root), CONTRACT)) == 3

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            calibration_inputs(tmp_path / "none", CONTRACT)
        with pytest.raises(DataError):
            calibration_inputs(tmp_path, CONTRACT)

    def test_a_folder_without_pictures_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no pictures to calibrate with .* Name a folder with pictures"):
            calibration_inputs(tmp_path, CONTRACT)

    def test_pictures_of_one_colour_are_refused(self, tmp_path: Path) -> None:
        for index in range(3):
            Image.new("RGB", (40, 30), (index, 0, 0)).save(tmp_path / f"{index}.png")
        with pytest.raises(DataError, match=r"calibration pictures show nothing .* each of the 3 pictures"):
            calibration_inputs(tmp_path, CONTRACT)

    def test_a_reference_may_name_the_split(self, tmp_path: Path) -> None:
        root = tiny_datasets.nyu(tmp_path)
        assert len(calibration_inputs(f"{root}#train", CONTRACT)) == 3
        assert len(calibration_inputs(f"{root}#test", CONTRACT)) == 2

    def test_a_broken_picture_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"not a picture")
        with pytest.raises(ImageReadError, match=r"bad calibration picture: .*broken\.png.*Move it out") as raised:
            calibration_inputs(tmp_path, CONTRACT)
        assert "--calibration" in str(raised.value)

    @pytest.mark.data
    def test_real_pictures(self, shared_data: Path) -> None:
        inputs = calibration_inputs(shared_data / "photos", CONTRACT, count=3)
        assert len(inputs) == 3
        assert all(np.ptp(each) > 0.3 for each in inputs)
