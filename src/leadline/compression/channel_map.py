"""Where the channels of each group go: a row of all units that can be removed, and each layer's place in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from leadline.compression.graph import wiring_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import Tensor

    from leadline.models.wiring import Axis, Space
    from leadline.reference import LoadedModel

COUNTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
STAYS = -1  # place of a channel that nothing can remove


@dataclass(frozen=True)
class Span:
    """A group's part of the row: its units (channels, or bundles of them) stand one after the other.

    Args:
        name: of the group.
        start: place of its first unit.
        count: units.
        bundle: channels of a unit.
    """

    name: str
    start: int
    count: int
    bundle: int

    def channels(self, units: Iterable[int]) -> list[int]:
        """Indices of the channels of units that are given by their number in the group."""
        return [unit * self.bundle + k for unit in sorted(units) for k in range(self.bundle)]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, and where its channels stand in the row.

    Args:
        path: of the module.
        inputs: int64, the place of each input; `STAYS` for one that is in no group. Of a depthwise layer, its outputs.
        outputs: int64, likewise.
        depthwise: each output sees its own input alone.
        window: scalars per pair of input and output.
        biased: whether there is one more scalar per output.
    """

    path: str
    inputs: Tensor
    outputs: Tensor
    depthwise: bool
    window: int
    biased: bool


@dataclass(frozen=True)
class ChannelMap:
    """The row of units, and every layer's place in it."""

    spans: tuple[Span, ...]
    layers: tuple[Layer, ...]

    @property
    def units(self) -> int:
        """Length of the row."""
        return sum(span.count for span in self.spans)

    def named(self, kept: Tensor) -> dict[str, list[int]]:
        """The channels that stay, by group, as `keep` takes them.

        Args:
            kept: one bool per unit of the row.
        """
        parts = ((span, kept[span.start : span.start + span.count]) for span in self.spans)
        return {span.name: span.channels(part.nonzero()[:, 0].tolist()) for span, part in parts}


def channel_map(source: LoadedModel, exclude: Collection[str] = ()) -> ChannelMap:
    """The map of a network; groups of one unit have nothing to choose and are left out.

    Args:
        source: of the registry.
        exclude: names of groups that are left whole.

    Raises:
        ConfigError: the network is not of the registry.
    """
    wiring = wiring_of(source)
    spans: list[Span] = []
    starts: dict[Space, int] = {}
    for space in wiring.spaces:
        if space.units > 1 and space.name not in exclude:
            starts[space] = spans[-1].start + spans[-1].count if spans else 0
            spans.append(Span(space.name, starts[space], space.units, space.bundle))
    layers = []
    for path, module in source.model.named_modules():
        if isinstance(module, COUNTED):
            layers.append(_layer(path, module, wiring.axes.get(f"{path}.weight", ()), starts))
    return ChannelMap(tuple(spans), tuple(layers))


def _layer(path: str, module: nn.Module, axes: tuple[Axis, ...], starts: dict[Space, int]) -> Layer:
    assert isinstance(module, COUNTED)
    shape = module.weight.shape
    first, second = (
        _places(axes[number], starts) if number < len(axes) else torch.full((shape[number],), STAYS)
        for number in range(2)
    )
    depthwise = not isinstance(module, nn.Linear) and module.groups > 1
    if depthwise:
        second = first
    inputs, outputs = (first, second) if isinstance(module, nn.ConvTranspose2d) else (second, first)
    return Layer(path, inputs, outputs, depthwise, math.prod(shape[2:]), module.bias is not None)


def _places(axis: Axis, starts: dict[Space, int]) -> Tensor:
    """The place in the row of each element of an axis."""
    found = []
    for part in axis:
        if isinstance(part, int):
            found.append(torch.full((part,), STAYS))
        elif part.space not in starts:
            found.append(torch.full((part.size,), STAYS))
        else:
            units = starts[part.space] + torch.arange(part.space.units)
            found.append(units[None, :, None].expand(part.times, -1, part.each).flatten())
    return torch.cat(found)
