"""Losses that forgive scale, or scale and shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from leadline.losses.regression import masked_mean

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_DEPTH_M = 1e-3


def silog(prediction: Tensor, target: Tensor, valid: Tensor, variance_focus: float = 0.5) -> Tensor:
    """Scale-invariant logarithmic error: sqrt(mean(g^2) - variance_focus * mean(g)^2), g = log p - log t.

    Source: SPEC.md 6.4 (variance_focus 0.5) and 5.4 (AdaBins: 0.85, times 10).

    Args:
        prediction: N x 1 x H x W, metres; clamped to 1 mm from below.
        target: N x 1 x H x W, metres; anything where not valid.
        valid: N x 1 x H x W bool.
        variance_focus: 0 = plain RMSE of the logarithm, 1 = scale does not matter.
    """
    safe_target = torch.where(valid, target, 1.0).clamp(min=SMALLEST_DEPTH_M)
    g = prediction.clamp(min=SMALLEST_DEPTH_M).log() - safe_target.log()
    spread = masked_mean(g.square(), valid) - variance_focus * masked_mean(g, valid).square()
    return torch.sqrt(spread.clamp(min=0) + 1e-8) - 1e-4


def normalise_per_image(values: Tensor, valid: Tensor) -> Tensor:
    """(x - median) / mean absolute deviation from the median, over the valid pixels of each image.

    The median of the valid values alone (a widely copied version takes masked-out zeros in, SPEC.md 6.4).

    Args:
        values: N x 1 x H x W.
        valid: N x 1 x H x W bool.

    Returns:
        N x 1 x H x W, 0 where not valid; all 0 for an image without a valid pixel.
    """
    flat, mask = values.flatten(1), valid.flatten(1)
    place = torch.where(mask, flat.detach(), torch.nan).nanmedian(dim=1, keepdim=True).indices
    median = flat.gather(1, place)
    centred = torch.where(mask, flat - median, 0.0)
    deviation = centred.abs().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return (centred / deviation.clamp(min=1e-6)).view_as(values)


def scale_and_shift_invariant(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference after `normalise_per_image` of both (SSI-MAE; SPEC.md 6.4).

    Args:
        prediction: N x 1 x H x W, disparity.
        target: N x 1 x H x W, disparity; anything where not valid.
        valid: N x 1 x H x W bool.
    """
    target = torch.where(valid, target, 0.0)
    difference = normalise_per_image(prediction, valid) - normalise_per_image(target, valid)
    return masked_mean(difference.abs(), valid)


def gradient_matching(prediction: Tensor, target: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Sum over scales of the mean |d/dx R| + |d/dy R|, R = normalised prediction - normalised target (SPEC.md 6.4).

    A pair of neighbours counts only where both are valid. Scale k takes every 2^k-th pixel.

    Args:
        prediction: N x 1 x H x W.
        target: N x 1 x H x W; anything where not valid.
        valid: N x 1 x H x W bool.
        scales: number of scales, at least 1.
    """
    target = torch.where(valid, target, 0.0)
    residual = normalise_per_image(prediction, valid) - normalise_per_image(target, valid)
    total = prediction.new_zeros(())
    for k in range(scales):
        r, v = residual[..., :: 2**k, :: 2**k], valid[..., :: 2**k, :: 2**k]
        total = total + masked_mean((r[..., :, 1:] - r[..., :, :-1]).abs(), v[..., :, 1:] & v[..., :, :-1])
        total = total + masked_mean((r[..., 1:, :] - r[..., :-1, :]).abs(), v[..., 1:, :] & v[..., :-1, :])
    return total
