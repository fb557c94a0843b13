"""A network whose operations round to the INT8 grids of its exported Q/DQ graph, in training and in evaluation.

The Q/DQ graph that ONNX Runtime's quantiser makes is the authority: what it quantises is quantised here, between the
same operations, on the same grids. So the accuracy in training is that of the exported file.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from leadline.compression.folding import folds
from leadline.compression.quantisers import ActivationGrid, BiasGrid, WeightGrid
from leadline.compression.tracing import LONGER, PREFIX, WEIGHTED, Traced, aten, fetched, unpacked, weight_of
from leadline.errors import UnavailableError
from leadline.models.quantization import LEVELS, Activation, Channels, Quantization
from leadline.runtimes.onnx_points import INPUT, made_of, reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from leadline.models.outputs import Outputs
    from leadline.runtimes.onnx_points import Point

OPERATORS: dict[Any, str] = {  # names of ONNX
    aten.relu.default: "Relu",
    aten.relu_.default: "Relu",
    aten.hardtanh.default: "Clip",
    aten.hardtanh_.default: "Clip",
    aten.relu6.default: "Clip",
    aten.clamp.default: "Clip",
    aten.upsample_nearest2d.vec: "Resize",
    aten.upsample_bilinear2d.vec: "Resize",
    aten.max_pool2d.default: "MaxPool",
    aten.add.Tensor: "Add",
    aten.cat.default: "Concat",
}
SAME = (aten.dropout.default, aten.clone.default, aten.contiguous.default)  # in eval mode
EXACT = (aten.upsample_nearest2d.vec, aten.max_pool2d.default)  # choose among values that lie on their grid already


@dataclass(frozen=True)
class Training:
    """How the grids take part in training.

    Args:
        learns: whether steps are learned (LSQ).
        freeze_after: training passes after which they stay, if they are learned; None never.
        prunes: whether each weight has a mask; of a weight that is 0 now it is shut.
    """

    learns: bool = False
    freeze_after: int | None = None
    prunes: bool = True


class QuantisedNetwork(nn.Module):
    """N x 3 x H x W to N x 1 x H x W like the network that it was made of, at one input size.

    Args:
        model: batch norms folded (`leadline.compression.folding.fold`).
        traced: the operations of the network, batch norms folded or not; it is changed.
        weights: steps by parameter.
        points: the tensors between layers that are quantised.
        training: how.

    Raises:
        UnavailableError: the network has no place for one of `points`.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        weights: dict[str, Channels],
        points: Sequence[Point],
        training: Training = Training(),
    ) -> None:
        super().__init__()
        self.parts, graph = traced.parts, traced.graph
        _take(model.state_dict(), graph)
        join_norms(graph.graph)
        self.names, self.points, self.freeze_after = tuple(weights), tuple(points), training.freeze_after
        self.groups = {group: str(number) for number, group in enumerate(dict.fromkeys(p.group for p in points))}
        graph.weights = _weight_grids(weights, dict(model.named_parameters()), training)
        graph.grids = _activation_grids(graph.graph, points, self.groups, training)
        _insert(graph.graph, weights, points, self.groups)
        graph.biases = _round_biases(graph)
        graph.graph.eliminate_dead_code()
        self.graph = GraphModule(graph, graph.graph)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.passes: Tensor
        self.before_pass: Callable[[QuantisedNetwork, int], None] | None = None

    def forward(self, image: Tensor) -> Tensor:
        """The finest map."""
        return self.outputs(image).maps[0]

    def outputs(self, image: Tensor) -> Outputs:
        """Everything that the network says about a picture."""
        if self.training:
            self.passes += 1
            if self.before_pass is not None:
                self.before_pass(self, int(self.passes))
            if self.freeze_after is not None and int(self.passes) > self.freeze_after:
                for grid in self.all_grids():
                    grid.frozen = True
        return unpacked(self.graph(image), self.parts)

    def teacher(self, image: Tensor) -> Outputs:
        """What the network says in float with its pruned weights back; those alone have gradients."""
        quantised = {PREFIX + name for name in self.names}
        shared = {name: value.detach() for name, value in self.graph.named_parameters() if name not in quantised}
        with self.bypassed():
            return unpacked(torch.func.functional_call(self.graph, shared, (image,)), self.parts)

    def all_grids(self) -> Iterator[WeightGrid | ActivationGrid]:
        """Those of the weights, then those of the activations."""
        for module in self.graph.modules():
            if isinstance(module, WeightGrid | ActivationGrid):
                yield module

    def weight_grids(self) -> Iterator[tuple[WeightGrid, nn.Parameter]]:
        """Each quantised weight's grid with the weight itself, before rounding."""
        for number, name in enumerate(self.names):
            grid = self.graph.get_submodule(f"weights.{number}")
            assert isinstance(grid, WeightGrid)
            yield grid, self.graph.get_parameter(PREFIX + name)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """In the block the network computes in float; pruned weights are back, and they alone have gradients."""
        for grid in self.all_grids():
            grid.bypassed = True
        try:
            yield
        finally:
            for grid in self.all_grids():
                grid.bypassed = False

    @torch.no_grad()
    def result(self, model: nn.Module) -> Quantization:
        """Put the trained weights, on their grids, into `model`, and return the grids.

        Args:
            model: a network like the one that this was made of, batch norms folded.
        """
        state = model.state_dict()
        for name, value in self.graph.state_dict().items():
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) in state:
                state[name.removeprefix(PREFIX)].copy_(value)
        weights = {}
        for name, (grid, weight) in zip(self.names, self.weight_grids(), strict=True):
            state[name].copy_(grid(weight))
            weights[name] = Channels(grid.step().detach().cpu().clone(), grid.axis)
        activations = {}
        for point in self.points:
            values = self.graph.get_submodule(f"grids.{self.groups[point.group]}")
            assert isinstance(values, ActivationGrid)
            activations[point.name] = Activation(float(values.step()), int(values.zero))
        return Quantization(weights, activations)


