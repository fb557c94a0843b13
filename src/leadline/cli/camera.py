"""`leadline camera`: depth of a live source."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli.film_options import DisplayEnds, Smooth, View, parse_ends, parse_view
from leadline.cli.interruption import interruptible
from leadline.cli.options import DEFAULT_MODEL, Model, Size, cores_but_one, parse_size
from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.live.camera import LiveFrame, LiveResult, Screen

HELP = """Depth of a live source: the latest picture counts, others are dropped rather than fallen behind.

SOURCE is a webcam (0, 1 ... or /dev/video0), a URL (rtsp, http), numbered pictures (frames-%04d.png, a glob or a
folder), raw RGB frames on stdin (- with --stdin-size), or a film. Films and pictures are worked on one by one; with
--realtime they stand in for a camera.

A source that is lost is opened again --retries times, with growing pauses. The latency is that from a picture's arrival
here to its finished result; what a camera or network adds before cannot be seen from here. q or Ctrl-C ends it."""

EXAMPLES = (
    "leadline camera 0",
    "leadline camera rtsp://192.168.1.20/stream --show none --json",
    "leadline camera film.mp4 --realtime --show terminal",
    "leadline camera 0 --share depth   # another process: leadline.live.shared.read('depth')",
    "ffmpeg -i X -f rawvideo -pix_fmt rgb24 -s 640x480 - | leadline camera - --stdin-size 480,640 --record depth.mp4",
)
SCREENS = ("window", "terminal", "none")
TOLD_S = 0.5  # between status lines


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Webcam, URL, pictures, film, or - for stdin.")],
    *,
    model: Model = DEFAULT_MODEL,
    show: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--show", metavar="WHERE", help="window, terminal or none; what is there if not given."),
    ] = None,
    record: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--record", metavar="FILE", help="Write what is shown to FILE.mp4 or .mkv, with its times."),
    ] = None,
    share: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--share", metavar="NAME", help="Keep the latest raw values in shared memory of this name."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON on stdout for each frame.")] = False,
    view: View = None,
    smooth: Smooth = None,
    range_: DisplayEnds = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Play a film or pictures at their pace.")] = False,
    fps: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--fps", min=0.01, max=1000, help="That pace, frames a second; pictures need it."),
    ] = None,
    stdin_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--stdin-size", metavar="H,W", help="Size of the frames on stdin, height first."),
    ] = None,
    drop: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--drop/--no-drop", help="Leave out pictures that come too fast (done where the source is live)."),
    ] = None,
    frames: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--frames", min=1, help="End after so many frames."),
    ] = None,
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--seconds", min=0.01, help="End after so many seconds."),
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, max=1000, help="Open a lost source so often again.")] = 5,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds without a picture that count as lost.")
    ] = 10.0,
    size: Size = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--threads", "-t", min=0, max=256, help="Threads of the engine; all cores but one if not given."),
    ] = None,
) -> None:
    """Depth of a live source."""
    from leadline.live.camera import LiveOptions, run_live
    from leadline.live.capture import parse_source
    from leadline.live.flow import opencv
    from leadline.live.latest import Latest
    from leadline.live.recording import Recording
    from leadline.live.shared import Share
    from leadline.live.temporal import Smoothing
    from leadline.predictor import load

    shown = _where(show, json)
    smoothing = None if smooth is False else Smoothing.causal()
    if smoothing is not None:
        opencv()
    pace = (fps or 0.0) if realtime or fps is not None else None
    given = parse_source(source, stdin_size=parse_size(stdin_size), fps=pace, wait_s=timeout)
    wanted_view = "depth" if view is None and shown == "terminal" else view
    options = LiveOptions(parse_view(wanted_view), smoothing, parse_ends(range_), frames, seconds)
    recording = None if record is None else Recording(record)
    shared = None if share is None else Share(share)
    taken = Latest(given, given.live if drop is None else drop, retries, timeout, _say)
    with (
        load(model, threads=cores_but_one() if threads is None else threads, size=parse_size(size)) as predictor,
        ExitStack() as stack,
    ):
        interrupted = stack.enter_context(interruptible())
        if recording is not None:
            stack.enter_context(recording)
        if shared is not None:
            stack.enter_context(shared)
        screen = _screen(shown, f"Leadline: {given.name}", stack)
        teller = _teller(json, quiet=shown == "terminal")
        stack.enter_context(taken)
        result = run_live(
            predictor,
            taken,
            options,
            screen=screen,
            recording=recording,
            share=shared,
            on_frame=teller,
            say=_say,
            stopped=interrupted.is_set,
        )
    _summarise(result, recording.path if recording is not None and recording.frames else None)
    if interrupted.is_set():
        raise typer.Exit(interrupted.status)


def _where(show: str | None, json: bool) -> str:
    if show is not None and show not in SCREENS:
        raise ConfigError("nowhere to show", where=f"--show {show}", mend=closest(show, SCREENS))
    if show == "terminal" and json:
        raise ConfigError("both write to stdout", where="--show terminal and --json", mend="give one of them")
    if show == "terminal" and not sys.stdout.isatty():
        raise ConfigError("stdout is no terminal", where="--show terminal", mend="use --show window, or --show none")
    if show is not None:
        return show
    if json:
        return "none"
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return "window"
    return "terminal" if sys.stdout.isatty() else "none"


def _screen(where: str, title: str, stack: ExitStack) -> Screen | None:
    from leadline.live.screens import Terminal, Window

    if where == "none":
        return None
    if where == "window":
        return stack.enter_context(Window(title))
    return stack.enter_context(Terminal())


def _teller(as_json: bool, quiet: bool) -> Callable[[LiveFrame, LiveResult], None]:
    """Prints a line of JSON for each frame, or keeps a status line on a terminal."""
    last, on_terminal = 0.0, sys.stderr.isatty() and not quiet

    def tell(frame: LiveFrame, result: LiveResult) -> None:
        nonlocal last
        if as_json:
            print(json_module.dumps(asdict(frame), allow_nan=False), flush=True)
        now = time.perf_counter()
        if on_terminal and not as_json and now - last > TOLD_S:
            last = now
            print(f"\r{result.status()}\x1b[K", end="", file=sys.stderr, flush=True)

    return tell


def _say(text: str) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    typer.echo(f"{start}notice: {text}", err=True)


def _summarise(result: LiveResult, recorded: Path | None) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    to = f" -> {recorded}" if recorded is not None else ""
    typer.echo(f"{start}{result.status()}{to}", err=True)
