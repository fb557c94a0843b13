"""Lines for people: folded at words on a terminal, whole where another program reads them."""

from __future__ import annotations

import shutil
import sys
import textwrap


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
