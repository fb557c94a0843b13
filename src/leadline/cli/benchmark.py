"""`leadline benchmark`: latency, memory, size, floor, layers, energy and lasting speed of models, side by side."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leadline.cli.options import Device, Json, References, Size, Threads, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadline.cli.benchmark_table import Row
    from leadline.errors import LeadlineError
    from leadline.evaluation.isolation import Job
    from leadline.evaluation.latency import Timing
    from leadline.evaluation.probe import Wanted
    from leadline.evaluation.roofline import Roofline

HELP = """Measure latency, memory and size of models; the first is what the others are compared with.

Each model runs in a process of its own, so that an engine that crashes costs one row. Each is timed in turn with the
first (A B, B A, ...), after a warm-up, with its threads pinned. Milliseconds are those of one run in the engine alone,
which takes --batch pictures at once; ms/picture is that over the batch. Copies to an accelerator and back are shown
apart where the engine tells them. Preparing a 480 x 640 picture and restoring the map are timed apart. `ratio to A` is
the median over the rounds in which both took turns, with its quartiles; below 1 is faster. The milliseconds of A come
from rounds of its own, so that ms / ms may give another figure. A row that cannot be measured says why, and the exit
status is then 1; a name that stands for no model ends the command before anything is measured.

--roofline adds the least time that the network can take on this machine and the share of that speed it reaches;
--layers the slowest layers by the engine's own profiler; --energy joules of a picture from the machine's counters
(RAPL, NVML, Jetson, powermetrics), idle subtracted, or why there are none; --duration what becomes of the speed when
the model runs without a pause; --cpu-load measures all of it beside other work."""

EXAMPLES = (
    "leadline benchmark leadline-s-indoor",
    "leadline benchmark random:fastdepth random:fastdepth-pruned --runs 50",
    "leadline export leadline-s-indoor --runtime onnxruntime --out runs/fp32",
    "leadline benchmark leadline-s-indoor runs/fp32 --threads 1 --runs 200 --json",
    "leadline benchmark runs/fp32 --batch 4",
    "leadline benchmark leadline-s-indoor runs/fp32 --roofline --layers 8",
    "leadline benchmark runs/fp32 --energy --duration 300",
    "leadline benchmark runs/fp32 --cpu-load 50 --cpu-load-cores 2",
)


def command(
    references: References,
    *,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="Timed runs of each model.")] = 100,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Runs of each model before them.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns that the runs are spread over.")] = 10,
    device: Device = "cpu",
    timeout: Annotated[
        float, typer.Option("--timeout", min=1.0, help="Seconds until an engine counts as hanging.")
    ] = 600.0,
    size: Size = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Pictures that the engine takes at once.")] = 1,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Show each model's floor on this machine, measured once and kept.")
    ] = False,
    layers: Annotated[
        int, typer.Option("--layers", min=0, metavar="N", help="Show the N slowest layers of each model.")
    ] = 0,
    energy: Annotated[bool, typer.Option("--energy", help="Show joules of a picture, idle subtracted.")] = False,
    duration: Annotated[
        float, typer.Option("--duration", min=0.0, metavar="SECONDS", help="Run each model so long without a pause.")
    ] = 0.0,
    load: Annotated[
        float, typer.Option("--cpu-load", min=0.0, max=100.0, metavar="PERCENT", help="Keep cores so busy meanwhile.")
    ] = 0.0,
    load_cores: Annotated[
        int, typer.Option("--cpu-load-cores", min=0, metavar="N", help="Cores that --cpu-load keeps busy; 0: all.")
    ] = 0,
    json: Json = False,
) -> None:
    """Measure latency, memory and size of models; the first is what the others are compared with."""
    from leadline.cli.benchmark_table import print_rows
    from leadline.evaluation.cpu_load import cpu_load
    from leadline.evaluation.isolation import Job
    from leadline.evaluation.latency import compare
    from leadline.evaluation.machine import this_machine
    from leadline.evaluation.probe import Wanted
    from leadline.reference import check_reference

    wanted = parse_size(size)
    for reference in references:
        check_reference(reference)
    jobs = [Job(reference, threads, device, wanted, batch) for reference in references]
    machine, peaks = this_machine(), None
    if roofline:
        from leadline.evaluation.roofline import roofline_of

        peaks = roofline_of(machine, threads)
    beyond = Wanted(layers > 0, energy, duration, warmup)
    beside = ""
    with ExitStack() as stack:
        other = stack.enter_context(cpu_load(load, load_cores))
        tell = stack.enter_context(_progress(len(jobs) * (2 if beyond else 1), json))
        timings = compare(
            jobs[0], jobs[1:], runs=runs, warmup=warmup, rounds=rounds, timeout=timeout, on_done=lambda timing: tell()
        )
        rows = [_row(timing, peaks, device) for timing in timings]
        _probe(rows, jobs, beyond, timeout, tell)
        if other.processes:
            cores = f"{len(other.processes)} core{'' if len(other.processes) == 1 else 's'}"
            beside = f"beside {load:g} % on {cores} ({other.reached():.0%} reached)"
    failed = [timing for timing in timings if timing.failure]
    if len(failed) == len(references) == 1 and not json:
        raise _refused(failed)
    if json:
        values: dict[str, Any] = {"machine": machine.as_dict(), "rows": [_as_dict(row) for row in rows]}
        values |= {"roofline": peaks.as_dict()} if peaks else {}
        values |= {"cpu_load": {"percent": load, "cores": load_cores, "told": beside}} if beside else {}
        typer.echo(json_module.dumps(values, indent=2, allow_nan=False))
    else:
        words = [f"{threads or 'engine-chosen'} thread{'' if threads == 1 else 's'}", f"batch {batch}"]
        print_rows(rows, ", ".join([str(machine), *words, *([beside] if beside else [])]), peaks, layers)
    if len(failed) == len(references):
        raise _refused(failed)
    if failed or any(row.probe and row.probe.failure for row in rows):
        raise typer.Exit(1)


def _refused(failed: list[Timing]) -> LeadlineError:
    """The error of a command that measured nothing: the user's to mend, unless an engine failed."""
    from leadline.errors import LeadlineError

    first = failed[0].failure
    text = first if len(failed) == 1 else f"none of the {len(failed)} models could be measured; the first: {first}"
    error = LeadlineError(text)
    error.exit_status = 2 if all(timing.failure_status == 2 for timing in failed) else 1
    return error


