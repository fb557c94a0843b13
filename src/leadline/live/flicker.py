"""Flicker: how much depth changes over time where nothing but noise can have changed it.

For each pixel of a frame, its value is compared with the mean of the values that the same point of the scene has one
frame earlier and one later, found along the optical flow (or along poses or flow that are known). A change that is
even over three frames, as when a wall comes nearer, cancels; a jump there and back does not. Only points that are seen
in all three frames count. The mean |difference| is divided by the spread of the depth (2nd to 98th percentile, median
over the frames), so that networks of any kind and unit can be compared. `change` is the plain difference to the frame
before, with true motion in it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from leadline.live.flow import Flow, flows_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LONGEST = 576  # pixels of the longer side at which motion is found


@dataclass(frozen=True)
class Flicker:
    """Unsteadiness of a film's depth, as shares of its spread.

    Args:
        value: mean |difference| to the mean of both neighbours along the motion.
        change: mean |difference| to the frame before along the motion.
        frames: that had two neighbours.
        points: share of the pixels that could be followed.
    """

    value: float
    change: float
    frames: int
    points: float


@dataclass
class FlickerMeter:
    """Takes the frames of a film in order, with one or several versions of their depth.

    Args:
        versions: how many maps come with each frame, as with and without smoothing.
    """

    versions: int = 1
    _recent: deque[tuple[NDArray[np.uint8] | None, list[NDArray[np.float32]]]] = field(
        default_factory=lambda: deque(maxlen=3)
    )
    _flows: deque[tuple[Flow, Flow]] = field(default_factory=lambda: deque(maxlen=2))
    _jumps: list[list[float]] = field(default_factory=list)
    _changes: list[list[float]] = field(default_factory=list)
    _spreads: list[list[float]] = field(default_factory=list)
    _points: list[float] = field(default_factory=list)

    def push(
        self,
        maps: Sequence[NDArray[np.float32]],
        picture: NDArray[np.uint8] | None = None,
        flows: tuple[Flow, Flow] | None = None,
    ) -> None:
        """Take the next frame.

        Args:
            maps: its depth, each h x w float32; all frames and versions of one size.
            picture: H x W x 3 uint8 RGB, where the motion is to be found from pictures.
            flows: from the frame before to this one and back, at the maps' size, where they are known.
        """
        maps = [np.asarray(each, np.float32) for each in maps]
        grey = None
        if flows is None:
            assert picture is not None
            grey = _shrunk(picture)
            maps = [_resized(each, (grey.shape[0], grey.shape[1])) for each in maps]
            before = self._recent[-1][0] if self._recent else None
            flows = flows_between(before, grey, careful=True) if before is not None else None
        if flows is not None and self._recent:
            self._flows.append(flows)
        self._recent.append((grey, maps))
        self._spreads.append([float(np.subtract(*np.percentile(each, (98, 2)))) for each in maps])
        if len(self._recent) == 3:
            self._measure()

    def _measure(self) -> None:
        (_, first), (_, middle), (_, last) = self._recent
        (_, back), (there, _) = self._flows
        seen = (back.trusted > 0.5) & (there.trusted > 0.5)
        self._points.append(float(seen.mean()))
        if not seen.any():
            return
        jumps, changes = [], []
        for one, two, three in zip(first, middle, last, strict=True):
            earlier, later = back.bring(one), there.bring(three)
            jumps.append(float(np.abs(two - (earlier + later) / 2)[seen].mean()))
            changes.append(float(np.abs(two - earlier)[seen].mean()))
        self._jumps.append(jumps)
        self._changes.append(changes)

    def results(self) -> list[Flicker] | None:
        """One per version; None where fewer than three frames could be followed. All share the first one's spread."""
        if not self._jumps:
            return None
        spread = float(np.median([each[0] for each in self._spreads])) or 1.0
        points, frames = float(np.mean(self._points)), len(self._jumps)
        jumps, changes = np.mean(self._jumps, axis=0) / spread, np.mean(self._changes, axis=0) / spread
        return [
            Flicker(float(jump), float(change), frames, points) for jump, change in zip(jumps, changes, strict=True)
        ]


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from leadline.live.temporal import grey_of

    height, width = picture.shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    return grey_of(picture, (max(8, round(factor * height)), max(8, round(factor * width))))


def _resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    from leadline.image import resize

    return np.asarray(resize(values, size, "bilinear"), np.float32)
