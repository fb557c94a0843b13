"""What must hold for depth and cameras as read: plausible metres, and a camera that belongs to its picture."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

COMMON_SCALES = (1.0, 1000.0, 256.0, 100.0, 5000.0, 4000.0, 10.0)  # stored value per metre, in order of preference
FARTHEST = 1000.0  # metres: no sensor behind a depth data set sees farther
RELATIVE_FOCAL = 5.0  # focal lengths below this are fractions of the sides rather than pixels
NEAREST = 0.05  # metres: no camera of such a data set has its whole view nearer


@dataclass
class Impossible:
    """Stored values that no measurement can be, counted in pixels while `watched` is open."""

    infinite: int = 0
    negative: int = 0
    pixels: int = 0


_watch: ContextVar[Impossible | None] = ContextVar("_watch", default=None)


@contextmanager
def watched() -> Iterator[Impossible]:
    """Count what `clean` takes out of the maps that are read in this block."""
    found = Impossible()
    token = _watch.set(found)
    try:
        yield found
    finally:
        _watch.reset(token)


def clean(values: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Mark what was not measured: NaN, infinity and (for depth) negative values become 0, NaN in relative disparity.

    Args:
        values: float32, H x W.
        kind: what the values mean.
    """
    if (seen := _watch.get()) is not None:
        seen.pixels += values.size
        seen.infinite += int(np.isinf(values).sum())
        seen.negative += 0 if kind is Kind.RELATIVE_DISPARITY else int((np.isfinite(values) & (values < 0)).sum())
    if kind is Kind.RELATIVE_DISPARITY:
        return np.where(np.isfinite(values), values, np.float32(np.nan))
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


def check_metres(depth: Depth, max_depth: float | None, scale: float = 1.0) -> None:
    """Refuse metric depth whose median cannot be metres (FAULTS row 15).

    Args:
        depth: any kind; only metric depth is judged.
        max_depth: the largest depth that the data set trusts, metres.
        scale: stored value per metre that was used to read it, for the message.

    Raises:
        DataError: the median lies outside 0.05 m to 1000 m, or beyond ten times `max_depth`; proposes the scale.
    """
    if depth.kind is not Kind.METRIC_DEPTH:
        return
    measured = depth.values[depth.values > 0]
    if measured.size == 0:
        return
    median = float(np.median(measured[:: measured.size // 4096 + 1]))
    limit = min(FARTHEST, 10 * max_depth) if max_depth else FARTHEST
    if NEAREST <= median <= limit:
        return
    good = max_depth or 100.0
    stored = median * scale
    fitting = [candidate for candidate in COMMON_SCALES if 0.3 <= stored / candidate <= good]
    mend = f"set depth_scale to {fitting[0]:g} (stored value per metre)" if fitting else "check unit and depth_scale"
    why = f"the median is {median:.4g} m with depth_scale {scale:g}"
    raise DataError("depth is not in metres", where=depth.source or None, why=why, mend=mend)


def check_intrinsics(camera: Intrinsics, size: tuple[int, int], where: object) -> Intrinsics:
    """The camera itself, if it can belong to a picture of `size` (height, width) pixels (FAULTS row 36).

    Raises:
        DataError: not finite, a focal length that is not positive or belongs to no lens, or a principal point outside
            the picture.
    """
    height, width = size
    if not np.isfinite([camera.fx, camera.fy, camera.cx, camera.cy]).all():
        raise DataError("intrinsics must be finite", where=where, why=str(camera))
    if camera.fx <= 0 or camera.fy <= 0:
        why = f"fx {camera.fx:g}, fy {camera.fy:g} (pixels)"
        raise DataError("focal lengths must be positive", where=where, why=why, mend="give fx and fy in pixels")
    if why := camera.implausible(height, width):
        place = f"fx {camera.fx:g}, fy {camera.fy:g} for {height}x{width} (height x width): {why}"
        mend = "give fx, fy, cx and cy in pixels of this picture"
        if max(camera.fx, camera.fy) < RELATIVE_FOCAL and max(camera.cx, camera.cy) <= 1:
            mend += ": these look like fractions of its sides: multiply fx and cx by the width, fy and cy by the height"
        raise DataError("impossible intrinsics", where=where, why=place, mend=mend)
    if not (0 < camera.cx < width and 0 < camera.cy < height):
        why = f"principal point ({camera.cx:g}, {camera.cy:g}) outside {height}x{width} (height x width)"
        mend = "give cx and cy in pixels of this picture, and set width and height to the size they belong to"
        raise DataError("intrinsics do not fit the picture", where=where, why=why, mend=mend)
    return camera
