"""Small ONNX graphs with known weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leadline.runtimes.onnx_graph import session


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def model(nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[int, ...] = (1, 3, 8, 8)) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def chain(activation: str = "Relu") -> onnx.ModelProto:
    """Conv 3 to 8, depthwise, Conv 8 to 4, ConvTranspose 4 to 6, Conv 6 to 1; `activation` after all but the last."""
    constants = {
        "w0": weights(0, 8, 3, 3, 3) * np.logspace(-2, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1),
        "b0": weights(1, 8),
        "w1": weights(2, 8, 1, 3, 3),
        "b1": weights(3, 8),
        "w2": weights(4, 4, 8, 1, 1),
        "w3": weights(5, 4, 6, 2, 2),
        "b3": weights(6, 6),
        "w4": weights(7, 1, 6, 1, 1),
    }
    constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)} if activation == "Clip" else {}
    more = ["low", "high"] if activation == "Clip" else []
    act = [helper.make_node(activation, [f"y{i}", *more], [f"a{i}"], name=f"act{i}") for i in range(4)]
    nodes = [
        helper.make_node("Conv", ["input", "w0", "b0"], ["y0"], name="first", pads=[1] * 4),
        act[0],
        helper.make_node("Conv", ["a0", "w1", "b1"], ["y1"], name="depthwise", pads=[1] * 4, group=8),
        act[1],
        helper.make_node("Conv", ["a1", "w2"], ["y2"], name="pointwise"),
        act[2],
        helper.make_node("ConvTranspose", ["a2", "w3", "b3"], ["y3"], name="up", strides=[2, 2]),
        act[3],
        helper.make_node("Conv", ["a3", "w4"], ["depth"], name="head"),
    ]
    return model(nodes, constants)


def tokens() -> onnx.ModelProto:
    """LayerNorm with two outlying channels, read by a MatMul, a Gemm with transB and, beside them, the output."""
    scale = np.ones(8, np.float32)
    scale[[2, 5]] = 40, 90
    constants = {
        "scale": scale,
        "shift": weights(1, 8),
        "q": weights(2, 8, 16),
        "k": weights(3, 16, 8),
        "flat": np.array([-1, 8], np.int64),
        "out": weights(4, 16, 8),
    }
    nodes = [
        helper.make_node("Reshape", ["input", "flat"], ["t"], name="flatten"),
        helper.make_node("LayerNormalization", ["t", "scale", "shift"], ["n"], name="norm", axis=-1),
        helper.make_node("MatMul", ["n", "q"], ["yq"], name="query"),
        helper.make_node("Gemm", ["n", "k"], ["yk"], name="key", transB=1),
        helper.make_node("Add", ["yq", "yk"], ["s"], name="sum"),
        helper.make_node("MatMul", ["s", "out"], ["p"], name="out"),
        helper.make_node("Add", ["p", "n"], ["depth"], name="residual"),
    ]
    return model(nodes, constants, (1, 3, 8, 8))


def ran(proto: onnx.ModelProto, values: np.ndarray, *keys: str) -> list[np.ndarray]:
    """The output, or the tensors of those names."""
    opened, names = session(proto, keys)
    outputs: list[np.ndarray] = opened.run(list(keys) or names[:1], {"input": values})
    return outputs


def inputs(count: int = 6) -> list[np.ndarray]:
    return [weights(100 + index, 1, 3, 8, 8) for index in range(count)]
