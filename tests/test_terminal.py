"""Tables on narrow terminals: figures are whole, whatever the width."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import test_studies as studies
from leadline.cli.optimize import Display, foot, tables
from leadline.cli.remaining import Progress
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
    for figure in ("1077", "477", "0.800", "-0.305 [-0.309, -0.301]", "10.0", "1234", "int8-dynamic"):
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


def test_a_study_without_a_terminal_says_how_many_and_how_far() -> None:
    display = Display(quiet=False)
    display.console = Console(file=io.StringIO(), width=40, color_system=None)
    cell = Cell("onnxruntime", "int8-static", (64, 96))
    with display:
        display.cell(0, 4, cell, "exporting and scoring")
        display.cell(1, 4, cell, "skipped")
    assert isinstance(display.console.file, io.StringIO)
    assert display.console.file.getvalue().splitlines() == [
        "4 candidates",
        "[0/4] onnxruntime int8-static 64x96: exporting and scoring",
        "[1/4] onnxruntime int8-static 64x96: skipped",
    ]


class TestTimeLeft:
    def progress(self, *events: tuple[float, int, Cell, str]) -> Progress:
        """What is known after events of 10 candidates, each as (seconds, rows finished, cell, what)."""
        now = [0.0]
        found = Progress(lambda: now[0])
        for now[0], done, cell, what in events:
            found.note(done, 10, cell, what)
        return found

    def cell(self, number: int) -> Cell:
        return Cell("torch", "fp32", (32, number))

    def test_what_was_there_and_what_was_skipped_costs_no_time(self) -> None:
        found = self.progress(
            (0, 1, self.cell(1), "measured in an earlier run"), (0, 1, self.cell(2), "exporting and scoring"),
            (0, 2, self.cell(3), "skipped"), (20, 2, self.cell(4), "exported and scored"),
        )  # fmt: skip
        assert found.finished == 2.5  # skipped and kept count as one each, what waits for its speed as a half
        assert found.left() == "about 5 min left"  # half a candidate took 20 s, and 7.5 are left: 300 s

    def test_a_failed_candidate_is_a_finished_one(self) -> None:
        found = self.progress(
            (0, 0, self.cell(1), "exporting and scoring"), (10, 0, self.cell(1), "exported and scored"),
            (30, 1, self.cell(2), "failed"), (40, 9, self.cell(1), "measured"),
        )  # fmt: skip
        assert found.finished == 9
        assert found.left() == "about 5 s left"  # 9 in 40 s

    def test_nothing_is_said_before_there_is_something_to_go_by_and_after_the_end(self) -> None:
        assert self.progress((0, 0, self.cell(1), "exporting and scoring")).left() == ""
        assert (
            self.progress((0, 0, self.cell(1), "exporting and scoring"), (9, 10, self.cell(1), "measured")).left() == ""
        )


def test_letters_never_end() -> None:
    letters = [letter for letter, _ in zip(lettered(), range(28), strict=False)]
    assert letters[:2] + letters[25:] == ["A", "B", "Z", "A2", "B2"]
