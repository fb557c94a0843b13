"""The layers with weights of a network: of any PyTorch module, and of an ONNX graph, in one form for every step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from leadline.compression.tuning import WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import onnx

LayerKind = Literal["conv", "depthwise", "linear"]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Weighted:
    """A layer with weights.

    Args:
        name: module path, or name of the ONNX node.
        kind: convolution (transposed ones too), depthwise convolution, or linear layer.
        weight: its weights; of a module, the parameter itself.
        axis: of the weight along which the input channels lie.
        inputs: input channels that one output sees: 1 in a depthwise convolution.
        is_output: no other layer with weights follows it.
    """

    name: str
    kind: LayerKind
    weight: Tensor
    axis: int
    inputs: int
    is_output: bool = False


def module_layers(model: nn.Module, example: Tensor | None) -> list[Weighted]:
    """Convolutions and linear layers of a module, in its own order; weights that two layers share count once.

    Args:
        model: any network.
        example: an input, to find the output layers with; None marks none.
    """
    last = output_layers(model, example) if example is not None else set()
    found: dict[int, Weighted] = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and id(module.weight) not in found:
            found[id(module.weight)] = _of_module(name, module, name in last)
    return list(found.values())


def _of_module(name: str, module: nn.Module, is_output: bool) -> Weighted:
    assert isinstance(module, WEIGHTED)
    if isinstance(module, nn.Linear):
        return Weighted(name, "linear", module.weight, 1, module.in_features, is_output)
    inputs = module.in_channels // module.groups
    kind: LayerKind = "depthwise" if inputs == 1 and module.groups > 1 else "conv"
    axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1
    return Weighted(name, kind, module.weight, axis, inputs, is_output)


def output_layers(model: nn.Module, example: Tensor) -> set[str]:
    """Layers whose output reaches the network's outputs without passing another layer with weights.

    Found in the graph that automatic differentiation builds, so that a network may have several heads in any order.
    """
    names = {id(m.weight): name for name, m in reversed(list(model.named_modules())) if isinstance(m, WEIGHTED)}
    shared = {key: id(value) for key, value in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        substitutes, nodes = _differentiated(model, example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    weights = {id(tensor): names[shared[key]] for key, tensor in substitutes.items() if shared[key] in names}
    found: set[str] = set()
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        ahead = [following for following, _ in node.next_functions if following is not None]
        used = {weights[key] for key in map(_leaf, ahead) if key in weights}
        found |= used
        nodes += [] if used else ahead
    return found


def _differentiated(model: nn.Module, example: Tensor) -> tuple[dict[str, Tensor], list[Any]]:
    """Stand-ins for the parameters, and the nodes of the graph that computes the outputs from them."""
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(place: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], list[Any]]:
        weights = {key: place(value).requires_grad_() for key, value in model.named_parameters()}
        buffers = {key: place(value) for key, value in model.named_buffers()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            said = functional_call(model, {**weights, **buffers}, (place(example),))
        return weights, [tensor.grad_fn for tensor in _tensors(said) if tensor.grad_fn is not None]

    try:
        return run(lambda tensor: torch.empty_like(tensor, device="meta"))
    except (RuntimeError, NotImplementedError):  # a network that looks at values must really run
        return run(lambda tensor: tensor.detach().clone())


def _leaf(node: Any) -> int:
    """Identity of the parameter at the end of a chain of reshapes and transposes; -1 where the chain branches."""
    while len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return id(node.variable) if hasattr(node, "variable") else -1


def _tensors(said: Any) -> Iterator[Tensor]:
    if isinstance(said, Tensor):
        yield said
    elif isinstance(said, Mapping):
        for value in said.values():
            yield from _tensors(value)
    elif isinstance(said, list | tuple):
        for value in said:
            yield from _tensors(value)
    elif is_dataclass(said):
        for entry in fields(said):
            yield from _tensors(getattr(said, entry.name))


def graph_layers(proto: onnx.ModelProto) -> list[tuple[Weighted, onnx.TensorProto]]:
    """Layers of an ONNX graph whose weights are constant floats, each with the tensor that holds them.

    The weights are float32 copies; a node without a name is called `TYPE_INDEX`.
    """
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    constants = _constants(proto)
    last = _ending(proto)
    found: dict[int, tuple[Weighted, onnx.TensorProto]] = {}
    for index, node in enumerate(proto.graph.node):
        if node.op_type not in OPERATORS:
            continue
        places = (0, 1) if node.op_type == "MatMul" else (1,)
        held = next(((place, constants[node.input[place]]) for place in places if node.input[place] in constants), None)
        if held is None or held[1][0].data_type not in floats or len(held[1][0].dims) < 2:
            continue
        place, (tensor, order) = held
        kind, axis, inputs = _of_node(node, place, [tensor.dims[k] for k in order])
        name, is_output = node.name or f"{node.op_type}_{index}", index in last
        if id(tensor) in found:
            earlier, _ = found[id(tensor)]
            name, is_output = earlier.name, is_output or earlier.is_output
        weight = torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))
        found[id(tensor)] = (Weighted(name, kind, weight, order[axis], inputs, is_output), tensor)
    return list(found.values())


def _of_node(node: onnx.NodeProto, place: int, shape: list[int]) -> tuple[LayerKind, int, int]:
    """Kind, axis of the input channels and inputs per output of a node, from the shape of the weight that it sees."""
    attributes = {each.name: each for each in node.attribute}
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = int(attributes["group"].i) if "group" in attributes else 1
        axis = 0 if node.op_type == "ConvTranspose" else 1
        inputs = shape[0] // groups if axis == 0 else shape[1]
        return ("depthwise" if inputs == 1 and groups > 1 else "conv"), axis, inputs
    if node.op_type == "Gemm":
        axis = 1 if "transB" in attributes and attributes["transB"].i else 0
    else:
        axis = len(shape) - 1 if place == 0 else len(shape) - 2
    return "linear", axis, shape[axis]


def _constants(proto: onnx.ModelProto) -> dict[str, tuple[onnx.TensorProto, list[int]]]:
    """Constant tensors by the names that nodes see, with the order that Transpose nodes give their axes."""
    found = {tensor.name: (tensor, list(range(len(tensor.dims)))) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            found[node.output[0]] = (tensor, list(range(len(tensor.dims))))
        elif node.op_type in ("Identity", "Transpose") and node.input[0] in found:
            tensor, order = found[node.input[0]]
            turned = next((list(each.ints) for each in node.attribute if each.name == "perm"), order[::-1])
            found[node.output[0]] = (tensor, [order[k] for k in turned] if node.op_type == "Transpose" else order)
    return found


def _ending(proto: onnx.ModelProto) -> set[int]:
    """Indices of the nodes with weights that no other such node follows."""
    producers = {name: index for index, node in enumerate(proto.graph.node) for name in node.output}
    waiting = [value.name for value in proto.graph.output]
    seen: set[str] = set()
    found: set[int] = set()
    constants = _constants(proto)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in producers:
            continue
        seen.add(name)
        node = proto.graph.node[producers[name]]
        if node.op_type in OPERATORS and constants.keys() & set(node.input):
            found.add(producers[name])
        else:
            waiting += node.input
    return found


def inside(name: str, path: str) -> bool:
    """True where a layer is what `path` names, or lies below it."""
    return name == path or name.startswith((f"{path}.", f"{path}/"))


def ancestors(names: Iterable[str]) -> set[str]:
    """The layers' names and all module paths above them: what a user may name."""
    found: set[str] = set()
    for name in names:
        found |= {name, *(name[: mark.start()] for mark in re.finditer("[./]", name) if mark.start())}
    return found
