"""Depthwise convolutions in BF16 on the CPU: the gradients that BF16 computes slowly are computed in FP32.

PyTorch's CPU backward of a depthwise convolution takes two to three times as long in BF16 as in FP32, while the
forward is faster (shared pilot: 1.25 to 0.90 s per iteration). Here the weight gradient, and the input gradient of
stride 2, are FP32; the input gradient of stride 1 is a BF16 forward convolution with the kernel turned round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (grad,) = gradients
        channels, kernel, padding = weight.shape[0], weight.shape[-1], ctx.padding
        turn = ctx.stride == 1 and 2 * padding == kernel - 1 and ctx.needs_input_grad[0]
        wanted = [ctx.needs_input_grad[0] and not turn, ctx.needs_input_grad[1], False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None,
            [ctx.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels, wanted,
        )  # fmt: skip
        if turn:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, groups=channels)
        return (
            grad_x.to(x.dtype) if grad_x is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            None,
            None,
        )


def speed_up(model: nn.Module) -> None:
    """Let the depthwise convolutions of `model` (square, without bias or dilation) use the faster backward, in place.

    The state dict and the results of a forward pass do not change; the gradients differ within BF16's rounding.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _fits(module):
            module.forward = _forward(module)  # type: ignore[method-assign]


def _fits(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    plain = conv.bias is None and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
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
            x, weight, conv.stride[0], padding
        )
        assert isinstance(out, Tensor)
        return out

    return forward
