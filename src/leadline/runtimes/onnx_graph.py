"""An ONNX graph to look around in and to change: constants, who makes a tensor, who reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Graph:
    """A copy of a model, with look-ups that stay true while its constants are changed.

    Args:
        proto: stays as it is.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = type(proto)()
        self.proto.CopyFrom(proto)
        self._constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.makers = {key: node for node in self.nodes for key in node.output}
        self.outputs = {value.name for value in self.proto.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for key in node.input:
                self.readers.setdefault(key, []).append(node)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """In the order of computing."""
        found: Sequence[onnx.NodeProto] = self.proto.graph.node
        return found

    def value(self, key: str) -> NDArray[Any] | None:
        """The constant called `key`, None where it is computed."""
        from onnx import numpy_helper

        tensor = self._constants.get(key)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def weight(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        """The constant float weight of a layer; None for another node, and for a product of two activations."""
        import onnx

        if node.op_type not in WEIGHTED or len(node.input) < 2:
            return None
        tensor = self._constants.get(node.input[1])
        return self.value(node.input[1]) if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT else None

    def set_input(self, node: onnx.NodeProto, place: int, values: NDArray[np.float32]) -> None:
        """Give a node its own constant at input `place`; other readers of the old one keep theirs."""
        from onnx import numpy_helper

        old = node.input[place] if place < len(node.input) else ""
        shared = len(self.readers.get(old, [])) > 1 or old not in self._constants
        name = self._free(f"{old or node.output[0] + '_constant'}_{node.output[0]}") if shared else old
        tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        if not shared:
            self._constants[old].CopyFrom(tensor)
            return
        while len(node.input) <= place:
            node.input.append("")
        if old:
            self.readers[old].remove(node)
        node.input[place] = name
        self.readers[name] = [node]
        self.proto.graph.initializer.append(tensor)
        self._constants[name] = self.proto.graph.initializer[-1]

    def double(self, node: onnx.NodeProto, readers: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
        """A second node like `node`, with one output, that `readers` read from instead."""
        place = next(index for index, each in enumerate(self.nodes) if each is node or each.output == node.output)
        copied = type(node)()
        copied.CopyFrom(node)
        copied.name = f"{node.name}_2"
        copied.output[0] = self._free(f"{node.output[0]}_2")
        self.proto.graph.node.insert(place + 1, copied)
        own = self.nodes[place + 1]
        self.makers[own.output[0]] = own
        for key in own.input:
            self.readers.setdefault(key, []).append(own)
        self.readers[own.output[0]] = list(readers)
        for reader in readers:
            reader.input[:] = [own.output[0] if key == node.output[0] else key for key in reader.input]
            self.readers[node.output[0]].remove(reader)
        return own

    def _free(self, name: str) -> str:
        while name in self._constants or name in self.makers:
            name += "_"
        return name


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def out_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a layer's weight that runs over its output channels (within a group, for a grouped ConvTranspose)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network without what no engine needs: long names, shapes in between, zero points that are 0.

    Names and zero points of a graph with Q/DQ pairs are a twentieth of a small network's file. Layers with weights keep
    their names, which profiles show.
    """
    from onnx import numpy_helper

    small = type(proto)()
    small.CopyFrom(proto)
    graph = small.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) == 3:
            zero_point = constants.get(node.input[2])
            same = zero_point is not None and zero_point.data_type == constants[node.input[0]].data_type
            if same and zero_point is not None and not numpy_helper.to_array(zero_point).any():
                del node.input[2:]
    used = {key for node in graph.node for key in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    if not any(each.HasField("g") or each.graphs for node in graph.node for each in node.attribute):
        _shorten(graph)
    return small


def _shorten(graph: onnx.GraphProto) -> None:
    ends = {value.name for value in [*graph.input, *graph.output]} | {""}
    names: dict[str, str] = {}

    def short(key: str) -> str:
        return key if key in ends else names.setdefault(key, f".{len(names):x}")

    for node in graph.node:
        node.name = node.name if node.op_type in WEIGHTED else ""
        node.input[:] = [short(key) for key in node.input]
        node.output[:] = [short(key) for key in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)


def session(
    proto: onnx.ModelProto, wanted: Mapping[str, int] | Sequence[str] = (), *, optimise: bool = False
) -> tuple[Any, list[str]]:
    """ONNX Runtime on a graph in memory, one thread, with more of its tensors as outputs.

    Args:
        proto: stays as it is.
        wanted: names of float tensors to return as well.
        optimise: False leaves every tensor as the graph has it; True lets nodes be fused.

    Returns:
        The session and the names of its outputs in order: those of the graph, then the wanted ones.
    """
    import onnx
    import onnxruntime

    probed = type(proto)()
    probed.CopyFrom(proto)
    outputs = [value.name for value in probed.graph.output]
    for key in wanted:
        if key not in outputs:
            probed.graph.output.append(onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, None))
            outputs.append(key)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = 1, 1
    settings.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    opened = onnxruntime.InferenceSession(probed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return opened, outputs
