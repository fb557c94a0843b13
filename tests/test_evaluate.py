"""Evaluation end to end: refusals, bad pictures, intervals, pairs, fidelity, and the command."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.data.dataset import Dataset, Sample
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, ImageReadError, KindError, NumericalError
from leadline.evaluation.bootstrap import interval, resampled_means
from leadline.evaluation.evaluate import evaluate, paired
from leadline.evaluation.metrics import depth_metrics
from leadline.evaluation.protocols import get_protocol

SIZE = (48, 64)
CAMERA = Intrinsics(50.0, 50.0, 32.0, 24.0)


def true_depth(index):
    rows, cols = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return (1.0 + index + rows / 20 + cols / 40).astype(np.float32)


class Scenes(Dataset):
    """Pictures whose pixels hold their index, with depth unless `depths` says otherwise; `broken` ones do not read."""

    format = "scenes"
    name = "scenes"

    def __init__(self, count=5, broken=(), depths=None, kind=Kind.METRIC_DEPTH):
        self.count, self.broken, self.depths, self.kind = count, broken, depths or {}, kind
        self.max_depth, self.read = 20.0, []

    @classmethod
    def detect(cls, path):
        return False

    @classmethod
    def open(cls, path, split):
        return cls()

    def __len__(self):
        return self.count

    def names(self):
        return [f"scene{i}" for i in range(self.count)]

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.broken:
            raise ImageReadError("cannot read", where=f"scene{index}.png", why="truncated")
        values = self.depths.get(index, true_depth(index))
        depth = None if values is None else Depth(values, self.kind, CAMERA)
        return Sample(f"scene{index}", np.full((*SIZE, 3), index, np.uint8), depth, CAMERA)


class Answers:
    """A predictor that answers with a function of the picture's index."""

    def __init__(self, function, kind=Kind.METRIC_DEPTH, name="answers"):
        spec = InputSpec(height=SIZE[0], width=SIZE[1])
        self.contract = Contract(name=name, input=spec, output=OutputSpec(kind=kind))
        self.function, self.cameras = function, []

    def predict(self, image, intrinsics=None):
        self.cameras.append(intrinsics)
        values = np.asarray(self.function(int(image[0, 0, 0])), np.float32)
        return Depth(np.broadcast_to(values, SIZE).copy(), self.contract.output.kind, intrinsics)


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


def test_protocol_object_is_taken_as_it_is():
    assert evaluate(Answers(true_depth), Scenes(1), get_protocol("ddad")).protocol.cap == 200.0


@pytest.fixture
def folder(tmp_path):
    """A folder data set of three pictures with depth in millimetres."""
    from PIL import Image

    for name in ("images", "depth"):
        (tmp_path / "data" / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / f"data/images/{i}.png")
        Image.fromarray((true_depth(i) * 1000).astype(np.uint16)).save(tmp_path / f"data/depth/{i}.png")
    (tmp_path / "data/dataset.json").write_text('{"kind": "metric_depth", "unit": "m", "depth_scale": 1000}')
    return tmp_path / "data"


def run(*arguments):
    from typer.testing import CliRunner

    from leadline.cli import app

    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


MODEL = "random:fastdepth-pruned"


def test_command_json_and_csv(folder, tmp_path):
    out = run(MODEL, "--data", folder, "--protocol", "nyu-eigen/median", "--json", "--csv", tmp_path / "out/rows.csv")
    assert out.exit_code == 0, out.output
    found = json.loads(out.stdout)
    assert (found["protocol"], found["scored"], found["cap_m"]) == ("nyu-eigen/median", 3, 10.0)
    assert set(found["metrics"]["abs_rel"]) == {"value", "low", "high", "n"}
    assert len((tmp_path / "out/rows.csv").read_text().splitlines()) == 4


def test_command_against_itself_shows_no_difference(folder):
    out = run(MODEL, "--data", folder, "--protocol", "nyu-eigen", "--against", MODEL, "--json")
    gaps = json.loads(out.stdout)["difference"]
    assert {(gap["value"], gap["low"], gap["high"]) for gap in gaps.values()} == {(0.0, 0.0, 0.0)}
    table = run(MODEL, "--data", folder, "--protocol", "nyu-eigen", "--against", MODEL, "--limit", "2")
    assert table.exit_code == 0
    assert "protocol nyu-eigen, cap 10 m" in table.stdout
    assert table.stdout.count("2 of 2 pictures scored") == 2
    assert "+0.0000" in table.stdout


def test_command_fidelity(folder):
    out = run(MODEL, "--data", folder / "images", "--protocol", "fidelity", "--against", MODEL, "--json")
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["metrics"]["agreement"]["value"] == 1.0


def test_command_goes_on_after_a_bad_picture_and_exits_1(folder):
    (folder / "images/1.png").write_bytes((folder / "images/1.png").read_bytes()[:200])
    out = run(MODEL, "--data", folder, "--protocol", "nyu-eigen")
    assert out.exit_code == 1
    assert "2 of 3 pictures scored" in out.stdout
    assert "A: failed" in out.stdout


