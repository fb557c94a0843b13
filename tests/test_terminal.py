"""Tables on narrow terminals: figures are whole, whatever the width."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import test_studies as studies
from leadline.cli.optimize import Display, foot, tables
from leadline.cli.terminal import lettered, print_whole
from leadline.studies.optimize import Optimized
from leadline.studies.recommend import Recommendation
from leadline.studies.study import Cell, Outcome, Study


def printed(width: int) -> str:
    rows = [studies.row("torch fp32", ms=1077.25), studies.row("onnxruntime int8-dynamic", ms=477.15, change=-0.305)]
    rows = [row.model_copy(update={"memory_mb": 1234.0, "precision_ran": "int8-dynamic"}) for row in rows]
    outcome = Outcome(Study("leadline-s-indoor"), Path("runs"), rows)
    found = Optimized(outcome, Recommendation(rows[1], "why"), Path("report.html"))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for table in tables(found, console):
        print_whole(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 118, 200])
def test_no_figure_of_a_study_is_cut_off(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    for figure in ("1077", "477", "0.800", "-0.305 [-0.309, -0.301]", "10.00", "1234", "int8-dynamic"):
        assert figure in text
    assert "> onnxruntime int8-dynamic 64x96" in text


def test_a_batch_has_milliseconds_of_a_run_and_of_a_picture() -> None:
    four = studies.batched(studies.FAST, 4, 12.0)
    found = Optimized(
        Outcome(Study("m"), Path("runs"), [studies.REFERENCE, four]), Recommendation(four, "why"), Path("r.html")
    )
    console = Console(file=io.StringIO(), width=10_000)
    [table] = tables(found, console)
    print_whole(table, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if "ms per run IQR ms per picture x faster" in " ".join(line.split())]
    [line] = [line for line in lines if "batch 4" in line]
    assert line.split()[-6:-1] == ["12.0", "0.10", "3.00", "13.3", "4.00"]  # 40 ms of the reference over 3
    assert "ms per picture the median over the batch" in foot(found)


def test_eighty_columns_hold_every_line_of_a_study() -> None:
    lines = [line.rstrip() for line in printed(80).splitlines()]
    assert max(map(len, lines)) <= 80
    assert [bool(re.search(r"^ B ", line)) for line in lines].count(True) == 2  # accuracy, and cost


def test_a_study_counts_nothing_before_it_knows_how_many() -> None:
    display = Display(quiet=False)
    display.console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with display:
        [task] = display.bar.tasks
        assert (task.total, task.completed, task.fields["count"]) == (1, 0, "")
        display.cell(1, 4, Cell("torch", "fp32", (64, 96)), "measured")
        assert (task.total, task.completed, task.fields["count"]) == (4, 1, "1/4")
    assert isinstance(display.console.file, io.StringIO)
    assert "?" not in display.console.file.getvalue().replace("[?", "")  # [? begins a terminal's own codes


def test_letters_never_end() -> None:
    letters = [letter for letter, _ in zip(lettered(), range(28), strict=False)]
    assert letters[:2] + letters[25:] == ["A", "B", "Z", "A2", "B2"]
