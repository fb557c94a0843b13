"""`leadline evaluate` as a user types it: figures, refusals, bad pictures, and published figures."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import tiny_datasets as tiny
from leadline.evaluation.evaluate import evaluate
from tiny_scenes import SIZE, Answers, true_depth


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


def test_command_csv_replaces_only_its_own_tables(folder, tmp_path):
    words = (MODEL, "--data", folder, "--protocol", "nyu-eigen", "--limit", "1", "--csv")
    (tmp_path / "diary.csv").write_text("date,weather\n")
    refused = run(*words, tmp_path / "diary.csv")
    assert refused.exit_code == 2
    assert "will not replace" in refused.stderr
    assert (tmp_path / "diary.csv").read_text() == "date,weather\n"
    for _ in range(2):
        assert run(*words, tmp_path / "rows.csv").exit_code == 0


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


def test_command_takes_the_test_pictures_where_parts_would_be_mixed(tmp_path):
    words = (MODEL, "--data", tiny.split_folder(tmp_path), "--protocol", "plain", "--size", "64,64")
    out = run(*words, "--json")
    assert out.exit_code == 0, out.output
    found = json.loads(out.stdout)
    assert found["pictures"] == 1
    assert found["notes"][0].startswith("split test (1 of 3 pictures)")
    train = json.loads(run(*words, "--split", "train", "--json").stdout)
    assert (train["pictures"], [note for note in train["notes"] if "split" in note]) == (2, [])


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


def test_command_leaves_damaged_pictures_out_when_told_to(folder):
    from PIL import Image

    Image.fromarray(np.ones((7, 9), np.uint16)).save(folder / "depth/1.png")
    words = (MODEL, "--data", folder, "--protocol", "nyu-eigen")
    assert run(*words).exit_code == 1
    out = run(*words, "--skip-bad")
    assert out.exit_code == 0, out.output
    assert "2 of 2 pictures scored" in out.stdout
    assert "1 x damaged, left out; the first: 1: picture and depth differ in size" in out.stdout
    for path in (folder / "depth").iterdir():
        path.write_bytes(b"no picture")
    nothing = run(*words, "--skip-bad")
    assert nothing.exit_code == 2
    assert "no picture can be read" in nothing.stderr


def test_command_gives_one_picture_no_interval(folder):
    words = (MODEL, "--data", folder, "--protocol", "nyu-eigen", "--against", MODEL)
    one = json.loads(run(*words, "--limit", "1", "--json").stdout)
    figures = [*one["metrics"].values(), *one["difference"].values()]
    assert {(figure["low"], figure["high"], figure["n"]) for figure in figures} == {(None, None, 1)}
    assert one["caution"] == "1 picture only, 30 or more make a verdict"
    shown = run(*words, "--limit", "1").stdout
    assert " .. " not in shown
    assert "n/a" in shown
    assert "Caution: 1 picture only" in shown
    assert "Caution: 3 pictures only" in run(*words).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("random:depth-anything-v2-small", "--protocol", "nyu-eigen"), "refuses.*zero-shot-disparity"),
        ((MODEL, "--protocol", "nyu"), "unknown protocol"),
        (
            (MODEL, "--protocol", "plain", "--size", "96,128", "--against", "random:depth-anything-v2-small"),
            "random:depth-anything-v2-small does not take the input size '96x128.*multiples of 14",
        ),
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
