"""`leadline predict FILM`: the terminal's side of films."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leadline.cli.interruption import interruptible
from leadline.cli.terminal import counted
from leadline.errors import LeadlineError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.progress import Progress

    from leadline.live.film import FilmOptions, FilmResult
    from leadline.live.flicker import Flicker
    from leadline.predictor import Predictor
    from leadline.sources import Item


QUIET_S = 30.0  # between lines of progress where there is no terminal


def predict_films(
    items: Sequence[Item],
    out: Path,
    options: FilmOptions,
    model: str,
    threads: int,
    size: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Predict films one after the other; a bad one is reported and the rest go on.

    Raises:
        LeadlineError: as `predict_film`, for a single film.
    """
    from leadline.labelling.run import teacher_hash
    from leadline.live.film_files import film_files
    from leadline.output import check_writable, output_lock
    from leadline.predictor import load
    from leadline.saving import replaced
    from leadline.sources import refuse_overwriting_sources

    refuse_overwriting_sources(items, lambda base: film_files(base, options.formats).paths.values())
    check_writable(out)
    if lost := replaced((item.source, item.base) for item in items):
        typer.echo(f"note: {lost}", err=True)
    results: list[tuple[Item, FilmResult | LeadlineError, float]] = []
    with (
        load(model, threads=threads, size=size) as predictor,
        output_lock(out),
        interruptible() as interrupted,
    ):
        key = teacher_hash(model)
        for item in items:
            started = time.perf_counter()
            try:
                result: FilmResult | LeadlineError = _predict(predictor, item, options, key, interrupted.is_set)
            except OutputError:
                raise
            except LeadlineError as error:
                if len(items) == 1:
                    raise
                result = error
            results.append((item, result, time.perf_counter() - started))
            _tell(predictor, *results[-1], as_json)
            if interrupted.is_set():
                break
    failed = [each for _, each, _ in results if isinstance(each, LeadlineError)]
    damaged = [item for item, each, _ in results if not getattr(each, "whole", True)]
    if as_json:
        typer.echo(json_module.dumps(_summary(predictor, out, results), indent=2, ensure_ascii=False, allow_nan=False))
    if failed:
        typer.echo(f"{len(failed)} of {len(items)} films failed:", err=True)
    for each in failed:
        typer.echo(f"  {each}", err=True)
    last = results[-1][1]
    if interrupted.is_set() and (len(results) < len(items) or not getattr(last, "complete", True)):
        typer.echo(f"error: interrupted: {_how_to_go_on(last, len(items) - len(results))}", err=True)
        raise typer.Exit(interrupted.status)
    if damaged:
        names = ", ".join(str(item.source) for item in damaged)
        typer.echo(f"{len(damaged)} of {len(items)} films damaged or cut off: {names}", err=True)
    if failed or damaged:
        raise typer.Exit(1)


def _predict(
    predictor: Predictor, item: Item, options: FilmOptions, key: str, stopped: Callable[[], bool]
) -> FilmResult:
    from rich.console import Console
    from rich.progress import Progress

    from leadline.live.film import predict_film

    console = Console(stderr=True)
    shown = Progress(*counted(), console=console, transient=True, disable=not console.is_terminal, refresh_per_second=4)
    with shown as progress:
        follow = _follower(progress, item.source.name)
        return predict_film(predictor, item.source, item.base, options, model=key, on_progress=follow, stopped=stopped)


def _follower(progress: Progress, name: str) -> Callable[[int, int | None, int], None]:
    task, started = progress.add_task(name, total=None, rate=""), time.perf_counter()
    said = started

    def follow(done: int, expected: int | None, began: int) -> None:
        nonlocal started, said
        if done == began + 1:
            progress.reset(task, total=expected, completed=began)  # time left counts from here
            started = time.perf_counter()
            if began:
                progress.console.print(f"note: going on behind frame {began} of an earlier run", highlight=False)
            return
        now = time.perf_counter()
        rate = (done - began - 1) / max(now - started, 1e-9)
        if progress.disable and now - said > QUIET_S:
            said = now
            whole = f" of about {expected}" if expected else ""
            typer.echo(f"{name}: {done}{whole} frames, {rate:.1f} frames/s", err=True)
        progress.update(task, completed=done, total=max(done, expected or 0) or None, rate=f"{rate:.1f} frames/s")

    return follow


def _tell(predictor: Predictor, item: Item, result: FilmResult | LeadlineError, seconds: float, as_json: bool) -> None:
    if isinstance(result, LeadlineError):
        return
    for notice in result.notices:
        typer.echo(f"notice: {item.source}: {notice}", err=True)
    if as_json or not result.files:
        return
    kind = predictor.contract.output.kind
    side = "nearer" if kind.is_disparity else "farther"
    unit = f"{kind} in metres" if kind.unit == "m" else f"{kind}, no unit, larger is {side}"
    rate = (result.frames - result.began) / seconds
    files = ", ".join(str(path) for name, path in result.files.items() if name not in ("frames", "side"))
    frames = f"{result.frames} frame{'s' if result.frames != 1 else ''}"
    typer.echo(f"{item.source}: {frames} -> {files}  ({unit}; {rate:.1f} frames per second)")
    if result.flicker:
        typer.echo(flicker_line(result.flicker, result.frames - result.began))


def flicker_line(measured: Sequence[Flicker], frames: int) -> str:
    """`flicker 2.31 % of the depth's spread without smoothing, 0.84 % with: 0.36 of it`."""
    raw = measured[0]
    what = f"over {raw.frames} of {frames} frames, {raw.points:.0%} of the points followed"
    if len(measured) == 1:
        return f"flicker {raw.value:.2%} of the depth's spread ({what})"
    ratio = measured[1].value / raw.value if raw.value > 0 else 1.0
    return (
        f"flicker {raw.value:.2%} of the depth's spread without smoothing, {measured[1].value:.2%} with: "
        f"{ratio:.2f} of it ({what})"
    )


def _how_to_go_on(last: FilmResult | LeadlineError, left: int) -> str:
    more = f"; {left} more films not begun" if left else ""
    if isinstance(last, LeadlineError):
        return f"the films before are finished{more}"
    if last.complete:
        return f"{last.frames} frames finished{more}"
    if not last.files:
        return f"no frame was finished{more}"
    count = f"{last.frames} of about {last.expected} frames" if last.expected else f"{last.frames} frames"
    playable = last.files.get("mp4") or last.files.get("raw16") or last.files["side"]
    return f"{count} finished; {str(playable)!r} holds them{more}. The same command goes on from the last finished part"


def _summary(
    predictor: Predictor, out: Path, results: Sequence[tuple[Item, FilmResult | LeadlineError, float]]
) -> dict[str, object]:
    kind = predictor.contract.output.kind
    return {
        "model": predictor.contract.name,
        "kind": kind.value,
        "unit": kind.unit,
        "out": str(out),
        "films": [_entry(*entry) for entry in results],
    }


def _entry(item: Item, result: FilmResult | LeadlineError, seconds: float) -> dict[str, object]:
    entry: dict[str, object] = {"source": str(item.source), "seconds": seconds}
    if isinstance(result, LeadlineError):
        return {**entry, "status": "failed", "error": str(result)}
    names = ("without smoothing", "with smoothing")
    return {
        **entry,
        "status": ("done" if result.whole else "damaged") if result.complete else "partial",
        "frames": result.frames,
        "expected": result.expected,
        "began": result.began,
        "notices": list(result.notices),
        "files": {name: str(path) for name, path in result.files.items()},
        "flicker": {name: each.value for name, each in zip(names, result.flicker, strict=False)} or None,
    }
