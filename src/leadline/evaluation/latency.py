"""Latency: warmed up, in a process of its own, in turn with the reference, with its spread."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.isolation import TIMEOUT, IsolatedSession, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.runtimes.base import Session

BUSY = 0.1  # share of waiting above which times are doubtful: preemption hits long runs more often than short ones
CROWDED = f"the engine waited for a core in more than {BUSY:.0%} of the time: take its times again on an idle machine"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run in the engine alone; a run takes a whole batch of pictures.

    Args:
        p50: median.
        p95: 95th percentile.
        p99: 99th percentile.
        iqr: distance between the quartiles.
        minimum: fastest run.
        runs: number of timed runs.
        warmup: runs before them, which do not count.
        threads: of the engine; 0 is its own choice.
        pre: median of preparing a 480 x 640 picture.
        post: median of restoring the map to that size.
        batch: pictures in a run; `pre` and `post` are of one picture nevertheless.
        parts: medians of the parts of a run (copy to the device, compute, copy back) where the engine tells them.
    """

    p50: float
    p95: float
    p99: float
    iqr: float
    minimum: float
    runs: int
    warmup: int
    threads: int
    pre: float
    post: float
    batch: int = 1
    parts: dict[str, float] | None = None

    @property
    def per_picture(self) -> float:
        """Median milliseconds of one picture: of the run, over its batch."""
        return self.p50 / self.batch

    @property
    def fps(self) -> float:
        """Pictures a second, preparing and restoring included."""
        return 1e3 / (self.per_picture + self.pre + self.post)


@dataclass(frozen=True)
class Ratio:
    """Candidate over reference: the median of the ratios of round medians; below 1 is faster.

    Args:
        value: the ratio.
        low: lower quartile over the rounds.
        high: upper quartile over the rounds.
        reference_p50: the reference's median in the same rounds, milliseconds.
    """

    value: float
    low: float
    high: float
    reference_p50: float


@dataclass(frozen=True)
class Timing:
    """All that one process told about one model; `failure` says why there is nothing.

    Args:
        ref: model reference.
        latency: of the engine, None where it failed.
        ratio: against the reference of the comparison; None for the reference itself, or where either failed.
        peak_mib: peak resident memory of the process, MiB.
        model_mib: what opening and running the model added to it, MiB.
        load_ms: time to open the model, imports of the engine included, milliseconds.
        engine: runtime.
        precision_ran: what it computed in.
        size: (height, width) of the input.
        notes: of the session.
        failure: one line.
        failure_status: exit status of the error behind it: 2 where the user can mend it, 1 where an engine failed.
        device_mib: largest memory that the engine held on an accelerator, MiB; None where it says nothing of it.
        waited: share of the time in which its threads wanted a core and had none, 0 to 1; None where unknown.
    """

    ref: str
    latency: Latency | None = None
    ratio: Ratio | None = None
    peak_mib: float | None = None
    model_mib: float | None = None
    load_ms: float | None = None
    engine: str = ""
    precision_ran: str = ""
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    failure: str = ""
    failure_status: int = 0
    device_mib: float | None = None
    waited: float | None = None

    @property
    def cautions(self) -> tuple[str, ...]:
        """What makes the times doubtful; the same words for every engine, so that a table says them once."""
        return (CROWDED,) if self.waited is not None and self.waited > BUSY else ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Timed(Protocol):
    """Something that can be told to run: an isolated session, or one in this process."""

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each run."""


def compare(
    reference: Job,
    candidates: Sequence[Job] = (),
    *,
    runs: int = 100,
    warmup: int = 10,
    rounds: int = 10,
    timeout: float = TIMEOUT,
    command: tuple[str, ...] | None = None,
    on_done: Callable[[Timing], None] | None = None,
) -> list[Timing]:
    """Time the reference, and each candidate in turn with it: A B, B A, A B ... so that a busy machine slows both.

    Args:
        reference: what every candidate is compared with; its process stays open, and only one process runs at a time.
        candidates: timed one after the other.
        runs: of each model, spread over the rounds.
        warmup: runs of each model before its first round.
        rounds: number of turns.
        timeout: seconds that one round may take before the engine counts as hanging.
        command: how a process is started, for tests.
        on_done: called with each timing as soon as it is there.

    Returns:
        The reference's timing, then one per candidate. An engine that crashes, hangs or refuses is a timing with its
        `failure`, and the others go on.

    Raises:
        ConfigError: less than one run per round, or an empty batch.
    """
    if runs < 1 or rounds < 1 or warmup < 0:
        raise ConfigError("runs and rounds must be at least 1", why=f"got {runs} runs in {rounds} rounds")
    if any(job.batch < 1 for job in (reference, *candidates)):
        raise ConfigError("a batch must hold at least one picture")
    plan = _Plan(runs, warmup, min(rounds, runs), timeout, command)
    timings = []
    with ExitStack() as stack:
        base: IsolatedSession | None = None
        try:
            base = stack.enter_context(plan.opened(reference))
            first, _ = plan.timed(base, None)
        except LeadlineError as error:
            first, base = _failed(reference, error), None
        timings.append(_told(first, on_done))
        for job in candidates:
            timing, base = _candidate(plan, job, base)
            timings.append(_told(timing, on_done))
    return timings


def alternate(first: Timed, second: Timed, runs: int, rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds per round of both, A B, B A, A B ...; `runs` of each are spread evenly over the rounds."""
    a: list[list[float]] = []
    b: list[list[float]] = []
    for turn, count in enumerate(_shares(runs, rounds)):
        if turn % 2:
            b.append(second.run(count))
            a.append(first.run(count))
        else:
            a.append(first.run(count))
            b.append(second.run(count))
    return a, b


