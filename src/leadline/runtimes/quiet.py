"""Keep an engine's banners, progress bars and C++ logs off the user's terminal while it converts or loads."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def quiet_engine() -> Iterator[None]:
    """Drop what Python code and native libraries of this process write to stdout and stderr, and Python's warnings.

    For calls into engines that are known to chatter; their faults arrive as exceptions all the same.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
