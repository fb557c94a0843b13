"""What `leadline benchmark` prints for people: one line and one letter per model, and its figures in tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from leadline.cli.benchmark_probes import print_floors, print_probe
from leadline.cli.terminal import lettered, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.evaluation.latency import Timing
    from leadline.evaluation.probe import Probe
    from leadline.evaluation.roofline import Floor, Roofline

FOOT = "ratio to A: both in turn, in the same rounds; the ms of A are from rounds of its own, so ms / ms may differ"
SPEED = ("IQR", "p95", "p99", "pre", "post", "FPS", "ratio to A", "quartiles")
SIZE = ("peak MiB", "of it model", "file MB", "G MACs", "M parameters", "load ms")
PER_PICTURE = "ms/picture"


@dataclass
class Row:
    """One model of the table.

    Args:
        timing: of the engine.
        size_mb: of its files, 10^6 bytes.
        macs: multiply-accumulates of one picture.
        parameters: of the network.
        floor: least time of a run on this machine, where it was asked for.
        no_floor: why there is none.
        probe: layers, energy and lasting speed, where they were asked for.
    """

    timing: Timing
    size_mb: float | None = None
    macs: int | None = None
    parameters: int | None = None
    floor: Floor | None = None
    no_floor: str = ""
    probe: Probe | None = None


def print_rows(rows: Sequence[Row], head: str, peaks: Roofline | None = None, layers: int = 0) -> None:
    """Print a line about the machine, one for each model, and the tables.

    Args:
        rows: failed ones are a line only.
        head: the first line.
        peaks: of the machine, where floors are shown.
        layers: how many of the slowest to show.
    """
    console = Console(highlight=False, markup=False)
    console.print(head, soft_wrap=True)
    measured: list[tuple[str, Row]] = []
    for letter, row in zip(lettered(), rows, strict=False):
        if row.timing.failure:
            console.print(f"{letter}: {row.timing.ref}: skipped: {row.timing.failure}", soft_wrap=True)
            continue
        measured.append((letter, row))
        height, width = row.timing.size
        how = f"{row.timing.engine} {row.timing.precision_ran}, input {height}x{width}"
        console.print(f"{letter}: {row.timing.ref}: {how}", soft_wrap=True)
        for note in (*row.timing.notes, *row.timing.cautions):
            console.print(f"   {note}", soft_wrap=True)
    if not measured:
        return
    batched = any(row.timing.latency and row.timing.latency.batch > 1 for _, row in measured)
    milliseconds = ("ms", PER_PICTURE) if batched else ("ms",)
    print_table(console, (*milliseconds, *SPEED), [(letter, _speed(row, batched)) for letter, row in measured])
    print_table(console, SIZE, [(letter, _size(row)) for letter, row in measured])
    _parts(console, measured)
    if peaks is not None:
        print_floors(console, measured, peaks)
    for letter, row in measured:
        if row.probe is not None:
            print_probe(console, letter, row, peaks, layers)
    if len(measured) > 1:
        console.print(FOOT, soft_wrap=True)


def _speed(row: Row, batched: bool) -> list[str]:
    latency, ratio = row.timing.latency, row.timing.ratio
    assert latency is not None
    times = [latency.p50, *([latency.per_picture] if batched else [])]
    times += [latency.iqr, latency.p95, latency.p99, latency.pre, latency.post]
    compared = [f"{ratio.value:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"] if ratio else ["-", "-"]
    return [*[f"{time:.2f}" for time in times], f"{latency.fps:.1f}", *compared]


def _size(row: Row) -> list[str]:
    timing = row.timing
    millions = row.parameters / 1e6 if row.parameters is not None else None
    billions = row.macs / 1e9 if row.macs is not None else None
    figures = ((timing.peak_mib, 0), (timing.model_mib, 0), (row.size_mb, 2), (billions, 3), (millions, 2))
    cells = [f"{value:.{digits}f}" if value is not None else "-" for value, digits in figures]
    return [*cells, f"{timing.load_ms:.0f}" if timing.load_ms is not None else "-"]


def _parts(console: Console, measured: Sequence[tuple[str, Row]]) -> None:
    """Copies and computing apart, and the accelerator's memory, where any engine told them."""
    found = {
        letter: {
            **{
                f"{name} ms": f"{value:.2f}"
                for name, value in ((row.timing.latency and row.timing.latency.parts) or {}).items()
            },
            **({"device MiB": f"{row.timing.device_mib:.0f}"} if row.timing.device_mib is not None else {}),
        }
        for letter, row in measured
    }
    titles = list(dict.fromkeys(title for told in found.values() for title in told))
    if titles:
        print_table(
            console, titles, [(letter, [told.get(title, "-") for title in titles]) for letter, told in found.items()]
        )
