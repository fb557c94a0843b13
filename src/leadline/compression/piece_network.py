"""A piece as a network of its own, so that every engine takes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadline.compression.piece import Piece, Ref, axis_of, mapped


class PieceNetwork(nn.Module):
    """A piece as a network of its own: 1 x 3 x h x w to 1 x 1 x h x w, so that every engine takes it.

    A pointwise convolution of three channels makes each input; the mean over each output, added to the picture's first
    channel, keeps engines from leaving the piece out. Both hand over and take the tensor in the engine's own memory
    layout, as its neighbours would.

    Args:
        piece: at the widths that it has.
    """

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.piece = piece
        self.size = picture_size(piece)
        self.entrances = nn.ModuleList()
        for dims in piece.inputs:
            shape = piece.shape(dims)
            made: nn.Module = nn.Linear(3, shape[-1]) if len(shape) == 3 else nn.Conv2d(3, shape[axis_of(shape)], 1)
            self.entrances.append(made if len(shape) in (3, 4) else nn.Identity())
        generator = torch.Generator().manual_seed(0)
        self.constants = nn.ParameterList()
        for dims in piece.constants:
            shape = piece.shape(dims)
            spread = 1 / math.sqrt(max(1, math.prod(shape[1:])))
            weight = torch.randn(shape, generator=generator) * spread if len(shape) > 1 else torch.ones(shape)
            self.constants.append(nn.Parameter(weight, requires_grad=False))

    def forward(self, image: Tensor) -> Tensor:
        """1 x 1 x h x w from 1 x 3 x h x w."""
        inputs = [
            _entered(made, image, self.piece.shape(dims))
            for made, dims in zip(self.entrances, self.piece.inputs, strict=True)
        ]
        results: list[Any] = []
        widths = dict(self.piece.widths)

        def found(ref: Ref) -> Any:
            if ref.kind == "t":
                return results[ref.index] if ref.part < 0 else results[ref.index][ref.part]
            if ref.kind == "image":
                return image
            return inputs[ref.index] if ref.kind == "x" else self.constants[ref.index]

        for call in self.piece.calls:
            options = {key: mapped(value, found) for key, value in call.options}
            if isinstance(options.get("groups"), str):
                options["groups"] = widths[options["groups"]]
            results.append(call.function(*mapped(call.arguments, found), **options))
        total = sum(_left(found(ref)) for ref in self.piece.outputs)
        assert isinstance(total, Tensor)
        return image[:, :1] + total


def picture_size(piece: Piece) -> tuple[int, int]:
    """(height, width) of the picture that a piece's network takes: that of its first input."""
    if piece.image:
        return piece.image[2], piece.image[3]
    shape = piece.shape(piece.inputs[0]) if piece.inputs else (1, 1, 1, 1)
    if len(shape) == 4:
        return shape[2], shape[3]
    return (shape[1], 1) if len(shape) == 3 else (1, 1)


def _entered(made: nn.Module, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 4:
        small = image if image.shape[2:] == shape[2:] else F.interpolate(image, size=shape[2:], mode="nearest")
        return made(small)  # type: ignore[no-any-return]
    if len(shape) == 3:
        small = image if image.shape[2:] == (shape[1], 1) else F.interpolate(image, size=(shape[1], 1), mode="nearest")
        return made(small[..., 0].transpose(1, 2))  # type: ignore[no-any-return]
    return image.mean() + torch.ones(shape)


def _left(result: Tensor) -> Tensor:
    """1 x 1 x 1 x 1 from a piece's result."""
    if result.ndim == 4:
        pooled = F.avg_pool2d(result, (result.shape[2], result.shape[3]))
        return pooled.mean((1, 2, 3), keepdim=True)  # over all axes: ncnn's conversion loses a mean over channels alone
    return result.mean().reshape(1, 1, 1, 1)
