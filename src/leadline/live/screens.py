"""Where live pictures are shown: a window, or the terminal in half-blocks of colour."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, TextIO

import numpy as np

from leadline.errors import UnavailableError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

HALF = "\N{UPPER HALF BLOCK}"
_ENTER, _LEAVE, _HOME, _RESET = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[0m"


def half_blocks(picture: NDArray[np.uint8], columns: int, lines: int) -> list[str]:
    """A picture as lines of text: each character is two pixels, one above the other, in 24-bit colour.

    Args:
        picture: H x W x 3 uint8 RGB.
        columns: characters of a line at most.
        lines: at most.

    Returns:
        Lines that fit, with the picture's proportions (a character is taken as twice as high as wide).
    """
    from PIL import Image

    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * lines / height)
    shown = max(1, round(scale * height / 2)) * 2, max(1, round(scale * width))
    small = np.asarray(Image.fromarray(picture).resize((shown[1], shown[0]), Image.Resampling.BOX))
    text = []
    for top, bottom in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        line, before = [], None
        for over, under in zip(top, bottom, strict=True):
            colours = (*over, *under)
            if colours != before:  # the terminal keeps the last colours
                line.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*colours))
                before = colours
            line.append(HALF)
        text.append("".join(line) + _RESET)
    return text


class Terminal:
    """Pictures on a terminal, with one line of text below; what was there comes back at the end."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def __enter__(self) -> Self:
        self._out.write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.write(_RESET + _LEAVE)
        self._out.flush()

    @property
    def closed(self) -> bool:
        """Never: Ctrl-C ends it."""
        return False

    def show(self, picture: NDArray[np.uint8], status: str) -> None:
        """Show H x W x 3 uint8 RGB and a line of text."""
        columns, lines = shutil.get_terminal_size()
        text = half_blocks(picture, columns, max(1, lines - 1))
        self._out.write(_HOME + "\x1b[K\n".join(text) + "\x1b[J\n" + status[: columns - 1])
        self._out.flush()


class Window:
    """A window of its own; q, Escape or its button closes it.

    Raises:
        UnavailableError: no display, or Python without tkinter.
    """

    def __init__(self, title: str) -> None:
        mend = "use --show terminal, or --show none"
        try:
            import tkinter
        except ImportError as error:
            raise UnavailableError("no window", why="this Python has no tkinter", mend=mend) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UnavailableError("no window", why=str(error), mend=mend) from error
        self.closed = False
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda event: self._close())
        self._picture = tkinter.PhotoImage(master=self._root)
        self._label.configure(image=self._picture)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._root.destroy()

    def _close(self) -> None:
        self.closed = True

    def show(self, picture: NDArray[np.uint8], status: str) -> None:
        """Show H x W x 3 uint8 RGB; the line of text is the title."""
        self._picture.configure(data=ppm(picture), format="PPM")
        self._root.title(status)
        self._root.update()


def ppm(picture: NDArray[np.uint8]) -> bytes:
    """H x W x 3 uint8 RGB as a PPM file, which every Tk reads."""
    height, width = picture.shape[:2]
    return f"P6 {width} {height} 255\n".encode() + np.ascontiguousarray(picture).tobytes()