def test_command_leaves_unpaired_pictures_out_when_told_to(folder):
    (folder / "depth/1.png").unlink()
    words = (MODEL, "--data", folder, "--protocol", "nyu-eigen")
    refused = run(*words)
    assert refused.exit_code == 2
    assert "--skip-bad leaves them out" in refused.stderr
    out = run(*words, "--skip-bad")
    assert out.exit_code == 0, out.output
    assert "2 of 2 pictures scored" in out.stdout
    assert "1 x picture without depth" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("random:depth-anything-v2-small", "--protocol", "nyu-eigen"), "refuses.*zero-shot-disparity"),
        ((MODEL, "--protocol", "nyu"), "unknown protocol"),
        ((MODEL, "--protocol", "fidelity"), "--against"),
    ],
)
def test_command_user_errors_are_one_line_and_exit_2(folder, arguments, message):
    import re

    out = run(*arguments, "--data", folder)
    assert out.exit_code == 2
    assert re.search(message, out.stderr)
    assert len(out.stderr.strip().splitlines()) == 1


def save_onnx(path, make):
    """A metric model of the contract's size whose output `make` builds from `gray`, N x 1 x H x W."""
    import onnx
    from onnx import TensorProto, helper

    nodes, constants = make()
    nodes = [helper.make_node("ReduceMean", ["input", "axes"], ["gray"], keepdims=1), *nodes]
    constants = [helper.make_tensor("axes", TensorProto.INT64, [1], [1]), *constants]
    shapes = (("input", [1, 3, *SIZE]), ("depth", [1, 1, *SIZE]))
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    graph = helper.make_graph(nodes, "model", [first], [last], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    Answers(None).contract.save(path.with_suffix(".contract.json"))
    return path


def constant():
    from onnx import TensorProto, helper

    zero, two = (helper.make_tensor(name, TensorProto.FLOAT, [], [v]) for name, v in (("zero", 0.0), ("two", 2.0)))
    nodes = [helper.make_node("Mul", ["gray", "zero"], ["none"]), helper.make_node("Add", ["none", "two"], ["depth"])]
    return nodes, [zero, two]


def not_a_number():
    from onnx import TensorProto, helper

    return [helper.make_node("Div", ["gray", "zero"], ["far"]), helper.make_node("Sub", ["far", "far"], ["depth"])], [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    ]


def test_command_flags_a_constant_model(folder, tmp_path):
    """FAULTS.md row 17."""
    model = save_onnx(tmp_path / "flat.onnx", constant)
    out = run(model, "--data", folder, "--protocol", "zero-shot-disparity")
    assert out.exit_code == 0, out.output
    assert "DEGENERATE predictions: 3" in out.stdout
    assert "nan" not in out.stdout.lower()


def test_command_stops_at_nan_and_names_the_engine(folder, tmp_path):
    """FAULTS.md row 18."""
    out = run(save_onnx(tmp_path / "broken.onnx", not_a_number), "--data", folder, "--protocol", "nyu-eigen")
    assert out.exit_code == 1
    assert "NaN or infinity in the output of 'onnxruntime" in out.stderr
    assert "picture" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_command_says_n_a_where_no_depth_is_valid(folder):
    """FAULTS.md row 14."""
    from PIL import Image

    for path in (folder / "depth").iterdir():
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(path)
    out = run(MODEL, "--data", folder, "--protocol", "nyu-eigen")
    assert out.exit_code == 1, out.output
    assert "0 of 3 pictures scored" in out.stdout
    assert "without valid ground truth (n/a): 3" in out.stdout
    assert "nan" not in out.stdout.lower()


def test_command_masks_nan_and_infinity_in_the_ground_truth(folder, tmp_path):
    """FAULTS.md row 13."""
    for path in (folder / "depth").iterdir():
        values = true_depth(int(path.stem))
        values[:4, :4], values[4:8, :4], values[8:12, :4] = np.nan, np.inf, -np.inf
        np.save(path.with_suffix(".npy"), values)
        path.unlink()
    text = '{"kind": "metric_depth", "unit": "m", "depth_scale": 1, "invalid_value": null}'
    (folder / "dataset.json").write_text(text)
    out = run(MODEL, "--data", folder, "--protocol", "kitti-benchmark", "--csv", tmp_path / "rows.csv")
    assert out.exit_code == 0, out.output
    with (tmp_path / "rows.csv").open(newline="") as file:
        pixels = [int(row["pixels"]) for row in csv.DictReader(file)]
    assert pixels == [SIZE[0] * SIZE[1] - 3 * 16] * 3


@pytest.mark.data
@pytest.mark.slow
def test_official_fastdepth_scores_what_was_published(shared_data, shared_weights):
    """RMSE .604 and δ1 .771 are published for all 654 test pictures; our 109 of them must not contradict that."""
    from safetensors.torch import load_file

    from leadline.models.fastdepth_weights import from_folded_tensors
    from leadline.models.registry import architecture, variants
    from leadline.predictor import Predictor
    from leadline.runtimes.base import SessionOptions
    from leadline.runtimes.torch_eager import open_model

    name, config = variants()["fastdepth-pruned"]
    model = architecture(name).build(config).eval()
    from_folded_tensors(model, load_file(shared_weights / "fastdepth_pruned_fp32_bnfolded.safetensors"))
    with Predictor(open_model(model, architecture(name).contract(config), SessionOptions())) as predictor:
        found = evaluate(predictor, str(shared_data / "nyu"), "fastdepth-224", split="test").summary()
    assert found["rmse"].n == 109
    assert found["rmse"].low < 0.604 < found["rmse"].high
    assert found["delta1"].low < 0.771 < found["delta1"].high
