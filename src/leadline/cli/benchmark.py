"""`leadline benchmark`: latency, memory, size, MACs and parameters of models, side by side."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leadline.cli.options import Json, References, Size, Threads, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadline.cli.benchmark_table import Row
    from leadline.errors import LeadlineError
    from leadline.evaluation.latency import Timing

HELP = """Measure latency, memory and size of models; the first is what the others are compared with.

Each model runs in a process of its own, so that an engine that crashes costs one row. Each is timed in turn with the
first (A B, B A, ...), after a warm-up, with its threads pinned. Milliseconds are those of one run in the engine alone,
which takes --batch pictures at once; ms/picture is that over the batch. Copies to an accelerator and back are shown
apart where the engine tells them. Preparing a 480 x 640 picture and restoring the map are timed apart. `ratio to A` is
the median over the rounds in which both took turns, with its quartiles; below 1 is faster. The milliseconds of A come
from rounds of its own, so that ms / ms may give another figure. A row that cannot be measured says why, and the exit
status is then 1; a name that stands for no model ends the command before anything is measured."""

EXAMPLES = (
    "leadline benchmark leadline-s-indoor",
    "leadline benchmark random:fastdepth random:fastdepth-pruned --runs 50",
    "leadline export leadline-s-indoor --runtime onnxruntime --out runs/fp32",
    "leadline benchmark leadline-s-indoor runs/fp32 --threads 1 --runs 200 --json",
)


def command(
    references: References,
    *,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="Timed runs of each model.")] = 100,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Runs of each model before them.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns that the runs are spread over.")] = 10,
    device: Annotated[str, typer.Option("--device", help="Device or provider, by the engine's own name.")] = "cpu",
    timeout: Annotated[
        float, typer.Option("--timeout", min=1.0, help="Seconds until an engine counts as hanging.")
    ] = 600.0,
    size: Size = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Pictures that the engine takes at once.")] = 1,
    json: Json = False,
) -> None:
    """Measure latency, memory and size of models; the first is what the others are compared with."""
    from leadline.cli.benchmark_table import print_rows
    from leadline.evaluation.isolation import Job
    from leadline.evaluation.latency import compare
    from leadline.evaluation.machine import this_machine
    from leadline.reference import check_reference

    wanted = parse_size(size)
    for reference in references:
        check_reference(reference)
    first, *others = [Job(reference, threads, device, wanted, batch) for reference in references]
    with _progress(len(references), json) as on_done:
        timings = compare(
            first, others, runs=runs, warmup=warmup, rounds=rounds, timeout=timeout, on_done=lambda timing: on_done()
        )
    rows = [_row(timing) for timing in timings]
    failed = [timing for timing in timings if timing.failure]
    if len(failed) == len(references) == 1 and not json:
        raise _refused(failed)
    machine = this_machine()
    if json:
        values = {"machine": machine.as_dict(), "rows": [_as_dict(row) for row in rows]}
        typer.echo(json_module.dumps(values, indent=2, allow_nan=False))
    else:
        print_rows(rows, str(machine), threads, batch)
    if len(failed) == len(references):
        raise _refused(failed)
    if failed:
        raise typer.Exit(1)


def _refused(failed: list[Timing]) -> LeadlineError:
    """The error of a command that measured nothing: the user's to mend, unless an engine failed."""
    from leadline.errors import LeadlineError

    first = failed[0].failure
    text = first if len(failed) == 1 else f"none of the {len(failed)} models could be measured; the first: {first}"
    error = LeadlineError(text)
    error.exit_status = 2 if all(timing.failure_status == 2 for timing in failed) else 1
    return error


def _row(timing: Timing) -> Row:
    """Add what can be said without running: size on disk, multiply-accumulates, parameters."""
    from leadline.cli.benchmark_table import Row
    from leadline.errors import LeadlineError

    if timing.failure:
        return Row(timing, None, None, None)
    try:
        return Row(timing, _size_mb(timing.ref), *_counts(timing.ref, timing.size))
    except LeadlineError:  # an ONNX file holds no network to count
        return Row(timing, _size_mb(timing.ref), None, None)


def _size_mb(reference: str) -> float | None:
    """MB (10^6 bytes) of the files that the engine reads; None for what is no file here (random:, hf:)."""
    from leadline.bundle import load_bundle
    from leadline.manifest import manifest_kind
    from leadline.reference import zoo

    path = zoo().get(reference, Path(reference))
    if path.is_file():
        return path.stat().st_size / 1e6
    kind = manifest_kind(path)
    if kind == "bundle":
        return load_bundle(path).size_bytes / 1e6
    if kind == "checkpoint":
        return (path / "weights.safetensors").stat().st_size / 1e6
    return None


def _counts(reference: str, size: tuple[int, int]) -> tuple[int | None, int | None]:
    from leadline.bundle import load_bundle
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.manifest import manifest_kind
    from leadline.reference import load_model

    if manifest_kind(Path(reference)) == "bundle":  # no network to count; `leadline export` wrote it down
        written = load_bundle(Path(reference)).measurements()
        return written.get("macs"), written.get("parameters")
    model = load_model(reference).model
    return count_macs(model, size), count_parameters(model)


def _as_dict(row: Row) -> dict[str, Any]:
    extra = {"size_mb": row.size_mb, "macs": row.macs, "parameters": row.parameters}
    latency = row.timing.latency
    if latency:
        extra |= {"ms_per_batch": latency.p50, "ms_per_picture": latency.per_picture}
    return {**row.timing.as_dict(), **extra, "fps": latency.fps if latency else None}


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=total)
        yield lambda: bar.advance(task)
