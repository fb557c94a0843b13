"""Speed that lasts: one model without a pause for minutes, with the clock and the temperature beside it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.evaluation.isolation import IsolatedSession

MINUTE = 60.0
ROOT = Path("/")


@dataclass(frozen=True)
class Window:
    """A stretch of runs.

    Args:
        at: seconds from the start to its end.
        ms: median of its runs, milliseconds.
        runs: in it.
        mhz: highest clock of any core behind it; None where this system tells none.
        celsius: highest temperature of any sensor behind it; None where there is none.
    """

    at: float
    ms: float
    runs: int
    mhz: float | None = None
    celsius: float | None = None


@dataclass(frozen=True)
class Sustained:
    """Runs without a pause, and what became of their speed.

    Args:
        windows: in order.
        span: seconds at either end that are compared: a minute, or half of a shorter measurement.
        first_ms: median of the windows in the first span, milliseconds.
        last_ms: of those in the last.
        slowest_ms: median of the slowest window.
    """

    windows: tuple[Window, ...]
    span: float
    first_ms: float
    last_ms: float
    slowest_ms: float

    @property
    def ratio(self) -> float:
        """Last over first: above 1 the machine became slower."""
        return self.last_ms / self.first_ms

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.windows[-1].at


def sustain(
    session: IsolatedSession,
    seconds: float,
    *,
    window: float | None = None,
    root: Path = ROOT,
    clock: Callable[[], float] = time.perf_counter,
    on_window: Callable[[Window], None] | None = None,
) -> Sustained:
    """Run an opened model for so long.

    Args:
        session: not warmed up: a device that is cold at first shows it.
        seconds: in all.
        window: seconds of a window; a second, or less where the measurement is shorter than ten.
        root: of the file system, for tests.
        clock: seconds, for tests.
        on_window: told each window as soon as it is there.

    Raises:
        ConfigError: no time at all.
        EngineError: the process died, after how long the message of the windows tells.
    """
    if seconds <= 0:
        raise ConfigError("a sustained measurement needs time", where=f"{seconds:g} s", mend="give more than 0 s")
    window = window or min(1.0, seconds / 10)
    windows: list[Window] = []
    began = clock()
    while (passed := clock() - began) < seconds:
        times = session.last(min(window, seconds - passed))
        found = Window(clock() - began, float(np.median(times)), len(times), clock_mhz(root), celsius(root))
        windows.append(found)
        if on_window is not None:
            on_window(found)
    return summary(windows)


def summary(windows: list[Window]) -> Sustained:
    """First against last minute, or half where there is less than two."""
    whole = windows[-1].at
    span = min(MINUTE, whole / 2)
    starts = [0.0, *(window.at for window in windows[:-1])]
    early = [window.ms for window in windows if window.at <= span] or [windows[0].ms]
    late = [window.ms for window, start in zip(windows, starts, strict=True) if start >= whole - span]
    last = late or [windows[-1].ms]
    slowest = max(window.ms for window in windows)
    return Sustained(tuple(windows), span, float(np.median(early)), float(np.median(last)), slowest)


def clock_mhz(root: Path = ROOT) -> float | None:
    """Highest clock that a core has now, MHz, from Linux's cpufreq; None where it is not there, as in most guests."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    return _highest(list(files), 1e-3)


def celsius(root: Path = ROOT) -> float | None:
    """Highest temperature of the kernel's thermal zones, degrees; None where there is none."""
    return _highest(list((root / "sys/class/thermal").glob("thermal_zone*/temp")), 1e-3)


def _highest(files: list[Path], factor: float) -> float | None:
    values = []
    for path in files:
        with contextlib.suppress(OSError, ValueError):  # a core that is off, or a zone without a sensor
            values.append(factor * float(path.read_text(encoding="ascii")))
    return max(values, default=None)
