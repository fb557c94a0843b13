"""Bundles: verified on loading, closed against links and paths that leave the folder (FAULTS.md row 33)."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from leadline.bundle import load_bundle, write_bundle
from leadline.cli import app
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import BundleError

CONTRACT = Contract(name="tiny", input=InputSpec(height=32, width=64), output=OutputSpec(kind=Kind.METRIC_DEPTH))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "bundle"
    (place / "inner").mkdir(parents=True)
    (place / "model.bin").write_bytes(b"weights")
    (place / "inner" / "part").write_bytes(b"part")
    write(place)
    return place


def write(place):
    return write_bundle(
        place,
        runtime="onnxruntime",
        precision="int8-static",
        contract=CONTRACT,
        size=(32, 64),
        dynamic=False,
        lineage=[{"step": "export"}],
        details={"nodes": 3},
    )


def refusal(folder) -> str:
    """What the command says; it must refuse with status 2 on one line."""
    done = CliRunner().invoke(app, ["models", str(folder)])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(BundleError):
        load_bundle(folder)
    return done.stderr


def test_round_trip(folder):
    bundle = load_bundle(folder)
    assert (bundle.runtime, bundle.precision, bundle.size, bundle.dynamic) == (
        "onnxruntime",
        "int8-static",
        (32, 64),
        False,
    )
    assert (bundle.contract, bundle.lineage, bundle.details) == (CONTRACT, ({"step": "export"},), {"nodes": 3})
    assert bundle.file("inner/part").read_bytes() == b"part"
    assert bundle.size_bytes == len(b"weights") + len(b"part")
    with pytest.raises(BundleError, match="no such file"):
        bundle.file("../bundle/model.bin")


def test_measurements_may_change_later(folder):
    bundle = load_bundle(folder)
    assert bundle.measurements() == {}
    bundle.write_measurements({"ms": 1.5})
    bundle.write_measurements({"ms": 2.5})
    assert load_bundle(folder).measurements() == {"ms": 2.5}
    (folder / "measurements.json").write_text("{")
    with pytest.raises(BundleError, match="Measure it again"):
        bundle.measurements()


def test_command_shows_a_bundle(folder):
    done = CliRunner().invoke(app, ["models", str(folder), "--json"])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert (shown["runtime"], shown["kind"], shown["bytes"]) == ("onnxruntime", "metric_depth", 11)


def test_damage_is_noticed(folder):
    (folder / "model.bin").write_bytes(b"weightz")
    assert "SHA-256" in refusal(folder)


def test_symbolic_link_is_refused(folder, tmp_path):
    (tmp_path / "outside").write_bytes(b"weights")
    (folder / "model.bin").unlink()
    (folder / "model.bin").symlink_to(tmp_path / "outside")
    assert "it is a link" in refusal(folder)


def test_linked_folder_is_refused(folder, tmp_path):
    (folder / "inner").rename(tmp_path / "inner")
    (folder / "inner").symlink_to(tmp_path / "inner")
    assert "it is a link" in refusal(folder)


def test_hard_link_is_refused(folder, tmp_path):
    os.link(folder / "model.bin", tmp_path / "second")
    assert "hard link" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "inner/../../outside", "C:\\x", "./model.bin", ""])
def test_names_that_leave_the_folder_are_refused(folder, tmp_path, name):
    (tmp_path / "outside").write_bytes(b"x")
    path = folder / "manifest.json"
    entries = json.loads(path.read_text())
    entries["files"][name] = {"sha256": "", "size": 1}
    path.write_text(json.dumps(entries))
    assert "unsafe file name" in refusal(folder)


def test_unlisted_file_is_refused(folder):
    (folder / "extra.dll").write_bytes(b"x")
    assert "does not list" in refusal(folder)


def external_model(path, location, inside_subgraph=False):
    weight = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 64])
    depth = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 32, 64])
    if inside_subgraph:
        node = helper.make_node("Constant", [], ["w"], value=weight)
        graph = helper.make_graph([node, helper.make_node("Conv", ["x", "w"], ["y"])], "g", [image], [depth])
    else:
        graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [image], [depth], [weight])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


@pytest.mark.parametrize("inside_subgraph", [False, True])
@pytest.mark.parametrize("location", ["../secret.data", "/etc/passwd", "sub/../../secret.data"])
def test_external_data_outside_is_refused(tmp_path, location, inside_subgraph):
    (tmp_path / "secret.data").write_bytes(bytes(12))
    place = tmp_path / "bundle"
    place.mkdir()
    external_model(place / "model.onnx", location, inside_subgraph)
    write(place)
    assert "unsafe file name" in refusal(place)


def test_external_data_inside_is_accepted(tmp_path):
    place = tmp_path / "bundle"
    place.mkdir()
    (place / "model.data").write_bytes(bytes(12))
    external_model(place / "model.onnx", "model.data")
    write(place)
    assert load_bundle(place).files == ("contract.json", "model.data", "model.onnx")
    assert onnx.load(place / "model.onnx").graph.initializer[0].raw_data == bytes(12)
