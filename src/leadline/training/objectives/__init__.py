"""Objectives: the terms of the training loss. A new one is a class in one of these files and a name in the union."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from leadline.training.objectives.base import Seen, Term
from leadline.training.objectives.bins import Chamfer
from leadline.training.objectives.cost import Cost
from leadline.training.objectives.distillation import FeatureAlignment, MedianCentred, TrimmedScaleShiftInvariant
from leadline.training.objectives.self_supervised import Photometric, Smoothness
from leadline.training.objectives.supervised import L1, BerHu, GradientMatching, ScaleShiftInvariant, Silog
from leadline.training.objectives.teacher import FollowTeacher, OwnTeacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Objective", "Seen", "Term", "total_loss"]

Objective = Annotated[
    L1
    | BerHu
    | Silog
    | ScaleShiftInvariant
    | GradientMatching
    | TrimmedScaleShiftInvariant
    | MedianCentred
    | FeatureAlignment
    | Photometric
    | Smoothness
    | Chamfer
    | Cost
    | FollowTeacher
    | OwnTeacher,
    Field(discriminator="loss"),
]


def total_loss(
    objectives: Sequence[Term], seen: Seen, shares: Sequence[float] | None = None, everyone: Seen | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of all objectives over a batch, and each term by name (a repeated name is numbered).

    Args:
        objectives: the terms.
        seen: what they look at.
        shares: each objective's share of the joined batch that `seen` is a part of, 0 to 1; the whole where absent.
        everyone: what the `joined` objectives look at instead, where several processes make the batch.

    Raises:
        KindError: an objective cannot use the network's or a target's kind.
    """
    total = seen.outputs.maps[0].sum() * 0.0  # keeps the graph where no sample has a valid pixel
    terms: dict[str, float] = {}
    for number, objective in enumerate(objectives):
        value = objective.term(everyone if everyone is not None and objective.joined else seen)
        if shares is not None:
            value = value * shares[number]
        total = total + objective.weight * value
        name, again = objective.loss, 2
        while name in terms:
            name, again = f"{objective.loss}.{again}", again + 1
        terms[name] = float(value.detach())
    return total, terms