def _take(state: Mapping[str, Tensor], graph: GraphModule) -> None:
    """Give a traced graph the values of the folded network."""
    own = graph.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if PREFIX + name in own:
                own[PREFIX + name].copy_(value)


def join_norms(graph: Graph) -> None:
    """Make a folded batch norm after a convolution that convolution's bias."""
    for node in list(graph.nodes):
        source = folds(node)
        if source is None:
            continue
        own = source.args[2] if len(source.args) > 2 else None
        bias = node.args[2]
        assert isinstance(bias, Node)
        inputs = [*source.args, *[None] * (3 - len(source.args))]
        with graph.inserting_before(source):
            fetched = graph.get_attr(str(bias.target))
            inputs[2] = fetched if own is None else graph.call_function(aten.add.Tensor, (fetched, own))
            joined = graph.call_function(source.target, tuple(inputs))  # type: ignore[arg-type]
        node.replace_all_uses_with(joined)
        graph.erase_node(node)
        graph.erase_node(source)


def names(graph: Graph) -> dict[Node, str]:
    """What each tensor of a traced graph is made of, as `leadline.runtimes.onnx_points` says it."""
    found: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = INPUT
        elif weight_of(node):
            found[node] = weight_of(node) or ""
        elif node.target in SAME and node.args[0] in found:
            found[node] = found[node.args[0]]
        elif node.op == "call_function" and node.target in OPERATORS:
            operator = OPERATORS[node.target]
            parts = node.args[0] if operator == "Concat" else node.args[: 2 if operator == "Add" else 1]
            if all(isinstance(part, Node) and part in found for part in parts):
                found[node] = made_of(operator, [found[part] for part in parts])
    return found


def _insert(graph: Graph, weights: dict[str, Channels], points: Sequence[Point], groups: dict[str, str]) -> None:
    """Put the grids where they belong."""
    known = names(graph)
    makers: dict[str, list[Node]] = {}
    for node, name in known.items():
        makers.setdefault(name, []).append(node)
    layers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if weight_of(node):
            layers.setdefault(weight_of(node) or "", []).append(node)
    originals = {node: node.args for nodes in layers.values() for node in nodes}
    for number, name in enumerate(weights):
        for layer in layers.get(name, ()):
            _round_weight(graph, layer, f"weights.{number}")
        if name not in layers:
            raise UnavailableError("no place for a quantised weight", where=name, why="no traced layer has it")
    done: set[tuple[Node, str]] = set()
    for point in points:
        target = f"grids.{groups[point.group]}"
        places = makers.get(point.name, [])
        if not places and point.others:
            places = [
                origin
                for reader in point.readers
                for layer in layers[reader]
                if isinstance(origin := originals[layer][0], Node)
            ]
        for place in places:
            if (place, target) not in done and not _on_grid_already(place, target):
                _round_after(graph, place, target)
            done.add((place, target))
        if not places:
            if point.name != reads(point.readers[0] if point.readers else ""):
                raise UnavailableError(
                    "no place for a quantised tensor", where=point.name, why="not in the traced network"
                )
            for reader in point.readers:
                for layer in layers[reader]:
                    with graph.inserting_before(layer):
                        rounded = graph.call_module(target, (layer.args[0],))
                    layer.update_arg(0, rounded)


