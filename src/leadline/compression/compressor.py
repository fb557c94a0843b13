"""The compressor of DeepIoT: an LSTM that reads a network's layers and says how likely each element is kept.

Yao et al., DeepIoT: Compressing Deep Neural Network Structures for Sensing Systems with a Compressor-Critic Framework,
2017 (SPEC.md 8). The network under it, with elements switched off at random, is the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

RANK = 8  # sides of what a kernel is squeezed to: RANK * RANK numbers are what the LSTM reads
HIDDEN = 64
DECAY = 0.9  # of the running mean and deviation of the critic's loss


class Compressor(nn.Module):
    """Keep probabilities of all units, from the kernels that produce them.

    Args:
        shapes: of each group's kernel, units x fan-in with bias, in the order of the network.
        start: keep probability before training, 0 to 1, about.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], start: float) -> None:
        super().__init__()
        self.left = nn.ParameterList(torch.randn(RANK, units) / units**0.5 for units, _ in shapes)
        self.right = nn.ParameterList(torch.randn(fan, RANK) / fan**0.5 for _, fan in shapes)
        self.lstm = nn.LSTM(RANK * RANK, HIDDEN)
        self.out = nn.ModuleList(nn.Linear(HIDDEN, units) for units, _ in shapes)
        bias = torch.logit(torch.tensor(start)).item()
        for layer in self.out:
            assert isinstance(layer, nn.Linear)
            nn.init.constant_(layer.bias, bias)

    def forward(self, kernels: Sequence[Tensor]) -> Tensor:
        """One probability per unit of the row.

        Args:
            kernels: units x fan-in of each group, without gradient; their scale does not matter.
        """
        read = [
            torch.tanh(left @ (kernel / kernel.std().clamp(min=1e-12)) @ right).flatten()
            for kernel, left, right in zip(kernels, self.left, self.right, strict=True)
        ]
        states, _ = self.lstm(torch.stack(read)[:, None])
        return torch.cat([layer(state[0]) for layer, state in zip(self.out, states, strict=True)]).sigmoid()


@dataclass
class Baseline:
    """Running mean and mean square of the critic's loss; the first loss is the first mean."""

    mean: float = 0.0
    square: float = 0.0
    seen: bool = False

    @property
    def deviation(self) -> float:
        """Running standard deviation."""
        return float(max(0.0, self.square - self.mean**2) ** 0.5)

    def advantage(self, loss: float) -> float:
        """(loss - mean) / max(1, deviation), with what was known before this loss; then the loss is taken in."""
        if not self.seen:
            self.mean, self.square, self.seen = loss, loss**2, True
        value = (loss - self.mean) / max(1.0, self.deviation)
        self.mean = DECAY * self.mean + (1 - DECAY) * loss
        self.square = DECAY * self.square + (1 - DECAY) * loss**2
        return value


def threshold_at(step: int, steps: int, last: float) -> float:
    """The threshold of step 0 .. `steps`: from 0 to `last` in equal steps."""
    return last * min(step, steps) / steps


def lowered(probabilities: Tensor, threshold: float) -> Tensor:
    """Keep probabilities during compression: halved below the threshold."""
    return torch.where(probabilities < threshold, probabilities / 2, probabilities)


def log_likelihood(probabilities: Tensor, on: Tensor) -> Tensor:
    """Of a sampled row: sum of log p where a unit is on and log (1 - p) where it is off."""
    p = probabilities.clamp(1e-6, 1 - 1e-6)
    return (on * p.log() + (1 - on) * (1 - p).log()).sum()
