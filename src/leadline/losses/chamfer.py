"""Chamfer distances between the bin centres of a network and the disparities of its pictures (SPEC.md 5.3, 5.4).

The sets are numbers, so the nearest neighbour is found in a sorted list: no K x P matrix of distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from leadline.losses.regression import masked_mean

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 0.01  # of the median disparity: a teacher's sky, at almost 0, would lie at minus infinity in the logarithm


def chamfer(centres: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """Mean squared distance from each centre to the nearest point, plus the same from each point to a centre.

    Both means are per picture; the mean over the pictures that have a point (AdaBins, Bhat et al. 2021, equation 4,
    with PyTorch3D's means in place of sums, so that the number of points does not matter).

    Args:
        centres: N x K.
        points: N x P, in the same unit; anything where not valid.
        valid: N x P bool; the caller leaves out what is no measurement, zeros among it.

    Returns:
        A scalar; 0 with a gradient where no picture has a point.
    """
    counts = valid.sum(dim=1, keepdim=True)
    seen = counts > 0
    points = torch.where(valid, points, torch.inf).sort(dim=1).values
    to_points = (centres - _nearest(centres, points, counts.clamp(min=1))).square()
    ordered = centres.sort(dim=1).values
    filled = torch.where(points.isfinite(), points, ordered[:, :1].detach())
    every = torch.full_like(counts, ordered.shape[1])
    to_centres = (filled - _nearest(filled, ordered, every)).square()
    forth = torch.where(seen, to_points, 0.0).mean(dim=1)
    back = torch.where(points.isfinite(), to_centres, 0.0).sum(dim=1) / counts.clamp(min=1)[:, 0]
    return masked_mean(forth + back, seen[:, 0])


def scale_invariant_chamfer(centres: Tensor, prediction: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """Chamfer distance of logarithms, each side relative to its own picture's median disparity.

    L = chamfer(log(centres / median(prediction)), log(points / median(points))), both medians over the same valid
    pixels. One factor on the points leaves L as it is, and so does one factor on centres and prediction together, whose
    gradients therefore cancel along that direction: neither a teacher's unknown scale nor the drifting scale of
    self-supervision is pulled at. (Each side's own mean would not do: K centres and P pixels are spread differently
    even where they agree.) Logarithms weigh equal ratios equally, at 3 m as at 60 m. Points below FARTHEST of their
    median count as being there.

    Args:
        centres: N x K, positive, the network's disparity bins.
        prediction: N x P, positive, the network's disparity at the points' pixels.
        points: N x P disparity up to one unknown scale per picture; anything where not valid.
        valid: N x P bool; points that are 0 or less are left out besides.

    Returns:
        A scalar; 0 with a gradient where no picture has a point.
    """
    valid = valid & (points > 0)
    points = torch.where(valid, points, 1.0)
    middle = _median(points, valid)
    spread = torch.log((points / middle).clamp(min=FARTHEST))
    return chamfer(torch.log(centres / _median(prediction, valid)), spread, valid)


def _nearest(values: Tensor, ordered: Tensor, counts: Tensor) -> Tensor:
    """For each of N x A `values` the nearest of the first `counts` (N x 1) numbers of the ascending N x B `ordered`."""
    place = torch.searchsorted(ordered.detach().contiguous(), values.detach().contiguous())
    right = ordered.gather(1, torch.minimum(place, counts - 1).clamp(min=0))
    left = ordered.gather(1, torch.minimum(place - 1, counts - 1).clamp(min=0))
    nearest = torch.where((values - left).abs() <= (right - values).abs(), left, right)
    return torch.where(nearest.isfinite(), nearest, values.detach())  # a picture without points


def _median(values: Tensor, valid: Tensor) -> Tensor:
    """Lower median of each row's valid values, N x 1, with its gradient; 1 for a row without any."""
    place = torch.where(valid, values.detach(), torch.nan).nanmedian(dim=1, keepdim=True).indices
    return torch.where(valid.any(dim=1, keepdim=True), values.gather(1, place), 1.0)
