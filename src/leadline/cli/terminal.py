"""Lines for people: folded at words on a terminal, whole where another program reads them."""

from __future__ import annotations

import itertools
import shutil
import string
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.progress import ProgressColumn
    from rich.table import Table


def folded(label: str, text: str) -> str:
    """`label` and `text`, with further lines indented below the text on a terminal and one line everywhere else.

    Args:
        label: with its own spacing, the first column.
        text: one paragraph.
    """
    if not sys.stdout.isatty():
        return label + text
    width = max(40, shutil.get_terminal_size().columns)
    indent = " " * len(label)
    return textwrap.fill(label + text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def width_of(table: Table, console: Console) -> int:
    """Characters that a table needs in a line so that nothing in it is cut off."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def wide_console() -> Console:
    """Rich's console; a file or a pipe has no width to keep to, so that no line of it is folded."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def print_whole(table: Table, console: Console) -> None:
    """Print a table at the width that it needs: where the terminal is narrower its lines wrap, no figure is cut off."""
    table.width = width_of(table, console)
    console.print(table, crop=False)


def print_table(console: Console, titles: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a table whose first column has no title: rows are (name, cells), cells to the right, none cut off."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, cells in lines:
        table.add_row(name, *cells)
    print_whole(table, console)


def counted() -> tuple[ProgressColumn, ...]:
    """Columns of a progress bar over items: what, bar, done of all, the task's field `rate`, time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    what, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    return what, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()


def lettered() -> Iterator[str]:
    """A, B ... Z, A2, B2 ..."""
    for number in itertools.count():
        for letter in string.ascii_uppercase:
            yield letter + (str(number + 1) if number else "")
