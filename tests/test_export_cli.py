"""`leadline export` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from leadline.bundle import load_bundle
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.cli.export import EXAMPLES
from leadline.evaluation.complexity import count_parameters
from leadline.reference import open_session
from leadline.runtimes import parity
from leadline.runtimes.base import RUNTIMES, Precision, runtime
from tiny_models import cnn, expected, exported, picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = cnn()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    assert model.config is not None
    save_checkpoint(folder, model.model, architecture="fastdepth", config=model.config, contract=model.contract)
    return str(folder)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_checkpoint_becomes_a_bundle_that_predicts_the_same(checkpoint: str, tmp_path: Path) -> None:
    status, out, _ = run(checkpoint, "--runtime", "onnxruntime", "--out", str(tmp_path / "b"), "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["details"]["precision_ran"] == "fp32"
    assert facts["parameters"] == count_parameters(cnn().model)
    assert facts["macs"] > 1e6
    session = open_session(str(tmp_path / "b"))
    values = picture(1, (64, 96))
    assert abs(session.run(values) - expected(cnn(), values)).max() < 1e-4
    assert load_bundle(tmp_path / "b").measurements()["macs"] == facts["macs"]


def test_static_int8_on_a_folder_of_pictures(checkpoint: str, tmp_path: Path) -> None:
    for index in range(3):
        Image.effect_noise((96, 64), 80 + index).convert("RGB").save(tmp_path / f"{index}.png")
    status, out, error = run(
        *(checkpoint, "-r", "onnxruntime", "-p", "int8-static", "-c", str(tmp_path), "--method", "percentile"),
        *("-o", str(tmp_path / "b")),
    )
    assert (status, error) == (0, "")
    assert "computes in: int8 (40 of 41 layers)" in out
    assert "against PyTorch fp32 on 4 rendered pictures" in out
    assert load_bundle(tmp_path / "b").details["calibration_pictures"] == 3


def test_another_size(checkpoint: str, tmp_path: Path) -> None:
    status, out, _ = run(checkpoint, "-r", "torch", "--size", "32,64", "-o", str(tmp_path / "b"))
    assert status == 0
    assert "input 32x64 (height x width)" in out
    assert load_bundle(tmp_path / "b").size == (32, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-r", "onnxruntim"), "did you mean 'onnxruntime'?"),
        (("-r", "torch", "-p", "int9"), "unknown precision 'int9'"),
        (("-r", "torch", "-p", "int8-weights"), "torch has no precision 'int8-weights'"),
        (("-r", "torch", "--size", "33,64"), "multiples of 32"),
        (("-r", "torch", "--size", "large"), "write height,width"),
        (("-r", "torch", "-c", "somewhere"), "nothing to calibrate"),
        (("-r", "onnxruntime", "-p", "int8-static", "--method", "median"), "unknown calibration method"),
        (("-r", "onnxruntime", "-p", "int8-static", "-c", "nowhere"), "nowhere"),
        (("-r", "onnxruntime", "-p", "int8-dynamic"), "Use int8-static"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    checkpoint: str, words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    status, out, error = run(checkpoint, *words, "-o", str(tmp_path / "b"))
    assert (status, out) == (2, "")
    assert error.count("\n") == 1
    assert message.lower() in error.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_parity_is_an_error_with_its_figure(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = parity.Tolerance(relative=1e-12, correlation=0.9999)
    monkeypatch.setitem(parity.TOLERANCES, Precision.FP32, impossible)
    status, _, error = run(checkpoint, "-r", "onnxruntime", "-o", str(tmp_path / "b"))
    assert status == 2
    assert "of the output's spread, fp32 allows 1e-12" in error
    assert not (tmp_path / "b").exists()


def test_a_place_that_is_no_folder_fails_before_any_work(checkpoint: str, tmp_path: Path) -> None:
    """FAULTS.md row 43."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    status, _, error = run(checkpoint, "-r", "torch", "-o", str(tmp_path / "file" / "b"))
    assert status == 2
    assert "is not a folder" in error


def test_replacing_an_older_bundle_is_said(checkpoint: str, tmp_path: Path) -> None:
    words = (checkpoint, "-r", "torch", "-o", str(tmp_path / "b"))
    assert "replaces" not in run(*words)[1]
    assert f"note: this replaces the earlier bundle at {tmp_path / 'b'}" in run(*words)[1]
    assert json.loads(run(*words, "--json")[1])["replaced"] is True


def test_something_of_the_users_is_not_replaced(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    status, _, error = run(checkpoint, "-r", "torch", "-o", str(tmp_path))
    assert status == 2
    assert "will not replace" in error
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_onnx_file_from_elsewhere_is_quantised(tmp_path: Path) -> None:
    """Any ONNX file with a contract; here with an open size, and a map without channel axis."""
    proto = onnx.load(exported("cnn", "onnxruntime", "fp32").file("model.onnx"))
    for side, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, ("n", "", "h", "w"), strict=True):
        if name:
            side.dim_param = name
    del proto.graph.value_info[:]
    proto.graph.node.append(onnx.helper.make_node("Squeeze", ["depth", "axis"], ["flat"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    proto.graph.output[0].name = "flat"
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "theirs.onnx")
    cnn().contract.save(tmp_path / "theirs.contract.json")
    values = picture(1, (64, 96))
    for engine in ("onnxruntime", "openvino"):
        if not runtime(engine).availability().available:
            continue
        out = tmp_path / engine
        status, text, error = run(str(tmp_path / "theirs.onnx"), "-r", engine, "-p", "int8-static", "-o", str(out))
        assert (status, error) == (0, "")
        assert "computes in: int8 (" in text
        output = open_session(str(out)).run(values)
        assert output.shape == (1, 1, 64, 96)
        assert np.corrcoef(output.ravel(), expected(cnn(), values).ravel())[0, 1] > 0.95
    status, _, error = run(str(tmp_path / "onnxruntime" / "model.onnx"), "-r", "onnxruntime", "-o", str(tmp_path / "b"))
    assert status == 2
    assert "already quantised" in error


def test_help_names_every_engine_and_precision_and_ends_in_its_examples() -> None:
    status, out, _ = run("--help")
    assert status == 0
    text = " ".join(out.split())
    assert re.findall("Runtimes: ([^.]*)", text)[0].split(", ") == list(RUNTIMES)
    known = {str(precision) for name in RUNTIMES for precision in runtime(name).precisions}
    assert set(re.findall("Precisions: ([^.]*)", text)[0].split(", ")) == known
    assert all(" ".join(example.split())[:40] in text for example in EXAMPLES)
