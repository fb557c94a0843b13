"""Depthwise convolutions in BF16 on the CPU: the gradients that BF16 computes slowly, or wrongly, are computed in FP32.

PyTorch's CPU backward of a depthwise convolution takes two to three times as long in BF16 as in FP32, while the
forward is faster (shared pilot: 1.25 to 0.90 s per iteration). Here the weight gradient, and the input gradient of
stride 2, are FP32; the input gradient of stride 1 is a BF16 forward convolution with the kernel turned round.

With dilation and channels last, PyTorch 2.13's own BF16 weight gradient is memory that nothing was written to: any
number up to infinity, and at times NaN (AVX-512 with BF16; a test holds ours against float64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.dilation = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        (grad,) = gradients
        channels, reach, padding = weight.shape[0], ctx.dilation * (weight.shape[-1] - 1), ctx.padding
        turn = ctx.stride == 1 and 2 * padding == reach and ctx.needs_input_grad[0]
        wanted = [ctx.needs_input_grad[0] and not turn, ctx.needs_input_grad[1], False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None,
            [ctx.stride] * 2, [padding] * 2, [ctx.dilation] * 2, False, [0, 0], channels, wanted,
        )  # fmt: skip
        if turn:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, ctx.dilation, groups=channels)
        return (
            grad_x.to(x.dtype) if grad_x is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            None,
            None,
            None,
        )


def speed_up(model: nn.Module) -> None:
    """Let the depthwise convolutions of `model` (square, without bias) use the backward of this module, in place.

    The state dict and the results of a forward pass do not change; the gradients differ within BF16's rounding.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _fits(module):
            module.forward = _forward(module)  # type: ignore[method-assign]


def _fits(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    plain = conv.bias is None and conv.dilation[0] == conv.dilation[1] and conv.padding_mode == "zeros"
    same = isinstance(conv.padding, tuple) and conv.padding[0] == conv.padding[1]
    return conv.groups == conv.in_channels == conv.out_channels > 1 and square and plain and same


def _forward(conv: nn.Conv2d) -> Any:
    padding = int(conv.padding[0])

    def forward(x: Tensor) -> Tensor:
        weight = conv.weight
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(kind), weight.to(kind)
        out = _Depthwise.apply(  # type: ignore[no-untyped-call]
            x, weight, conv.stride[0], padding, conv.dilation[0]
        )
        assert isinstance(out, Tensor)
        return out

    return forward
