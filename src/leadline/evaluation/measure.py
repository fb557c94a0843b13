"""Measuring candidates in turn, each in a process of its own, so that a crash or a hang costs one of them only."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError
from leadline.evaluation.latency import Timing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

TIMEOUT = 300.0  # seconds for one answer
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerError(LeadlineError):
    """A measuring process that failed, crashed or did not answer in time."""

    exit_status = 1


@dataclass(frozen=True)
class Speed:
    """What was measured of one candidate.

    Args:
        run: the engine alone, one picture at a time.
        pre: preparing a 480 x 640 picture.
        post: restoring its map.
        reference_p50: median of the first candidate in the same rounds, ms.
        peak_mib: largest resident memory of the process, MiB.
        facts: engine, precision that ran, size, notes.
    """

    run: Timing
    pre: Timing
    post: Timing
    reference_p50: float
    peak_mib: float
    facts: dict[str, Any]


class Worker:
    """A measuring process with one candidate open.

    Raises:
        WorkerError: the candidate cannot be opened, or the process ended or hung.
    """

    def __init__(self, ref: str, threads: int, size: tuple[int, int] | None = None, timeout: float = TIMEOUT) -> None:
        environment = dict(os.environ) | {"OMP_WAIT_POLICY": "passive"}
        if threads:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.ref, self._timeout = ref, timeout
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "leadline.evaluation.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=environment,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.facts = self.ask({"open": ref, "threads": threads, "size": list(size) if size else None})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order and wait for its answer.

        Raises:
            WorkerError: the answer is an error, or there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty as error:
            raise WorkerError("no answer from", where=self.ref, why=f"killed after {self._timeout:g} s") from error
        except OSError:
            line = ""
        if not line:
            raise WorkerError("the measuring process ended", where=self.ref, why=self._ending())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                _close(stream)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _ending(self) -> str:
        status = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        last = lines[-1][:300] if lines else "no message"
        return f"{signal.Signals(-status).name}, {last}" if status < 0 else f"exit status {status}, {last}"


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:  # a last order that nobody reads any more
        return


def measure(
    refs: Sequence[str],
    *,
    threads: int = 1,
    runs: int = 60,
    warmup: int = 10,
    rounds: int = 6,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    timeout: float = TIMEOUT,
) -> list[Speed]:
    """Speed and memory of candidates that take turns (A B A B ...), one picture at a time.

    Args:
        refs: model references; the first is the reference of the others.
        threads: of the engine and every library in its process; 0 leaves them alone.
        runs: timed runs of each, spread over the rounds.
        warmup: runs before them.
        rounds: how often they take turns.
        sizes: (height, width) of each candidate's input, where it is open; None takes the contract's.
        timeout: seconds for one answer of a process.

    Raises:
        WorkerError: a process failed, crashed or hung; the message says how.
    """
    share = max(1, -(-runs // rounds))
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(ref, threads, size, timeout))
            for ref, size in zip(refs, sizes or [None] * len(refs), strict=True)
        ]
        for worker in workers:
            worker.ask({"time": warmup})
        times: list[dict[str, list[float]]] = [{"run": [], "pre": [], "post": []} for _ in workers]
        for _ in range(rounds):
            for worker, found in zip(workers, times, strict=True):
                for part, values in worker.ask({"time": share}).items():
                    found[part] += values
        memory = [worker.ask({"memory": 1})["peak_mib"] for worker in workers]
    first = Timing.of(times[0]["run"]).p50
    return [
        Speed(Timing.of(found["run"]), Timing.of(found["pre"]), Timing.of(found["post"]), first, peak, worker.facts)
        for found, peak, worker in zip(times, memory, workers, strict=True)
    ]
