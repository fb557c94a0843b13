"""The other end of `leadline.evaluation.worker`: a model in a process of its own, timed from here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import leadline.errors
from leadline.errors import LeadlineError
from leadline.runtimes.layer_time import LayerTime

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

WORKER = (sys.executable, "-m", "leadline.evaluation.worker")
TIMEOUT = 600.0  # seconds for one answer


class EngineError(LeadlineError):
    """An engine that crashed, hung or refused in its own process; the message says how it ended."""

    exit_status = 1


@dataclass(frozen=True)
class Job:
    """What a process should open.

    Args:
        ref: model reference, bundle folder or ONNX file.
        threads: of the engine, and of every library in its process.
        device: by the engine's own name.
        size: (height, width) of the input, where the contract is dynamic.
        batch: pictures that the engine is given at once.
    """

    ref: str
    threads: int = 1
    device: str = "cpu"
    size: tuple[int, int] | None = None
    batch: int = 1


class IsolatedSession:
    """One model in one process. Use it in a `with` block; the process ends with it.

    Args:
        job: what to open.
        timeout: seconds that one answer may take.
        command: how the process is started.

    Raises:
        EngineError: from every method, when the process died or did not answer in time.
        LeadlineError: from every method, with the type and words of the error in the process.
    """

    def __init__(self, job: Job, *, timeout: float = TIMEOUT, command: tuple[str, ...] = WORKER) -> None:
        self.job, self._timeout = job, timeout
        self.parts: list[dict[str, float]] = []  # of each run so far, where the engine tells them apart
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env=thread_environment(job.threads),
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        try:
            order: dict[str, Any] = {"ref": self.job.ref, "threads": self.job.threads, "device": self.job.device}
            size = list(self.job.size) if self.job.size else None
            self.facts = self._ask("open", **order, size=size, batch=self.job.batch)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs of the engine alone."""
        answer = self._ask("run", runs=runs)
        self.parts += answer.get("parts", [])
        times: list[float] = answer["ms"]
        return times

    def last(self, seconds: float) -> list[float]:
        """Milliseconds of each run of `seconds` without a pause; at least one."""
        times: list[float] = self._ask("last", seconds=seconds)["ms"]
        return times

    def profile(self, runs: int) -> list[LayerTime] | None:
        """Time of each layer by the engine's own profiler, slowest first; None: it has none."""
        layers = self._ask("profile", runs=runs)["layers"]
        if layers is None:
            return None
        return sorted((LayerTime(**layer) for layer in layers), key=lambda layer: -layer.ms)

    def around(self, runs: int) -> tuple[list[float], list[float]]:
        """Milliseconds of preparing and of restoring a 480 x 640 picture, `runs` times each."""
        answer = self._ask("around", runs=runs)
        return answer["pre_ms"], answer["post_ms"]

    def finish(self) -> dict[str, Any]:
        """`peak_mib` of the process, `model_mib` that opening and running added, `device_mib`, `precision_ran`."""
        return self._ask("finish")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._complaints.close()

    def _ask(self, what: str, **order: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **order}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            self._process.kill()
            mend = "the engine hangs here: use another runtime or precision"
            raise EngineError(f"no answer within {self._timeout:g} s", where=self.job.ref, mend=mend) from None
        except OSError:
            line = None
        if line is None:
            raise EngineError("the engine's process ended", where=self.job.ref, why=self._ending())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _as_raised(answer["kind"], answer["error"])
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while reading
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(None)

    def _ending(self) -> str:
        status = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        last = lines[-1].strip()[:300] if lines else "no message"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name} ({last})"
        return f"exit status {status} ({last})"


def _as_raised(kind: str, text: str) -> LeadlineError:
    """The error of the process again, with its own words as they are."""
    known = getattr(leadline.errors, kind, LeadlineError)
    return known(text) if isinstance(known, type) and issubclass(known, LeadlineError) else LeadlineError(text)


def thread_environment(threads: int) -> dict[str, str]:
    """Variables of a process whose libraries all take `threads` threads; 0 leaves their number to them.

    Waiting threads sleep, or a neighbour on one core stalls them all.
    """
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", PYTHONIOENCODING="utf-8")
    if threads:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        environment |= {name: str(threads) for name in names}
    return environment
