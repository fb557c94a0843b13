"""`leadline predict`: depth of pictures and films."""

from __future__ import annotations

import json as json_module
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli.film_options import DisplayEnds, Smooth, View, film_options
from leadline.cli.interruption import interruptible
from leadline.cli.options import DEFAULT_MODEL, Json, Model, Out, Size, cores_but_one, parse_size
from leadline.cli.terminal import counted
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from leadline.batch import GivenCamera, Outcome
    from leadline.occupancy import Slice
    from leadline.predictor import Predictor
    from leadline.sources import Item

HELP = """Predict the depth of pictures (files, folders or globs) or of films.

Raw values are kept: the 16-bit PNG and the NPY file hold what the network returned, and a side file (.json) says their
kind, unit and scale. Colours run from bright (near) to dark (far). A bad picture is reported and the rest go on; the
exit status is then 1.

Metres from one picture are right only for a known camera: that of --fov or --intrinsics, else the focal length in the
picture's EXIF data, else the camera of the model's training. Which one was taken is said, and stands in the side file.

Points (pointcloud, pcd) and a mesh need a known camera, given or from EXIF; an occupancy map (the scene as seen from
above between two heights, for ROS's map_server) needs metres as well, and takes the camera to be level.

A film becomes a film: its depth beside it (--view), with its times and its sound. The raw values of its frames are
made steady over time before they are coloured (--no-smooth leaves them as they are); --save raw16,npy keeps them. The
same command goes on where an earlier one ended.

Ctrl-C finishes what is under way; a second one ends at once."""

EXAMPLES = (
    "leadline predict photo.jpg",
    "leadline predict photos/ --recursive --out depth --save png16,color",
    "leadline predict 'frames/*.png' --save npy,pointcloud --fov 62",
    "leadline predict photo.jpg -m leadline-s-indoor --fov 63 --save mesh,occupancy --slice=-1,0.2",
    "leadline predict film.mp4 --view overlay --flicker",
)


