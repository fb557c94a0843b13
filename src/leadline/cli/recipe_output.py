"""What `compress` and `run` show of a recipe: lines of progress, the table before and after, JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

from leadline.cli import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from leadline.studies.measurement import Figure, Measurement
    from leadline.studies.recipe import Recipe
    from leadline.studies.recipe_run import Outcome
    from leadline.studies.results import Result

SIZE = ("M par.", "G MACs", "MB", "zipped")
COST = ("ms p50", "IQR", "x faster", "peak MiB")
FOOT = (
    "Accuracy and time of a checkpoint are of its FP32 export to the target, of a bundle of the bundle itself; MB are "
    "weights or engine files, zipped the same after DEFLATE, where zeros and rounding to FP16 count; x faster is "
    "against the source in the same rounds, in turn."
)


def carry_out(recipe: Recipe, out: Path, processes: int, runs: int, as_json: bool) -> None:
    """Run a recipe, print what came of it, and end with the status that says whether all of it was measured."""
    from leadline.studies.recipe_run import run_recipe

    def on_line(line: str) -> None:
        if not as_json:
            print(line, file=sys.stderr, flush=True)

    try:
        outcome = run_recipe(recipe, out, on_line, processes=processes, runs=runs)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: what is done is kept in {out}; the same command goes on there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(_facts(outcome), indent=2))
    else:
        _print(outcome)
    if any(row.status != "measured" for row in outcome.rows):
        raise typer.Exit(1)


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "result": outcome.results[-1].ref,
        "out": str(outcome.folder),
        "notices": list(outcome.notices),
        "recipe": outcome.recipe.model_dump(mode="json"),
        "rows": [
            {
                "step": one.step,
                "options": one.options,
                "ref": one.ref,
                "reused": one.reused,
                **row.model_dump(mode="json"),
            }
            for one, row in zip(outcome.results, outcome.rows, strict=True)
        ],
    }


def _print(outcome: Outcome) -> None:
    from leadline.cli.terminal import print_whole, wide_console
    from leadline.evaluation.bootstrap import FEW
    from leadline.evaluation.scoring import DEGENERATE

    source = outcome.rows[0].accuracy
    assert source is not None
    console = wide_console()
    for table in _tables(outcome, console):
        print_whole(table, console)
    lines = [FOOT]
    if source.scored < FEW:
        lines.append(f"Caution: {source.scored} pictures only, {FEW} or more make a verdict.")
    lines += _scattered(outcome)
    for one, row in zip(outcome.results, outcome.rows, strict=True):
        if row.status != "measured":
            lines.append(f"{row.status.value} {one.label}: {row.reason}")
        elif row.accuracy is not None and row.accuracy.degenerate:
            lines.append(f"{one.label}: {row.accuracy.degenerate} predictions are {DEGENERATE}")
    notes = dict.fromkeys(note for row in outcome.rows for note in row.notes)
    lines += [f"note: {note}" for note in notes]
    for line in (*lines, f"Result: {outcome.results[-1].ref}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _scattered(outcome: Outcome) -> list[str]:
    """A line where times scatter so much that "x faster" may be noise."""
    from leadline.studies.caution import SCATTERED

    latencies = [
        (one.label, row.latency) for one, row in zip(outcome.results, outcome.rows, strict=True) if row.latency
    ]
    source = outcome.rows[0].latency
    wide = []
    for label, latency in latencies:
        if source is not None and abs(latency.reference_p50 - source.p50) > SCATTERED * source.p50:
            wide.append(f"{label} (in its rounds the source took {latency.reference_p50:.2f} ms)")
        elif latency.iqr > SCATTERED * latency.p50:
            wide.append(label)
    if not wide:
        return []
    return [
        f"Caution: times of {', '.join(wide)} scatter by more than {SCATTERED:.0%}: x faster may be noise; "
        "run it again on an idle machine, with more --runs."
    ]


def _tables(outcome: Outcome, console: Console) -> list[Table]:
    """One table; where it is wider than the console, two that share the results' numbers: accuracy, and cost."""
    from leadline.cli.terminal import width_of
    from leadline.studies.recommend import NAMES

    source = outcome.rows[0].accuracy
    assert source is not None
    title = f"{outcome.recipe.model}: {source.protocol} on {source.data}, {source.scored} pictures"
    columns = ("result", *SIZE, NAMES.get(source.primary, source.primary), "change [95 %]", *COST)
    cells = [
        _cells(one, row, source.primary)
        for one, row in zip(outcome.results, outcome.rows, strict=True)
        if row.accuracy is not None and row.latency is not None
    ]
    whole = _table(title, columns, cells)
    if width_of(whole, console) <= console.width:
        return [whole]
    accuracy = [0, len(SIZE) + 1, len(SIZE) + 2]
    cost = [*range(1, len(SIZE) + 1), *range(len(SIZE) + 3, len(columns))]
    number = [row[0].partition(" ")[0] for row in cells]
    return [
        _table(title, [columns[k] for k in accuracy], [[row[k] for k in accuracy] for row in cells]),
        _table(
            "",
            ["", *(columns[k] for k in cost)],
            [[n, *(row[k] for k in cost)] for n, row in zip(number, cells, strict=True)],
        ),
    ]


def _table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "result") else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _cells(one: Result, row: Measurement, primary: str) -> list[str]:
    assert row.accuracy
    assert row.latency
    change = row.accuracy.change.get(primary)
    engine = f"{row.runtime} {row.precision} {row.height}x{row.width}" if one.bundle else ""
    return [
        f"{one.label} {engine}".rstrip(),
        _number(row.parameters, 1e6, 3),
        _number(row.macs, 1e9, 3),
        _number(row.size_mb, 1, 2),
        _number(row.packed_mb, 1, 2),
        f"{row.accuracy.metrics[primary].value:.4f}",
        f"{change.value:+.4f}{_ends(change)}" if change else "before",
        f"{row.latency.p50:.2f}",
        f"{row.latency.iqr:.2f}",
        f"{1 / row.latency.ratio:.2f}",
        _number(row.memory_mb, 1, 0),
    ]


def _ends(change: Figure) -> str:
    return f" [{change.low:+.4f}, {change.high:+.4f}]" if change.n > 1 else " [n/a]"


def _number(value: float | None, unit: float, digits: int) -> str:
    return "n/a" if value is None else f"{value / unit:.{digits}f}"
