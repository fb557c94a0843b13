"""The command `predict` on a network whose answer is known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from typer.testing import CliRunner

from leadline.cli import app
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind

if TYPE_CHECKING:
    from typer.testing import Result


SPEC = InputSpec(height=32, width=64)


def write_model(
    folder: Path, kind: Kind = Kind.METRIC_DEPTH, operator: str = "Identity", spec: InputSpec = SPEC
) -> Path:
    """An ONNX network that returns ten times the picture's brightness, put through one operator."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "ten"], ["bright"]),
        helper.make_node(operator, ["bright"], ["depth"]),
    ]
    shape = [1, 3, SPEC.height, SPEC.width]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, *shape[2:]])],
        [helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    Contract(name="tiny", input=spec, output=OutputSpec(kind=kind)).save(folder / "tiny.contract.json")
    return path


def picture(path: Path, height: int = 12, width: int = 16, grey: int = 51) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(path, quality=95)
    return path


def predict(model: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", "--model", model, "--threads", "1", *map(str, arguments)])


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
