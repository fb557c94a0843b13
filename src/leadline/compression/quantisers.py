"""Fake quantisation: tensors rounded to an INT8 grid in float arithmetic, with straight-through gradients.

Rounding is half to even, as of ONNX's QuantizeLinear. Where a value lies beyond its grid, its gradient is 0; elsewhere
it passes as if nothing had been rounded. The steps are fixed, or learned (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from leadline.models.quantization import LARGEST, LEVELS, along

RATE = 20.0  # relative change of a step for a unit of its parameter: 1 / the usual size of a weight, 0.05


class _Learned(torch.autograd.Function):
    """x rounded to step * (integer - zero), low <= integer <= high, with LSQ's gradient for the step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int, scale: float) -> Tensor:
        ratio = x / step
        ctx.save_for_backward(ratio, step, zero)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        return (torch.clamp(ratio.round() + zero, low, high) - zero) * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ratio, step, zero = ctx.saved_tensors
        (grad,) = gradients
        rounded = ratio.round()
        integers = torch.clamp(rounded + zero, ctx.low, ctx.high) - zero
        inside = integers == rounded
        # d(step * integer)/d(step) is the integer itself beyond the grid, and what rounding added within it
        slope = torch.where(inside, rounded - ratio, integers)
        grad_step = (grad * slope).sum_to_size(step.shape) * ctx.scale
        return grad * inside, grad_step, None, None, None, None


def learned(x: Tensor, step: Tensor, zero: Tensor, low: int, high: int, scale: float = 1.0) -> Tensor:
    """Fake quantisation with a gradient for the step.

    Args:
        x: any shape, float32.
        step: above 0; broadcasts against x.
        zero: integer that 0.0 has, as a float.
        low: smallest integer.
        high: largest integer.
        scale: factor of the step's gradient; LSQ takes 1 / sqrt(count * high).
    """
    result: Tensor = _Learned.apply(x, step, zero, low, high, scale)  # type: ignore[no-untyped-call]
    return result


class _Grid(nn.Module):
    """A step that is fixed, or `start * exp(RATE * change)` with a learned `change`."""

    def __init__(self, start: Tensor, *, learns: bool) -> None:
        super().__init__()
        self.register_buffer("start", start.float().clone())
        self.start: Tensor
        self.change = nn.Parameter(torch.zeros_like(self.start)) if learns else None
        self.bypassed = False  # float arithmetic, as a teacher's
        self.frozen = False

    def step(self) -> Tensor:
        """The step, above 0; with a gradient while it is learned."""
        if self.change is None:
            return self.start
        change = self.change.detach() if self.frozen else self.change
        return self.start * torch.exp(RATE * change)

    @property
    def learns(self) -> bool:
        """Whether the step has a gradient now."""
        return self.change is not None and not self.frozen and torch.is_grad_enabled()


class ActivationGrid(_Grid):
    """U8, one step and zero point for the whole tensor.

    Args:
        step: scalar.
        zero: integer that 0.0 has.
        learns: whether the step is learned.
        limit: largest value that the grid may reach (a ReLU6 that quantisation replaces ends there), infinite if any.
    """

    def __init__(self, step: float, zero: int, *, learns: bool = False, limit: float = math.inf) -> None:
        super().__init__(torch.tensor(step), learns=learns)
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.int32))
        self.zero: Tensor
        self.limit = limit

    def step(self) -> Tensor:
        """The step; its grid ends at `limit` at the latest."""
        step = super().step()
        return step if self.change is None else step.clamp(max=self.limit / max(1, LEVELS - int(self.zero)))

    def forward(self, x: Tensor) -> Tensor:
        """The tensor on its grid."""
        if self.bypassed:
            return x
        step = self.step()
        if self.learns:
            scale = 1 / math.sqrt(max(1, x[0].numel()) * LEVELS)
            return learned(x, step, self.zero.float(), 0, LEVELS, scale)
        return torch.fake_quantize_per_tensor_affine(x, step.detach(), self.zero, 0, LEVELS)


class WeightGrid(_Grid):
    """S8 without -128, zero point 0, a step for each output channel; pruned weights are 0.

    Args:
        steps: one for each channel.
        axis: of the output channels.
        learns: whether the steps are learned.
        shape: of the weight, for the mask of pruned weights; None prunes nothing.
    """

    def __init__(self, steps: Tensor, axis: int, *, learns: bool = False, shape: torch.Size | None = None) -> None:
        super().__init__(steps, learns=learns)
        self.axis = axis
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int32), persistent=False)
        self.zeros: Tensor
        self.register_buffer("kept", None if shape is None else torch.ones(shape, dtype=torch.bool))
        self.kept: Tensor | None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; a pruned one is 0, and has the gradient that it would have if it were there."""
        if self.bypassed:  # a teacher: what was removed is back, and alone learns
            return weight if self.kept is None else torch.where(self.kept, weight.detach(), weight)
        if self.kept is not None:
            weight = weight + (weight * self.kept - weight).detach()
        steps = self.step()
        if self.learns:
            shaped = along(steps, self.axis, weight.ndim)
            scale = 1 / math.sqrt(weight.numel() / len(steps) * LARGEST)
            return learned(weight, shaped, torch.zeros(()), -LARGEST, LARGEST, scale)
        return torch.fake_quantize_per_channel_affine(weight, steps.detach(), self.zeros, self.axis, -LARGEST, LARGEST)


class BiasGrid(nn.Module):
    """S32 at the product of the input's and the weight's steps, as an engine adds a bias to its sums.

    Args:
        activation: grid of the layer's input.
        weight: grid of the layer's weight.
    """

    def __init__(self, activation: ActivationGrid, weight: WeightGrid) -> None:
        super().__init__()
        self._of = activation, weight  # in a tuple: they belong to other layers too

    def forward(self, bias: Tensor) -> Tensor:
        """The bias on its grid; its gradient passes unchanged."""
        activation, weight = self._of
        if activation.bypassed:
            return bias
        with torch.no_grad():
            step = activation.step() * weight.step()
            change = (bias / step).round() * step - bias
        return bias + change
