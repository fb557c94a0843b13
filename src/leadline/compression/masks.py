"""Masks on channels that learn whether a channel is needed (PIT of PLiNIO; SPEC.md 8).

One number alpha per unit of a group, 1 at the start; theta = |alpha|; a unit is on where theta > 0.5, and the gradient
passes as if it were theta itself. The strongest unit of each group is always on (the published library keeps the last
one; the number that stays is the same, and the choice is not arbitrary).

Once a target is met, masks of needed units hover about the threshold: off, the task pulls them up; on, the price pulls
them down. So what is kept in the end is what was on most of the recent time, not what the last step happened to leave.

A mask multiplies the kernels that read a channel, not the channel: a removed channel is one that nobody reads, so the
masked network equals the pruned one whatever batch norms, activations and depthwise layers lie in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from leadline.compression.channel_map import STAYS

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.compression.channel_map import ChannelMap, Layer

THRESHOLD = 0.5


class Masks(nn.Module):
    """Alpha of every unit in the row, how often a price was asked (for its schedule), and what was on of late.

    Args:
        chart: the row.
    """

    def __init__(self, chart: ChannelMap) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(chart.units))
        self.register_buffer("asked", torch.zeros((), dtype=torch.float64))
        self.register_buffer("lately", torch.ones(chart.units))
        widest = max((span.count for span in chart.spans), default=0)
        members = torch.full((len(chart.spans), widest), -1)
        for row, span in enumerate(chart.spans):
            members[row, : span.count] = torch.arange(span.start, span.start + span.count)
        self.register_buffer("members", members, persistent=False)
        self.asked: Tensor
        self.lately: Tensor  # running mean of on, 0 to 1
        self.members: Tensor

    def theta(self) -> Tensor:
        """|alpha|, one per unit."""
        return self.alpha.abs()

    def on(self) -> Tensor:
        """1.0 or 0.0 per unit, with theta's gradient."""
        theta = self.theta()
        on = self._strong(theta.detach()).to(theta.dtype)
        return theta + (on - theta).detach()

    def note(self, weight: float) -> None:
        """Count one more asking, and what is on at it, with a weight of 0 to 1 in what was on of late."""
        self.asked += 1
        self.lately.lerp_(self.on().detach(), weight)

    def kept(self) -> Tensor:
        """The units that stay, bool: those that were on most of the recent time."""
        return self._strong(self.lately)

    def _strong(self, values: Tensor) -> Tensor:
        """Whether each of the values (one per unit) is above the threshold, or the largest of its group."""
        strong = values > THRESHOLD
        if len(self.members):
            ranked = torch.where(self.members >= 0, values[self.members], -1.0)
            strong[self.members.gather(1, ranked.argmax(1, keepdim=True))] = True
        return strong


class Switches(Protocol):
    """Something that switches units on and off."""

    def on(self) -> Tensor:
        """1.0 or 0.0 per unit of the row."""


class Reader(nn.Module):
    """A kernel times the masks of what it reads.

    Args:
        masks: not part of this module: they are trained beside the network.
        layer: its place in the row.
        axis: of the kernel, that runs over inputs.
        rank: axes of the kernel.
    """

    def __init__(self, masks: Switches, layer: Layer, axis: int, rank: int) -> None:
        super().__init__()
        self._masks = (masks,)
        self.register_buffer("places", layer.inputs.clone(), persistent=False)
        self.places: Tensor
        self._shape = [-1 if number == axis else 1 for number in range(rank)]

    def forward(self, weight: Tensor) -> Tensor:
        """The kernel, zero where its input is off."""
        return weight * with_stays(self._masks[0].on())[self.places].reshape(self._shape).to(weight.dtype)


def with_stays(row: Tensor) -> Tensor:
    """The row with a 1 behind it, where `STAYS` points."""
    assert STAYS == -1
    return torch.cat([row, row.new_ones(1)])


def attach(model: nn.Module, masks: Switches, chart: ChannelMap) -> None:
    """Mask every layer that reads a channel of the row, in place."""
    for layer in chart.layers:
        if layer.depthwise or not bool((layer.inputs != STAYS).any()):
            continue
        module: Any = model.get_submodule(layer.path)
        axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1
        parametrize.register_parametrization(module, "weight", Reader(masks, layer, axis, module.weight.ndim))


def detach(model: nn.Module) -> None:
    """Take all masks off: the kernels are as they were trained."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight") and any(
            isinstance(each, Reader)
            for each in module.parametrizations["weight"]  # type: ignore[index]
        ):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