def summarise(
    milliseconds: Sequence[float],
    *,
    warmup: int = 0,
    threads: int = 1,
    pre: Sequence[float] = (),
    post: Sequence[float] = (),
    batch: int = 1,
    parts: Sequence[dict[str, float]] = (),
) -> Latency:
    """Percentiles of timed runs, milliseconds (linear interpolation between order statistics)."""
    p25, p50, p75, p95, p99 = np.percentile(np.asarray(milliseconds), [25, 50, 75, 95, 99]).tolist()
    prepared, restored = (float(np.median(times)) if len(times) else 0.0 for times in (pre, post))
    fastest, count = float(min(milliseconds)), len(milliseconds)
    apart = {name: float(np.median([part[name] for part in parts])) for name in (parts[0] if parts else ())}
    spread = p75 - p25
    return Latency(p50, p95, p99, spread, fastest, count, warmup, threads, prepared, restored, batch, apart or None)


def ratio(candidate: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Ratio:
    """Compare rounds of equal number: what slows a round slows both sides of its ratio."""
    pairs = zip(candidate, reference, strict=True)
    per_round = [float(np.median(ours) / np.median(theirs)) for ours, theirs in pairs]
    low, value, high = np.percentile(per_round, [25, 50, 75]).tolist()
    return Ratio(value, low, high, float(np.median(np.concatenate([np.asarray(r) for r in reference]))))


class InProcess:
    """A session of this process, timed as the isolated ones are.

    Args:
        session: opened.
        values: prepared input, 1 x 3 x H x W float32.
    """

    def __init__(self, session: Session, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._session, self._values = session, values

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each run."""
        from leadline.evaluation.worker import timed

        return timed(lambda: self._session.run(self._values), runs)


@dataclass(frozen=True)
class _Plan:
    runs: int
    warmup: int
    rounds: int
    timeout: float
    command: tuple[str, ...] | None

    def opened(self, job: Job) -> IsolatedSession:
        if self.command is None:
            return IsolatedSession(job, timeout=self.timeout)
        return IsolatedSession(job, timeout=self.timeout, command=self.command)

    def timed(self, session: IsolatedSession, base: IsolatedSession | None) -> tuple[Timing, LeadlineError | None]:
        """The session's timing; an error of `base` is returned, one of the session itself raised."""
        session.run(max(self.warmup, 1))
        session.parts.clear()
        fault: LeadlineError | None = None
        compared: Ratio | None = None
        if base is None:
            mine = [session.run(count) for count in _shares(self.runs, self.rounds)]
        else:
            guarded = _Guarded(base)
            mine, theirs = alternate(session, guarded, self.runs, self.rounds)
            fault = guarded.fault
            compared = ratio(mine, theirs) if fault is None else None
        pre, post = session.around(min(self.runs, 20))
        ending = session.finish()
        facts = session.facts
        job = session.job
        latency = summarise(
            [ms for turn in mine for ms in turn],
            warmup=self.warmup,
            threads=job.threads,
            pre=pre,
            post=post,
            batch=job.batch,
            parts=session.parts,
        )
        timing = Timing(
            job.ref,
            latency,
            compared,
            ending["peak_mib"],
            ending["model_mib"],
            facts["load_ms"],
            facts["engine"],
            ending["precision_ran"],
            (facts["size"][0], facts["size"][1]),
            tuple(facts["notes"]),
            device_mib=ending.get("device_mib"),
            waited=ending.get("waited"),
        )
        return timing, fault


class _Guarded:
    """A reference whose failure must not be blamed on the candidate."""

    def __init__(self, session: Timed) -> None:
        self._session = session
        self.fault: LeadlineError | None = None

    def run(self, runs: int) -> list[float]:
        if self.fault is None:
            try:
                return self._session.run(runs)
            except LeadlineError as error:
                self.fault = error
        return []


def _candidate(plan: _Plan, job: Job, base: IsolatedSession | None) -> tuple[Timing, IsolatedSession | None]:
    try:
        with plan.opened(job) as session:
            timing, fault = plan.timed(session, base)
    except LeadlineError as error:
        return _failed(job, error), base
    return timing, base if fault is None else None


def _failed(job: Job, error: LeadlineError) -> Timing:
    return Timing(job.ref, failure=str(error), failure_status=error.exit_status)


def _shares(runs: int, rounds: int) -> list[int]:
    rounds = min(rounds, runs)
    return [runs // rounds + (turn < runs % rounds) for turn in range(rounds)]


def _told(timing: Timing, on_done: Callable[[Timing], None] | None) -> Timing:
    if on_done is not None:
        on_done(timing)
    return timing
