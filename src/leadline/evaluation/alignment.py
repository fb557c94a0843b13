"""Alignment: the scale, or scale and shift, that is granted to a prediction before it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import Kind
from leadline.errors import KindError
from leadline.evaluation.metrics import SMALLEST_DEPTH, SMALLEST_DISPARITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

SINGULAR = 1e-6  # relative spread below which a line through the values is not determined


class Alignment(StrEnum):
    """What is fitted to the ground truth, per picture."""

    NONE = "none"
    MEDIAN = "median"  # one factor: median(gt) / median(pred), depth
    LSQ_DEPTH = "lsq-depth"  # scale and shift, least squares in depth
    LSQ_DISPARITY = "lsq-disparity"  # scale and shift, least squares in disparity

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of prediction whose unknowns this alignment finds."""
        return _KINDS[self]


_KINDS = {
    Alignment.NONE: frozenset({Kind.METRIC_DEPTH}),
    Alignment.MEDIAN: frozenset({Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY}),
    Alignment.LSQ_DEPTH: frozenset({Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY, Kind.RELATIVE_DEPTH}),
    Alignment.LSQ_DISPARITY: frozenset({Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY, Kind.RELATIVE_DISPARITY}),
}


@dataclass(frozen=True)
class Aligned:
    """A prediction in the unit of the truth.

    Args:
        depth: metres, P, not yet clamped.
        scale: the factor that was found; 1 without alignment.
        shift: the offset that was found: metres, or 1/m for `lsq-disparity`.
        disparity: scale * pred + shift in 1/m, P, where the fit was made in disparity.
        singular: the values are constant (or have no positive median): nothing could be fitted.
    """

    depth: Vector
    scale: float = 1.0
    shift: float = 0.0
    disparity: Vector | None = None
    singular: bool = False


def align(pred: NDArray[np.floating], kind: Kind, gt: NDArray[np.floating], how: Alignment) -> Aligned:
    """Bring a prediction to metres by the alignment `how` (SPEC.md 4.4, 6.5).

    Args:
        pred: the model's values on the valid pixels, P, in its own kind.
        kind: what they mean.
        gt: ground truth on the same pixels, metres, P, greater than 0.
        how: the alignment.

    Raises:
        KindError: the alignment cannot find this kind's unknowns; nothing is scored then.
    """
    if kind not in how.kinds:
        accepted = ", ".join(sorted(how.kinds))
        raise KindError(f"alignment {how.value!r} cannot be used", where=f"on {kind.value}", why=f"it takes {accepted}")
    values, truth = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if how is Alignment.NONE:
        return Aligned(values)
    if how is Alignment.MEDIAN:
        return _by_median(depth_of(values, kind), truth)
    if how is Alignment.LSQ_DEPTH:
        depth = depth_of(values, kind)
        scale, shift, singular = fit_line(depth, truth)
        return Aligned(scale * depth + shift, scale, shift, singular=singular)
    disparity = values if kind.is_disparity else 1.0 / np.maximum(values, SMALLEST_DEPTH)
    scale, shift, singular = fit_line(disparity, 1.0 / truth)
    line = scale * disparity + shift
    return Aligned(1.0 / np.maximum(line, SMALLEST_DISPARITY), scale, shift, line, singular)


def fit_line(x: Vector, y: Vector) -> tuple[float, float, bool]:
    """(scale, shift, singular) that minimise Σ(scale·x + shift - y)²: the 2x2 normal equations about the means.

    Where x is constant the system is singular: scale 0, shift mean(y).
    """
    if x.size == 0:
        return 0.0, 0.0, True
    mean_x, mean_y = float(x.mean()), float(y.mean())
    dx = x - mean_x
    if float(np.ptp(x)) <= SINGULAR * float(np.abs(x).max()):
        return 0.0, mean_y, True
    scale = float(dx @ (y - mean_y)) / float(dx @ dx)
    return scale, mean_y - scale * mean_x, False


def depth_of(values: Vector, kind: Kind) -> Vector:
    """Depth up to what the kind leaves open: 1/v for scaled disparity, the values themselves for the depth kinds."""
    if kind is not Kind.SCALED_DISPARITY:
        return values
    nearest = float(values.max(initial=0.0))
    return 1.0 / np.maximum(values, 1e-6 * nearest if nearest > 0 else 1.0)


def _by_median(depth: Vector, truth: Vector) -> Aligned:
    middle = float(np.median(depth)) if depth.size else 0.0
    if middle <= 0:
        return Aligned(depth, singular=True)
    scale = float(np.median(truth)) / middle
    return Aligned(scale * depth, scale)
