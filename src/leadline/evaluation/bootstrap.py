"""Bootstrap over pictures: how far a mean over these pictures could have come out otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 2000
FEW = 30  # pictures from which on a difference makes a verdict
CONFIDENCE = 0.95
_CELLS = 4_000_000  # counts held in memory at once


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile interval over `n` pictures; one picture has none: both ends are the value."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values; None for the ends where there is no interval."""
        ends = (self.low, self.high) if self.n > 1 else (None, None)
        return {"value": self.value, "low": ends[0], "high": ends[1], "n": self.n}

    @property
    def excludes_zero(self) -> bool:
        """True where a difference has one sign over the whole interval."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def resampled_means(
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Weighted means of pictures drawn with replacement, the same draws for every column and every call of one n.

    Args:
        values: n x m, one row per picture, n at least 1.
        weights: n, greater than 0 (pixels per picture when pooling); None for equal weights.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        resamples x m.
    """
    n = values.shape[0]
    mass = np.ones(n) if weights is None else weights / weights.mean()
    weighted = np.column_stack([values * mass[:, None], mass])
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    parts = []
    for start in range(0, resamples, step):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        sums = counts.astype(np.float64) @ weighted
        parts.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(parts)


def interval(value: float, draws: NDArray[np.float64], n: int) -> Interval:
    """The percentile interval of `draws` around a figure from `n` pictures."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return Interval(float(value), float(low), float(high), n)
