"""Evaluation end to end: refusals, bad pictures, intervals, pairs and fidelity."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_datasets as tiny
from leadline.data.dataset import Sample
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, KindError, NumericalError
from leadline.evaluation.bootstrap import interval, resampled_means
from leadline.evaluation.evaluate import evaluate, paired
from leadline.evaluation.metrics import depth_metrics
from leadline.evaluation.protocols import get_protocol
from leadline.evaluation.splits import choose_split
from tiny_scenes import CAMERA, SIZE, Answers, Scenes, true_depth


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, 5.0), (1000.0, -3.0)])
def test_perfect_disparity_is_perfect_under_zero_shot(scale, shift):
    model = Answers(lambda i: scale / true_depth(i) + shift, Kind.RELATIVE_DISPARITY)
    found = evaluate(model, Scenes(), "zero-shot-disparity").summary()
    assert found["delta1"].value == 1.0
    assert found["disp_delta1"].value == 1.0
    assert found["abs_rel"].value == pytest.approx(0.0, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e3), st.floats(-5.0, 5.0))
def test_any_positive_affine_map_of_disparity_is_perfect(scale, shift):
    model = Answers(lambda i: scale * (1 / true_depth(i) + shift), Kind.RELATIVE_DISPARITY)
    found = evaluate(model, Scenes(2), "zero-shot-disparity")
    assert found.summary()["delta1"].value == 1.0
    assert found.count("inverted") == 0


def test_zero_shot_takes_metric_and_scaled_models():
    for kind, function in [(Kind.METRIC_DEPTH, true_depth), (Kind.SCALED_DISPARITY, lambda i: 3 / true_depth(i))]:
        assert evaluate(Answers(function, kind), Scenes(2), "zero-shot-disparity").summary()["delta1"].value == 1.0


@pytest.mark.parametrize("kind", [Kind.RELATIVE_DISPARITY, Kind.RELATIVE_DEPTH, Kind.SCALED_DISPARITY])
def test_wrong_space_is_refused_before_any_picture_is_read(kind):
    data = Scenes()
    with pytest.raises(KindError, match=r"nyu-eigen refuses 'my-model'.*zero-shot-disparity|lsq-depth"):
        evaluate(Answers(true_depth, kind), data, "nyu-eigen", name="my-model")
    assert data.read == []


def test_relative_ground_truth_is_refused():
    with pytest.raises(KindError, match=r"metres.*relative_disparity"):
        evaluate(Answers(true_depth), Scenes(kind=Kind.RELATIVE_DISPARITY), "nyu-eigen")


def test_depth_declared_as_disparity_is_flagged():
    found = evaluate(Answers(true_depth, Kind.RELATIVE_DISPARITY), Scenes(3), "zero-shot-disparity")
    assert found.count("inverted") == 3


def test_constant_ratio_under_nyu_eigen():
    found = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(3), "nyu-eigen")
    assert found.summary()["abs_rel"].value == pytest.approx(0.1, rel=1e-5)
    assert found.label == "nyu-eigen"
    aligned = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(3), "nyu-eigen/median")
    assert aligned.summary()["abs_rel"].value == pytest.approx(0.0, abs=1e-5)
    assert [row["scale"] for row in aligned.rows] == pytest.approx([1 / 1.1] * 3)


def test_bad_pictures_are_recorded_and_the_rest_go_on():
    depths = {2: np.zeros(SIZE, np.float32), 3: None}
    found = evaluate(Answers(lambda i: 1.05 * true_depth(i)), Scenes(5, broken=(1,), depths=depths), "nyu-eigen")
    assert [row["status"] for row in found.rows] == ["scored", "failed", "n/a", "n/a", "scored"]
    assert "truncated" in found.rows[1]["reason"]
    assert "no depth" in found.rows[3]["reason"]
    summary = found.summary()
    assert summary["abs_rel"].n == 2
    assert summary["abs_rel"].value == pytest.approx(0.05, rel=1e-4)
    as_dict = json.loads(found.to_json())
    assert (as_dict["scored"], as_dict["unmeasured"], as_dict["pictures"]) == (2, 2, 5)
    assert as_dict["failed"][0]["name"] == "scene1"


def test_only_invalid_depth_gives_no_figure():
    nothing = {i: np.zeros(SIZE, np.float32) for i in range(3)}
    found = evaluate(Answers(true_depth), Scenes(3, depths=nothing), "nyu-eigen")
    assert found.summary() == {}
    assert json.loads(found.to_json())["metrics"] == {}


def test_no_depth_at_all_is_refused():
    with pytest.raises(DataError, match="fidelity"):
        evaluate(Answers(true_depth), Scenes(3, depths=dict.fromkeys(range(3))), "nyu-eigen")


@pytest.mark.parametrize("protocol", ["nyu-eigen", "nyu-eigen/median", "zero-shot-disparity"])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_prediction_is_flagged(protocol, value):
    found = evaluate(Answers(lambda i: value), Scenes(3), protocol)
    assert found.count("degenerate") == 3
    assert all(math.isfinite(each.value) for each in found.summary().values())


def test_a_student_at_the_wrong_scale_is_flagged_without_alignment_and_scored_with_it():
    """Study A's table: the error of a student that answers about 0 is the truth's own mean (SPEC.md 7.3, 1)."""
    student = Answers(lambda i: 5e-4 * true_depth(i))
    plain = evaluate(student, Scenes(3), "nyu-eigen")
    truth = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(3), "nyu-eigen")  # error: a tenth of its mean
    assert plain.summary()["mae"].value == pytest.approx(10 * truth.summary()["mae"].value, rel=2e-3)
    assert plain.count("degenerate") == 3
    assert truth.count("degenerate") == 0
    aligned = evaluate(student, Scenes(3), "nyu-eigen/median")
    assert aligned.count("degenerate") == 0
    assert aligned.summary()["abs_rel"].value == pytest.approx(0.0, abs=1e-4)


def test_a_student_of_noise_around_a_constant_is_flagged_after_alignment_too():
    noise = np.random.default_rng(0).normal(0, 1e-4, SIZE)
    student = Answers(lambda i: (0.3 + noise).astype(np.float32), Kind.RELATIVE_DISPARITY)
    assert evaluate(student, Scenes(3), "zero-shot-disparity").count("degenerate") == 3


def test_nan_names_engine_and_picture():
    from leadline.predictor import Predictor
    from leadline.runtimes.base import Session

    class Broken(Session):
        precision_ran = "fp16"

        def _infer(self, values):
            return np.full((1, 1, *SIZE), np.nan, np.float32)

    with pytest.raises(NumericalError, match=r"NaN.*tensor-engine.*picture scene0"):
        evaluate(Predictor(Broken("tensor-engine", Answers(true_depth).contract)), Scenes(), "nyu-eigen")


def test_cameras_reach_the_model_unless_switched_off():
    model = Answers(true_depth)
    evaluate(model, Scenes(1), "nyu-eigen")
    off = evaluate(model, Scenes(1), "nyu-eigen", focal_correction=False)
    assert model.cameras == [CAMERA, None]
    assert any("focal" in note for note in off.notes)


def test_limit_is_spread_evenly_and_progress_is_told():
    data, told = Scenes(10), []
    found = evaluate(Answers(true_depth), data, "nyu-eigen", limit=5, on_progress=lambda *now: told.append(now))
    assert data.read == [0, 2, 4, 6, 8]
    assert told[-1] == (5, 5)
    assert "5 of 10" in found.notes[0]
    with pytest.raises(ConfigError, match="limit 0"):
        evaluate(Answers(true_depth), data, "nyu-eigen", limit=0)


def test_fastdepth_224_feeds_the_prepared_picture():
    sizes = []

    class Wide(Scenes):
        def __getitem__(self, index):
            image, depth = np.zeros((480, 640, 3), np.uint8), np.full((480, 640), 2, np.float32)
            return Sample("wide", image, Depth(depth, Kind.METRIC_DEPTH), CAMERA)

    class Seen(Answers):
        def predict(self, image, intrinsics=None):
            sizes.append(image.shape)
            return Depth(np.full(image.shape[:2], 2.5, np.float32), Kind.METRIC_DEPTH, intrinsics)

    found = evaluate(Seen(None), Wide(1), "fastdepth-224")
    assert sizes == [(224, 224, 3)]
    assert found.rows[0]["pixels"] == 224 * 224
    assert found.summary()["rmse"].value == pytest.approx(0.5)


def test_pooled_equals_all_pixels_together():
    few = true_depth(1)
    few[:30] = 0
    data = Scenes(2, depths={1: few})
    guess = np.random.default_rng(0).uniform(0.8, 1.6, SIZE).astype(np.float32)
    found = evaluate(Answers(lambda i: guess * true_depth(i)), data, "kitti-benchmark/pooled")
    truth = np.concatenate([true_depth(0).ravel(), few[few > 0]])
    pred = np.concatenate([(guess * true_depth(0)).ravel(), (guess * true_depth(1))[few > 0]])
    expected = depth_metrics(pred, truth)
    summary = found.summary()
    assert found.label == "kitti-benchmark/pooled/none"
    for name, value in expected.items():
        assert summary[name].value == pytest.approx(value, rel=1e-6), name
    assert found.summary(pooled=False)["rmse"].value != pytest.approx(expected["rmse"], rel=1e-3)


def test_interval_has_the_width_of_theory():
    values = np.random.default_rng(3).normal(5.0, 2.0, (400, 1))
    found = interval(values.mean(), resampled_means(values)[:, 0], 400)
    expected = 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(2 * expected, rel=0.08)
    assert found.low < values.mean() < found.high
    again = interval(values.mean(), resampled_means(values)[:, 0], 400)
    assert again == found


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        values = generator.exponential(1.0, (60, 1))
        found = interval(values.mean(), resampled_means(values, resamples=400)[:, 0], 60)
        hits += found.low <= 1.0 <= found.high
    assert 175 <= hits <= 198


def test_one_picture_has_no_spread():
    found = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(1), "nyu-eigen").summary()["abs_rel"]
    assert found.low == found.high == pytest.approx(found.value)


def test_paired_difference_is_sharper_than_either_interval():
    noise = np.random.default_rng(0).uniform(0.7, 1.3, 40)
    a = evaluate(Answers(lambda i: (noise[i] + 0.02) * true_depth(0)), Scenes(40, depths=ALL_ALIKE), "nyu-eigen")
    b = evaluate(Answers(lambda i: noise[i] * true_depth(0)), Scenes(40, depths=ALL_ALIKE), "nyu-eigen")
    gap = paired(a, b, "log_bias")
    alone = a.summary()["log_bias"]
    assert gap.value == pytest.approx(np.mean(np.log((noise + 0.02) / noise)), rel=1e-4)
    assert gap.excludes_zero
    assert gap.high - gap.low < 0.1 * (alone.high - alone.low)


ALL_ALIKE = {i: true_depth(0) for i in range(40)}


def test_paired_uses_what_both_scored():
    model = Answers(lambda i: 1.1 * true_depth(i))
    a, b = (evaluate(model, Scenes(5, broken=(bad,)), "nyu-eigen") for bad in (1, 3))
    assert paired(a, b, "rmse").n == 3
    assert paired(a, b, "rmse").value == 0.0


def test_pairs_that_make_no_sense_are_refused():
    model = Answers(true_depth)
    a = evaluate(model, Scenes(3), "nyu-eigen")
    with pytest.raises(ConfigError, match="different protocols"):
        paired(a, evaluate(model, Scenes(3), "nyu-eigen/median"), "rmse")
    with pytest.raises(ConfigError, match="no such metric"):
        paired(a, a, "rmsle")
    with pytest.raises(DataError, match="in common"):
        paired(a, evaluate(model, Scenes(3, broken=(0, 1, 2)), "nyu-eigen"), "rmse")


@pytest.mark.parametrize("kind", list(Kind))
def test_fidelity_to_itself_is_perfect_without_ground_truth(kind):
    data = Scenes(3, depths=dict.fromkeys(range(3)))
    found = evaluate(Answers(true_depth, kind), data, "fidelity", reference=Answers(true_depth, kind)).summary()
    assert found["agreement"].value == 1.0
    assert found["correlation"].value == pytest.approx(1.0)
    assert found["aligned_error"].value == pytest.approx(0.0, abs=1e-6)


def test_fidelity_forgives_only_what_the_kind_leaves_open():
    base, bent = Answers(true_depth, Kind.RELATIVE_DISPARITY), lambda i: 3 * true_depth(i) + 2
    relative = evaluate(Answers(bent, Kind.RELATIVE_DISPARITY), Scenes(2), "fidelity", reference=base).summary()
    assert relative["agreement"].value == 1.0
    assert "delta1" not in relative  # ratios mean nothing where the zero is arbitrary
    metric = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(2), "fidelity", reference=Answers(true_depth))
    assert metric.summary()["abs_rel"].value == pytest.approx(0.1, rel=1e-5)
    assert metric.summary()["agreement"].value < 0.5
    assert metric.label == "fidelity"


def test_fidelity_refusals():
    with pytest.raises(ConfigError, match="--against"):
        evaluate(Answers(true_depth), Scenes(2), "fidelity")
    with pytest.raises(KindError, match="metric_depth against relative_disparity"):
        evaluate(Answers(true_depth), Scenes(2), "fidelity", reference=Answers(true_depth, Kind.RELATIVE_DISPARITY))
    with pytest.raises(ConfigError, match="fidelity only"):
        evaluate(Answers(true_depth), Scenes(2), "nyu-eigen", reference=Answers(true_depth))


def test_csv_has_a_line_per_picture_with_its_protocol(tmp_path):
    found = evaluate(Answers(lambda i: 1.1 * true_depth(i)), Scenes(3, broken=(1,)), "nyu-eigen/median")
    found.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["scene0", "scene1", "scene2"]
    assert {row["protocol"] for row in rows} == {"nyu-eigen/median"}
    assert [row["status"] for row in rows] == ["scored", "failed", "scored"]
    assert float(rows[0]["delta1"]) == 1.0
    assert rows[1]["delta1"] == ""


def test_a_protocol_of_other_data_is_noted_and_still_counts():
    rooms = Scenes(2)  # 48 x 64, trusted to 20 m
    found = evaluate(Answers(true_depth), rooms, "kitti-eigen")
    assert found.summary()["delta1"].value == 1.0
    assert found.notes == [
        "kitti-eigen was made for other data: its cap is 80 m, the data set's largest depth 20 m; "
        "its crop is for pictures of 375x1242, these have 48x64"
    ]
    assert evaluate(Answers(true_depth), rooms, "nyu-eigen").notes == []
    rooms.max_depth = 80.0
    assert evaluate(Answers(true_depth), rooms, "nyu-eigen").notes == [
        "nyu-eigen was made for other data: its cap of 10 m leaves out what lies beyond, up to 80 m"
    ]
    for protocol in ("plain", "zero-shot-disparity"):  # their cap is the data set's own
        assert evaluate(Answers(true_depth), rooms, protocol).notes == []


def test_protocol_object_is_taken_as_it_is():
    assert evaluate(Answers(true_depth), Scenes(1), get_protocol("ddad")).protocol.cap == 200.0


@pytest.mark.parametrize(
    ("maximum", "protocol", "said"),
    [(10.0, "plain", True), (20.0, "plain", False), (10.0, "plain/median", False), (None, "plain", False)],
)
def test_a_model_that_ends_below_what_counts_is_noted(maximum, protocol, said):
    model = Answers(true_depth)
    output = model.contract.output.model_copy(update={"maximum": maximum})
    model.contract = model.contract.model_copy(update={"output": output})
    notes = evaluate(model, Scenes(2), protocol).notes  # the data set's cap is 20 m
    assert [note[:16] for note in notes if "ends at" in note] == (["answers ends at "] if said else [])


def test_fidelity_with_exchanged_roles_is_noted():
    from types import SimpleNamespace

    whole, small = Answers(true_depth), Answers(true_depth)
    whole.session, small.session = SimpleNamespace(precision_ran="fp32"), SimpleNamespace(precision_ran="int8-dynamic")
    exchanged = evaluate(whole, Scenes(2), "fidelity", reference=small).notes
    assert [note for note in exchanged if "exchanged" in note] == [
        "the truth here is a model in int8-dynamic, the one measured runs in fp32: are --against and REF exchanged?"
    ]
    for model, truth in ((small, whole), (whole, whole)):
        assert not any("exchanged" in note for note in evaluate(model, Scenes(2), "fidelity", reference=truth).notes)


def test_without_a_split_training_pictures_are_left_out(tmp_path):
    assert choose_split(str(tiny.split_folder(tmp_path / "parts")), None)[0] == "test"
    assert choose_split(str(tmp_path / "parts"), "train") == ("train", "")
    assert choose_split(str(tiny.nyu(tmp_path / "nyu")), None)[0] == "test"
    for whole in (tiny.folder(tmp_path / "one"), tiny.nyu(tmp_path / "all", splits=False), "rendered:room,count=3"):
        assert choose_split(str(whole), None) == (None, "")
    model = Answers(true_depth)
    found = evaluate(model, str(tmp_path / "parts"), "plain")
    assert [row["name"] for row in found.rows] == ["test/c"]
    assert "1 of 3 pictures" in found.notes[0]
