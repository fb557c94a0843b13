"""Model references: one kind of word names every model, and a wrong one says what to write instead."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from leadline import reference
from leadline.bundle import write_bundle
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import BundleError, ConfigError, ContractError, ModelReferenceError, UnavailableError
from leadline.models.fastdepth import Config, build, contract
from leadline.reference import load_model, onnx_contract, open_session, zoo

SMALL = Config(encoder_widths=(8,) * 14, decoder_widths=(8,) * 5, depthwise=True, skip="add", height=64, width=96)
CONTRACT = Contract(name="mean", input=InputSpec(height=32, width=64), output=OutputSpec(kind=Kind.METRIC_DEPTH))


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "small"
    save_checkpoint(folder, build(SMALL), architecture="fastdepth", config=SMALL, contract=contract(SMALL))
    return folder


def mean_network(path):
    """An ONNX file that returns the mean of the three channels."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 64])
    depth = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 32, 64])
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)
    graph = helper.make_graph([node], "g", [image], [depth])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_checkpoint_folder(checkpoint):
    loaded = load_model(str(checkpoint))
    assert (loaded.architecture, loaded.config) == ("fastdepth", SMALL)
    assert not loaded.model.training


def test_session_of_a_checkpoint_is_the_network(checkpoint):
    session = open_session(str(checkpoint))
    values = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    with torch.inference_mode():
        expected = load_model(str(checkpoint)).model(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(session.run(values), expected)


def test_session_at_another_size(checkpoint):
    session = open_session(str(checkpoint), size=(32, 64))
    assert session.contract.prepare(np.zeros((50, 70, 3), np.uint8)).shape == (1, 3, 32, 64)
    with pytest.raises(ContractError, match="Use 32,64"):
        open_session(str(checkpoint), size=(33, 64))


def test_packaged_models_come_before_folders(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "zoo", lambda: {"house": checkpoint})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house").mkdir()
    assert load_model("house").config == SMALL
    assert open_session("house").contract.input.height == 64
    with pytest.raises(ModelReferenceError, match="Did you mean 'house'"):
        load_model("hous")


def test_zoo_lists_checkpoints_only():
    assert all((folder / "weights.safetensors").is_file() for folder in zoo().values())


def test_random_weights_are_repeatable_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = load_model("random:fastdepth-pruned"), load_model("random:fastdepth-pruned")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.name == first.contract.name == "random:fastdepth-pruned"
    assert "not for depth" in first.contract.provenance


def test_onnx_file_with_a_contract_beside_it(tmp_path):
    mean_network(tmp_path / "mean.onnx")
    CONTRACT.save(tmp_path / "mean.contract.json")
    values = np.random.default_rng(0).random((1, 3, 32, 64), np.float32)
    output = open_session(str(tmp_path / "mean.onnx")).run(values)
    np.testing.assert_allclose(output, values.mean(1, keepdims=True), rtol=1e-6)
    with pytest.raises(ModelReferenceError, match="no PyTorch network"):
        load_model(str(tmp_path / "mean.onnx"))


def test_onnx_file_without_a_contract_is_told_how_to_write_one(tmp_path):
    mean_network(tmp_path / "mean.onnx")
    with pytest.raises(ModelReferenceError) as caught:
        open_session(str(tmp_path / "mean.onnx"))
    message = str(caught.value)
    assert "mean.contract.json" in message
    example = message[message.index("{") :]
    (tmp_path / "contract.json").write_text(example)
    assert onnx_contract(tmp_path / "mean.onnx").output.kind is Kind.METRIC_DEPTH


def test_onnx_file_with_external_data_outside_is_refused(tmp_path):
    """FAULTS.md row 33, for a file that is no bundle."""
    CONTRACT.save(tmp_path / "contract.json")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret")
    graph = helper.make_graph([], "g", [], [], [weight])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match="outside"):
        open_session(str(tmp_path / "m.onnx"))


def test_bundle_of_an_unknown_runtime(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "net").write_bytes(b"1")
    options = {"precision": "fp32", "contract": CONTRACT, "size": (32, 64), "dynamic": False}
    write_bundle(tmp_path / "b", runtime="abacus", **options)
    with pytest.raises((ConfigError, UnavailableError), match="abacus"):
        open_session(str(tmp_path / "b"))
    with pytest.raises(ModelReferenceError, match="exported file"):
        load_model(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("make", "ref", "message"),
    [
        (lambda p: None, "nowhere/at/all", "no such file or folder"),
        (lambda p: None, "missing.onnx", "no such file or folder"),
        (lambda p: (p / "w.pth").touch(), "w.pth", "leadline convert w.pth --out DIR"),
        (lambda p: (p / "p.jpg").touch(), "p.jpg", "a .jpg file. Give a name from"),
        (lambda p: (p / "d").mkdir(), "d", "holds no manifest.json"),
        (lambda p: None, "fastdepth-pruned", "random:fastdepth-pruned"),
        (lambda p: None, "random:fastdepth-prune", "Did you mean 'fastdepth-pruned'"),
    ],
)
def test_references_that_name_nothing(tmp_path, monkeypatch, make, ref, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(ModelReferenceError, match=message.replace("(", r"\(")):
        open_session(ref)


def test_a_run_folder_points_at_the_model_inside(checkpoint):
    with pytest.raises(ModelReferenceError, match=f"Did you mean {checkpoint}"):
        load_model(str(checkpoint.parent))


def test_hugging_face_folders_are_told_from_others(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "depth_anything"}))
    asked = []

    def remember(place):
        asked.append(place)
        raise UnavailableError("stop here")

    monkeypatch.setattr("leadline.models.hugging_face.load_hugging_face", remember)
    for ref in (str(tmp_path), "hf:owner/name"):
        with pytest.raises(UnavailableError, match="stop here"):
            load_model(ref)
    assert asked == [str(tmp_path), "owner/name"]


def test_command_refuses_on_one_line(tmp_path):
    done = CliRunner().invoke(app, ["models", str(tmp_path / "nothing" / "here")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no model")
    assert len(done.stderr.splitlines()) == 1
