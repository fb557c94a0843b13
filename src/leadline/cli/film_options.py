"""Options of what is made of films and cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from leadline.batch import GivenCamera
    from leadline.live.film import FilmOptions
    from leadline.live.view import View as Shown

View = Annotated[
    Optional[str],  # noqa: UP045  typer reads the annotation at run time
    typer.Option(
        "--view", metavar="NAME", help="Films, cameras: depth, overlay, or side (beside the frame; taken if not given)."
    ),
]
Smooth = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option("--smooth/--no-smooth", help="Films, cameras: make raw values steady over time (done if not given)."),
]
DisplayEnds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--range", metavar="LO,HI", help="Films, cameras: ends of the colour scale; followed slowly if not given."
    ),
]


def film_options(
    save: str | None,
    view: str | None,
    smooth: bool | None,
    ends: str | None,
    camera: GivenCamera,
    flicker: bool,
) -> FilmOptions:
    """The options as the command line gave them; None: its default.

    Raises:
        ConfigError: one of them is wrong.
        UnavailableError: smoothing without OpenCV.
    """
    from leadline.live.film import FilmOptions, parse_film_formats
    from leadline.live.flow import opencv
    from leadline.live.temporal import Smoothing

    smoothing = None if smooth is False else Smoothing()
    if smoothing is not None or flicker:
        opencv()
    formats = parse_film_formats("mp4" if save is None else save)
    return FilmOptions(formats, parse_view(view), smoothing, parse_ends(ends), camera, flicker)


def parse_view(text: str | None) -> Shown:
    """A view by its name; `side` for None.

    Raises:
        ConfigError: another.
    """
    from leadline.live.view import View as Shown

    known = [str(each) for each in Shown]
    if text is not None and text not in known:
        raise ConfigError("no such view", where=f"--view {text}", mend=closest(text, known))
    return Shown(text or Shown.SIDE)


def parse_ends(text: str | None) -> tuple[float, float] | None:
    """`LO,HI` as two rising numbers.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    try:
        lo, hi = (float(part) for part in text.split(","))
    except ValueError as error:
        mend = "write LO,HI in the map's own values, as in 0.5,20"
        raise ConfigError("not a range", where=f"--range {text}", why="two numbers are needed", mend=mend) from error
    if not lo < hi:
        raise ConfigError("the colour scale is upside down", where=f"--range {text}", mend="give LO below HI")
    return lo, hi
