"""What other libraries' errors become in a message of one line."""

from __future__ import annotations

import pytest

from leadline.errors import one_line, sides


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (RuntimeError("\n  Check failed \nsrc/graph.cpp:12\n no such operator\n"), "Check failed", "no such operator"),
        (ValueError(), "ValueError", "ValueError"),
        (OSError(" \n "), "OSError", "OSError"),
        (KeyError("aten::i0e"), "aten::i0e", "aten::i0e"),  # its own text is the key in quotes
    ],
)
def test_an_error_of_another_library_is_one_line(error: Exception, first: str, last: str) -> None:
    assert (one_line(error), one_line(error, -1)) == (first, last)


def test_a_shape_is_written_without_python() -> None:
    assert (sides((1, 3, 64, 96)), sides(["N", 3, "h"]), sides(())) == ("1 x 3 x 64 x 96", "N x 3 x h", "")
