"""Losses that forgive scale, or scale and shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

from leadline.losses.regression import masked_mean

if TYPE_CHECKING:
    from torch import Tensor

Reading = Literal["median-scale", "mad-minmax", "minmax"]
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
    centred = torch.where(mask, flat - _median(flat, mask), 0.0)
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


def trimmed_scale_and_shift_invariant(
    prediction: Tensor, target: Tensor, valid: Tensor, trim: float = 0.2, cell: int = 1
) -> Tensor:
    """`scale_and_shift_invariant` without the share `trim` of each picture's worst places: labels of a teacher err.

    MiDaS leaves out the worst 20 % of the pixels; Depth Anything V2 the worst 10 % of what it calls regions, of a form
    it does not state (SPEC.md 6.4). Both are here: a place is a square of `cell` pixels, judged by its mean.

    Args:
        prediction: N x 1 x H x W, disparity.
        target: N x 1 x H x W, disparity; anything where not valid.
        valid: N x 1 x H x W bool.
        trim: share of the places that hold a valid pixel, 0 to below 1; the number is rounded down.
        cell: side of a place, pixels; 1 judges every pixel by itself.
    """
    target = torch.where(valid, target, 0.0)
    error = (normalise_per_image(prediction, valid) - normalise_per_image(target, valid)).abs()
    total, count = _sums(error, cell), _sums(valid.to(error.dtype), cell)
    worst_last = torch.where(count > 0, total.detach() / count.clamp(min=1), torch.inf).argsort(dim=1)
    places = (count > 0).sum(1, keepdim=True)
    rank = torch.arange(count.shape[1], device=count.device)
    kept = rank < places - (trim * places).floor()
    total, count = total.gather(1, worst_last), count.gather(1, worst_last)
    return torch.where(kept, total, 0.0).sum() / torch.where(kept, count, 0.0).sum().clamp(min=1)


def median_centred_l1(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    reading: Reading,
    *,
    clip: float | None = None,
    normalise_prediction: bool = True,
) -> Tensor:
    """L1 after one of three readings of "median-centre alignment, then 0 to 1" of a teacher's disparity (SPEC.md 5.2).

    `median-scale` divides by the median: scale does not matter, shift does. `minmax` maps the smallest value to 0 and
    the largest to 1. `mad-minmax` first subtracts the median and divides by the mean absolute deviation from it: by
    itself that cancels, since the smallest and largest still become 0 and 1, and the reading equals `minmax`; it says
    something of its own where `clip` holds back what lies further than so many deviations from the median.

    Args:
        prediction: N x 1 x H x W, disparity.
        target: N x 1 x H x W, disparity; anything where not valid.
        valid: N x 1 x H x W bool.
        reading: which.
        clip: deviations from the median, of `mad-minmax`; None for no bound.
        normalise_prediction: treat the prediction like the target; False compares it as it is, for one that means the
            teacher's 0 to 1 (a sigmoid's output).
    """
    target = torch.where(valid, target, 0.0)
    aligned = _centred(target, valid, reading, clip)
    own = _centred(prediction, valid, reading, clip) if normalise_prediction else prediction
    return masked_mean((own - aligned).abs(), valid)


def _centred(values: Tensor, valid: Tensor, reading: Reading, clip: float | None) -> Tensor:
    if reading == "median-scale":
        median = _median(values.flatten(1), valid.flatten(1))[:, :, None, None]
        return values / median.clamp(min=1e-6)
    if reading == "mad-minmax":
        values = normalise_per_image(values, valid)
        values = values if clip is None else values.clamp(-clip, clip)
    lowest = torch.where(valid, values, torch.inf).amin((1, 2, 3), keepdim=True)
    highest = torch.where(valid, values, -torch.inf).amax((1, 2, 3), keepdim=True)
    some = valid.any(3, keepdim=True).any(2, keepdim=True)
    lowest, highest = torch.where(some, lowest, 0.0), torch.where(some, highest, 1.0)
    return (values - lowest) / (highest - lowest).clamp(min=1e-6)


def _median(values: Tensor, valid: Tensor) -> Tensor:
    """Median of the valid values of each row (the lower of two), N x 1; the first value where none is valid."""
    place = torch.where(valid, values.detach(), torch.nan).nanmedian(dim=1, keepdim=True).indices
    return values.gather(1, place)


def _sums(values: Tensor, cell: int) -> Tensor:
    """Sums over squares of `cell` pixels, N x (number of squares); those at the right and lower edge may be smaller."""
    if cell > 1:
        height, width = values.shape[-2:]
        padded = F.pad(values, (0, -width % cell, 0, -height % cell))
        values = F.avg_pool2d(padded, cell) * cell**2
    return values.flatten(1)
