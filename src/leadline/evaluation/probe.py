"""What is asked of one model beyond its latency: its slowest layers, its energy, and the speed that lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.errors import LeadlineError
from leadline.evaluation.energy import Energy, measure_energy
from leadline.evaluation.isolation import TIMEOUT, IsolatedSession, Job
from leadline.evaluation.sustained import Sustained, Window, sustain

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.runtimes.layer_time import LayerTime

LAYER_RUNS = 20


@dataclass(frozen=True)
class Wanted:
    """What to ask.

    Args:
        layers: whether to ask the engine's profiler.
        energy: whether to read the machine's counters.
        seconds: of running without a pause; 0: none.
        warmup: runs before the profiler and the counters.
    """

    layers: bool = False
    energy: bool = False
    seconds: float = 0.0
    warmup: int = 10

    def __bool__(self) -> bool:
        return self.layers or self.energy or self.seconds > 0


@dataclass(frozen=True)
class Probe:
    """The answers; None where it was not asked.

    Args:
        layers: slowest first; empty where the engine has no profiler.
        energy: of a picture, or why it is not known.
        sustained: runs without a pause.
        failure: one line where the process failed; what it told before is kept.
        failure_status: exit status of the error behind it.
    """

    layers: tuple[LayerTime, ...] | None = None
    energy: Energy | None = None
    sustained: Sustained | None = None
    failure: str = ""
    failure_status: int = 0


def probe(
    job: Job, wanted: Wanted, *, timeout: float = TIMEOUT, on_window: Callable[[Window], None] | None = None
) -> Probe:
    """Open the model in a process of its own and ask; the long runs come first, while the device is still cold."""
    layers: tuple[LayerTime, ...] | None = None
    energy: Energy | None = None
    lasting: Sustained | None = None
    try:
        with IsolatedSession(job, timeout=timeout) as session:
            if wanted.seconds:
                lasting = sustain(session, wanted.seconds, on_window=on_window)
            session.run(max(wanted.warmup, 1))
            if wanted.energy:
                energy = measure_energy(session)
            if wanted.layers:
                layers = tuple(session.profile(LAYER_RUNS) or ())
    except LeadlineError as error:
        return Probe(layers, energy, lasting, str(error), error.exit_status)
    return Probe(layers, energy, lasting)
