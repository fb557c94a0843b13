"""`leadline study`: carry out a study's YAML file, here or on the machines of a device farm."""

# ruff: noqa: UP045  typer reads the annotations at run time, and needs Optional

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli import INTERRUPTED
from leadline.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from leadline.studies.from_file import Studied
    from leadline.studies.matrix import Best
    from leadline.studies.measurement import Measurement
    from leadline.studies.optimize import Optimized

HELP = """Carry out a study: engines x precisions x sizes x batches, measured.

Keys of the file: model, data, split, protocol, alignments, limit; runtime
(engines in order of preference, the first that is here) or runtimes (all of
them), each NAME or NAME on DEVICE; precisions, sizes, batches, devices;
machines (of the device farm); threads, runs, calibration, calibration_count,
limits (max_drop, max_ms, max_mb), timeout, terms. Run the same line again and
it goes on; what is measured is kept."""

EXAMPLES = (
    "leadline study studies/tensorrt-matrix.yaml --out runs/matrix",
    "leadline study studies/tensorrt-matrix.yaml --model random:depth-anything-v2-mini --limit 8",
    "leadline study studies/engines.yaml --on rpi5,jetson-orin --out runs/farm",
)


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file of the study.")],
    *,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", metavar="DIR", help="Run again, it continues there. Default: runs/ and its name."),
    ] = None,
    on: Annotated[
        Optional[str],
        typer.Option("--on", metavar="DEVICE,...", help="Machines of the device farm; `here` is this one."),
    ] = None,
    ray_address: Annotated[
        Optional[str],
        typer.Option("--ray-address", metavar="HOST:PORT", help="Head of the farm. Default: the one on this machine."),
    ] = None,
    model: Annotated[Optional[str], typer.Option("--model", "-m", metavar="REF", help="Instead of the file's.")] = None,
    data: Annotated[Optional[str], typer.Option("--data", "-d", metavar="D", help="Instead of the file's.")] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, metavar="N", help="At most N pictures.")] = None,
    runs: Annotated[Optional[int], typer.Option("--runs", min=5, help="Timed runs of each candidate.")] = None,
    as_json: Json = False,
) -> None:
    """Carry out a study's YAML file."""
    from leadline.cli.optimize import Display
    from leadline.studies.farm_ray import RayLink
    from leadline.studies.from_file import carry_out
    from leadline.studies.study_file import load_study

    machines = [name.strip() for name in on.split(",") if name.strip()] if on is not None else None
    said = {"machines": machines, "model": model, "data": data, "limit": limit, "runs": runs}
    study = load_study(file, said)
    place = out or Path("runs") / file.stem
    display = Display(quiet=as_json)
    try:
        with display:
            found = carry_out(study, place, place=file, on_cell=display.cell, link=lambda: RayLink(ray_address))
    except KeyboardInterrupt:
        finished = f"{display.done} of {display.total} candidates are finished"
        typer.echo(f"interrupted: {finished} and kept in {place}; the same command continues there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(facts(found), indent=2))
    else:
        _print(found)
    failed = any(row.status == "failed" for row in found.outcome.rows)
    if failed or any(one.advice.row is None for one in found.machines.values()):
        raise typer.Exit(1)


def facts(found: Studied) -> dict[str, Any]:
    """The study as plain values: notices, rows, and per machine what to ship, the best cells and the doubts."""
    return {
        "notices": list(found.outcome.notices),
        "machines": {name or "here": _facts(one) for name, one in found.machines.items()},
        "lost": found.lost,
        "rows": [row.model_dump(mode="json") | _derived(row) for row in found.outcome.rows],
    }


def _derived(row: Measurement) -> dict[str, float | None]:
    return {"ms_per_picture": row.latency.per_picture if row.latency else None}


def _facts(one: Optimized) -> dict[str, Any]:
    from leadline.studies.matrix import best_per_batch, best_per_resolution, cells_of, suspicions

    rows = cells_of(one.outcome.rows, one.outcome.reference)

    def named(best: Sequence[Best]) -> dict[str, str]:
        return {each.group: each.row.name for each in best}

    return {
        "recommended": str(one.bundle) if one.bundle else None,
        "reason": one.advice.sentence,
        "caution": one.advice.caution,
        "best_per_resolution": named(best_per_resolution(rows, one.limits.max_drop)),
        "best_per_batch": named(best_per_batch(rows, one.limits.max_drop)),
        "doubts": suspicions(rows),
        "report": str(one.report),
    }


def _print(found: Studied) -> None:
    from leadline.cli.terminal import wide_console

    console = wide_console()
    say = _speaker(console)
    for notice in found.outcome.notices:
        say(notice)
    for name, one in found.machines.items():
        if name:
            say(f"\nOn {name}: {one.outcome.reference.machine.get('cpu', 'unknown processor')}", style="bold")
        _print_machine(one, console)
    for name, reason in found.lost.items():
        say(f"\nNothing of {name}: {reason}", style="yellow")


def _print_machine(one: Optimized, console: Console) -> None:
    from leadline.cli.optimize import foot, tables
    from leadline.cli.terminal import print_whole
    from leadline.studies.matrix import best_per_batch, best_per_resolution, cells_of, is_matrix, suspicions
    from leadline.studies.report.candidates import shared_notes

    say = _speaker(console)
    for table in tables(one, console):
        print_whole(table, console)
    say(foot(one))
    rows = cells_of(one.outcome.rows, one.outcome.reference)
    if rows and is_matrix(one.outcome.rows):
        for title, best in (
            ("Best per resolution", best_per_resolution(rows, one.limits.max_drop)),
            ("Best per batch", best_per_batch(rows, one.limits.max_drop)),
        ):
            say(f"{title}: {'; '.join(_best(each) for each in best) or 'no cell keeps the allowed drop'}.")
    for doubt in suspicions(rows):
        say(f"Doubtful: {doubt}.", style="yellow")
    for note in shared_notes(one.outcome.rows):
        say(f"note: {note}")
    for row in one.outcome.rows:
        if row.status != "measured":
            say(f"{row.status.value} {row.name}: {row.reason}")
    say(f"\n{one.advice.sentence}", style="bold")
    if one.advice.caution:
        say(one.advice.caution, style="yellow")
    if one.bundle is not None:
        say(f"Bundle: {one.bundle}")
    say(f"Report: {one.report}")


def _best(best: Best) -> str:
    from leadline.studies.units import run_and_picture

    latency = best.row.latency
    assert latency
    same = "" if best.told_apart or best.rows == 1 else ", accuracies of its cells do not differ beyond their intervals"
    return f"{best.group}: {best.row.name}, {run_and_picture(latency)}{same}"


def _speaker(console: Console) -> Callable[..., None]:
    def say(line: str, style: str = "") -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False, style=style or None)

    return say
