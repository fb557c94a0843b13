"""Narrower arithmetic for an ONNX graph without calibration: FP16, INT8 weights, and dynamic INT8."""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError, NumericalError
from leadline.runtimes.onnx_graph import Graph, out_axis, slim
from leadline.runtimes.onnx_quantize import excluded, quiet_quantiser

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from leadline.runtimes.base import ExportOptions

SMALLEST = 256  # numbers of a weight that is worth a scale of its own


def half_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in FP16, input and output in FP32.

    Raises:
        NumericalError: a weight is too large for FP16.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    limit = float(np.finfo(np.float16).max)
    for tensor in proto.graph.initializer:
        if (
            tensor.data_type == onnx.TensorProto.FLOAT
            and np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > limit
        ):
            raise NumericalError("weight out of FP16's range", where=tensor.name, mend="use bf16 or fp32")
    with warnings.catch_warnings():
        # Weights below FP16's smallest subnormal become 0 or that number; parity says whether it matters.
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        half: onnx.ModelProto = convert_float_to_float16(_unshare_constants(proto), keep_io_types=True)
    return half


def _unshare_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give each node its own small constants: the converter names two casts alike where nodes share one."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    small = {tensor.name: tensor for tensor in copied.graph.initializer if math.prod(tensor.dims) <= 16}
    taken: set[str] = set()
    for index, node in enumerate(copied.graph.node):
        for place, key in enumerate(node.input):
            if key in small and key in taken:
                own = copied.graph.initializer.add()
                own.CopyFrom(small[key])
                own.name = node.input[place] = f"{key}_{index}_{place}"
            taken.add(key)
    return copied


def dynamic_int8(
    proto: onnx.ModelProto, options: ExportOptions, *, name: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """INT8 weights, and activations whose ranges are found while running: matrix products only.

    Convolutions are left alone: ONNX Runtime's dynamic convolution is three times slower than FP32 (RUNTIMES.md 5).

    Raises:
        ConfigError: the network has no matrix product with constant weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    constants = {tensor.name for tensor in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    if not layers:
        why = "ONNX Runtime is slower with dynamic convolutions than in FP32, so only matrix products are quantised"
        mend = "use int8-static"
        raise ConfigError("nothing to quantise dynamically in", where=name, why=why, mend=mend)
    ready = onnx.ModelProto()
    ready.CopyFrom(proto)
    del ready.graph.value_info[:]  # the quantiser turns a Gemm's weight, and a shape noted before would contradict it
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(ready, before)
        with quiet_quantiser():
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=options.per_channel,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded(proto, options),
                extra_options={"MatMulConstBOnly": True},
            )
        quantised = onnx.load(after)
    count = sum(node.op_type == "MatMulInteger" for node in quantised.graph.node)
    return quantised, {"quantised_layers": count, "per_channel": options.per_channel}


def int8_weights(
    proto: onnx.ModelProto, options: ExportOptions, *, name: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Weights as INT8 with a DequantizeLinear behind each; activations and arithmetic stay in float.

    Raises:
        ConfigError: no layer has a weight of SMALLEST numbers or more, or an excluded node does not exist.
    """
    import onnx

    graph = Graph(proto)
    left_out = excluded(graph.proto, options)
    places: list[onnx.NodeProto] = []
    for node in list(graph.nodes):
        weight = graph.weight(node)
        if weight is None or weight.size < SMALLEST or node.name in left_out:
            continue
        axis = out_axis(node, weight.ndim)
        whole, scale = symmetric_int8(weight, axis if options.per_channel else None)
        # A weight that several layers share becomes one constant per layer, as their axes may differ.
        key = f"{node.input[1]}_{len(places)}_int8"
        graph.proto.graph.initializer.extend(
            [onnx.numpy_helper.from_array(whole, key), onnx.numpy_helper.from_array(scale, f"{key}_scale")]
        )
        axis_of = {"axis": axis} if options.per_channel else {}
        widened = onnx.helper.make_node("DequantizeLinear", [key, f"{key}_scale"], [f"{key}_float"], **axis_of)
        node.input[1] = f"{key}_float"
        places.append(widened)
    if not places:
        why = f"no convolution or matrix product has a weight of {SMALLEST} numbers"
        raise ConfigError("no weights to narrow in", where=name, why=why, mend="use fp32 or int8-static")
    nodes = [*places, *graph.nodes]
    del graph.proto.graph.node[:]
    graph.proto.graph.node.extend(nodes)
    onnx.checker.check_model(graph.proto)
    return slim(graph.proto), {"quantised_layers": len(places), "per_channel": options.per_channel}


def symmetric_int8(weight: NDArray[np.float32], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight as whole numbers from -127 to 127 and their scale (Wu et al. 2020: zero point 0).

    Args:
        weight: any shape.
        axis: of the output channels, which each get a scale; None for one scale.

    Returns:
        INT8 of the same shape, rounded half to even, and the scale(s): one per channel, or of no dimension.
    """
    others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
    scale = np.abs(weight.astype(np.float64)).max(axis=others, keepdims=True) / 127
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    whole = np.rint(weight.astype(np.float64) / scale).clip(-127, 127).astype(np.int8)
    return whole, scale.reshape(() if axis is None else -1)
