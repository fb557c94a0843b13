"""Steady depth of a film: frames brought to one scale, then averaged along the motion, where it can be followed.

All in raw values: nothing here knows of colours or display ranges.

1. A network whose scale and shift are free gives each frame its own. Each new map is brought to the spread and mean
   that the one before it has at the points seen in both; a leak lets it find back to the network's own scale, so that
   errors do not add up.
2. Each map becomes the weighted mean of itself and its neighbours' maps, brought to its pixels along the optical flow.
   A neighbour's weight falls with its distance in time, is 0 where its point is hidden or was not found again, and
   falls where it says something else: edges of what moves stay where the frame itself has them. Nothing is fed back,
   so nothing blurs more and more. Motion and weights, and so the change, are found at half the size of large maps;
   networks' maps are smooth at that scale, and what detail they have stays theirs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.depth import Kind
from leadline.live.flow import Flow, flows_between, opencv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

CUT = 0.2  # share of points found again below which a new scene begins
LARGEST = 2.0  # change of scale from one frame to the next
THINNED = 4  # every so many rows and columns tell the spread of a map, every so many points its scale: thousands
HALVED = 128  # pixels of the shorter side from which motion is followed at half the size: it is smooth


@dataclass(frozen=True)
class Smoothing:
    """How maps are made steady.

    Args:
        before: earlier frames that count.
        after: later frames that count; results come so many frames late. 0 for cameras.
        agreement: difference, as a share of the usual spread of a map, at which a neighbour's weight is 0.6.
        leak: share of a change of scale that is let through, 0 to 1.
    """

    before: int = 2
    after: int = 2
    agreement: float = 0.1
    leak: float = 0.1

    @classmethod
    def causal(cls) -> Smoothing:
        """For cameras: nothing from the future, no delay."""
        return cls(before=3, after=0)


@dataclass
class _Frame:
    grey: NDArray[np.uint8]
    values: NDArray[np.float32]  # brought to the scale of those before
    to_before: Flow | None = None  # None at the first frame of a scene
    to_after: Flow | None = None

    @cached_property
    def coarse(self) -> NDArray[np.float32]:
        """The values at the size at which motion is followed."""
        return _coarse(self.values, self.grey.shape)


@dataclass
class Smoother:
    """Takes frames in order and gives each of them back once, in order.

    Args:
        kind: of the maps; decides whether scale and shift, the scale alone, or nothing is aligned.
        smoothing: how.
    """

    kind: Kind
    smoothing: Smoothing = field(default_factory=Smoothing)
    cuts: int = 0
    _frames: deque[_Frame] = field(default_factory=deque)
    _waiting: int = 0  # of the last frames, those not given back yet
    _spreads: deque[float] = field(default_factory=lambda: deque(maxlen=31))

    def push(self, picture: NDArray[np.uint8], values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Take the next frame.

        Args:
            picture: H x W x 3 uint8 RGB of any size; it is shrunk to the map's.
            values: h x w float32, raw output of the network.

        Returns:
            The maps that are finished now, oldest first, each like `values`.

        Raises:
            UnavailableError: OpenCV is not installed.
        """
        frame = _Frame(grey_of(picture, _followed(values)), values)
        self._spreads.append(float(np.subtract(*np.percentile(values[::THINNED, ::THINNED], (98, 2)))))
        ready: list[NDArray[np.float32]] = []
        if self._frames:
            last = self._frames[-1]
            there, back = flows_between(last.grey, frame.grey)
            if back.trusted.mean() < CUT:
                ready = self.flush()
                self.cuts += 1
            else:
                last.to_after, frame.to_before = there, back
                frame.values = self._aligned(values, last.coarse, back)
        self._frames.append(frame)
        self._waiting += 1
        if self._waiting > self.smoothing.after:
            ready.append(self._finished(len(self._frames) - self._waiting))
            self._waiting -= 1
        while len(self._frames) > self.smoothing.before + self._waiting + 1:
            self._frames.popleft()
        return ready

    def flush(self) -> list[NDArray[np.float32]]:
        """The maps that wait for later frames, at the end of a film; the next frame begins anew."""
        count = len(self._frames)
        ready = [self._finished(index) for index in range(count - self._waiting, count)]
        self._frames.clear()
        self._waiting = 0
        return ready

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later results depend on, as arrays that nothing changes any more; `resumed` takes it back."""
        found: dict[str, NDArray[Any]] = {
            "count": np.array([len(self._frames), self._waiting, self.cuts]),
            "spreads": np.array(self._spreads, np.float64),
        }
        for number, frame in enumerate(self._frames):
            found |= {f"{number}.grey": frame.grey, f"{number}.values": frame.values}
            for name, flow in (("before", frame.to_before), ("after", frame.to_after)):
                if flow is not None:
                    found |= {f"{number}.{name}.offset": flow.offset, f"{number}.{name}.trusted": flow.trusted}
        return found

    @classmethod
    def resumed(cls, kind: Kind, smoothing: Smoothing, state: Mapping[str, NDArray[Any]]) -> Smoother:
        """A smoother that goes on, to the bit, where another one's `state` was taken."""
        count, waiting, cuts = (int(each) for each in state["count"])
        smoother = cls(kind, smoothing, cuts)
        smoother._waiting = waiting
        smoother._spreads.extend(float(each) for each in state["spreads"])
        for number in range(count):
            flows = [
                Flow(state[f"{number}.{name}.offset"], state[f"{number}.{name}.trusted"])
                if f"{number}.{name}.offset" in state
                else None
                for name in ("before", "after")
            ]
            smoother._frames.append(_Frame(state[f"{number}.grey"], state[f"{number}.values"], *flows))
        return smoother

    def _finished(self, index: int) -> NDArray[np.float32]:
        """The map, and what its neighbours say that differs from it: that is found where motion is followed."""
        cv2, frames, options = opencv(), self._frames, self.smoothing
        values, centre = frames[index].values, frames[index].coarse
        limit = options.agreement * (float(np.median(self._spreads)) or 1.0)
        total, weights = np.zeros_like(centre), np.ones_like(centre)
        for step, reach in ((-1, options.before), (1, options.after)):
            way: Flow | None = None
            for distance in range(1, reach + 1):
                at = index + step * distance
                if not 0 <= at < len(frames):
                    break
                passed = frames[at - step]
                hop = passed.to_before if step < 0 else passed.to_after
                assert hop is not None  # within a scene every frame knows its neighbours
                way = hop if way is None else way.then(hop)
                far = 0.5 * (1.5 * distance / reach) ** 2
                unlike = cv2.subtract(way.bring(frames[at].coarse), centre)
                weight = cv2.exp(cv2.multiply(unlike, unlike, scale=-0.5 / limit**2))
                weight = cv2.multiply(weight, way.trusted, scale=math.exp(-far))
                cv2.accumulateProduct(weight, unlike, total)
                cv2.accumulate(weight, weights)
        change = cv2.divide(total, weights)
        if change.shape != values.shape:
            change = cv2.resize(change, values.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.add(values, change), np.float32)

    def _aligned(self, values: NDArray[np.float32], before: NDArray[np.float32], back: Flow) -> NDArray[np.float32]:
        """`values` with scale and shift, as far as the kind leaves them open, nearer to those of the frame before."""
        if self.kind is Kind.METRIC_DEPTH:
            return values
        seen = back.trusted > 0
        new = _coarse(values, seen.shape)[seen][::THINNED]
        old = back.bring(before)[seen][::THINNED]
        change = old - new
        off = np.abs(change - np.median(change))
        kept = off <= 3 * np.median(off) + 1e-6
        new, old = new[kept], old[kept]
        let = 1 - self.smoothing.leak
        if self.kind is Kind.SCALED_DISPARITY:
            scale = _limited(float(np.median(old) / max(float(np.median(new)), 1e-9)), let)
            return (scale * values).astype(np.float32)
        # Ratio of spreads, not regression: noise in the new map would pull a slope towards 0, frame after frame.
        scale = _limited(float(old.std() / max(float(new.std()), 1e-9)), let)
        centre, shift = float(new.mean()), let * float(old.mean() - new.mean())
        return (scale * (values - centre) + centre + shift).astype(np.float32)


def _coarse(values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """A map at (height, width) `size`, or itself."""
    if values.shape == size:
        return values
    cv2 = opencv()
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _followed(values: NDArray[np.float32]) -> tuple[int, int]:
    height, width = values.shape[:2]
    return (height // 2, width // 2) if min(height, width) >= HALVED else (height, width)


def grey_of(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """H x W x 3 RGB as grey of (height, width) `size`."""
    cv2 = opencv()
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def _limited(scale: float, share: float) -> float:
    return float(np.clip(scale, 1 / LARGEST, LARGEST) ** share) if np.isfinite(scale) and scale > 0 else 1.0
