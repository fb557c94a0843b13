"""The contract: prepare, restore, sizes, camera and file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from leadline.contract import Camera, Contract, InputSpec, OutputSpec
from leadline.depth import Intrinsics, Kind
from leadline.errors import ContractError, NumericalError

if TYPE_CHECKING:
    from pathlib import Path

METRIC = OutputSpec(kind=Kind.METRIC_DEPTH)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def contract(*, output: OutputSpec = METRIC, **spec: object) -> Contract:
    return Contract(name="test", input=InputSpec(**{"height": 32, "width": 64, **spec}), output=output)


sides = st.integers(1, 90)


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.integers(0, 255), st.sampled_from(["rgb", "bgr"]), st.booleans())
def test_prepare_is_the_stated_formula(h: int, w: int, grey: int, order: str, antialias: bool) -> None:
    colour = np.array([grey, 255 - grey, 7], np.uint8)
    image = np.broadcast_to(colour, (h, w, 3)).copy()
    made = contract(channels=order, antialias=antialias, **IMAGENET).prepare(image)
    seen = colour if order == "rgb" else colour[::-1]
    expected = (seen / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    assert made.shape == (1, 3, 32, 64)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0].transpose(1, 2, 0), np.broadcast_to(expected, (32, 64, 3)), atol=1e-5)


def test_both_paths_of_normalise_agree() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    made = contract(**IMAGENET, value_max=255.0, channels="bgr")
    np.testing.assert_allclose(made.normalise(image), made.normalise(image.astype(np.float32)), rtol=1e-5, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.floats(0.1, 80), st.booleans())
def test_restore_keeps_a_constant_map(h: int, w: int, value: float, align_corners: bool) -> None:
    spec = OutputSpec(kind=Kind.METRIC_DEPTH, align_corners=align_corners)
    depth = contract(output=spec).restore(np.full((1, 1, 32, 64), value, np.float32), (h, w))
    assert depth.shape == (h, w)
    assert depth.kind is Kind.METRIC_DEPTH
    np.testing.assert_allclose(depth.values, np.float32(value), rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.booleans())
def test_restore_stays_in_range_and_commutes_with_mirroring(h: int, w: int, align_corners: bool) -> None:
    assume(w > 1 or not align_corners)  # of a single column there, torch takes the first: nothing to mirror
    output = np.random.default_rng((h, w)).random((8, 9), np.float32)
    made = contract(output=OutputSpec(kind=Kind.RELATIVE_DISPARITY, align_corners=align_corners))
    depth = made.restore(output, (h, w))
    assert output.min() - 1e-6 <= depth.values.min()
    assert depth.values.max() <= output.max() + 1e-6
    mirrored = made.restore(np.ascontiguousarray(output[:, ::-1]), (h, w))
    np.testing.assert_allclose(mirrored.values[:, ::-1], depth.values, atol=1e-5)


def test_restore_undoes_prepare_for_the_identity_network() -> None:
    y, x = np.mgrid[:48, :80]
    image = np.repeat((60 + x + y)[:, :, None], 3, 2).astype(np.uint8)
    made = contract()
    back = made.restore(made.prepare(image)[:, :1], (48, 80)).values * 255
    np.testing.assert_allclose(back[4:-4, 4:-4], image[4:-4, 4:-4, 0], atol=1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_restore_refuses_what_is_not_finite(bad: float) -> None:
    output = np.ones((4, 4), np.float32)
    output[1, 1] = bad
    with pytest.raises(NumericalError, match=r"6\.2%"):
        contract().restore(output, (8, 8), source="a.jpg")


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (1, 3, 4, 4), (4,), ()])
def test_restore_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match="one map per picture"):
        contract().restore(np.ones(shape, np.float32), (8, 8))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_prepare_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ContractError, match="uint8 H x W x 3"):
        contract().prepare(image)


def test_a_fixed_size_is_the_only_one() -> None:
    assert contract().size_for(480, 640) == (32, 64)
    with pytest.raises(ContractError, match="Use 32,64"):
        contract().size_for(480, 640, (64, 64))


def test_a_dynamic_size_must_fit_the_limits() -> None:
    made = contract(dynamic=True, multiple_of=32, min_side=32, max_side=512)
    assert made.size_for(480, 640, (96, 128)) == (96, 128)
    with pytest.raises(ContractError, match="Use 96,128"):
        made.checked_size((100, 130))
    with pytest.raises(ContractError, match="Use 512,32"):
        made.checked_size((5000, 1))


def test_keep_aspect_follows_the_published_rule() -> None:
    made = contract(height=518, width=518, multiple_of=14, dynamic=True, resize="keep_aspect")
    # Depth Anything V2: the shorter side becomes 518, the other keeps the aspect, rounded to multiples of 14.
    assert made.size_for(480, 640) == (518, 686)
    assert made.size_for(375, 1242) == (518, 1722)
    assert made.size_for(518, 518) == (518, 518)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_keep_aspect_never_asks_for_an_input_that_is_not_allowed(h: int, w: int) -> None:
    made = contract(
        height=518, width=518, multiple_of=14, dynamic=True, resize="keep_aspect", min_side=14, max_side=2072
    )
    size = made.size_for(h, w)
    assert made.checked_size(size) == size


def test_metric_depth_is_corrected_for_the_focal_length() -> None:
    made = contract(camera=Camera(fx_over_width=0.9, fy_over_height=1.2))
    output = np.full((32, 64), 2.0, np.float32)
    same = Intrinsics(0.9 * 640, 1.2 * 480, 320, 240)
    double = Intrinsics(1.8 * 640, 2.4 * 480, 320, 240)
    assert made.restore(output, (480, 640), intrinsics=same).values[0, 0] == pytest.approx(2.0)
    assert made.restore(output, (480, 640), intrinsics=double).values[0, 0] == pytest.approx(4.0)
    assert made.restore(output, (480, 640)).values[0, 0] == pytest.approx(2.0)
    relative = contract(camera=made.input.camera, output=OutputSpec(kind=Kind.RELATIVE_DISPARITY))
    assert relative.restore(output, (480, 640), intrinsics=double).values[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize(
    "spec", [{"std": (0.0, 1.0, 1.0)}, {"multiple_of": 7}, {"height": 0}, {"unknown": 1}, {"value_max": float("nan")}]
)
def test_impossible_specifications_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        contract(**spec)


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    made = contract(camera=Camera(fx_over_width=1, fy_over_height=1), **IMAGENET)
    made.save(path)
    assert Contract.load(path) == made
    content = json.loads(path.read_text())
    for damage in ({**content, "extra": 1}, {**content, "output": {"kind": "guess"}}, {"name": "x"}):
        path.write_text(json.dumps(damage))
        with pytest.raises(ContractError, match=r"contract\.json"):
            Contract.load(path)
    path.write_text("{")
    with pytest.raises(ContractError, match="not a valid contract"):
        Contract.load(path)
    with pytest.raises(ContractError, match="no contract"):
        Contract.load(tmp_path / "none.json")
