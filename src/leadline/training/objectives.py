"""Objectives: terms of the training loss, each for the kinds of target that it understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from leadline.depth import Kind
from leadline.errors import KindError
from leadline.losses.regression import berhu, masked_l1
from leadline.losses.scale_invariant import SMALLEST_DEPTH_M, gradient_matching, scale_and_shift_invariant, silog

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from leadline.training.batches import Batch
    from leadline.training.config import Objective

METRIC_LOSSES = ("l1", "berhu", "silog")


def total_loss(
    objectives: list[Objective], prediction: Tensor, kind: Kind, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of all objectives over a batch, and each term by name.

    Metric losses see the metric targets alone; `ssi` and `gradient` see every target, in disparity.

    Args:
        objectives: the terms.
        prediction: N x 1 x H x W, in the network's kind.
        kind: the network's kind.
        batch: targets with their own kinds.

    Raises:
        KindError: a metric loss for a network that does not predict metres.
    """
    total = prediction.sum() * 0.0  # keeps the graph where no sample has a valid pixel
    terms: dict[str, float] = {}
    for objective in objectives:
        if objective.loss in METRIC_LOSSES:
            if kind is not Kind.METRIC_DEPTH:
                why = f"the network predicts {kind}"
                raise KindError("a metric loss", where=objective.loss, why=why, mend="use ssi")
            chosen = _mask(batch.kinds, Kind.METRIC_DEPTH, prediction.device)
            value = _metric_loss(objective)(prediction[chosen], batch.target[chosen], batch.valid[chosen])
        else:
            target, valid = _as_disparity(batch)
            predicted = _invert(prediction) if kind is Kind.METRIC_DEPTH else prediction
            value = (
                scale_and_shift_invariant(predicted, target, valid)
                if objective.loss == "ssi"
                else gradient_matching(predicted, target, valid, objective.scales)
            )
        total = total + objective.weight * value
        terms[objective.loss] = float(value.detach())
    return total, terms


def _metric_loss(objective: Objective) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if objective.loss == "silog":
        return lambda p, t, v: silog(p, t, v, objective.variance_focus)
    return masked_l1 if objective.loss == "l1" else berhu


def _mask(kinds: tuple[Kind, ...], wanted: Kind, device: torch.device) -> Tensor:
    return torch.tensor([kind is wanted for kind in kinds], device=device)


def _invert(depth: Tensor) -> Tensor:
    return 1.0 / depth.clamp(min=SMALLEST_DEPTH_M)


def _as_disparity(batch: Batch) -> tuple[Tensor, Tensor]:
    metric = _mask(batch.kinds, Kind.METRIC_DEPTH, batch.target.device)[:, None, None, None]
    if Kind.RELATIVE_DEPTH in batch.kinds:
        raise KindError("relative depth cannot be a target", why="its unknown shift forbids a disparity")
    return torch.where(metric & batch.valid, _invert(batch.target), batch.target), batch.valid
