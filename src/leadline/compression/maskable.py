"""Which groups of a network can be masked in the place of being removed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from leadline.compression.channel_map import ChannelMap, channel_map
from leadline.compression.graph import keep
from leadline.compression.masks import Masks, attach
from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from leadline.compression.base import Place
    from leadline.reference import LoadedModel

SLACK = 1e-3  # of the output's spread, by which a masked network may differ from the pruned one


def exact_map(source: LoadedModel, exclude: list[str], place: Place) -> ChannelMap:
    """The groups whose masks do what removal does; the others (a LayerNorm over them mixes channels) are said.

    Raises:
        ConfigError: there is none, or no group has an excluded name.
    """
    everything = [span.name for span in channel_map(source).spans]
    for name in exclude:
        if name not in everything:
            raise ConfigError("no such group of channels", where=name, mend=closest(name, everything))
    chart = channel_map(source, exclude)
    if chart.spans and not _exact(source, chart):
        mixed = [
            span.name
            for span in chart.spans
            if not _exact(source, channel_map(source, {other.name for other in chart.spans} - {span.name} | {*exclude}))
        ]
        place.say(f"left whole, because masks cannot stand for removal: {', '.join(mixed)}")
        chart = channel_map(source, {*exclude, *mixed})
    if not chart.spans:
        why = "no group of two or more channels" + (" is left" if exclude else "")
        raise ConfigError("nothing to search", where=source.name, why=why)
    return chart


def _exact(source: LoadedModel, chart: ChannelMap) -> bool:
    """Whether every second unit masked gives what the network without it gives."""
    masks, model = Masks(chart), copy.deepcopy(source.model)
    picture = torch.rand(1, 3, *input_size(source), generator=torch.Generator().manual_seed(0))
    for span in chart.spans:
        masks.alpha.data[span.start + 1 : span.start + span.count : 2] = 0.0
    pruned = keep(source, chart.named(masks.on().detach() > 0)).model
    attach(model, masks, chart)
    with torch.no_grad():
        masked, expected = model(picture), pruned(picture)
    return bool((masked - expected).abs().max() <= SLACK * expected.std() + 1e-6)


def input_size(source: LoadedModel) -> tuple[int, int]:
    """(height, width) that the network was made for, pixels."""
    return source.contract.input.height, source.contract.input.width
