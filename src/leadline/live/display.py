"""One display range over time: colours that do not pump from frame to frame. Raw values are never touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import Kind
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = 1 << 12  # enough values for a percentile
FOREIGN = 0.1  # of two ranges' union, the overlap below which a new scene began


@dataclass
class DisplayRange:
    """The ends of the colour scale, slowly following the 2nd and 98th percentile of the frames.

    Args:
        fixed: (lo, hi) for every frame, in the map's own values.
        follow: share of the way to a frame's own range that is gone with it.
        lo: lower end that is shown now; None before the first frame.
        hi: upper end.

    Raises:
        ConfigError: `fixed` is upside down.
    """

    fixed: tuple[float, float] | None = None
    follow: float = 0.06
    lo: float | None = None
    hi: float | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None and not self.fixed[0] < self.fixed[1]:
            where = f"{self.fixed[0]:g},{self.fixed[1]:g}"
            raise ConfigError("the colour scale is upside down", where=where, mend="give LO below HI")

    def update(self, values: NDArray[np.float32], kind: Kind) -> tuple[float, float]:
        """The range for this frame; one without valid values keeps the last one.

        Args:
            values: h x w float32, raw values.
            kind: of them.

        Returns:
            (lo, hi) with lo <= hi; (0, 0) as long as nothing was valid.
        """
        if self.fixed is not None:
            return self.fixed
        own = _own_range(values, kind)
        if own is not None:
            if self.lo is None or self.hi is None or _overlap((self.lo, self.hi), own) < FOREIGN:
                self.lo, self.hi = own
            else:
                self.lo += self.follow * (own[0] - self.lo)
                self.hi += self.follow * (own[1] - self.hi)
        return self.lo or 0.0, self.hi or 0.0


def _own_range(values: NDArray[np.float32], kind: Kind) -> tuple[float, float] | None:
    step = max(1, int((values.size / SAMPLES) ** 0.5))
    sample = values[::step, ::step]
    valid = np.isfinite(sample)
    if kind is not Kind.RELATIVE_DISPARITY:
        valid &= sample > 0
    kept = sample[valid]
    if kept.size == 0:
        return None
    lo, hi = np.percentile(kept, (2, 98))
    return float(lo), float(hi)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    union = max(one[1], other[1]) - min(one[0], other[0])
    return 1.0 if union <= 0 else (min(one[1], other[1]) - max(one[0], other[0])) / union
