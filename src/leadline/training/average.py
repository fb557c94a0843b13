"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def twin(model: nn.Module) -> nn.Module:
    """A copy of the network that takes no gradients, in eval mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float, iteration: int) -> None:
    """Move the twin to d * average + (1 - d) * model, with d = min(decay, (1 + k) / (10 + k)) after k iterations.

    Floating buffers (BatchNorm's statistics) are averaged too; integer buffers are copied.

    Args:
        average: the twin.
        model: the network in training.
        decay: 0 to 1.
        iteration: iterations done, 0-based; keeps the first random weights from lingering.
    """
    d = min(decay, (1 + iteration) / (10 + iteration))
    ours, theirs = average.state_dict(), model.state_dict()
    floating = [key for key, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_([ours[key] for key in floating], [theirs[key] for key in floating], 1 - d)
    for key in ours.keys() - set(floating):
        ours[key].copy_(theirs[key])
