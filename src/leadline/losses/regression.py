"""Point-wise regression losses on metric depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` over `valid` (same shape, bool); 0 with a gradient where nothing is valid."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def masked_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error in metres over valid pixels (FastDepth's criterion, SPEC.md 1.5).

    Args:
        prediction: N x 1 x H x W, metres.
        target: N x 1 x H x W, metres; anything where not valid.
        valid: N x 1 x H x W bool.
    """
    return masked_mean((prediction - target).abs(), valid)


def berhu(prediction: Tensor, target: Tensor, valid: Tensor, share: float = 0.2) -> Tensor:
    """Reverse Huber loss: |e| up to c, (e^2 + c^2) / 2c beyond, c = `share` of the batch's largest error.

    Source: Laina et al., Deeper Depth Prediction with Fully Convolutional Residual Networks, 2016, equation 3.

    Args:
        prediction: N x 1 x H x W, metres.
        target: N x 1 x H x W, metres; anything where not valid.
        valid: N x 1 x H x W bool.
        share: of the largest absolute error, 0 to 1.
    """
    error = torch.where(valid, (prediction - target).abs(), 0.0)
    c = (share * error.detach().max()).clamp(min=1e-6)
    return masked_mean(torch.where(error <= c, error, (error.square() + c.square()) / (2 * c)), valid)