def command(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Pictures, folders, globs in quotes, or films.")
    ],
    *,
    model: Model = DEFAULT_MODEL,
    out: Out = Path("depth"),
    save: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option(
            "--save",
            metavar="LIST",
            help="Of png16, npy, color, pointcloud, pcd, mesh, occupancy (default: png16,color); of films: mp4 "
            "(default), raw16, npy.",
        ),
    ] = None,
    view: View = None,
    smooth: Smooth = None,
    flicker: Annotated[
        bool, typer.Option("--flicker", help="Films: measure how unsteady depth is over time, with and without.")
    ] = False,
    range_: DisplayEnds = None,
    fov: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--fov", metavar="DEG", help="Horizontal field of view of the camera, degrees."),
    ] = None,
    intrinsics: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--intrinsics", metavar="FX,FY,CX,CY", help="The camera in pixels of the picture."),
    ] = None,
    slice_: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--slice",
            metavar="LOW,HIGH",
            help="Occupancy: heights above the camera in metres (-0.5,0.5 if not given), as in --slice=-1,0.2.",
        ),
    ] = None,
    cell: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--cell", metavar="M", help="Occupancy: side of a cell in metres (0.05 if not given)."),
    ] = None,
    reach: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--reach", metavar="M", help="Occupancy: metres ahead and to each side (10 if not given)."),
    ] = None,
    size: Size = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--threads", "-t", min=0, max=256, help="Threads of the engine; all cores but one if not given."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Take the folders below as well.")] = False,
    json: Json = False,
) -> None:
    """Predict the depth of pictures or films."""
    from leadline.output import check_writable, output_lock
    from leadline.saving import output_paths, parse_formats, replaced
    from leadline.sources import find_films, find_pictures, refuse_overwriting_sources

    camera, wanted_size = _camera(fov, intrinsics), parse_size(size)
    films = find_films(sources, out)
    formats = () if films is not None else parse_formats("png16,color" if save is None else save)
    part = _slice(slice_, cell, reach, mapped="occupancy" in formats)
    if films is not None:
        from leadline.cli.predict_films import predict_films

        wanted = film_options(save, view, smooth, range_, camera, flicker)
        predict_films(films, out, wanted, model, cores_but_one() if threads is None else threads, wanted_size, json)
        return
    for given, name in ((view, "--view"), (smooth, "--smooth"), (flicker or None, "--flicker"), (range_, "--range")):
        if given is not None:
            raise ConfigError("only films have", where=name, mend="leave it out, or name a film")
    items = find_pictures(
        sources, out, recursive=recursive, on_notice=lambda text: typer.echo(f"notice: {text}", err=True)
    )
    refuse_overwriting_sources(items, lambda base: output_paths(base, formats))
    check_writable(out)
    if lost := replaced((item.source, item.base) for item in items):
        typer.echo(f"note: {lost}", err=True)
    with (
        _opened(model, threads, wanted_size, formats) as predictor,
        output_lock(out),
        interruptible() as interrupted,
    ):
        started = time.perf_counter()
        outcomes = _run(predictor, items, formats, camera, part, interrupted.is_set)
        seconds = time.perf_counter() - started
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(items) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    if "occupancy" in formats:
        typer.echo(
            f"note: the occupancy maps take the camera to be level; heights {part.low:g} to {part.high:g} m; from one "
            "picture they are rough: look at them before anything drives by them",
            err=True,
        )
    _report(predictor, outcomes, out, seconds, json)
    if len(outcomes) < len(items):
        done = len(outcomes) - len(failed)
        left = len(items) - len(outcomes)
        stays = f"what was written to {str(out)!r} stays" if done else "nothing was written"
        typer.echo(f"error: interrupted: {done} of {len(items)} pictures finished, {left} left; {stays}", err=True)
        raise typer.Exit(interrupted.status)
    if failed:
        raise typer.Exit(1)


def _camera(fov: float | None, intrinsics: str | None) -> GivenCamera:
    from leadline.depth import Intrinsics
    from leadline.point_cloud import FOV_RANGE

    if fov is not None and intrinsics is not None:
        raise ConfigError("two cameras", where="--fov and --intrinsics", mend="give one of them")
    if fov is not None and not FOV_RANGE[0] <= fov <= FOV_RANGE[1]:
        why = f"a horizontal field of view lies between {FOV_RANGE[0]:g} and {FOV_RANGE[1]:g} degrees"
        mend = "phones have about 65, webcams about 60"
        raise ConfigError("impossible field of view", where=f"--fov {fov:g}", why=why, mend=mend)
    if intrinsics is None:
        return fov
    try:
        fx, fy, cx, cy = (float(part) for part in intrinsics.split(","))
    except ValueError as error:
        why = "four numbers are needed"
        mend = "write FX,FY,CX,CY in pixels, as in 518.9,519.5,325.6,253.7"
        raise ConfigError("not intrinsics", where=f"--intrinsics {intrinsics}", why=why, mend=mend) from error
    return Intrinsics(fx, fy, cx, cy)


def _slice(heights: str | None, cell: float | None, reach: float | None, *, mapped: bool) -> Slice:
    from leadline.occupancy import Slice

    for given, name in ((heights, "--slice"), (cell, "--cell"), (reach, "--reach")):
        if given is not None and not mapped:
            raise ConfigError("only occupancy maps of pictures have", where=name, mend="add --save occupancy")
    default = Slice()
    try:
        low, high = (default.low, default.high) if heights is None else (float(each) for each in heights.split(","))
    except ValueError as error:
        mend = "write LOW,HIGH in metres above the camera, as in --slice=-1,0.2"
        raise ConfigError("not a slice", where=f"--slice {heights}", why="two numbers are needed", mend=mend) from error
    return Slice(low, high, default.cell if cell is None else cell, default.reach if reach is None else reach)