def _row(timing: Timing, peaks: Roofline | None, device: str) -> Row:
    """Add what can be said without running: size on disk, multiply-accumulates, parameters, floor."""
    from leadline.cli.benchmark_table import Row
    from leadline.errors import LeadlineError

    if timing.failure:
        return Row(timing)
    row = Row(timing, _size_mb(timing.ref))
    try:
        row.macs, row.parameters, activations = _counts(timing.ref, timing.size, floor=peaks is not None)
    except LeadlineError:  # an ONNX file holds no network to count
        activations = None
    if peaks is not None:
        _floor(row, peaks, device, activations)
    return row


def _floor(row: Row, peaks: Roofline, device: str, activations: int | None) -> None:
    """The floor of the row, or why it has none."""
    from leadline.evaluation.roofline import arithmetic, floor_of

    timing, kind = row.timing, arithmetic(row.timing.precision_ran)
    if device.lower() != "cpu":
        row.no_floor = f"the roofline is that of the CPU, this ran on {device}"
    elif row.macs is None:
        row.no_floor = "its multiply-accumulates are not known"
    elif kind not in peaks.peaks:
        row.no_floor = f"no peak was measured for {timing.precision_ran}"
    elif timing.latency is not None:
        counts = {"parameters": row.parameters or 0, "activations": activations or 0, "batch": timing.latency.batch}
        row.floor = floor_of(peaks, timing.precision_ran, macs=row.macs, **counts)


def _probe(rows: list[Row], jobs: list[Job], wanted: Wanted, timeout: float, tell: Callable[[], None]) -> None:
    from leadline.evaluation.probe import probe

    if wanted:
        for row, job in zip(rows, jobs, strict=True):
            if not row.timing.failure:
                row.probe = probe(job, wanted, timeout=timeout)
            tell()


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


def _counts(reference: str, size: tuple[int, int], *, floor: bool) -> tuple[int | None, int | None, int | None]:
    """Multiply-accumulates and parameters, and activations where a floor is wanted."""
    from leadline.bundle import load_bundle
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.evaluation.roofline import count_activations
    from leadline.manifest import manifest_kind
    from leadline.reference import load_model

    if manifest_kind(Path(reference)) == "bundle":  # no network to count; `leadline export` wrote it down
        bundle = load_bundle(Path(reference))
        written = bundle.measurements()
        if bundle.size != size:  # they were counted at the bundle's own
            return None, written.get("parameters"), None
        return written.get("macs"), written.get("parameters"), written.get("activations")
    model = load_model(reference).model
    activations = count_activations(model, size) if floor else None
    return count_macs(model, size), count_parameters(model), activations


def _as_dict(row: Row) -> dict[str, Any]:
    latency, probe = row.timing.latency, row.probe
    extra: dict[str, Any] = {"size_mb": row.size_mb, "macs": row.macs, "parameters": row.parameters}
    if latency:
        extra |= {"ms_per_batch": latency.p50, "ms_per_picture": latency.per_picture}
    if row.floor and latency:
        share = row.floor.reached(latency.p50)
        extra["floor"] = {**asdict(row.floor), "bound": row.floor.bound, "share": share}
    elif row.no_floor:
        extra |= {"floor": None, "no_floor": row.no_floor}
    if probe:
        extra["probe"] = asdict(probe)
        if probe.sustained:
            extra["probe"]["sustained"] |= {"ratio": probe.sustained.ratio, "seconds": probe.sustained.seconds}
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
