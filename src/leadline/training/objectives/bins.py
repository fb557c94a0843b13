"""Objectives for networks that put disparity into bins (SPEC.md 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.losses.chamfer import chamfer, scale_invariant_chamfer
from leadline.losses.scale_invariant import SMALLEST_DEPTH_M
from leadline.training.objectives.base import Term
from leadline.training.objectives.supervised import disparity_targets

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.training.batches import Batch
    from leadline.training.objectives.base import Seen


class Chamfer(Term):
    """Bin centres drawn to the disparities that the targets (measured, or a teacher's) really have, zeros left out."""

    loss: Literal["chamfer"] = "chamfer"
    weight: float = Field(default=0.1, gt=0, description="factor of this term in the sum")
    stride: int = Field(default=8, ge=1, le=64, description="every how many pixels along both sides a target is taken")
    scale: Literal["free", "given"] = Field(
        default="free", description="free: of each picture's targets, unknown (teachers); given: that of the network"
    )

    def count(self, batch: Batch) -> float:
        """Pictures with at least one target at the stride."""
        used = _every(batch.valid, self.stride) & (_every(batch.target, self.stride) > 0)
        return float(used.any(dim=1).sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the pictures that have targets.

        Raises:
            ConfigError: the network has no bins, or fixed ones.
            KindError: a target is relative depth.
        """
        centres = seen.outputs.centres
        if centres is None or (torch.is_grad_enabled() and not centres.requires_grad):
            why = "the network has no bins" if centres is None else "the network's bins are fixed"
            raise ConfigError("nothing to move", where=self.loss, why=why, mend="use lite-mono-adaptive-bins")
        if seen.kind is Kind.METRIC_DEPTH:
            centres = 1.0 / centres.clamp(min=SMALLEST_DEPTH_M)
        prediction, points, valid = (_every(values, self.stride) for values in disparity_targets(seen))
        valid = valid & (points > 0)
        if self.scale == "given":
            return chamfer(centres, points, valid)
        return scale_invariant_chamfer(centres, prediction, points, valid)


def _every(values: Tensor, stride: int) -> Tensor:
    """The values of N x 1 x H x W at a regular stride, N x P."""
    return values[:, :, stride // 2 :: stride, stride // 2 :: stride].flatten(1)
