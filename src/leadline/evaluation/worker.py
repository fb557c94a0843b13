"""A process that opens one model and times it when told: `python -m leadline.evaluation.worker`.

Orders come as JSON lines on stdin, answers go as JSON lines to stdout; whatever an engine prints goes to stderr. A
crash, abort or hang of the engine costs this process only. `leadline.evaluation.isolation` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from leadline.errors import LeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.runtimes.base import Session

LOOPS = "the file holds one picture: a batch is run picture by picture"
PICTURE = (480, 640)  # (height, width) of the picture that preparing and restoring are timed on


class Worker:
    """Holds one session and answers orders about it."""

    def open(self, ref: str, threads: int, device: str, size: list[int] | None, batch: int) -> dict[str, Any]:
        """Open the model and prepare `batch` different pictures for each run; returns what is known about it."""
        from leadline.evaluation.memory import resident_mib
        from leadline.reference import open_session
        from leadline.runtimes.base import SessionOptions

        before = resident_mib()
        wanted = (size[0], size[1]) if size else None
        started = time.perf_counter()
        self.session: Session = open_session(ref, SessionOptions(threads=threads, device=device), wanted)
        loaded = 1e3 * (time.perf_counter() - started)
        spec = self.session.contract.input
        self.contract = self.session.contract
        fixed = spec.model_copy(update={"resize": "stretch"})
        stretched = self.contract.model_copy(update={"input": fixed})
        pictures = np.random.default_rng(0).integers(0, 256, (batch, *PICTURE, 3), np.uint8)
        self.picture = pictures[0]
        self.values = np.concatenate([stretched.prepare(picture) for picture in pictures])
        self.baseline = before
        self.waits: list[list[int]] = []
        return {
            "engine": self.session.engine,
            "name": self.contract.name,
            "size": [spec.height, spec.width],
            "load_ms": loaded,
            "notes": [*self.session.notes, *([LOOPS] if batch > 1 and self.session.one_by_one else [])],
        }

    def run(self, runs: int) -> dict[str, Any]:
        """Time the engine alone; milliseconds of each run, and of its parts where the engine tells them apart."""
        parts: list[dict[str, float]] = []
        before = ran_and_waited()
        times = timed(lambda: self.session.run(self.values), runs, lambda: self._note(parts))
        self.waits.append([after - first for first, after in zip(before, ran_and_waited(), strict=True)])
        return {"ms": times, "parts": parts}

    def _note(self, parts: list[dict[str, float]]) -> None:
        told = self.session.last_parts()
        if told is not None:
            parts.append(told)

    def last(self, seconds: float) -> dict[str, Any]:
        """Run without a pause until `seconds` have passed, once at least; milliseconds of each run."""
        until = time.perf_counter() + seconds
        times: list[float] = []
        while not times or time.perf_counter() < until:
            times += timed(lambda: self.session.run(self.values), 1)
        return {"ms": times}

    def profile(self, runs: int) -> dict[str, Any]:
        """Time of each layer by the engine's own profiler; `layers` is None where it has none."""
        found = self.session.profile(self.values, runs)
        return {"layers": None if found is None else [asdict(layer) for layer in found]}

    def _waited(self) -> float | None:
        """Share of the time in which the runs' threads waited for a core; None where the system does not say."""
        ran, waited = (sum(each[k] for each in self.waits) for k in (0, 1))
        return waited / (ran + waited) if ran + waited else None

    def around(self, runs: int) -> dict[str, Any]:
        """Time preparing a 480 x 640 picture and restoring the map to its size; milliseconds of each run."""
        output = self.session.run(self.values)[:1]
        return {
            "pre_ms": timed(lambda: self.contract.prepare(self.picture), runs),
            "post_ms": timed(lambda: self.contract.restore(output, PICTURE), runs),
        }

    def finish(self) -> dict[str, Any]:
        """Peak memory, and then, since finding it may cost some, the precision that ran."""
        from leadline.evaluation.memory import peak_mib

        peak = peak_mib()
        return {
            "peak_mib": peak,
            "model_mib": peak - self.baseline,
            "device_mib": self.session.device_mib(),
            "precision_ran": self.session.precision_ran,
            "waited": self._waited(),
        }


def ran_and_waited() -> tuple[int, int]:
    """Nanoseconds that this process's threads ran, and waited for a core; zeros where Linux does not tell."""
    found = [0, 0]
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # a thread that ended
            ran, waited = path.read_text().split()[:2]
            found[0] += int(ran)
            found[1] += int(waited)
    return found[0], found[1]


def timed(call: Callable[[], object], runs: int, after: Callable[[], None] = lambda: None) -> list[float]:
    """Milliseconds of each of `runs` calls; `after` is called behind each of them and not timed."""
    times = []
    for _ in range(runs):
        started = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - started) / 1e6)
        after()
    return times


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answer orders until stdin ends."""
    worker = Worker()
    for line in orders:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except LeadlineError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Keep the real stdout for answers, point everybody else's at stderr, and serve."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
