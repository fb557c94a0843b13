"""The minimum reprojection loss with its gradient, computed piece by piece while the data is in the cache.

What the formula asks for: for every scale and source, warp the source into the target, take the photometric error, then
per pixel the minimum over the sources and the identity error, then the mean (SPEC.md 4.1). Written out with automatic
differentiation, every intermediate picture of every scale, source and sample goes through memory twice. Here the loss
is one differentiable function: the minimum is known right after the forward pass of one sample and scale, so its
gradient is computed on the spot, and nothing but the gradients of disparity and pose outlives the piece.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leadline.losses.photometric import C1, C2, SSIM_WEIGHT, Moments, box_sum, box_sum_transposed, moments
from leadline.losses.projection import NEAREST, Motion, parallax, pixel_grid

PIECE_FLOATS = 1_000_000  # floats of one intermediate picture stack on a CPU: a few megabytes stay in its cache


class Reprojection(NamedTuple):
    """What `minimum_reprojection` found.

    Args:
        loss: scalar, the mean over samples, scales and pixels of the smallest error.
        kept: L floats without gradient: the share of pixels, per scale, that no identity error masks.
    """

    loss: Tensor
    kept: Tensor


def minimum_reprojection(
    disparity: Tensor,
    motion: Tensor,
    intrinsics: Tensor,
    sources: Tensor,
    target: Tensor,
    identity: Tensor | None = None,
    *,
    ssim_weight: float = SSIM_WEIGHT,
    align_corners: bool = False,
) -> Reprojection:
    """Photometric loss of disparity maps and camera motions; differentiable once, in `disparity` and `motion`.

    Args:
        disparity: N x L x H x W, positive; L scales, all at full resolution.
        motion: N x S x 4 x 4, from the target's camera to each source's, in the unit of 1 / disparity.
        intrinsics: N x 3 x 3, pixels of H x W.
        sources: N x S x C x H x W, 0..1.
        target: N x C x H x W, 0..1.
        identity: N x H x W from `identity_error`; None for no auto-masking.
        ssim_weight: 0 to 1.
        align_corners: see losses/projection.py.
    """
    moved = parallax(intrinsics[:, None], motion)
    settings = _Settings(ssim_weight, align_corners)
    loss, kept = _MinimumReprojection.apply(disparity, *moved, sources, target, identity, settings)  # type: ignore[no-untyped-call]
    return Reprojection(loss, kept)


class _Settings(NamedTuple):
    ssim_weight: float
    align_corners: bool


class _MinimumReprojection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        disparity: Tensor,
        infinite: Tensor,
        epipole: Tensor,
        sources: Tensor,
        target: Tensor,
        identity: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        n, scales, height, width = disparity.shape
        pixels = pixel_grid(height, width, disparity, align_corners=settings.align_corners)
        wanted = any(ctx.needs_input_grad[:3])
        d_disparity = torch.zeros_like(disparity, memory_format=torch.contiguous_format)
        d_infinite, d_epipole = torch.zeros_like(infinite), torch.zeros_like(epipole)
        loss, kept = disparity.new_zeros(()), disparity.new_zeros(scales)
        share = 1.0 / (n * scales * height * width)
        for rows in _pieces(sources):
            scene = _Scene.of(pixels, Motion(infinite[rows], epipole[rows]), sources[rows], target[rows])
            for scale in range(scales):
                d = disparity[rows, scale]
                grid, q = _grid(scene, d, settings)
                loss = loss.masked_fill(grid.isnan().any(), math.nan)
                grid.nan_to_num_(0.0)  # sampling takes NaN for a pixel, and its gradient ends the process on a CPU
                warped = _sample(scene, grid, settings)
                error, state = _error(warped, scene, settings.ssim_weight)
                best, choice = error.min(1)
                if identity is not None:
                    masked = identity[rows] <= best
                    best = torch.where(masked, identity[rows], best)
                    choice = choice.masked_fill(masked, -1)
                loss += best.sum() * share
                kept[scale] += (choice >= 0).sum() * (share * scales)
                if wanted:
                    chosen = torch.stack([choice == s for s in range(error.shape[1])], 1)
                    d_warped = _error_gradient(warped, scene, state, chosen.to(d.dtype) * share, settings.ssim_weight)
                    d_grid = _sample_gradient(d_warped, scene, grid, settings)
                    d_q = _grid_gradient(d_grid, q, settings)
                    d_disparity[rows, scale] = (d_q * scene.motion.epipole[..., None, None]).sum((1, 2))
                    d_epipole[rows] += (d_q * d[:, None, None]).sum((-2, -1))
                    d_infinite[rows] += d_q.flatten(-2) @ pixels.T
        ctx.save_for_backward(d_disparity, d_infinite, d_epipole)
        ctx.mark_non_differentiable(kept)
        return loss, kept

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(g * saved for saved in ctx.saved_tensors), None, None, None, None)


class _Scene(NamedTuple):
    """What all scales of some samples share."""

    motion: Motion
    infinite_pixels: Tensor  # n x S x 3 x H x W: where each pixel goes if it is infinitely far
    sources: Tensor  # n x S x C x H x W
    target: Tensor  # n x 1 x C x H x W
    of_target: Moments

    @classmethod
    def of(cls, pixels: Tensor, motion: Motion, sources: Tensor, target: Tensor) -> _Scene:
        target = target[:, None]
        far = (motion.infinite @ pixels).view(*sources.shape[:2], 3, *sources.shape[-2:])
        return cls(motion, far, sources, target, moments(target))


class _State(NamedTuple):
    """What the gradient of SSIM needs of its forward pass, each n x S x C x H x W."""

    mean: Tensor
    luminance: Tensor
    structure: Tensor
    luminance_below: Tensor
    structure_below: Tensor
    ssim: Tensor


def _pieces(sources: Tensor) -> list[slice]:
    """Samples taken together: as many as the cache holds on a CPU, all of them on an accelerator."""
    n = len(sources)
    step = max(1, PIECE_FLOATS // sources[0].numel()) if sources.device.type == "cpu" else n
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _grid(scene: _Scene, disparity: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Sampling grid, n x S x H x W x 2, and the homogeneous pixels it comes from, n x S x 3 x H x W."""
    q = torch.addcmul(scene.infinite_pixels, scene.motion.epipole[..., None, None], disparity[:, None, None])
    inverse = q[:, :, 2].clamp(min=NEAREST).reciprocal_()
    grid = torch.empty((*q.shape[:2], *q.shape[3:], 2), dtype=q.dtype, device=q.device)
    for axis, factor in enumerate(_factors(q, settings)):
        torch.mul(q[:, :, axis], inverse, out=grid[..., axis])
        grid[..., axis].mul_(factor).sub_(1)
    return grid, q


