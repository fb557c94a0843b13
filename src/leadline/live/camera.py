"""Depth of a live source: take the latest picture, infer, smooth, draw, show and record; say how late the result is."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from leadline.depth import Kind
from leadline.live.capture import fitted
from leadline.live.display import DisplayRange
from leadline.live.temporal import Smoother, Smoothing
from leadline.live.view import View, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from leadline.live.capture import Shot
    from leadline.live.latest import Latest
    from leadline.live.recording import Recording
    from leadline.live.shared import Share
    from leadline.predictor import Predictor

RECENT_S = 2.0  # over which the status line's frames a second are counted


class Screen(Protocol):
    """Shows pictures."""

    @property
    def closed(self) -> bool:
        """Whether the user closed it."""

    def show(self, picture: NDArray[np.uint8], status: str) -> None:
        """Show H x W x 3 uint8 RGB and a line of text."""


@dataclass
class Latencies:
    """Times of any number of frames in constant memory: counts over bins that are 2 % wide, from 0.01 ms."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1200, np.int64))
    total: int = 0

    def add(self, ms: float) -> None:
        """One more, milliseconds."""
        place = int(math.log(max(ms, 0.01) / 0.01) / math.log(1.02))
        self.counts[min(place, self.counts.size - 1)] += 1
        self.total += 1

    def quantile(self, share: float) -> float | None:
        """Milliseconds below which this share of the frames lies, within 1 %; None without frames."""
        if self.total == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), max(1.0, share * self.total)))
        return float(0.01 * 1.02 ** (place + 0.5))


@dataclass(frozen=True)
class LiveOptions:
    """What is made of a live source.

    Args:
        view: what is shown and recorded.
        smoothing: how raw values are made steady; None leaves them.
        display: (lo, hi) of the colours; None follows slowly.
        frames: after which it ends; None never.
        seconds: the same in time.
    """

    view: View = View.SIDE
    smoothing: Smoothing | None = field(default_factory=Smoothing.causal)
    display: tuple[float, float] | None = None
    frames: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class LiveFrame:
    """What is known of one frame's result, for other programs.

    Args:
        frame: number among the frames that were worked on.
        time: when the picture arrived, seconds since 1970.
        latency_ms: from then until its result was there (shown and recorded).
        dropped: pictures so far that were left out because a later one was there.
        median: of the raw values.
        low: their 2nd percentile.
        high: their 98th percentile.
        centre: the value in the middle of the picture; None where it is not valid.
    """

    frame: int
    time: float
    latency_ms: float
    dropped: int
    median: float | None
    low: float | None
    high: float | None
    centre: float | None


@dataclass
class LiveResult:
    """What became of a run."""

    frames: int = 0
    dropped: int = 0
    reopened: int = 0
    resized: int = 0
    seconds: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)

    def status(self, rate: float | None = None) -> str:
        """One line for people; `rate`, frames a second, is that of the whole run if not given."""
        median, late = self.latencies.quantile(0.5), self.latencies.quantile(0.95)
        if median is None or late is None:
            return "no frame yet"
        if rate is None:
            rate = self.frames / self.seconds if self.seconds > 0 else 0.0
        return (
            f"{self.frames} frames, {rate:.1f} a second, {self.dropped} dropped; "
            f"from capture to result {median:.0f} ms median, {late:.0f} ms p95"
        )


def run_live(
    predictor: Predictor,
    latest: Latest,
    options: LiveOptions,
    *,
    screen: Screen | None = None,
    recording: Recording | None = None,
    share: Share | None = None,
    on_frame: Callable[[LiveFrame, LiveResult], None] = lambda frame, result: None,
    say: Callable[[str], None] = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> LiveResult:
    """Work on the latest picture until the source ends, is lost, or the user ends it.

    Args:
        predictor: runs in the calling thread.
        latest: the source, entered.
        options: what is made of it.
        screen: to show on.
        recording: to write to.
        share: shared memory for the values.
        on_frame: takes each frame's figures, and those of the run so far.
        say: takes one sentence about what is worth saying.
        stopped: asked between frames.

    Raises:
        DataError: the source was lost for good.
        OutputError: the recording or the shared memory cannot be written.
        NumericalError: the engine returned NaN.
    """
    kind = predictor.contract.output.kind
    smoother = None if options.smoothing is None else Smoother(kind, options.smoothing)
    display, result = DisplayRange(options.display), LiveResult()
    recent: deque[float] = deque()
    begin, size = time.perf_counter(), None
    while (shot := latest.take(lambda: stopped() or (screen is not None and screen.closed))) is not None:
        picture = shot.picture
        if size is None:
            begin, size = time.perf_counter(), (picture.shape[0], picture.shape[1])
        elif picture.shape[:2] != size:
            if not result.resized:
                say(f"the resolution changes to {picture.shape[0]}x{picture.shape[1]}; resized to {size[0]}x{size[1]}")
            picture, result.resized = fitted(picture, size), result.resized + 1
        values = _steady_values(predictor, picture, smoother)
        if share is not None:
            share.write(values, kind, shot.unix)
        lo, hi = display.update(values, kind)
        if screen is not None or recording is not None:
            drawn = draw(picture, values, kind, lo, hi, options.view)
            if recording is not None:
                recording.add(drawn, shot.arrived)
            if screen is not None:
                screen.show(drawn, result.status(len(recent) / RECENT_S))
        done = time.perf_counter()
        latency = 1e3 * (done - shot.arrived)
        result.frames, result.dropped, result.reopened = result.frames + 1, latest.dropped, latest.reopened
        result.seconds = done - begin
        result.latencies.add(latency)
        recent.append(done)
        while recent[0] < done - RECENT_S:
            recent.popleft()
        on_frame(_figures(result, shot, latency, values, kind), result)
        if result.frames == options.frames or (options.seconds is not None and result.seconds >= options.seconds):
            break
    return result


def _steady_values(predictor: Predictor, picture: NDArray[np.uint8], smoother: Smoother | None) -> NDArray[np.float32]:
    output = predictor.session.run(predictor.contract.prepare(picture, predictor.size))
    values = output.reshape(output.shape[-2:])
    return values if smoother is None else smoother.push(picture, values)[-1]


def _figures(result: LiveResult, shot: Shot, latency: float, values: NDArray[np.float32], kind: Kind) -> LiveFrame:
    valid = np.isfinite(values) & ((values > 0) | (kind is Kind.RELATIVE_DISPARITY))
    low = median = high = None
    if valid.any():
        low, median, high = (float(each) for each in np.percentile(values[valid], (2, 50, 98)))
    row, column = values.shape[0] // 2, values.shape[1] // 2
    centre = float(values[row, column]) if valid[row, column] else None
    return LiveFrame(result.frames - 1, shot.unix, latency, result.dropped, median, low, high, centre)
