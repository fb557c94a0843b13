"""Latency: time for one picture, warm, in a process of its own, candidate and reference in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from leadline.runtimes.base import Session

PICTURE = (480, 640)  # (height, width) of the picture that preparing and restoring are timed on


@dataclass(frozen=True)
class Timing:
    """Times of one candidate in milliseconds.

    Args:
        p50: median.
        p95: 95th percentile.
        p99: 99th percentile.
        iqr: distance between the quartiles.
        least: the shortest run.
        runs: number of timed runs.
    """

    p50: float
    p95: float
    p99: float
    iqr: float
    least: float
    runs: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Timing:
        """Percentiles of single runs (at least one)."""
        low, middle, high, p95, p99 = np.percentile(milliseconds, (25, 50, 75, 95, 99))
        return cls(
            float(middle), float(p95), float(p99), float(high - low), float(min(milliseconds)), len(milliseconds)
        )


def time_calls(call: Callable[[], Any], runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def picture() -> NDArray[np.uint8]:
    """The rendered picture, 480 x 640 x 3 uint8, that everything is timed on."""
    from leadline.data.rendered import render

    return render(7, height=PICTURE[0], width=PICTURE[1], scene="room").image


def time_session(session: Session, runs: int, size: tuple[int, int] | None = None) -> dict[str, list[float]]:
    """Milliseconds of preparing a picture, of the engine alone, and of restoring the map; `runs` each.

    Args:
        session: opened and warm.
        runs: of each part.
        size: (height, width) of the input; None takes the contract's rule.
    """
    image = picture()
    values = session.contract.prepare(image, size)
    output = session.run(values)
    return {
        "pre": time_calls(lambda: session.contract.prepare(image, size), runs),
        "run": time_calls(lambda: session.run(values), runs),
        "post": time_calls(lambda: session.contract.restore(output, PICTURE), runs),
    }