def _grid_gradient(d_grid: Tensor, q: Tensor, settings: _Settings) -> Tensor:
    z = q[:, :, 2].clamp(min=NEAREST)
    d_q = torch.empty_like(q)
    for axis, factor in enumerate(_factors(q, settings)):
        torch.div(d_grid[..., axis], z, out=d_q[:, :, axis])
        d_q[:, :, axis].mul_(factor)
    along = (d_q[:, :, 0] * q[:, :, 0]).addcmul_(d_q[:, :, 1], q[:, :, 1])
    d_q[:, :, 2] = torch.where(q[:, :, 2] > NEAREST, along.div_(z).neg_(), 0.0)
    return d_q


def _factors(q: Tensor, settings: _Settings) -> tuple[float, float]:
    """Grid units per pixel along x and y."""
    height, width = q.shape[-2:]
    less = 1 if settings.align_corners else 0
    return 2 / (width - less), 2 / (height - less)


def _sample(scene: _Scene, grid: Tensor, settings: _Settings) -> Tensor:
    flat = F.grid_sample(
        scene.sources.flatten(0, 1), grid.flatten(0, 1), "bilinear", "border", align_corners=settings.align_corners
    )
    return flat.view_as(scene.sources)


def _sample_gradient(d_warped: Tensor, scene: _Scene, grid: Tensor, settings: _Settings) -> Tensor:
    bilinear, border = 0, 1
    inputs = (d_warped.flatten(0, 1), scene.sources.flatten(0, 1), grid.flatten(0, 1))
    mask = [False, True]  # the pictures need no gradient
    _, d_grid = torch.ops.aten.grid_sampler_2d_backward(*inputs, bilinear, border, settings.align_corners, mask)
    return torch.as_tensor(d_grid).view_as(grid)


def _error(warped: Tensor, scene: _Scene, ssim_weight: float) -> tuple[Tensor, _State]:
    """Photometric error, n x S x H x W, as `photometric_error` defines it."""
    mean = box_sum(warped).div_(9)
    product = mean * scene.of_target.mean
    square = mean * mean
    structure = box_sum(warped * scene.target).mul_(2 / 9).sub_(product, alpha=2).add_(C2)
    structure_below = box_sum(warped * warped).div_(9).sub_(square).add_(scene.of_target.variance).add_(C2)
    luminance = product.mul_(2).add_(C1)
    luminance_below = square.addcmul_(scene.of_target.mean, scene.of_target.mean).add_(C1)
    ssim = (luminance * structure).div_(luminance_below).div_(structure_below)
    error = ssim.sub(1).mul_(-0.5 * ssim_weight).clamp_(0, ssim_weight)
    error.add_((warped - scene.target).abs_(), alpha=1 - ssim_weight)
    return error.mean(-3), _State(mean, luminance, structure, luminance_below, structure_below, ssim)


def _error_gradient(warped: Tensor, scene: _Scene, state: _State, g: Tensor, ssim_weight: float) -> Tensor:
    """Gradient in `warped` of sum(g * error); g is n x S x H x W.

    SSIM is a function of three window means, E[x], E[x^2] and E[xy]; its derivative in each goes back through the
    transposed window.
    """
    g = (g / warped.shape[-3])[:, :, None]
    weight = torch.where((state.ssim <= 1) & (state.ssim >= -1), g * (-0.5 * ssim_weight / 9), 0.0)
    below = state.luminance_below * state.structure_below
    by_product = (weight * 2 * state.luminance).div_(below)
    by_square = (weight * state.ssim).div_(state.structure_below).neg_()
    by_mean = (state.structure - state.luminance).mul_(scene.of_target.mean).div_(below)
    balance = (state.structure_below - state.luminance_below).div_(below).mul_(state.ssim).mul_(state.mean)
    by_mean = by_mean.sub_(balance).mul_(2).mul_(weight)
    d = box_sum_transposed(by_mean)
    d.addcmul_(box_sum_transposed(by_square), warped, value=2)
    d.addcmul_(box_sum_transposed(by_product), scene.target)
    return d.add_((warped - scene.target).sign_().mul_(g), alpha=1 - ssim_weight)