def _round_weight(graph: Graph, layer: Node, target: str) -> None:
    """Round the weight where it is fetched, in the parameter's own shape."""
    reader, place = layer, 1
    while isinstance(source := reader.args[place], Node) and source.target is LONGER:
        reader, place = source, 0
    if isinstance(source, Node) and source.op == "get_attr":  # else another layer that reads it came first
        with graph.inserting_before(reader):
            rounded = graph.call_module(target, (source,))
        reader.update_arg(place, rounded)


def _round_after(graph: Graph, node: Node, target: str) -> None:
    with graph.inserting_after(node):
        rounded = graph.call_module(target, (node,))
    node.replace_all_uses_with(rounded)
    rounded.update_arg(0, node)


def _on_grid_already(node: Node, target: str) -> bool:
    """Whether a node only chooses among values that were rounded by the same grid."""
    source = node.args[0] if node.args else None
    return node.target in EXACT and isinstance(source, Node) and source.target == target


def _round_biases(traced: GraphModule) -> nn.ModuleDict:
    """Round the biases of layers between grids, and return what rounds them."""
    found = traced.biases = nn.ModuleDict()
    for node in list(traced.graph.nodes):
        if node.target in WEIGHTED and len(node.args) > 2 and isinstance(node.args[2], Node):
            grids = [_grid_of(traced, node.args[0]), _grid_of(traced, fetched(node.args[1]))]
            if isinstance(grids[0], ActivationGrid) and isinstance(grids[1], WeightGrid):
                number = str(len(found))
                found[number] = BiasGrid(grids[0], grids[1])
                with traced.graph.inserting_before(node):
                    rounded = traced.graph.call_module(f"biases.{number}", (node.args[2],))
                node.update_arg(2, rounded)
    return found


def _grid_of(traced: GraphModule, node: object) -> nn.Module | None:
    """The grid that a tensor was rounded to last."""
    while isinstance(node, Node) and node.target in EXACT:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    return traced.get_submodule(str(node.target))


def _weight_grids(weights: Mapping[str, Channels], state: Mapping[str, Tensor], training: Training) -> nn.ModuleDict:
    grids = nn.ModuleDict()
    for number, (name, channels) in enumerate(weights.items()):
        shape = state[name].shape if training.prunes else None
        grid = WeightGrid(channels.steps, channels.axis, learns=training.learns, shape=shape)
        if grid.kept is not None:
            grid.kept.copy_(state[name] != 0)
        grids[str(number)] = grid
    return grids


def _activation_grids(
    graph: Graph, points: Sequence[Point], groups: Mapping[str, str], training: Training
) -> nn.ModuleDict:
    grids = nn.ModuleDict()
    ends = _ends(graph)
    for point in points:
        together = [ends[each.name] for each in points if each.group == point.group and each.name in ends]
        reached = point.grid.step * (LEVELS - point.grid.zero)
        limit = max(min(together, default=math.inf), reached)
        if groups[point.group] not in grids:
            grids[groups[point.group]] = ActivationGrid(
                point.grid.step, point.grid.zero, learns=training.learns, limit=limit
            )
    return grids


def _ends(graph: Graph) -> dict[str, float]:
    """Largest values of clipping activations: quantisation may replace one by the end of its grid."""
    found = {}
    for node, name in names(graph).items():
        if OPERATORS.get(node.target) == "Clip":
            high = 6.0 if node.target is aten.relu6.default else node.args[2] if len(node.args) > 2 else None
            if isinstance(high, float | int):
                found[name] = float(high)
    return found
