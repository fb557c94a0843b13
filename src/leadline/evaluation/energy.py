"""Joules of a picture: what the machine's own counters say while a network runs, less what they say while it waits."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.evaluation.power import Counter, Gauge, Sources, find_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from leadline.evaluation.isolation import IsolatedSession

IDLE = 3.0  # seconds of waiting before the runs
RUNNING = 5.0  # seconds of runs, at least
EVERY = 0.1  # seconds between readings: no counter wraps twice, and watts are sampled often enough to be summed


@dataclass(frozen=True)
class Energy:
    """What pictures cost; every figure is None where no source can be read.

    Args:
        joules: of one picture, idle subtracted, summed over the sources.
        idle_watts: while the opened model waits.
        running_watts: while it runs, idle included.
        pictures: that were run.
        seconds: that they took.
        by_source: joules of one picture from each source.
        reason: why there is nothing.
    """

    joules: float | None = None
    idle_watts: float | None = None
    running_watts: float | None = None
    pictures: int = 0
    seconds: float = 0.0
    by_source: dict[str, float] | None = None
    reason: str = ""


class Meter:
    """Sums the joules of each source while its `with` block runs, by reading them again and again.

    A counter that started again at 0 is continued (RAPL wraps within minutes under load); watts are integrated by the
    trapezoidal rule.

    Args:
        sources: what to read.
        clock: seconds, for tests.
        every: seconds between readings in the background; 0: only at the ends and where `read` is called.
    """

    def __init__(
        self,
        sources: Sequence[Counter | Gauge],
        clock: Callable[[], float] = time.perf_counter,
        every: float = EVERY,
    ) -> None:
        self._sources, self._clock, self._every = list(sources), clock, every
        self.joules = {source.name: 0.0 for source in sources}
        self.seconds = 0.0
        self.fault = ""
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._then = 0.0
        self._last: dict[str, float] = {}
        self.read()
        self._began = self._then
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._every:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._every:
            self._thread.join()
        self.read()
        self.seconds = self._then - self._began

    def read(self) -> None:
        """Take what has been consumed since the last reading."""
        with self._lock:
            now = self._clock()
            for source in self._sources:
                try:
                    value, before = _value(source), self._last.get(source.name)
                    if before is not None:
                        self.joules[source.name] += self._since(source, before, value, now)
                    self._last[source.name] = value
                except (OSError, ValueError) as error:
                    self.fault = f"{source.name}: {error}"
            self._then = now

    def _since(self, source: Counter | Gauge, before: float, value: float, now: float) -> float:
        if isinstance(source, Counter):
            return consumed(before, value, source.wrap)
        return (before + value) / 2 * (now - self._then)

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.read()


def consumed(before: float, after: float, wrap: float) -> float:
    """Joules between two readings of a counter that starts again at 0 after `wrap`.

    Raises:
        ValueError: it went back, and does not wrap.
    """
    if after >= before:
        return after - before
    if not wrap:
        raise ValueError("the counter went back")
    return wrap - before + after


def measure_energy(
    session: IsolatedSession,
    sources: Sources | None = None,
    *,
    idle: float = IDLE,
    running: float = RUNNING,
    wait: Callable[[float], None] = time.sleep,
    meter: Callable[[Sequence[Counter | Gauge]], Meter] = Meter,
) -> Energy:
    """Joules of one picture of an opened and warmed-up model.

    Args:
        session: it waits for `idle` seconds, then runs for `running` seconds.
        sources: of this machine; found where None.
        idle: seconds.
        running: seconds, at least.
        wait: sleeps, for tests.
        meter: makes the meter, for tests.

    Returns:
        Without any source, only the reason.

    Raises:
        EngineError: the process died.
    """
    sources = sources or find_sources()
    if not sources.meters:
        return Energy(reason="; ".join(sources.missing) or "this system has no known source")
    with meter(sources.meters) as waiting:
        wait(idle)
    with meter(sources.meters) as busy:
        runs = len(session.last(running))
    if waiting.fault or busy.fault:
        return Energy(reason=f"a source failed while it was read: {waiting.fault or busy.fault}")
    return energy_of(waiting, busy, runs * session.job.batch)


def energy_of(waiting: Meter, busy: Meter, pictures: int) -> Energy:
    """Joules of a picture from two finished meters, one over a wait and one over the pictures."""
    idle_watts = {name: joules / waiting.seconds for name, joules in waiting.joules.items()}
    apart = {name: (joules - idle_watts[name] * busy.seconds) / pictures for name, joules in busy.joules.items()}
    drawn = sum(busy.joules.values()) / busy.seconds
    return Energy(sum(apart.values()), sum(idle_watts.values()), drawn, pictures, busy.seconds, apart)


def _value(source: Counter | Gauge) -> float:
    return source.joules() if isinstance(source, Counter) else source.watts()
