"""Weights and activations made easier to quantise, the network's function unchanged.

Cross-layer equalisation (Nagel et al. 2019, section 4.1): where one convolution feeds another through ReLU, a channel
may be divided by s in the first and multiplied by s in the second; s makes both layers' ranges equal.
SmoothQuant (Xiao et al. 2023, equation 4): where a LayerNorm feeds linear layers, its channels with outliers are
divided by s and the layers' rows multiplied by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError
from leadline.runtimes.onnx_graph import Graph, attribute, session

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from numpy.typing import NDArray

    Fed = tuple[onnx.NodeProto, int]  # a layer and the axis of its weight that runs over its inputs

SWEEPS, SETTLED = 30, 1e-3  # over all pairs; the largest change of a sweep that ends them
# f(s x) = s f(x) per channel for s > 0, from the first input to the first output
HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Identity")
SMOOTHED_ON = 16  # pictures; outliers sit in the same channels of all of them
SMALLEST = 1e-5


def equalised(proto: onnx.ModelProto, *, name: str) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The same function with even ranges along chains of convolutions.

    A Clip between two convolutions (ReLU6) stops a chain: per channel its upper end would have to move with s, which
    no engine runs in INT8. Chains that branch stop too.

    Args:
        proto: BatchNorm folded.
        name: of the network, for messages.

    Returns:
        The changed copy, and how many pairs were evened out and how many a Clip kept from it.

    Raises:
        ConfigError: there is no such pair.
    """
    graph = Graph(proto)
    found = [(node, *_next_convolution(graph, node)) for node in graph.nodes if _is_convolution(graph, node)]
    pairs = [(first, second) for first, second, _ in found if second is not None]
    clipped = sum(is_clipped for *_, is_clipped in found)
    if not pairs:
        why = "no convolution feeds another through ReLU alone"
        if clipped:
            why += f"; {clipped} pairs have a Clip (ReLU6) between them, which bounds every channel alike"
        raise ConfigError("nothing to equalise in", where=name, why=why, mend="leave equalise out")
    for _ in range(SWEEPS):
        if max(_even_out(graph, first, second) for first, second in pairs) < SETTLED:
            break
    return graph.proto, {"pairs": len(pairs), "stopped_by_clip": clipped}


def _is_convolution(graph: Graph, node: onnx.NodeProto) -> bool:
    has_bias = len(node.input) > 2 and node.input[2] != ""
    known = not has_bias or graph.value(node.input[2]) is not None
    return node.op_type == "Conv" and known and graph.weight(node) is not None


def _next_convolution(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, bool]:
    """The only convolution that reads a node's channels, and whether a Clip that bounds them stands before it."""
    key, clipped = node.output[0], False
    while key not in graph.outputs:
        readers = graph.readers.get(key, [])
        if len(readers) != 1 or readers[0].input[0] != key:
            break
        reader = readers[0]
        if _is_convolution(graph, reader):
            return (None, True) if clipped else (reader, False)
        if reader.op_type == "Clip":
            clipped = clipped or _bounds(graph, reader) != (0.0, np.inf)
        elif reader.op_type not in HOMOGENEOUS:
            break
        key = reader.output[0]
    return None, False


def _bounds(graph: Graph, clip: onnx.NodeProto) -> tuple[float, float]:
    ends = [-np.inf, np.inf]
    for place in (1, 2):
        if len(clip.input) > place and clip.input[place]:
            value = graph.value(clip.input[place])
            ends[place - 1] = np.nan if value is None else float(value)
    return ends[0], ends[1]


