"""Batch normalisation over the rows of all processes, so that several train like one with the joined batch.

Works wherever the run's collectives do (torch's own SyncBatchNorm is for CUDA alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from leadline.training.team import Team


def synchronise(model: nn.Module, team: Team) -> None:
    """Let the batch norms of `model` take their statistics over all processes while they train, in place.

    The state dict does not change. Every process must run the network equally often, forward and backward.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _forward(module, team)  # type: ignore[method-assign,assignment]


def _forward(norm: _BatchNorm, team: Team) -> Callable[[Tensor], Tensor]:
    plain = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return plain(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        own, spread = (flat := values.transpose(0, 1).flatten(1)).mean(1), flat.var(1, correction=0)
        number = flat.new_tensor([flat.shape[1]])
        *_, count = sums = team.add(torch.cat([own * number, number]))
        mean = sums[:-1] / count
        variance = team.add(number * (spread + (own - mean).square())) / count
        _remember(norm, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(x.dtype)

    return forward


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
