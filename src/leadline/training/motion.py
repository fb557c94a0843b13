"""How far pictures move from frame to frame, and where they have something to match; no network, no intrinsics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from leadline.losses.photometric import box_sum

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32  # pixels; motion is measured block by block
SEARCH_HEIGHT = 192  # pictures are averaged down to about this height before
SURE = 2.0  # least peak, in units of white noise's highest: photographs of different places have 1.5 (95 % below 2.1)
TEXTURE = 2 / 255  # mean difference of neighbouring pixels below which a place has no texture


def motion_between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How far a picture moves to the next, measured by phase correlation of textured blocks.

    Args:
        first: N x 3 x H x W, 0..1.
        second: the same shape.

    Returns:
        N motions as shares of the width (the 75th percentile over the blocks, since what is far moves little), and N
        shares of blocks that are not found again, 0..1. A picture without texture moves by 0.
    """
    factor = max(1, round(first.shape[-2] / SEARCH_HEIGHT))
    a, b = (
        F.avg_pool2d(x.mean(1, keepdim=True), factor) if factor > 1 else x.mean(1, keepdim=True)
        for x in (first, second)
    )
    width = a.shape[-1]
    size = min(max(BLOCK, 1 << (width // 5).bit_length()), *a.shape[-2:])  # a block sees shifts to half its side
    blocks = [F.unfold(x, size, stride=max(1, size // 2)).transpose(1, 2) for x in (a, b)]
    one, two = (x.reshape(*x.shape[:2], size, size) for x in blocks)
    textured = texture(one).mean((-2, -1)) >= TEXTURE
    shift, peak = _correlate(one, two)
    sure = peak > SURE * math.sqrt(2 * math.log(size * size)) / size
    motions, lost = [], []
    for n in range(len(a)):
        matched = shift[n][textured[n] & sure[n]]
        motions.append(matched.quantile(0.75) / width if len(matched) else shift.new_zeros(()))
        lost.append((textured[n] & ~sure[n]).sum() / textured[n].sum().clamp(min=1))
    return torch.stack(motions), torch.stack(lost)


def _correlate(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Shift in pixels and height of the peak of the phase correlation, each N x B, of N x B x s x s blocks."""
    size = one.shape[-1]
    line = torch.hann_window(size, device=one.device)
    window = line[:, None] * line
    spectra = [torch.fft.rfft2((x - x.mean((-2, -1), keepdim=True)) * window) for x in (one, two)]
    cross = spectra[0].conj() * spectra[1]
    surface = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=(size, size))
    peak, place = surface.flatten(-2).max(-1)
    y, x = place // size, place % size
    y, x = (torch.where(v > size // 2, v - size, v).float() for v in (y, x))
    return torch.hypot(x, y), peak


def texture(grey: Tensor) -> Tensor:
    """Mean difference to the right and lower neighbour over 3 x 3 windows; ... x H x W keeps its shape."""
    dx = F.pad(grey.diff(dim=-1).abs(), (0, 1))
    dy = F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    return box_sum(dx + dy) / 18