def _even_out(graph: Graph, first: onnx.NodeProto, second: onnx.NodeProto) -> float:
    """Scale a pair's channels so that their largest weights agree; how far the factors were from 1."""
    ahead, behind = graph.weight(first), graph.weight(second)
    assert ahead is not None
    assert behind is not None
    channels, groups = len(ahead), attribute(second, "group", 1)
    grouped = behind.astype(np.float64).reshape(groups, len(behind) // groups, channels // groups, -1)
    reach_ahead = np.abs(ahead).reshape(channels, -1).max(axis=1).astype(np.float64)
    reach_behind = np.abs(grouped).max(axis=(1, 3)).reshape(channels)
    usable = (reach_ahead > 0) & (reach_behind > 0)
    s = np.sqrt(np.divide(reach_ahead, reach_behind, out=np.ones(channels), where=usable))
    per_channel = s.reshape(-1, *[1] * (ahead.ndim - 1))
    graph.set_input(first, 1, (ahead / per_channel).astype(np.float32))
    if len(first.input) > 2 and first.input[2]:
        bias = graph.value(first.input[2])
        assert bias is not None
        graph.set_input(first, 2, (bias / s).astype(np.float32))
    scaled = grouped * s.reshape(groups, 1, channels // groups, 1)
    graph.set_input(second, 1, scaled.reshape(behind.shape).astype(np.float32))
    return float(np.abs(s - 1).max())


def smoothed(
    proto: onnx.ModelProto, inputs: Sequence[NDArray[np.float32]], strength: float, *, name: str
) -> tuple[onnx.ModelProto, int]:
    """The same function with the outliers of normalised tokens moved into the linear layers that read them.

    Args:
        proto: as exported, LayerNorm in one node.
        inputs: prepared calibration inputs.
        strength: alpha of the paper, 0 to 1: s = max|X|^alpha / max|W|^(1 - alpha) per channel.
        name: of the network, for messages.

    Returns:
        The changed copy, and the number of LayerNorms that were changed.

    Raises:
        ConfigError: no calibration inputs, or no LayerNorm feeds a linear layer.
    """
    if not inputs:
        raise ConfigError("the calibration set is empty", why="smoothing needs pictures", mend="give at least one")
    graph = Graph(proto)
    groups = [(norm, fed) for norm in list(graph.nodes) if (fed := _fed(graph, norm))]
    if not groups:
        why = "no LayerNorm feeds a linear layer"
        raise ConfigError("nothing to smooth in", where=name, why=why, mend="leave smooth out; it is for transformers")
    keys = [norm.output[0] for norm, _ in groups]
    opened, _ = session(proto, keys)
    reach: dict[str, NDArray[np.float32]] = {}
    for values in inputs[:SMOOTHED_ON]:
        outputs = opened.run(keys, {opened.get_inputs()[0].name: values})
        for key, tokens in zip(keys, outputs, strict=True):
            largest = np.abs(tokens).reshape(-1, tokens.shape[-1]).max(axis=0)
            reach[key] = np.maximum(reach.get(key, largest), largest)
    for norm, fed in groups:
        _move_outliers(graph, norm, fed, reach[norm.output[0]].astype(np.float64), strength)
    return graph.proto, len(groups)


def _fed(graph: Graph, norm: onnx.NodeProto) -> list[tuple[onnx.NodeProto, Fed]]:
    """Who reads a LayerNorm and, through it, which layer; other readers are left out."""
    if norm.op_type != "LayerNormalization" or any(graph.value(key) is None for key in norm.input[1:] if key):
        return []
    scale = graph.value(norm.input[1])
    if scale is None or scale.ndim != 1:
        return []
    found: list[tuple[onnx.NodeProto, Fed]] = []
    for reader in graph.readers.get(norm.output[0], []):
        if reader.op_type == "Transpose" and reader.output[0] not in graph.outputs:
            order = attribute(reader, "perm", [])
            behind = graph.readers.get(reader.output[0], [])
            alike = all(node.op_type == "Conv" and attribute(node, "group", 1) == 1 for node in behind)
            if behind and alike and len(order) > 1 and order[1] == len(order) - 1:
                found += [(reader, (node, 1)) for node in behind if graph.weight(node) is not None]
            continue
        weight = graph.weight(reader)
        if weight is None or weight.ndim != 2 or reader.input[0] != norm.output[0] or reader.op_type == "Conv":
            continue
        if not attribute(reader, "transA", 0):
            found.append((reader, (reader, attribute(reader, "transB", 0))))
    return found


def _move_outliers(
    graph: Graph,
    norm: onnx.NodeProto,
    fed: list[tuple[onnx.NodeProto, Fed]],
    reach: NDArray[np.float64],
    strength: float,
) -> None:
    weights = [(layer, axis, graph.weight(layer)) for _, (layer, axis) in fed]
    largest = np.zeros_like(reach)
    for _, axis, weight in weights:
        assert weight is not None
        others = tuple(a for a in range(weight.ndim) if a != axis)
        largest = np.maximum(largest, np.abs(weight).max(axis=others))
    s = reach**strength / np.maximum(largest, SMALLEST) ** (1 - strength)
    s = np.where((reach > 0) & (largest > 0), np.maximum(s, SMALLEST), 1.0)
    readers = {reader.output[0]: reader for reader, _ in fed}
    if len(readers) < len(graph.readers[norm.output[0]]) or norm.output[0] in graph.outputs:
        norm = graph.double(norm, list(readers.values()))
    for place in range(1, len(norm.input)):
        values = graph.value(norm.input[place])
        if values is not None:
            graph.set_input(norm, place, (values / s).astype(np.float32))
    for layer, axis, weight in weights:
        assert weight is not None
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        graph.set_input(layer, 1, (weight * s.reshape(shape)).astype(np.float32))
