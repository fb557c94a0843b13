"""Parity: whether an exported file still computes what PyTorch computes, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError, ParityError, sides
from leadline.runtimes.base import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from leadline.runtimes.base import Session


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost. `relative` is the mean |difference| over the reference's standard deviation.

    FP32 is allowed a reordering of sums, FP16 and BF16 their rounding (2^-11 and 2^-8 per operation). INT8 depends on
    network and calibration: the limits only tell a coarse result from a wrong one, `leadline evaluate` tells the rest.
    """

    relative: float
    correlation: float


FLAT = 0.05  # of the mean: a reference that varies by less says little about agreement
TOLERANCES = {
    Precision.FP32: Tolerance(relative=1e-3, correlation=0.9999),
    Precision.FP16: Tolerance(relative=2e-2, correlation=0.999),
    Precision.BF16: Tolerance(relative=1e-1, correlation=0.99),
    Precision.INT8_WEIGHTS: Tolerance(relative=0.5, correlation=0.95),
    Precision.INT8_DYNAMIC: Tolerance(relative=1.0, correlation=0.9),
    Precision.INT8_STATIC: Tolerance(relative=1.0, correlation=0.9),
    Precision.PALETTISED: Tolerance(relative=0.5, correlation=0.95),
}


@dataclass(frozen=True)
class Parity:
    """Agreement of an exported file with PyTorch FP32 over some pictures.

    Args:
        pictures: how many were compared.
        max_abs: largest |difference|, in the output's own unit.
        mean_abs: mean |difference|, in the output's own unit.
        relative: mean_abs over the reference's standard deviation, or over 5 % of its mean where that is larger.
        correlation: Pearson, -1 to 1; 1 where both are constant.
        spread: the reference's standard deviation over its mean.
        delta1: share of pixels whose ratio to the reference is below 1.25, 0 to 1.
        abs_rel: mean of |difference| / reference over pixels where the reference is not near 0.
    """

    pictures: int
    max_abs: float
    mean_abs: float
    relative: float
    correlation: float
    spread: float
    delta1: float
    abs_rel: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a bundle's details."""
        return asdict(self)


def compare_outputs(candidate: NDArray[np.float32], reference: NDArray[np.float32]) -> Parity:
    """Compare outputs of the same pictures.

    Args:
        candidate: N x 1 x H x W float32.
        reference: the same shape, from PyTorch FP32.

    Raises:
        ParityError: the shapes differ.
    """
    if candidate.shape != reference.shape:
        why = f"PyTorch gives {sides(reference.shape)}, the exported file {sides(candidate.shape)}"
        raise ParityError("the exported file returns another shape", why=why, mend="export a fixed size")
    new, old = candidate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    difference = np.abs(new - old)
    scale = max(float(old.std()), FLAT * float(np.abs(old).mean())) or 1.0
    floor = max(1e-3 * float(np.abs(old).max()), 1e-12)
    near, far = np.maximum(new, floor), np.maximum(old, floor)
    seen = old > floor
    return Parity(
        pictures=len(candidate),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        relative=float(difference.mean()) / scale,
        correlation=_correlation(new, old),
        spread=float(old.std()) / (float(np.abs(old).mean()) or 1.0),
        delta1=float((np.maximum(near / far, far / near) < 1.25).mean()),
        abs_rel=float((difference[seen] / old[seen]).mean()) if seen.any() else 0.0,
    )


def measure_parity(candidate: Session, reference: Session, inputs: Sequence[NDArray[np.float32]]) -> Parity:
    """Run both sessions over prepared inputs of one size, 1 x 3 x h x w each, and compare.

    Raises:
        ConfigError: no inputs.
        NumericalError: an engine returned NaN or infinity; it is named.
        ParityError: the shapes of the outputs differ.
    """
    if not inputs:
        raise ConfigError("no pictures to compare on")
    pairs = [(candidate.run(values), reference.run(values)) for values in inputs]
    for new, old in pairs:
        if new.shape != old.shape:
            compare_outputs(new, old)
    return compare_outputs(np.concatenate([new for new, _ in pairs]), np.concatenate([old for _, old in pairs]))


def check_parity(parity: Parity, precision: Precision, *, name: str) -> None:
    """Refuse an export that differs by more than its precision allows.

    Args:
        parity: the figures.
        precision: what was asked for; it chooses the tolerance.
        name: of the export, for the message.

    Raises:
        ParityError: with the figure and its limit.
    """
    limit = TOLERANCES[precision]
    if parity.relative > limit.relative:
        why = (
            f"mean |difference| is {parity.relative:.3g} of the output's spread, {precision} allows {limit.relative:g}"
        )
    elif parity.correlation < limit.correlation and parity.spread > FLAT:
        why = f"correlation is {parity.correlation:.5f}, {precision} must have {limit.correlation:g}"
    else:
        return
    if precision is Precision.PALETTISED:
        mend = "use int8-weights or fp16"
    elif precision is Precision.INT8_WEIGHTS:
        mend = "use fp16, or leave the layers that lose most out with --exclude"
    elif precision in (Precision.INT8_STATIC, Precision.INT8_DYNAMIC):
        mend = "calibrate on pictures of the kind that the network will see, try another method, or a wider precision"
    else:
        mend = "export a fixed size, or report it with the model"
    why += (
        f" (max {parity.max_abs:.3g}, mean {parity.mean_abs:.3g}, δ1 {parity.delta1:.4f}, {parity.pictures} pictures)"
    )
    raise ParityError("the exported file differs from PyTorch", where=name, why=why, mend=mend)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if _constant(a) or _constant(b):
        return 1.0 if _constant(a) and _constant(b) else 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _constant(values: NDArray[np.float64]) -> bool:
    return float(np.ptp(values)) <= 1e-9 * float(np.abs(values).max())
