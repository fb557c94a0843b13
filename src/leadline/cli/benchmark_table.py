"""What `leadline benchmark` prints for people: one line and one letter per model, and its figures in tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from leadline.cli.terminal import lettered, print_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.evaluation.latency import Timing

FOOT = "ratio to A: both in turn, in the same rounds; the ms of A are from rounds of its own, so ms / ms may differ"
SPEED = ("IQR", "p95", "p99", "pre", "post", "FPS", "ratio to A", "quartiles")
SIZE = ("peak MiB", "of it model", "file MB", "G MACs", "M parameters", "load ms")
PER_PICTURE = "ms/picture"


@dataclass
class Row:
    """One model of the table."""

    timing: Timing
    size_mb: float | None
    macs: int | None
    parameters: int | None


def print_rows(rows: Sequence[Row], machine: str, threads: int, batch: int) -> None:
    """Print the machine, a line for each model and the tables."""
    console = Console(highlight=False, markup=False)
    console.print(f"{machine}, {threads or 'engine-chosen'} thread{'' if threads == 1 else 's'}, batch {batch}")
    measured: list[tuple[str, Row]] = []
    for letter, row in zip(lettered(), rows, strict=False):
        if row.timing.failure:
            console.print(f"{letter}: {row.timing.ref}: skipped: {row.timing.failure}", soft_wrap=True)
            continue
        measured.append((letter, row))
        height, width = row.timing.size
        how = f"{row.timing.engine} {row.timing.precision_ran}, input {height}x{width}"
        console.print(f"{letter}: {row.timing.ref}: {how}", soft_wrap=True)
        for note in row.timing.notes:
            console.print(f"   {note}", soft_wrap=True)
    if not measured:
        return
    milliseconds = ("ms", PER_PICTURE) if batch > 1 else ("ms",)
    _table(console, (*milliseconds, *SPEED), [(letter, _speed(row)) for letter, row in measured])
    _table(console, SIZE, [(letter, _size(row)) for letter, row in measured])
    _parts(console, measured)
    if len(measured) > 1:
        console.print(FOOT, soft_wrap=True)


def _table(console: Console, titles: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for letter, cells in lines:
        table.add_row(letter, *cells)
    print_whole(table, console)


def _speed(row: Row) -> list[str]:
    latency, ratio = row.timing.latency, row.timing.ratio
    assert latency is not None
    times = [latency.p50, *([latency.per_picture] if latency.batch > 1 else [])]
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
        _table(
            console, titles, [(letter, [told.get(title, "-") for title in titles]) for letter, told in found.items()]
        )
