"""The latency of a masked network as a function of its masks with a gradient: straight lines through a measured table.

The table (`latency_table`) knows the time of a network at any widths. Around the widths that are on at the moment each
group gets one line: the table's time with a step of its grid more and a step less in this group alone. The lines are
renewed several times in a search; in between the price is their sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from leadline.compression.latency_table import STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from leadline.compression.channel_map import ChannelMap

RENEWALS = 10  # in a search


class LatencyPrice(nn.Module):
    """Milliseconds of a network from the units that are on.

    The lines are state: an interrupted search goes on with them.

    Args:
        chart: the row of units.
        estimate: milliseconds of the network with so many channels in each group, by name.
        asked: how often `of` will be asked for a gradient in all.
    """

    def __init__(self, chart: ChannelMap, estimate: Callable[[Mapping[str, int]], float], asked: int) -> None:
        super().__init__()
        self._spans, self._estimate = chart.spans, estimate
        self._every = max(1, asked // RENEWALS)
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))
        self.register_buffer("base", torch.zeros((), dtype=torch.float64))
        self.register_buffer("widths", torch.zeros(len(chart.spans), dtype=torch.float64))
        self.register_buffer("slopes", torch.zeros(len(chart.spans), dtype=torch.float64))
        self.asked: Tensor
        self.base: Tensor  # milliseconds at `widths`
        self.widths: Tensor  # units that were on, of each group
        self.slopes: Tensor  # milliseconds a unit, of each group

    def of(self, row: Tensor) -> Tensor:
        """A scalar, float64: milliseconds.

        Args:
            row: how much of each unit counts, 0 to 1.
        """
        widths = self._counted(row)
        if torch.is_grad_enabled():
            if int(self.asked) % self._every == 0:
                self._renew(widths.detach())
            self.asked += 1
        return self.base + (self.slopes * (widths - self.widths)).sum()

    def exact(self, row: Tensor) -> float:
        """Milliseconds by the table itself, of units that are on (1) or off (0)."""
        return self._of_units(self._counted(row).tolist())

    def _counted(self, row: Tensor) -> Tensor:
        return torch.stack([row[span.start : span.start + span.count].double().sum() for span in self._spans])

    def _of_units(self, units: list[float]) -> float:
        named = {span.name: span.bundle * max(1, round(count)) for span, count in zip(self._spans, units, strict=True)}
        return self._estimate(named)

    def _renew(self, widths: Tensor) -> None:
        units = [float(max(1, round(count))) for count in widths.tolist()]
        self.base.fill_(self._of_units(units))
        self.widths.copy_(torch.tensor(units, dtype=torch.float64))
        for number, span in enumerate(self._spans):
            step = math.ceil(STEP / span.bundle)
            low, high = max(1.0, units[number] - step), min(float(span.count), units[number] + step)
            rise = self._of_units([*units[:number], high, *units[number + 1 :]])
            rise -= self._of_units([*units[:number], low, *units[number + 1 :]])
            self.slopes[number] = max(0.0, rise / (high - low)) if high > low else 0.0  # below 0 is noise
