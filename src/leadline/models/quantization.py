"""The INT8 form of a network: the step of each weight's channels, step and zero point of each activation.

It is what quantisation-aware training leaves beside the float weights, which lie on the grid of those steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadline.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

LARGEST = 127  # of a weight's integers; -128 would break the symmetry
LEVELS = 255  # largest integer of an activation
OFF_GRID = 0.1  # of a step: a weight stored as float16 is up to 0.06 of one away from its grid


@dataclass(frozen=True)
class Channels:
    """Steps of a weight.

    Args:
        steps: one for each output channel, float32, above 0.
        axis: of the output channels in the weight.
    """

    steps: torch.Tensor
    axis: int


@dataclass(frozen=True)
class Activation:
    """The grid of a tensor between layers: value = step * (integer - zero), integers 0 to 255."""

    step: float
    zero: int


@dataclass(frozen=True)
class Quantization:
    """All grids of a network.

    Args:
        weights: by the parameter's name.
        activations: by what the tensor is made of, as `leadline.runtimes.onnx_points` names it.
    """

    weights: Mapping[str, Channels] = field(default_factory=dict)
    activations: Mapping[str, Activation] = field(default_factory=dict)

    def fits(self, model: nn.Module) -> bool:
        """Whether the weights of `model` lie on their grids; those of a network that was trained on do not."""
        state = model.state_dict()
        for name, channels in self.weights.items():
            weight = state.get(name)
            if weight is None or weight.shape[channels.axis] != len(channels.steps):
                return False
            integers = weight.detach().cpu().float() / along(channels.steps, channels.axis, weight.ndim)
            near = (integers - integers.round()).abs().max() < OFF_GRID
            if not near or integers.abs().max() > LARGEST + OFF_GRID:
                return False
        return True

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same for a safetensors file."""
        import torch

        found: dict[str, torch.Tensor] = {}
        for name, channels in self.weights.items():
            found[f"weight/{channels.axis}/{name}"] = channels.steps.detach().cpu().float().contiguous().clone()
        for name, grid in self.activations.items():
            found[f"step/{name}"] = torch.tensor(grid.step, dtype=torch.float32)
            found[f"zero/{name}"] = torch.tensor(grid.zero, dtype=torch.uint8)
        return found

    @staticmethod
    def of(tensors: Mapping[str, torch.Tensor], *, where: object = None) -> Quantization:
        """Read back what `tensors` gave.

        Raises:
            CheckpointError: a name, a step or a zero point is not of that form.
        """
        weights: dict[str, Channels] = {}
        activations: dict[str, Activation] = {}
        try:
            for key, value in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "weight":
                    axis, _, name = name.partition("/")
                    weights[name] = Channels(value.float().reshape(-1), int(axis))
                elif kind == "step":
                    activations[name] = Activation(float(value), int(tensors[f"zero/{name}"]))
                elif kind != "zero":
                    raise ValueError(f"unknown entry {key}")
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError("unreadable quantisation", where=where, why=str(error)) from error
        steps = [float(each.steps.min()) for each in weights.values()] + [each.step for each in activations.values()]
        if not all(0 < step < float("inf") for step in steps):
            raise CheckpointError("unreadable quantisation", where=where, why="a step is not above 0")
        return Quantization(weights, activations)


def along(steps: torch.Tensor, axis: int, dimensions: int) -> torch.Tensor:
    """Steps of channels in a shape that divides a weight of so many dimensions."""
    shape = [1] * dimensions
    shape[axis] = -1
    return steps.reshape(shape)
