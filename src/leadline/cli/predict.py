"""`leadline predict`: depth of pictures."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli.options import DEFAULT_MODEL, Json, Model, Out, Size, parse_size
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.batch import Camera, Outcome
    from leadline.predictor import Predictor
    from leadline.sources import Item

HELP = """Predict the depth of pictures: files, folders or globs.

Raw values are kept: the 16-bit PNG and the NPY file hold what the network returned, and a side file (.json) says their
kind, unit and scale. Colours run from bright (near) to dark (far). A bad picture is reported and the rest go on; the
exit status is then 1."""

EXAMPLES = (
    "leadline predict photo.jpg",
    "leadline predict photos/ --recursive --out depth --save png16,color",
    "leadline predict 'frames/*.png' --save npy,pointcloud --fov 62",
)


def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Pictures, folders or globs in quotes.")],
    *,
    model: Model = DEFAULT_MODEL,
    out: Out = Path("depth"),
    save: Annotated[
        str, typer.Option("--save", metavar="LIST", help="Of png16, npy, color, pointcloud; separated by commas.")
    ] = "png16,color",
    fov: Annotated[
        Optional[float],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--fov", metavar="DEG", help="Horizontal field of view of the camera, degrees."),
    ] = None,
    intrinsics: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--intrinsics", metavar="FX,FY,CX,CY", help="The camera in pixels of the picture."),
    ] = None,
    size: Size = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--threads", "-t", min=0, help="Threads of the engine; all cores but one if not given."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Take the folders below as well.")] = False,
    json: Json = False,
) -> None:
    """Predict the depth of pictures."""
    from leadline.output import check_writable, output_lock
    from leadline.saving import output_paths, parse_formats
    from leadline.sources import find_pictures, refuse_overwriting_sources

    formats, camera, wanted_size = parse_formats(save), _camera(fov, intrinsics), parse_size(size)
    if "pointcloud" in formats and camera is None:
        mend = "give --fov DEG or --intrinsics FX,FY,CX,CY"
        raise ConfigError("no camera for the point cloud", where="--save pointcloud", mend=mend)
    items = find_pictures(sources, out, recursive=recursive)
    refuse_overwriting_sources(items, lambda base: output_paths(base, formats))
    check_writable(out)
    with _opened(model, threads, wanted_size, formats) as predictor, output_lock(out):
        started = time.perf_counter()
        outcomes = _run(predictor, items, formats, camera)
        seconds = time.perf_counter() - started
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(items) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    _report(predictor, outcomes, out, seconds, json)
    if failed:
        raise typer.Exit(1)


def _camera(fov: float | None, intrinsics: str | None) -> Camera:
    from leadline.depth import Intrinsics

    if fov is not None and intrinsics is not None:
        raise ConfigError("two cameras", where="--fov and --intrinsics", mend="give one of them")
    if fov is not None and not 0 < fov < 180:
        raise ConfigError("impossible field of view", where=f"--fov {fov:g}", why="it must lie between 0 and 180")
    if intrinsics is None:
        return fov
    try:
        fx, fy, cx, cy = (float(part) for part in intrinsics.split(","))
    except ValueError as error:
        why = "four numbers are needed"
        mend = "write FX,FY,CX,CY in pixels, as in 518.9,519.5,325.6,253.7"
        raise ConfigError("not intrinsics", where=f"--intrinsics {intrinsics}", why=why, mend=mend) from error
    return Intrinsics(fx, fy, cx, cy)


def _opened(model: str, threads: int | None, size: tuple[int, int] | None, formats: Sequence[str]) -> Predictor:
    from leadline.point_cloud import require_points
    from leadline.predictor import load

    predictor = load(model, threads=max(1, _cores() - 1) if threads is None else threads, size=size)
    if "pointcloud" in formats:
        require_points(predictor.contract.output.kind)
    return predictor


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(predictor: Predictor, items: Sequence[Item], formats: Sequence[str], camera: Camera) -> list[Outcome]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from leadline.batch import predict_batch

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    outcomes: list[Outcome] = []
    started = time.perf_counter()
    show = console.is_terminal and len(items) > 1
    with Progress(*columns, console=console, transient=True, disable=not show, refresh_per_second=4) as progress:
        task = progress.add_task("predict", total=len(items), rate="")
        for outcome in predict_batch(predictor, items, formats, camera=camera):
            outcomes.append(outcome)
            for notice in outcome.notices:
                print(f"notice: {notice}", file=sys.stderr)
            rate = len(outcomes) / (time.perf_counter() - started)
            progress.update(task, completed=len(outcomes), rate=f"{rate:.1f}/s")
    return outcomes


def _report(predictor: Predictor, outcomes: Sequence[Outcome], out: Path, seconds: float, as_json: bool) -> None:
    contract = predictor.contract
    kind = contract.output.kind
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        content = {
            "model": contract.name,
            "kind": kind.value,
            "unit": kind.unit,
            "out": str(out),
            "done": len(outcomes) - len(failed),
            "failed": len(failed),
            "seconds": seconds,
            "items": [_entry(outcome) for outcome in outcomes],
        }
        typer.echo(json_module.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        done = len(outcomes) - len(failed)
        unit = f"{kind} in metres" if kind.unit == "m" else f"{kind}, no unit"
        typer.echo(f"{done} of {len(outcomes)} pictures -> {out}  ({unit}; {len(outcomes) / seconds:.1f} per second)")
    if failed:
        typer.echo(f"{len(failed)} failed:", err=True)
    for outcome in failed:
        typer.echo(f"  {outcome.error}", err=True)


def _entry(outcome: Outcome) -> dict[str, object]:
    entry: dict[str, object] = {"source": str(outcome.item.source), "notices": list(outcome.notices)}
    if outcome.error is not None:
        return {**entry, "status": "failed", "error": str(outcome.error)}
    return {**entry, "status": "done", "files": {name: str(path) for name, path in outcome.files.items()}}
