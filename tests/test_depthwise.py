"""Gradients of depthwise convolutions in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from leadline.training.depthwise import speed_up


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(5, 1, 2, 1), (5, 2, 2, 1), (3, 1, 3, 3), (3, 1, 0, 2)]
)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_our_depthwise_gradients_agree(
    kind: torch.dtype, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    """With float64; PyTorch's own weight gradient in BF16 with dilation is off by any factor, so ours has a test."""
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 24, "bias": False}
    conv = torch.nn.Conv2d(24, 24, kernel, **options).to(kind, memory_format=torch.channels_last)
    exact = copy.deepcopy(conv).double()
    speed_up(conv)
    values = torch.randn(8, 24, 30, 30).to(kind).contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(_gradients(conv, values), _gradients(exact, values.double()), strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < (1e-5 if kind is torch.float32 else 0.02)


def _gradients(conv: torch.nn.Module, values: torch.Tensor) -> list[torch.Tensor]:
    x = values.requires_grad_()
    return [grad.double() for grad in torch.autograd.grad(conv(x).square().sum(), [x, *conv.parameters()])]
