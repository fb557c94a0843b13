"""`leadline pseudo-label`: what a teacher says about pictures, kept as training targets."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli.options import Json, Reference, Size, SkipBad, parse_size
from leadline.cli.terminal import counted
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from leadline.labelling import Item, Job, Summary

HELP = """Label pictures with a teacher: a folder, a data set or a film into a store of depth maps to train on.

Run it again and it goes on where it was stopped. Equal pictures are computed once. A bad picture is reported and the
rest go on; the exit status is then 1. The store is a training source: data `pseudo:PICTURES,STORE`, or `labels: STORE`
beside any data set."""

EXAMPLES = (
    "leadline pseudo-label hf:depth-anything/Depth-Anything-V2-Small-hf photos --out labels",
    "leadline pseudo-label runs/teacher/checkpoint kitti-raw:KITTI --out labels --processes 8",
    "leadline pseudo-label leadline-s-indoor frames --out /nfs/labels --shard 2/4",
)


def command(
    teacher: Reference,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of pictures, film, or data set reference.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="Folder of the label store.")],
    split: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--split", help="A part of the data set."),
    ] = None,
    size: Size = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Label only part I of N: one per machine, into one store.")
    ] = "1/1",
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, max=512, help="Teachers at work at once, one thread each.")
    ] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on the machines of a Ray cluster (RAY_ADDRESS), or start one here.")
    ] = False,
    skip_bad: SkipBad = False,
    json: Json = False,
) -> None:
    """Label pictures with a teacher."""
    number_and_count = parse_shard(shard)
    wanted = parse_size(size)

    from leadline.labelling import Job

    job = Job(teacher, _reference(data), split, wanted, number_and_count, skip_bad)
    started = time.perf_counter()
    summary = run(job, out, processes, ray)
    _report(summary, time.perf_counter() - started, json)
    if summary.failed:
        raise typer.Exit(1)


def parse_shard(text: str) -> tuple[int, int]:
    """`I/N` as (number from 1, of how many).

    Raises:
        ConfigError: anything else.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        mend = "write I/N with 1 <= I <= N, as in 2/4"
        raise ConfigError("not a shard", where=f"--shard {text}", why="it is part I of N", mend=mend)
    return int(number), int(count)


def _reference(data: str) -> str:
    """A film may be named like a folder."""
    from leadline.sources import VIDEO_SUFFIXES

    path = Path(data.partition("?")[0])
    return f"frames:{data}" if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() else data


def run(job: Job, out: Path, processes: int, ray: bool) -> Summary:
    """Label, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from leadline.labelling import label

    console = Console(stderr=True)
    count, started = 0, time.perf_counter()
    with Progress(*counted(), console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("label", total=None, rate="")

        def start(pending: int, done: int) -> None:
            progress.update(task, total=pending)
            if done:
                console.print(f"{done} labelled before, {pending} to do")

        def show(item: Item) -> None:
            nonlocal count
            count += 1
            progress.update(task, completed=count, rate=f"{count / (time.perf_counter() - started):.1f}/s")

        return label(job, out, processes=processes, ray=ray, on_start=start, on_item=show)


def _report(summary: Summary, seconds: float, as_json: bool) -> None:
    info, failed = summary.info, summary.failed
    new = len(summary.items) - len(failed) - summary.repeated
    degenerate = [item.name for item in summary.items if item.degenerate]
    if as_json:
        content = {
            "store": str(summary.store),
            "teacher": info.teacher_name,
            "teacher_sha256": info.teacher_sha256,
            "kind": info.kind.value,
            "size": [info.height, info.width],
            "items": summary.total,
            "before": summary.before,
            "labelled": new,
            "repeated": summary.repeated,
            "degenerate": degenerate,
            "failed": [{"name": item.name, "error": item.error} for item in failed],
            "seconds": seconds,
        }
        typer.echo(json_module.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        equal = f", {summary.repeated} equal to others" if summary.repeated else ""
        before = f", {summary.before} before" if summary.before else ""
        rate = f"{len(summary.items) / seconds:.1f} per second"
        typer.echo(f"{new} of {summary.total} labelled{equal}{before} -> {summary.store}  ({info.kind}; {rate})")
        if info.licence not in ("", "unknown"):
            typer.echo(f"The teacher's licence is {info.licence}; its terms may bind what is trained on its labels.")
    if degenerate:
        named = ", ".join(degenerate[:3]) + (", ..." if len(degenerate) > 3 else "")
        typer.echo(f"{len(degenerate)} labels are constant and teach nothing: {named}", err=True)
    if failed:
        typer.echo(f"{len(failed)} failed:", err=True)
    for item in failed:
        typer.echo(f"  {item.error}", err=True)
