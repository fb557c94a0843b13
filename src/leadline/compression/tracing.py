"""A network's operations as a graph, with its parameters under their own names: what folding and QAT rewrite."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from leadline.errors import UnavailableError, one_line
from leadline.models.outputs import Outputs, outputs
from leadline.runtimes.onnx_export import quiet_exporter

if TYPE_CHECKING:
    from torch import Tensor

aten = torch.ops.aten
PREFIX = "model."  # of the network's own parameters in the graph
# axis of output channels
WEIGHTED: dict[Any, int] = {aten.conv2d.default: 0, aten.conv_transpose2d.input: 1, aten.linear.default: 0}
NORM = aten.batch_norm.default
LONGER = aten.unsqueeze.default  # the weight of a linear layer that a convolution takes


class Everything(nn.Module):
    """A network that returns all its `outputs` in a row: maps, then centres, then features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """N x 3 x H x W to every tensor that an objective may look at."""
        found = outputs(self.model, image)
        centres = () if found.centres is None else (found.centres,)
        return (*found.maps, *centres, *found.features)


@dataclass(frozen=True)
class Traced:
    """A network's operations.

    Args:
        graph: takes pictures and returns what `Everything` does; the network's parameters stand behind PREFIX.
        parts: how many of the returned tensors are maps, centres and features.
    """

    graph: GraphModule
    parts: tuple[int, int, int]


def trace(model: nn.Module, size: tuple[int, int]) -> Traced:
    """The operations of `model` at one input size, any batch, in eval mode; the graph shares no tensor with it.

    Args:
        model: N x 3 x H x W to N x 1 x H x W.
        size: (height, width).

    Raises:
        UnavailableError: the network's control flow depends on its values, or its batch is fixed.
    """
    copied = copy.deepcopy(model).eval().cpu()
    example = torch.zeros(2, 3, *size) + torch.linspace(-1, 1, size[1])  # a batch of 1 would be taken as a constant
    with torch.no_grad():
        found = outputs(copied, example)
    parts = len(found.maps), int(found.centres is not None), len(found.features)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with quiet_exporter("torch.export"), torch.no_grad():
            program = torch.export.export(Everything(copied), (example,), dynamic_shapes=({0: batch},))
            exported = program.module()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        where = type(model).__name__
        raise UnavailableError("cannot trace the network", where=where, why=one_line(error)) from error
    assert isinstance(exported, GraphModule)
    graph = exported.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:  # checks of the input's shape
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.set_codegen(torch.fx.graph.CodeGen())  # plain arguments and a plain tuple
    return Traced(GraphModule(exported, graph), parts)


def unpacked(values: tuple[Tensor, ...], parts: tuple[int, int, int]) -> Outputs:
    """What `Everything` returned, by name."""
    maps, centres, _ = parts
    return Outputs(values[:maps], values[maps] if centres else None, values[maps + centres :])


def parameter(node: object) -> str | None:
    """The network's own name of the tensor that a graph node fetches; None for anything else."""
    if isinstance(node, Node) and node.op == "get_attr":
        return str(node.target).removeprefix(PREFIX)
    return None


def weight_of(node: Node) -> str | None:
    """Name of the weight of a convolution or linear layer with a constant one; None for any other operation."""
    return parameter(fetched(node.args[1])) if node.op == "call_function" and node.target in WEIGHTED else None


def fetched(weight: object) -> object:
    """The node that fetches a layer's weight; a convolution's may be a linear layer's with sides of 1 behind it."""
    while isinstance(weight, Node) and weight.target is LONGER:
        weight = weight.args[0]
    return weight
