"""The matrix of a study: the published one's arithmetic, and each of its mistakes (SPEC.md 7.3) as a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.checkpoint import save_checkpoint
from leadline.depth import Kind
from leadline.errors import KindError
from leadline.evaluation.protocols import get_protocol
from leadline.models import depth_anything
from leadline.reference import load_model
from leadline.studies.from_file import Studied, carry_out
from leadline.studies.jobs import other_alignment
from leadline.studies.matrix import (
    best_per_batch,
    best_per_resolution,
    cells_of,
    faster_than_fp32,
    is_matrix,
    suspicions,
    told_apart,
)
from leadline.studies.measurement import Accuracy, Figure, Latency, Measurement, Status
from leadline.studies.planning import Candidate, zero_share
from leadline.studies.recommend import Limits
from leadline.studies.report.matrix import matrix_section
from leadline.studies.rows import remarks
from leadline.studies.study import Cell, Outcome, Study
from leadline.studies.study_file import StudyFile, load_study

# SPEC.md 7.1: FP16, TensorRT on an RTX 3060 Ti: (height, width), batch -> RMSE, ms. Four rows of "by resolution", and
# the three of "by batch" at 560 x 560.
PUBLISHED = {
    ((448, 896), 4): (22.9895, 76.8004),
    ((504, 672), 2): (22.9633, 56.1861),
    ((560, 560), 1): (22.9547, 33.7817),
    ((672, 672), 1): (23.0079, 35.4844),
    ((560, 560), 2): (22.9550, 59.6572),
    ((560, 560), 4): (22.9554, 64.8085),
}
PATCHES = {(672, 672): 2304, (560, 560): 1600, (504, 672): 1728, (448, 896): 2048}  # SPEC.md 7.2


def figure(value: float, width: float = 0.01) -> Figure:
    return Figure(value=value, low=value - width, high=value + width, n=64)


def row(
    size: tuple[int, int], batch: int, ms: float, *, precision: str = "fp16", change: float = -0.001, **more: object
) -> Measurement:
    accuracy = Accuracy(
        protocol="plain/lsq-disparity", data="d", primary="delta1", metrics={"delta1": figure(0.8 + change)},
        change={"delta1": figure(change, 0.002)}, scored=64,
    )  # fmt: skip
    latency = Latency(
        p50=ms, p95=1.1 * ms, p99=1.2 * ms, iqr=0.02 * ms, runs=60, warmup=10, threads=1, pre=1, post=1,
        reference_p50=100.0, batch=batch,
    )  # fmt: skip
    values: dict[str, object] = {
        "key": f"{precision}{size}{batch}", "model": "m", "runtime": "tensorrt", "precision": precision,
        "height": size[0], "width": size[1], "batch": batch, "status": Status.MEASURED, "accuracy": accuracy,
        "latency": latency, "macs": PATCHES.get(size, size[0] * size[1] // 196) * 10**7,
    }  # fmt: skip
    return Measurement.model_validate(values | more)


def published() -> list[Measurement]:
    return [row(size, batch, ms) for (size, batch), (_, ms) in PUBLISHED.items()]


class TestArithmetic:
    def test_patches_of_the_published_resolutions(self) -> None:
        for (height, width), patches in PATCHES.items():
            assert (height // 14) * (width // 14) == patches
            assert height % 14 == width % 14 == 0

    def test_the_file_asks_for_the_published_matrix(self) -> None:
        file = load_study(Path(__file__).parents[1] / "studies" / "tensorrt-matrix.yaml")
        assert set(file.sizes) == set(PATCHES)
        assert file.batches == (1, 2, 4)
        assert file.precisions == ("fp32", "fp16")
        assert len(file.sizes) * len(file.batches) * len(file.precisions) == 24

    def test_a_picture_is_its_share_of_a_run(self) -> None:
        rows = [one for one in published() if (one.height, one.width) == (560, 560)]
        by_batch = {one.batch: one.latency for one in rows if one.latency}
        assert by_batch[1].per_picture == pytest.approx(33.7817)
        assert by_batch[2].per_picture == pytest.approx(29.8286)
        assert by_batch[4].per_picture == pytest.approx(16.202125)
        assert by_batch[4].ratio == pytest.approx(0.16202125)  # per picture, of a reference of 100 ms

    def test_a_batch_of_four_takes_least_time_for_a_picture_at_every_published_resolution(self) -> None:
        best = {one.group: one.row for one in best_per_batch(published(), 0.01)}
        assert best["batch 4"].name == "tensorrt fp16 560x560 batch 4"  # 16.2 ms a picture; 448x896 takes 19.2
        assert best["batch 1"].name == "tensorrt fp16 560x560"  # 33.8 ms; 672x672 takes 35.5
        assert best["batch 2"].name == "tensorrt fp16 504x672 batch 2"  # 28.1 ms; 560x560 takes 29.8
        resolution = {one.group: one.row for one in best_per_resolution(published(), 0.01)}
        assert resolution["560x560"].batch == 4

    def test_how_much_faster_than_fp32_is_judged_by_the_same_rounds(self) -> None:
        slow = row((560, 560), 2, 120.0, precision="fp32")
        half = row((560, 560), 2, 60.0)
        assert faster_than_fp32(half, [slow, half]) == pytest.approx(2.0)
        assert slow.latency
        busy = slow.model_copy(
            update={"latency": slow.latency.model_copy(update={"p50": 240.0, "reference_p50": 200.0})}
        )
        assert faster_than_fp32(half, [busy, half]) == pytest.approx(2.0)
        assert faster_than_fp32(slow, [slow, half]) is None
        assert faster_than_fp32(half, [row((560, 560), 1, 60.0, precision="fp32"), half]) is None  # another batch

    def test_one_batch_alone_is_no_matrix(self) -> None:
        assert is_matrix(published())
        assert not is_matrix([one for one in published() if one.batch == 1])


class TestMistakes:
    """SPEC.md 7.3, in its order."""

    def test_1_relative_outputs_are_aligned_and_metres_are_scored_both_ways(self) -> None:
        assert get_protocol("plain").label_for(Kind.RELATIVE_DISPARITY) == "plain/lsq-disparity"
        assert other_alignment("plain", Kind.METRIC_DEPTH) == "plain/median"
        assert other_alignment("ddad", Kind.METRIC_DEPTH) == "ddad/none"
        assert other_alignment("plain", Kind.RELATIVE_DISPARITY) == ""  # without a fit it has no unit
        assert other_alignment("fidelity", Kind.METRIC_DEPTH) == ""

    def test_1_constant_and_inverted_outputs_are_flagged_and_never_called_best(self) -> None:
        flat = row((560, 560), 1, 1.0)
        assert flat.accuracy
        flat = flat.model_copy(update={"accuracy": flat.accuracy.model_copy(update={"degenerate": 60, "inverted": 4})})
        said = suspicions([flat])
        assert (
            said[0] == "60 of 64 predictions of tensorrt fp16 560x560 are constant, or next to nothing beside the truth"
        )
        assert said[1].endswith("have near and far exchanged")
        assert [
            one.row.latency and one.row.latency.p50 for one in best_per_batch([flat, row((672, 672), 1, 9.0)], 0.01)
        ] == [9.0]
        assert best_per_batch([flat], 0.01) == []

    def test_2_relative_output_against_metres_without_alignment_is_refused(self) -> None:
        with pytest.raises(KindError, match="zero-shot-disparity"):
            get_protocol("plain/none").alignment_for(Kind.RELATIVE_DISPARITY, "depth-anything-v2-base")

    def test_2_metres_of_another_scale_are_called_so(self) -> None:
        one = row((560, 560), 1, 30.0)
        assert one.accuracy
        metrics = {"delta1": figure(0.1), "abs_rel": figure(0.7815)}
        other = {"abs_rel": figure(0.12)}
        accuracy = one.accuracy.model_copy(
            update={"metrics": metrics, "other": other, "protocol": "plain/none", "other_protocol": "plain/median"}
        )
        said = suspicions([one.model_copy(update={"accuracy": accuracy})])
        assert len(said) == 1
        assert "plain/none 0.781, plain/median 0.120" in said[0] or "plain/none 0.782" in said[0]
        assert "metres do not fit" in said[0]

    def test_2_differences_within_the_intervals_are_called_noise(self) -> None:
        """RMSE 22.9547 to 23.0079 in the published matrix; here changes of 0.001 with intervals of 0.004."""
        assert not told_apart(published())
        assert told_apart([*published(), row((42, 42), 1, 5.0, change=-0.2)])
        outcome = Outcome(Study("m"), Path(), [row((518, 518), 1, 100.0, precision="fp32"), *published()])
        assert "no: within their intervals" in matrix_section(outcome, Limits())

    def test_2_a_drop_beyond_the_limit_is_not_best_however_fast(self) -> None:
        rows = [*published(), row((560, 560), 4, 1.0, precision="int8-static", change=-0.2)]
        assert {one.row.precision for one in best_per_batch(rows, 0.01)} == {"fp16"}
        assert best_per_batch(rows, 0.5)[-1].row.precision in ("fp16", "int8-static")

    def test_3_the_published_times_are_doubted(self) -> None:
        said = suspicions(published())
        # 44 % more patches for 5 % more time, and pictures 3 and 4 at a tenth of what picture 2 costs
        flat = [one for one in said if "44% more work than tensorrt fp16 560x560 costs +5% time" in one]
        cheap = [one for one in said if "from 2 to 4 a further picture costs 8% of the first, before 77%" in one]
        assert (len(flat), len(cheap)) == (1, 1)

    def test_3_times_that_follow_the_work_are_not_doubted(self) -> None:
        sound = [row(size, batch, patches * batch / 50) for size, patches in PATCHES.items() for batch in (1, 2, 4)]
        assert suspicions(sound) == []

    def test_3_a_busy_machine_is_not_taken_for_overhead(self) -> None:
        small, large = row((560, 560), 1, 160.0), row((672, 672), 1, 230.4)
        assert small.latency
        busy = small.latency.model_copy(update={"p50": 320.0, "reference_p50": 200.0})
        assert suspicions([small.model_copy(update={"latency": busy}), large]) == []

    def test_3_times_that_scatter_prove_nothing(self) -> None:
        noisy = []
        for one in published():
            assert one.latency
            noisy.append(
                one.model_copy(update={"latency": one.latency.model_copy(update={"iqr": 0.2 * one.latency.p50})})
            )
        said = "times of 6 of 6 cells scatter by more than 15% (IQR over median): run again on an idle machine"
        assert suspicions(noisy) == [said]

    def test_3_copies_and_compute_are_columns_of_their_own(self) -> None:
        one = row((560, 560), 2, 30.0)
        assert one.latency
        parts = {"to_device": 1.25, "compute": 25.5, "from_device": 3.25}
        one = one.model_copy(update={"latency": one.latency.model_copy(update={"parts": parts})})
        outcome = Outcome(Study("m"), Path(), [row((518, 518), 1, 100.0, precision="fp32"), one])
        page = matrix_section(outcome, Limits())
        for shown in ("to device", "compute", "from device", "1.25", "25.5", "3.25", "p95", "p99", "ms per picture"):
            assert shown in page

    def test_4_accuracy_cannot_choose_a_batch(self) -> None:
        """The published study took batch 1 at 560 x 560 for an RMSE lower by 0.0003; time takes batch 4."""
        ranked = [row((560, 560), batch, ms, change=-0.001 * batch) for batch, ms in ((1, 33.8), (2, 59.7), (4, 64.8))]
        assert [one.row.batch for one in best_per_resolution(ranked, 0.01)] == [4]

    def test_5_zeros_are_counted_and_shown_to_bring_nothing(self) -> None:
        network = load_model("random:depth-anything-v2-mini").model
        import torch

        assert zero_share(network) < 1e-3

        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        total = sum(weight.numel() for weight in network.parameters() if weight.dim() > 1)
        with torch.no_grad():
            for layer in layers:
                layer.weight.zero_()
        zeros = sum(layer.weight.numel() for layer in layers)
        assert zero_share(network) == pytest.approx(zeros / total, abs=1e-3)
        base = row((56, 56), 1, 3.0).model_copy(update={"zeros": 0.5})
        one = Candidate(Cell("tensorrt", "fp16", (56, 56)), base, Path(), Path(), Path())
        [said] = remarks(one, {})
        assert said.startswith("50% of the weights are zero: the engine computes and stores them like any others")

    def test_6_what_a_network_was_trained_on_is_not_guessed(self) -> None:
        config = depth_anything.VARIANTS["depth-anything-v2-metric-outdoor-base"]
        assert "Virtual KITTI 2" in depth_anything.contract(config).training_data
        assert not any("DDAD" in name for name in depth_anything.contract(config).training_data)

    def test_6_int8_is_per_channel_unless_told_otherwise(self) -> None:
        from leadline.runtimes.base import ExportOptions

        assert ExportOptions().per_channel


def test_the_reference_is_no_cell_of_the_matrix_unless_it_is_asked_for() -> None:
    reference = row((518, 518), 1, 100.0, precision="fp32", runtime="torch")
    assert reference not in cells_of([reference, *published()], reference)
    own = row((518, 518), 2, 190.0, precision="fp32", runtime="torch")
    assert reference in cells_of([reference, own], reference)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """Two sizes x two batches of a tiny Depth Anything on ONNX Runtime."""
    from tiny_models import vit

    folder = tmp_path_factory.mktemp("matrix")
    tiny = vit()
    save_checkpoint(
        folder / "tiny", tiny.model, architecture="depth-anything-v2", config=tiny.config, contract=tiny.contract
    )
    file = StudyFile(
        model=str(folder / "tiny"), data="rendered:room,count=4,height=72,width=96", runtime=["onnxruntime"],
        precisions="FP32", sizes=["42x56", "56x84"], batches=[1, 3], runs=6, limits={"max_drop": 1.0},
    )  # fmt: skip
    return carry_out(file, folder / "out")


class TestMeasured:
    def test_every_cell_has_figures_of_a_run_and_of_a_picture(self, measured: Studied) -> None:
        rows = measured.outcome.rows
        assert [one.name for one in rows] == [
            "torch fp32 70x70", "onnxruntime fp32 42x56", "onnxruntime fp32 42x56 batch 3",
            "onnxruntime fp32 56x84", "onnxruntime fp32 56x84 batch 3",
        ]  # fmt: skip
        for one in rows:
            assert one.status is Status.MEASURED
            assert one.latency
            assert one.latency.batch == one.batch
            assert one.latency.per_picture * one.batch == pytest.approx(one.latency.p50)
            assert 0 < one.latency.p50 <= one.latency.p95 <= one.latency.p99
            assert one.memory_mb
            assert one.memory_mb > 20  # SPEC.md 7.4: a difference of two readings said 0.0 MB

    def test_accuracy_is_measured_once_for_all_batches(self, measured: Studied) -> None:
        _, one, three, other, _ = measured.outcome.rows
        assert one.accuracy == three.accuracy
        assert one.accuracy != other.accuracy
        assert one.bundle == three.bundle
        assert len(list((measured.outcome.folder / "cells").glob("*.json"))) == 3

    def test_metres_are_scored_with_and_without_alignment(self, measured: Studied) -> None:
        for one in measured.outcome.rows:
            assert one.accuracy
            assert (one.accuracy.protocol, one.accuracy.other_protocol) == ("plain/none", "plain/median")
            assert one.accuracy.other["abs_rel"].value != one.accuracy.metrics["abs_rel"].value
            assert one.accuracy.other["abs_rel"].n == 4

    def test_a_batch_is_truly_one_run(self, measured: Studied) -> None:
        assert not any("a batch is a loop" in note for one in measured.outcome.rows for note in one.notes)

    def test_the_report_has_heat_maps_and_the_three_tables(self, measured: Studied) -> None:
        page = measured.machines[""].report.read_text()
        for heading in ("Resolution and batch", "Best per resolution", "Best per batch", "Every cell"):
            assert heading in page
        assert page.count('class="heat"') == 1
        assert page.count("<small>run ") == 2  # of the two cells with batch 3
        assert "the first of onnxruntime that is here with fp32" in page

    def test_again_nothing_is_measured(self, measured: Studied, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("leadline.studies.running.compare", None)
        monkeypatch.setattr("leadline.studies.running.run_isolated", None)
        file = StudyFile(
            model=measured.outcome.study.model, data=measured.outcome.study.data, runtime=["onnxruntime"],
            precisions="fp32", sizes=["42x56", "56x84"], batches=[1, 3], runs=6, limits={"max_drop": 1.0},
        )  # fmt: skip
        told: list[str] = []
        again = carry_out(file, measured.outcome.folder, on_cell=lambda *said: told.append(said[3]))
        assert again.outcome.rows == measured.outcome.rows
        assert told == ["measured in an earlier run"] * 5

    def test_json_has_the_best_cells_and_the_doubts(self, measured: Studied) -> None:
        from leadline.cli.study import facts

        said = json.loads(json.dumps(facts(measured)))
        assert set(said["machines"]["here"]["best_per_resolution"]) == {"42x56", "56x84"}
        assert set(said["machines"]["here"]["best_per_batch"]) == {"batch 1", "batch 3"}
        assert said["rows"][2]["ms_per_picture"] == pytest.approx(said["rows"][2]["latency"]["p50"] / 3)