def _opened(model: str, threads: int | None, size: tuple[int, int] | None, formats: Sequence[str]) -> Predictor:
    from leadline.predictor import load
    from leadline.saving import require_kind

    predictor = load(model, threads=cores_but_one() if threads is None else threads, size=size)
    require_kind(predictor.contract.output.kind, formats)
    return predictor


def _run(
    predictor: Predictor,
    items: Sequence[Item],
    formats: Sequence[str],
    camera: GivenCamera,
    part: Slice,
    interrupted: Callable[[], bool],
) -> list[Outcome]:
    from rich.console import Console
    from rich.progress import Progress

    from leadline.batch import predict_batch

    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    started = time.perf_counter()
    show = console.is_terminal and len(items) > 1
    with Progress(*counted(), console=console, transient=True, disable=not show, refresh_per_second=4) as progress:
        task = progress.add_task("predict", total=len(items), rate="")
        for outcome in predict_batch(predictor, items, formats, camera=camera, part=part, stopped=interrupted):
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
    for line in _cameras(predictor, outcomes):
        typer.echo(f"note: {line}", err=True)
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
        side = "nearer" if kind.is_disparity else "farther"
        unit = f"{kind} in metres" if kind.unit == "m" else f"{kind}, no unit, larger is {side}"
        typer.echo(f"{done} of {len(outcomes)} pictures -> {out}  ({unit}; {len(outcomes) / seconds:.1f} per second)")
    if failed:
        typer.echo(f"{len(failed)} failed:", err=True)
    for outcome in failed:
        typer.echo(f"  {outcome.error}", err=True)


def _cameras(predictor: Predictor, outcomes: Sequence[Outcome]) -> list[str]:
    """Which cameras were not given but taken, for the terminal."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    counts = Counter(outcome.camera.origin for outcome in done if outcome.camera is not None)
    lines = []
    if counts["exif"]:
        lines.append(f"camera of {counts['exif']} of {len(done)} pictures from the focal length in their EXIF data")
    assumed = predictor.contract.input.camera
    if counts["assumed"] and assumed is not None:
        cameras = [outcome.camera for outcome in done if outcome.camera is not None]
        seen = [each.intrinsics for each in cameras if each.origin == "assumed" and each.intrinsics is not None]
        wide = _span(2 * math.degrees(math.atan(camera.cx / camera.fx)) for camera in seen)
        high = _span(2 * math.degrees(math.atan(camera.cy / camera.fy)) for camera in seen)
        lines.append(
            f"camera of {counts['assumed']} of {len(done)} pictures not known; assumed one like that of "
            f"{predictor.contract.name}'s training, {wide} degrees wide and {high} high. The metres are "
            "right only for it: give --fov DEG or --intrinsics FX,FY,CX,CY"
        )
    known = counts["given"] + counts["exif"]
    if known and assumed is None and predictor.contract.output.kind.unit == "m":
        lines.append(
            f"the metres of {known} of {len(done)} pictures are not corrected for their camera, since "
            f"{predictor.contract.name} names none of its training: they are right only for that unknown one"
        )
    return lines


def _span(degrees: Iterable[float]) -> str:
    """`63`, or `45 to 63`."""
    whole = sorted({round(each) for each in degrees})
    return f"{whole[0]}" if len(whole) == 1 else f"{whole[0]} to {whole[-1]}"


def _entry(outcome: Outcome) -> dict[str, object]:
    entry: dict[str, object] = {"source": str(outcome.item.source), "notices": list(outcome.notices)}
    if outcome.error is not None:
        return {**entry, "status": "failed", "error": str(outcome.error)}
    camera = outcome.camera.origin if outcome.camera is not None else "unknown"
    return {
        **entry,
        "status": "done",
        "camera": camera,
        "files": {name: str(path) for name, path in outcome.files.items()},
    }
