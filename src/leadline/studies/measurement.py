"""A measurement: one candidate's accuracy, speed, memory and size on one machine."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


def folder_name(made: str, runtime: str, precision: str, size: tuple[int, int], device: str = "") -> str:
    """A candidate as part of a path: `prune-channels-0.5-openvino-fp32-224x288`."""
    done = re.sub(r"[^A-Za-z0-9.]+", "-", made).strip("-")
    where = re.sub(r"[^A-Za-z0-9.]+", "-", f"-{device}" if device else "")
    return f"{done}-{runtime}-{precision}-{size[0]}x{size[1]}{where}".lstrip("-")


def candidate_name(
    made: str, runtime: str, precision: str, size: tuple[int, int], batch: int, device: str, on: str
) -> str:
    """A candidate for people: `openvino int8-static 224x288`, with batch, device and machine where they are named."""
    where = f" on {device}" if device else ""
    several = f" batch {batch}" if batch > 1 else ""
    place = f" ({on})" if on else ""
    return f"{made} {runtime}{where} {precision} {size[0]}x{size[1]}{several}{place}".strip()


class Status(StrEnum):
    """How a cell of a study ended."""

    MEASURED = "measured"
    SKIPPED = "skipped"  # cannot be tried here: a runtime or operator is missing
    FAILED = "failed"  # was tried and went wrong


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Row):
    """A figure with its 95 % bootstrap interval over `n` pictures."""

    value: float
    low: float
    high: float
    n: int


class Accuracy(_Row):
    """Accuracy of one candidate.

    Args:
        protocol: label of the protocol, alignment included; belongs to every figure.
        data: data set reference.
        primary: the metric that ranks candidates.
        metrics: by name.
        change: candidate minus reference, paired over the pictures, by metric; empty for the reference itself.
        scored: pictures with figures.
        unmeasured: pictures without valid ground truth.
        failed: pictures that could not be read or predicted.
        degenerate: pictures whose prediction was constant, or next to nothing beside the truth.
        inverted: pictures whose prediction had near and far exchanged.
        other_protocol: the same protocol with and without alignment exchanged, where the model's metres allow both.
        other: figures under it, by metric.
    """

    protocol: str
    data: str
    primary: str
    metrics: dict[str, Figure]
    change: dict[str, Figure] = {}
    scored: int
    unmeasured: int = 0
    failed: int = 0
    degenerate: int = 0
    inverted: int = 0
    other_protocol: str = ""
    other: dict[str, Figure] = {}


class Latency(_Row):
    """Time of one run of the engine in milliseconds, taken in turn with the reference; a run takes a whole batch.

    Args:
        p50: median of the engine alone.
        p95: 95th percentile.
        p99: 99th percentile.
        iqr: distance between the quartiles.
        runs: number of timed runs.
        warmup: runs before them.
        threads: of the engine; 0 is the engine's choice.
        pre: median of preparing a picture.
        post: median of restoring the map to the picture's size.
        reference_p50: median of the reference in the same rounds; it takes one picture.
        batch: pictures in a run.
        parts: medians of copy to the device, compute and copy back, where the engine tells them apart.
        ratio_quartiles: of the ratio to the reference over the rounds, as multiples of its median; None for the
            reference, and in stores before version 3.
    """

    p50: float
    p95: float
    p99: float
    iqr: float
    runs: int
    warmup: int
    threads: int
    pre: float
    post: float
    reference_p50: float
    batch: int = 1
    parts: dict[str, float] = {}
    ratio_quartiles: tuple[float, float] | None = None

    @property
    def per_picture(self) -> float:
        """Median milliseconds of one picture: of the run, over its batch."""
        return self.p50 / self.batch

    @property
    def ratio(self) -> float:
        """Candidate over reference per picture, medians of the same rounds; below 1 is faster."""
        return self.per_picture / self.reference_p50


class Measurement(_Row):
    """One row of a study.

    Args:
        key: hash of everything that decides the row.
        model: reference of the model.
        made: what was done to it before the export, in words; empty where nothing was.
        runtime: engine.
        precision: asked for.
        precision_ran: what the engine computed in.
        height: of the network's input, pixels.
        width: likewise.
        batch: pictures that the engine is given at once.
        device: that the engine was told to use, by its own name; empty for its own choice, the CPU.
        on: the machine of a device farm; empty for the one that led the study.
        lost: the machine was lost before there were figures; the next run tries again.
        status: whether there are figures.
        reason: why not, and how to mend it.
        bundle: folder of the exported bundle, relative to the study's folder.
        accuracy: under the study's protocol.
        latency: of a run.
        floor_share: share of the machine's floor that it reaches (1 is the floor), where a roofline is kept.
        memory_mb: peak resident memory of a process that loads and runs the bundle, MiB.
        device_mb: largest memory that the engine held on an accelerator, MiB, where it says so.
        size_mb: the bundle's engine files, MB (10^6 bytes); of a step's network, its checkpoint's weights.
        packed_mb: the same files compressed (DEFLATE), where that was asked: what zeros are worth on disk.
        macs: multiply-accumulates of one picture.
        parameters: of the network before export.
        zeros: share of its weights that are exactly zero.
        parity: agreement with PyTorch on the check pictures.
        notes: what else the reader must know.
        machine: fingerprint of the machine.
    """

    key: str
    model: str
    made: str = ""
    runtime: str
    precision: str
    precision_ran: str = ""
    height: int
    width: int
    batch: int = 1
    device: str = ""
    on: str = ""
    lost: bool = False
    status: Status
    reason: str = ""
    bundle: str = ""
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    floor_share: float | None = None
    memory_mb: float | None = None
    device_mb: float | None = None
    size_mb: float | None = None
    packed_mb: float | None = None
    macs: int | None = None
    parameters: int | None = None
    zeros: float = 0.0
    parity: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """`openvino int8-static 224x288` (height x width), before it what was done to the model."""
        size = (self.height, self.width)
        return candidate_name(self.made, self.runtime, self.precision, size, self.batch, self.device, self.on)

    @property
    def folder(self) -> str:
        """Name of what the study keeps of it."""
        return folder_name(self.made, self.runtime, self.precision, (self.height, self.width), self.device)

    def carried(self) -> dict[str, Any]:
        """The figures as they lie beside the result that they belong to, without what means something here alone."""
        return self.model_dump(mode="json", exclude={"key", "status", "reason", "bundle", "lost"})

    @property
    def score(self) -> float | None:
        """The primary metric's value."""
        return self.accuracy.metrics[self.accuracy.primary].value if self.accuracy else None
