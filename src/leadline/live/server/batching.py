"""One thread for an engine: runs come in order, and those that wait together are joined where that was asked for."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.runtimes.base import Session


@dataclass(frozen=True)
class Batching:
    """How runs are joined.

    Args:
        window_s: seconds that the first picture waits for further ones; 0: each runs alone.
        most: pictures in one run.
    """

    window_s: float = 0.0
    most: int = 8


@dataclass(frozen=True)
class Ran:
    """What an engine made of one picture.

    Args:
        output: 1 x 1 x h x w float32, raw.
        waited_s: seconds until its run began.
        took_s: seconds of that run.
        joined: pictures in it.
    """

    output: NDArray[np.float32]
    waited_s: float
    took_s: float
    joined: int


@dataclass
class _Job:
    values: NDArray[np.float32]
    future: Future[Ran]
    since: float


class EngineThread:
    """Runs a session in a thread of its own, so that nothing else waits for it.

    Args:
        session: no other thread uses it from now on.
        batching: how runs are joined; sessions that run a batch picture by picture get none.
        name: of the thread.
    """

    def __init__(self, session: Session, batching: Batching, name: str) -> None:
        self.session = session
        self.batching = Batching() if session.one_by_one else batching
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"engine {name}", daemon=True)
        self._thread.start()

    def run(self, values: NDArray[np.float32]) -> Future[Ran]:
        """Queue one prepared picture, 1 x 3 x h x w float32; a future that is cancelled before its turn is left out."""
        job = _Job(values, Future(), time.perf_counter())
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """End after what is queued, and free the session; does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        early: list[_Job | None] = []  # taken from the queue while a batch was filled, but of another shape
        while (job := early.pop() if early else self._jobs.get()) is not None:
            jobs = [job, *self._joining(job, early)]
            self._infer([job for job in jobs if job.future.set_running_or_notify_cancel()])
        self.session.close()

    def _joining(self, first: _Job, early: list[_Job | None]) -> list[_Job]:
        """Those that come within the window and have the first one's shape."""
        jobs: list[_Job] = []
        until = time.perf_counter() + self.batching.window_s
        while self.batching.window_s > 0 and len(jobs) + 1 < self.batching.most:
            try:
                other = self._jobs.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if other is None or other.values.shape != first.values.shape:
                early.append(other)
                break
            jobs.append(other)
        return jobs

    def _infer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        begun = time.perf_counter()
        try:
            values = jobs[0].values if len(jobs) == 1 else np.concatenate([job.values for job in jobs])
            output = self.session.run(values)
        except Exception as error:  # noqa: BLE001  handed over to whoever waits; the thread goes on
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # the fault of one is not that of all
                for job in jobs:
                    self._infer([job])
            return
        took = time.perf_counter() - begun
        for index, job in enumerate(jobs):
            job.future.set_result(Ran(output[index : index + 1], begun - job.since, took, len(jobs)))
