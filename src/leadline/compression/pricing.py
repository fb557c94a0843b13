"""What a masked network costs, as a function of its masks with a gradient (SPEC.md 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from leadline.compression.channel_map import COUNTED
from leadline.compression.masks import Masks, attach, detach, with_stays
from leadline.evaluation.complexity import count_macs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from leadline.compression.channel_map import ChannelMap
    from leadline.compression.latency_price import LatencyPrice

Counted = Literal["macs", "params"]
Resource = Literal["macs", "params", "latency"]
RECENT = 10  # the last tenth of a search decides what stays


class Costs(nn.Module):
    """Multiply-accumulates, parameters and latency of a network from the units that are on.

    Of a layer: effective outputs x effective inputs x window (x positions); of a depthwise one outputs x window; one
    more parameter per output with a bias. Batch norms have none here, since engines fold them away; products that are
    no layer (attention) count as in the whole network.

    Args:
        model: the network.
        chart: its row of units.
        size: (height, width) of the input, pixels.
        latency: of the network, where it is among the costs.
    """

    def __init__(
        self, model: nn.Module, chart: ChannelMap, size: tuple[int, int], latency: LatencyPrice | None = None
    ) -> None:
        super().__init__()
        self._latency = (latency,)  # not a part: its state is kept beside the network
        positions = _positions(model, size)
        used = [layer for layer in chart.layers if layer.path in positions]
        self.fixed = 0.0
        self.register_buffer("inputs", _counts([layer.inputs for layer in used], chart.units), persistent=False)
        self.register_buffer("outputs", _counts([layer.outputs for layer in used], chart.units), persistent=False)
        self.inputs: Tensor
        self.outputs: Tensor
        facts = {
            "window": [layer.window for layer in used],
            "positions": [positions[layer.path] for layer in used],
            "biased": [layer.biased for layer in used],
        }
        for name, values in facts.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)
        alone = torch.tensor([layer.depthwise for layer in used], dtype=torch.bool)
        self.register_buffer("depthwise", alone, persistent=False)
        self.window: Tensor
        self.positions: Tensor
        self.biased: Tensor
        self.depthwise: Tensor
        everything = torch.ones(chart.units, dtype=torch.float64)
        self.fixed = count_macs(model, size) - float(self.of("macs", everything))

    def of(self, resource: Resource, row: Tensor) -> Tensor:
        """A scalar, float64: multiply-accumulates, parameters, or milliseconds.

        Args:
            resource: which.
            row: how much of each unit counts, 0 to 1.
        """
        if resource == "latency":
            return self.latency.of(row)
        row = with_stays(row.double())
        outputs = self.outputs @ row
        kernels = torch.where(self.depthwise, outputs, outputs * (self.inputs @ row)) * self.window
        if resource == "macs":
            return (kernels * self.positions).sum() + self.fixed
        return (kernels + outputs * self.biased).sum()

    def exact(self, resource: Resource, row: Tensor) -> float:
        """The cost of units that are on (1) or off (0), without a gradient."""
        return self.latency.exact(row) if resource == "latency" else float(self.of(resource, row))

    @property
    def latency(self) -> LatencyPrice:
        """Where latency is among the costs."""
        assert self._latency[0] is not None
        return self._latency[0]


@dataclass(frozen=True)
class Terms:
    """How cost enters the loss.

    Args:
        initial: of each resource, of the whole network.
        targets: share of it that may stay, by resource; empty for the simple form.
        strengths: factors of the raw cost, by resource, in the simple form.
        task_loss: after the warm-up.
        iterations: of the search.
        pieces: that a batch is cut into: how often a price is asked in each iteration.
        discrete: count units that are on, instead of theta itself.
    """

    initial: Mapping[Resource, float]
    targets: Mapping[Resource, float]
    strengths: Mapping[Resource, float]
    task_loss: float
    iterations: int
    pieces: int = 1
    discrete: bool = True


def final_strength(task_loss: float, initial: float, target: float) -> float:
    """Lambda at full strength: the excess of the whole network then weighs as much as the task; 0 without an excess."""
    return max(0.0, task_loss / (initial - target)) if initial > target else 0.0


def strength_at(iteration: float, iterations: int, final: float) -> float:
    """Lambda after `iteration` of `iterations`: from a hundredth to the whole at half of the search, then constant."""
    return min(final / 100 + iteration * 0.99 * final / (iterations / 2), final)


class Searched(nn.Module):
    """A network in search of its channels: masked, and with a price.

    Args:
        network: changed in place; `release` gives it back.
        chart: its row of units.
        costs: of it.
        terms: how they enter the loss.
    """

    def __init__(self, network: nn.Module, chart: ChannelMap, costs: Costs, terms: Terms) -> None:
        super().__init__()
        self.network, self.costs, self.terms = network, costs, terms
        self._masks = (Masks(chart),)  # not a part: they are trained beside the network, at a rate of their own
        attach(network, self.masks, chart)

    def __getattr__(self, name: str) -> Any:
        """What the network offers beside `forward` (outputs, encoder) is offered here too."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property
    def masks(self) -> Masks:
        """Of all groups."""
        return self._masks[0]

    def forward(self, x: Tensor) -> Any:
        """The masked network's."""
        return self.network(x)

    def beside(self) -> dict[str, nn.Module]:
        """The masks, and what is known of the latency, by name."""
        priced = "latency" in self.terms.initial
        return {"masks": self.masks} | ({"latency": self.costs.latency} if priced else {})

    def price(self, notes: dict[str, float]) -> Tensor:
        """Sum over resources of lambda x the excess over the target, or of strength x cost.

        Args:
            notes: takes each resource's share of the whole network, and lambda.
        """
        terms, masks = self.terms, self.masks
        row = masks.on() if terms.discrete else masks.theta().clamp(max=1.0)
        elapsed = float(masks.asked) / terms.pieces
        total = row.sum().double() * 0.0
        for resource, initial in terms.initial.items():
            cost = self.costs.of(resource, row)
            notes[f"{resource}_share"] = float(cost.detach()) / initial
            if resource in terms.targets:
                target = terms.targets[resource] * initial
                final = final_strength(terms.task_loss, initial, target)
                strength = strength_at(elapsed, terms.iterations, final)
                total = total + strength * (cost - target).clamp(min=0.0)
            if resource in terms.strengths:
                total = total + terms.strengths[resource] * cost
        if torch.is_grad_enabled():
            masks.note(min(1.0, RECENT / (terms.iterations * terms.pieces)))
        return total.float()

    def release(self) -> nn.Module:
        """The network without masks, its kernels as they were trained."""
        detach(self.network)
        return self.network


def _positions(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """How often each layer's window is applied to one picture, by path; layers that do not run are left out."""
    found: dict[str, int] = {}
    names: dict[nn.Module, str] = {each: path for path, each in model.named_modules() if isinstance(each, COUNTED)}

    def note(module: nn.Module, given: tuple[Tensor, ...], said: Tensor) -> None:
        if isinstance(module, nn.Linear):
            found[names[module]] = found.get(names[module], 0) + said.numel() // said.shape[-1]
            return
        grid = given[0] if isinstance(module, nn.ConvTranspose2d) else said  # the products that really happen
        found[names[module]] = found.get(names[module], 0) + grid.shape[2:].numel()

    hooks = [module.register_forward_hook(note) for module in names]
    was = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *size, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in was.items():
            module.training = training
    return found


def _counts(places: list[Tensor], units: int) -> Tensor:
    """How many of each layer's channels stand at each place of the row: layers x (units + 1), the last for `STAYS`."""
    table = torch.zeros(len(places), units + 1, dtype=torch.float64)
    for row, at in enumerate(places):
        table[row] = torch.bincount(torch.where(at < 0, units, at), minlength=units + 1).double()
    return table
