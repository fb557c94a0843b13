"""The trade-off: which candidates no other candidate beats in everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, in the given order.

    A point dominates another if it is at most as large in every coordinate and smaller in one. Smaller is better:
    negate what should be large. Equal points are all kept.

    Args:
        points: each with the same number of coordinates.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(_dominates(other, point) for position, other in enumerate(points) if position != index)
    ]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))
