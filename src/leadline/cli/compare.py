"""`leadline compare`: two studies, of two machines or two versions, paired; the exit status serves CI."""

# ruff: noqa: UP045  typer reads the annotations at run time, and needs Optional

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from leadline.cli.options import Json

if TYPE_CHECKING:
    from leadline.studies.comparing import Comparison, Pair
    from leadline.studies.slower import Spread

HELP = """Compare two studies row by row: two machines, or two versions.

Accuracy is compared picture by picture, with the bootstrap interval of the
difference. Times are judged, on one machine, by their ratio to each study's own
reference, which took turns with them, so that a busy machine is no regression.
Exit status: 0 nothing became worse than the thresholds allow, 1 something did
or is missing (it is named), 2 they cannot be compared."""

EXAMPLES = (
    "leadline compare runs/before runs/after",
    "leadline compare laptop/study.sqlite rpi5/study.sqlite --json",
    "leadline compare runs/main runs/branch --max-slower 1.05 --max-drop 0.002",
)

STORE = "Folder of a study or recipe, or its .sqlite file."


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help=f"{STORE} The older, or the other machine.")],
    second: Annotated[Path, typer.Argument(metavar="B", help=f"{STORE} What may have become worse.")],
    *,
    max_slower: Annotated[
        Optional[float],
        typer.Option(help="Allowed quotient of times, B over A. Default: 1.1 on one machine, not judged across two."),
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0.0, help="Allowed loss of the primary metric.")] = 0.005,
    max_larger: Annotated[float, typer.Option(help="Allowed quotient of sizes and of peak memory, B over A.")] = 1.1,
    by: Annotated[
        Optional[Literal["ratio", "ms"]],
        typer.Option(help="Judge times by their ratio to the reference, or in ms. Default: ratio; ms across machines."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Rows that A measured and B lacks or skips are no regression.")
    ] = False,
    across_models: Annotated[
        bool, typer.Option("--across-models", help="Compare the rows of two models, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare two studies row by row."""
    from leadline.studies.comparing import Thresholds, compare_stores
    from leadline.studies.store import read_store

    bounds = Thresholds(max_slower, max_drop, max_larger, by, allow_missing, across_models)
    bounds.check()
    found = compare_stores(read_store(first), read_store(second), bounds)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found)
    if found.regressions:
        raise typer.Exit(1)


FOOT = "All quotients are B over A. Ratio: time over the reference's of the same rounds."


def _print(found: Comparison) -> None:
    from rich import box
    from rich.table import Table

    from leadline.cli.terminal import print_whole, wide_console

    console = wide_console()

    def say(line: str, style: str = "") -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False, style=style or None)

    for notice in found.notices:
        say(notice)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("candidate", "metric", "change [95 %]", "x ratio [spread]", "x ms [spread]", "x memory", "x size"):
        table.add_column(name, justify="left" if name in ("candidate", "metric") else "right", no_wrap=True)
    for pair in found.pairs:
        table.add_row(*_cells(pair), style="bold red" if pair.regressions else "")
    print_whole(table, console)
    say(f"{FOOT} {found.judged_by}")
    for pair in found.pairs:
        for doubt in pair.doubts:
            say(f"note: {pair.name}: {doubt}")
    for names, which in ((found.only_a, "first"), (found.only_b, "second")):
        if names:
            say(f"Only in the {which}: {', '.join(names)}")
    if found.regressions:
        for regression in found.regressions:
            say(f"Worse: {regression}", style="bold")
    else:
        say("Nothing became worse than the thresholds allow.", style="bold")


def _cells(pair: Pair) -> list[str]:
    from leadline.studies.recommend import NAMES, ends

    metric = pair.b.accuracy.primary if pair.b.accuracy else ""
    return [
        pair.name,
        NAMES.get(metric, metric),
        f"{pair.change.value:+.4f}{ends(pair.change)}" if pair.change else "n/a",
        *(_spread(one) for one in (pair.relative, pair.slower)),
        *(f"{one:.2f}" if one is not None else "n/a" for one in (pair.memory, pair.size)),
    ]


def _spread(one: Spread | None) -> str:
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" if one else "n/a"
