"""Objectives with a target per pixel: metric losses, and those that forgive scale and shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from leadline.depth import Kind
from leadline.errors import KindError
from leadline.losses.regression import berhu, masked_l1
from leadline.losses.scale_invariant import SMALLEST_DEPTH_M, gradient_matching, scale_and_shift_invariant, silog
from leadline.training.objectives.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.training.batches import Batch
    from leadline.training.objectives.base import Seen


class L1(Term):
    """Mean absolute error in metres (FastDepth's criterion); sees the metric targets alone."""

    loss: Literal["l1"] = "l1"

    def count(self, batch: Batch) -> float:
        """Valid pixels of the metric targets."""
        return float(batch.valid[_metric(batch)].sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the valid pixels."""
        return masked_l1(*metric_targets(seen, self.loss))


class BerHu(Term):
    """Reverse Huber loss, whose threshold is a share of the batch's largest error; metric targets alone."""

    joined: ClassVar[bool] = True
    loss: Literal["berhu"] = "berhu"

    def count(self, batch: Batch) -> float:
        """Valid pixels of the metric targets."""
        return float(batch.valid[_metric(batch)].sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the valid pixels."""
        return berhu(*metric_targets(seen, self.loss))


class Silog(Term):
    """Scale-invariant logarithmic error over all valid pixels of the batch together; metric targets alone."""

    joined: ClassVar[bool] = True
    loss: Literal["silog"] = "silog"
    variance_focus: float = Field(default=0.5, ge=0, le=1, description="0 = RMSE of the logarithm, 1 = scale-free")

    def count(self, batch: Batch) -> float:
        """Valid pixels of the metric targets."""
        return float(batch.valid[_metric(batch)].sum())

    def term(self, seen: Seen) -> Tensor:
        """Spread of the logarithmic errors over the whole batch."""
        return silog(*metric_targets(seen, self.loss), self.variance_focus)


class ScaleShiftInvariant(Term):
    """Mean absolute difference in disparity after each picture's own scale and shift; sees every target."""

    loss: Literal["ssi"] = "ssi"

    def count(self, batch: Batch) -> float:
        """Valid pixels."""
        return float(batch.valid.sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the valid pixels."""
        return scale_and_shift_invariant(*disparity_targets(seen))


class GradientMatching(Term):
    """Differences of neighbouring pixels, in normalised disparity, over several scales; sees every target."""

    joined: ClassVar[bool] = True  # each scale and direction has its own number of valid pairs
    loss: Literal["gradient"] = "gradient"
    scales: int = Field(default=4, ge=1, le=6, description="number of scales")

    def count(self, batch: Batch) -> float:
        """Valid pixels."""
        return float(batch.valid.sum())

    def term(self, seen: Seen) -> Tensor:
        """Sum over scales and directions of the mean over valid pairs."""
        return gradient_matching(*disparity_targets(seen), self.scales)


def metric_targets(seen: Seen, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and valid mask of the pictures with a metric target; no rows where there are none.

    Raises:
        KindError: the network does not predict metres.
    """
    if seen.kind is not Kind.METRIC_DEPTH:
        raise KindError("a metric loss", where=loss, why=f"the network predicts {seen.kind}", mend="use ssi")
    chosen = _metric(seen.batch)
    return seen.outputs.maps[0][chosen], seen.batch.target[chosen], seen.batch.valid[chosen]


def disparity_targets(seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and valid mask of every picture, as disparity; metric depth is inverted.

    Raises:
        KindError: a target is relative depth.
    """
    batch, prediction = seen.batch, seen.outputs.maps[0]
    if Kind.RELATIVE_DEPTH in batch.kinds:
        raise KindError("relative depth cannot be a target", why="its unknown shift forbids a disparity")
    metres = _metric(batch)[:, None, None, None] & batch.valid
    target = torch.where(metres, inverted(batch.target), batch.target)
    return inverted(prediction) if seen.kind is Kind.METRIC_DEPTH else prediction, target, batch.valid


def _metric(batch: Batch) -> Tensor:
    return torch.tensor([kind is Kind.METRIC_DEPTH for kind in batch.kinds], device=batch.target.device)


def inverted(depth: Tensor) -> Tensor:
    """Disparity of a depth in metres, 1/m; bounded where it is near 0."""
    return 1.0 / depth.clamp(min=SMALLEST_DEPTH_M)
