"""The floor of a network on a machine: what its arithmetic and its memory traffic take at the machine's own peak.

    operations = 2 x multiply-accumulates            (one multiplication and one addition each)
    bytes      = width x (parameters + 2 x activations)
    floor      = max(operations / peak of the precision that ran, bytes / bandwidth)

`width` is 4 bytes in FP32, 2 in BF16 and FP16, 1 in INT8. Activations are the input and the outputs of convolutions,
linear layers and matrix products, each written once and read once; what sits between them (normalisation, activation,
sums, resizing) is taken as fused. A cache that holds the activations lets an engine go below the second term, none
below the first. The peak is the best that any kernel here reached (`leadline.evaluation.peaks`), not a data sheet's.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError, OutputError
from leadline.output import cache_folder, write_atomic

if TYPE_CHECKING:
    from torch import nn

    from leadline.evaluation.latency import Latency
    from leadline.evaluation.machine import Machine

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # bytes of a number
SLACK = 0.1  # cores that other programs may take from the measurement before its peaks count as too low


@dataclass(frozen=True)
class Peak:
    """The best rate of several repeats.

    Args:
        best: highest rate of all kernels and sizes: 10^9 operations, or bytes, a second.
        iqr: distance between the quartiles of that kernel's repeats.
        median: of that kernel's repeats.
        repeats: of it.
        kernel: which one, with its size.
    """

    best: float
    iqr: float
    median: float
    repeats: int
    kernel: str


@dataclass(frozen=True)
class Roofline:
    """What a machine can do with a number of threads.

    Args:
        machine: its id.
        threads: that every kernel used.
        date: of the measurement, ISO 8601 with time zone.
        peaks: by precision: `fp32`, `bf16`, `fp16` where the CPU has its arithmetic, `int8`.
        bandwidth: of memory, out of every cache, reading and writing counted.
        cores: logical processors of the machine.
        others: of them, how many other programs kept busy meanwhile, on average.
        cached: read from the user's cache and not measured now.
    """

    machine: str
    threads: int
    date: str
    peaks: dict[str, Peak]
    bandwidth: Peak
    cores: int
    others: float
    cached: bool = False

    @property
    def busy(self) -> bool:
        """Whether other programs needed cores that the measurement wanted, so that the peaks are too low."""
        return self.others > self.cores - (self.threads or self.cores) + SLACK

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Floor:
    """Least time of one run.

    Args:
        ms: the larger of the next two, milliseconds.
        compute_ms: of the arithmetic.
        memory_ms: of the traffic.
        precision: whose peak it is.
    """

    ms: float
    compute_ms: float
    memory_ms: float
    precision: str

    @property
    def bound(self) -> str:
        """What sets it: `compute` or `memory`."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"

    def reached(self, ms: float) -> float:
        """Share of the floor's speed that a run of `ms` milliseconds has: floor / time, 1 at the floor itself."""
        return self.ms / ms


def arithmetic(precision_ran: str) -> str:
    """The arithmetic in an engine's own words: `int8 (38 of 40 layers)` is int8, `fp32 (fp16 weights)` is fp32.

    A network that ran partly in INT8 is held against the INT8 peak: its floor is that of the whole in INT8.
    """
    found = re.match(r"\w+", precision_ran)
    return found[0] if found else ""


def floor_of(
    roofline: Roofline,
    precision_ran: str,
    *,
    macs: int,
    parameters: int = 0,
    activations: int = 0,
    batch: int = 1,
) -> Floor | None:
    """Least time of one run of a network.

    Args:
        roofline: of the machine, measured with the threads of the run.
        precision_ran: as `Session.precision_ran` gives it.
        macs: multiply-accumulates of one picture.
        parameters: numbers of the network; read once per run.
        activations: numbers between its layers for one picture, as `count_activations` counts; 0 leaves them out.
        batch: pictures of the run.

    Returns:
        None where the roofline has no peak of that arithmetic.
    """
    kind = arithmetic(precision_ran)
    if kind not in roofline.peaks or kind not in WIDTHS:
        return None
    operations = 2 * macs * batch
    traffic = WIDTHS[kind] * (parameters + 2 * activations * batch)
    compute, memory = operations / roofline.peaks[kind].best / 1e6, traffic / roofline.bandwidth.best / 1e6
    return Floor(max(compute, memory), compute, memory, kind)


def share_of_floor(roofline: Roofline, latency: Latency, precision_ran: str, **counts: int) -> float | None:
    """What fraction of its floor's speed a measured network reaches; see `floor_of` for the counts."""
    found = floor_of(roofline, precision_ran, batch=latency.batch, **counts)
    return found.reached(latency.p50) if found else None


def count_activations(model: nn.Module, size: tuple[int, int]) -> int:
    """Numbers that one picture's input and the outputs of convolutions, linear layers and matrix products hold.

    Args:
        model: takes 1 x 3 x H x W float32.
        size: (height, width) of the input, pixels.
    """
    from leadline.evaluation.complexity import count_outputs

    return 3 * size[0] * size[1] + count_outputs(model, size)


def roofline_of(machine: Machine, threads: int = 1, *, fresh: bool = False, cached_only: bool = False) -> Roofline:
    """The machine's roofline from the user's cache, or measured now (about ten seconds) and kept there.

    Args:
        machine: this one.
        threads: of every kernel.
        fresh: measure even where the cache has it.
        cached_only: never measure.

    Raises:
        LeadlineError: the measuring process failed, or nothing is cached and `cached_only`.
    """
    path = cache_folder() / "roofline" / f"{machine.id}-{threads}.json"
    if not fresh and (kept := _read(path, machine.id, threads)) is not None:
        return kept
    if cached_only:
        raise LeadlineError("no roofline of this machine is kept", mend="run leadline doctor --roofline")
    from leadline.evaluation.peaks import measure

    found = measure(machine.id, threads)
    with contextlib.suppress(OutputError):  # a home that cannot be written costs a measurement each time, no more
        write_atomic(path, json.dumps(found.as_dict(), indent=2).encode() + b"\n")
    return found


def parsed(values: dict[str, Any]) -> Roofline:
    """A roofline from plain values.

    Raises:
        TypeError: fields are missing or unknown.
    """
    peaks = {name: Peak(**peak) for name, peak in values["peaks"].items()}
    return Roofline(**{**values, "peaks": peaks, "bandwidth": Peak(**values["bandwidth"])})


def _read(path: Path, machine: str, threads: int) -> Roofline | None:
    """What was kept; a damaged or foreign file counts as none, since it can be measured again."""
    try:
        kept = parsed(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return replace(kept, cached=True) if (kept.machine, kept.threads) == (machine, threads) else None
