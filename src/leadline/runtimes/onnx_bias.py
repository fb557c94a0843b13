"""Empirical bias correction: what quantising adds to the mean of a layer's output is taken out of its bias.

Nagel et al. 2019, section 4.2, in its empirical form: layers are corrected in order, each on what the quantised and
already corrected layers before it give. The quantised graph is computed piece by piece, a piece ending with a layer,
so that all layers together cost one pass over the pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.runtimes.onnx_graph import Graph, attribute, session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx
    from numpy.typing import NDArray

PICTURES = 16  # enough for means over all pixels of a channel


def corrected(
    ready: onnx.ModelProto, quantised: onnx.ModelProto, inputs: Sequence[NDArray[np.float32]]
) -> tuple[onnx.ModelProto, int]:
    """The float network with biases that make up for the mean error of quantising.

    Args:
        ready: the float network that `quantised` was made from; layers have the same names in both.
        quantised: with Q/DQ pairs, nodes in the order of computing.
        inputs: prepared calibration inputs.

    Returns:
        A changed copy of `ready`, to be quantised again with the same ranges, and the number of corrected layers.
    """
    graph = Graph(ready)
    behind_pairs = _quantised_layers(quantised)
    layers = {node.name: node for node in graph.nodes if node.name in behind_pairs and _channels(graph, node)}
    if not layers:
        return graph.proto, 0
    few = list(inputs[:PICTURES])
    means = _means(ready, {name: node.output[0] for name, node in layers.items()}, few)
    shifts = _shifts(quantised, means, few)
    for name, shift in shifts.items():
        node = layers[name]
        old = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        bias = np.zeros(len(shift)) if old is None else old.astype(np.float64)
        graph.set_input(node, 2, (bias + shift).astype(np.float32))
    return graph.proto, len(shifts)


def _quantised_layers(quantised: onnx.ModelProto) -> set[str]:
    real = {key for node in quantised.graph.node if node.op_type == "DequantizeLinear" for key in node.output}
    return {node.name for node in quantised.graph.node if len(node.input) > 1 and real.issuperset(node.input[:2])}


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Output channels of a layer that has, or can get, a bias of its own; 0 for another node."""
    weight = graph.weight(node)
    if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return 0
    if node.op_type == "Conv":
        channels = len(weight)
    elif node.op_type == "ConvTranspose":
        channels = weight.shape[1] * attribute(node, "group", 1)
    else:
        channels = weight.shape[0 if attribute(node, "transB", 0) else 1]
    if len(node.input) > 2 and node.input[2]:
        bias = graph.value(node.input[2])
        scaled = node.op_type == "Gemm" and attribute(node, "beta", 1.0) != 1.0
        if bias is None or bias.shape != (channels,) or scaled:
            return 0
    return int(channels)


def _per_channel(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means of N x C x ... over everything but C."""
    return np.asarray(values.mean(axis=tuple(a for a in range(values.ndim) if a != 1), dtype=np.float64))


def _means(
    ready: onnx.ModelProto, layers: dict[str, str], inputs: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.float64]]:
    keys = list(layers.values())
    opened, _ = session(ready, keys)
    feed = opened.get_inputs()[0].name
    sums: dict[str, NDArray[np.float64]] = {}
    for values in inputs:
        for name, output in zip(layers, opened.run(keys, {feed: values}), strict=True):
            sums[name] = sums.get(name, 0.0) + _per_channel(output)
    return {name: total / len(inputs) for name, total in sums.items()}


def _shifts(
    quantised: onnx.ModelProto, means: dict[str, NDArray[np.float64]], inputs: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.float64]]:
    """Per layer what its bias needs, found in order of computing."""
    feed = quantised.graph.input[0].name
    known: list[dict[str, NDArray[Any]]] = [{feed: values} for values in inputs]
    shifts: dict[str, NDArray[np.float64]] = {}
    for piece, layer, kept in _pieces(quantised, set(means), known):
        opened, names = piece
        needed = [each.name for each in opened.get_inputs()]
        for values in known:
            outputs = opened.run(names, {key: values[key] for key in needed})
            values.update(zip(names, outputs, strict=True))
        if layer is not None:
            key = layer.output[0]
            got = sum(_per_channel(values[key]) for values in known) / len(known)
            shifts[layer.name] = shift = means[layer.name] - got
            for values in known:
                bent = shift.astype(np.float32).reshape(1, -1, *[1] * (values[key].ndim - 2))
                values[key] = values[key] + bent
        for values in known:
            for key in values.keys() - kept:
                del values[key]
    return shifts


def _pieces(
    proto: onnx.ModelProto, ends: set[str], known: list[dict[str, NDArray[Any]]]
) -> Iterator[tuple[tuple[Any, list[str]], onnx.NodeProto | None, set[str]]]:
    """Sessions of consecutive stretches of the graph, the layer that ends each, and what later ones still need."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    fixed: dict[str, onnx.NodeProto] = {}  # tensors computed from constants alone: each piece computes its own
    moving: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if all(not key or key in constants or key in fixed for key in node.input):
            fixed |= dict.fromkeys(node.output, node)
        else:
            moving.append(node)
    cuts = [index + 1 for index, node in enumerate(moving) if node.name in ends]
    start = 0
    for end in cuts:  # what follows the last layer changes nothing any more
        nodes = moving[start:end]
        later = {key for node in moving[end : cuts[-1]] for key in node.input}
        yield _piece(proto, nodes, fixed, constants, known[0], later), nodes[-1], later
        start = end


def _piece(
    proto: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    fixed: dict[str, onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
    known: dict[str, NDArray[Any]],
    later: set[str],
) -> tuple[Any, list[str]]:
    from onnx import helper

    made = {key for node in nodes for key in node.output}
    read = list(dict.fromkeys(key for node in nodes for key in node.input if key))
    wanted: set[str] = set()
    waiting = [key for key in read if key in fixed]
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.update(fixed[key].output)
            waiting += [each for each in fixed[key].input if each in fixed]
    before = list({id(node): node for key, node in fixed.items() if key in wanted}.values())  # in order of computing
    used = {key for node in [*before, *nodes] for key in node.input}
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(known[key].dtype), None)
        for key in read
        if key not in made and key not in fixed and key not in constants
    ]
    outputs = [key for key in made if key in later or key == nodes[-1].output[0]]
    ends = [helper.make_empty_tensor_value_info(key) for key in outputs]
    held = [tensor for key, tensor in constants.items() if key in used]
    graph = helper.make_graph([*before, *nodes], "piece", inputs, ends, held)
    piece = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return session(piece)
