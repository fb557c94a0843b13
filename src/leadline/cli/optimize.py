"""`leadline optimize`: compare runtimes, precisions and sizes on one data set, and recommend one."""

# ruff: noqa: UP045  typer reads the annotations at run time, and needs Optional

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli import INTERRUPTED
from leadline.cli.options import DEFAULT_MODEL, Json, Reference, Threads, parse_size
from leadline.cli.remaining import Progress
from leadline.cli.terminal import lettered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from leadline.studies.measurement import Measurement
    from leadline.studies.optimize import Optimized
    from leadline.studies.searching import Training
    from leadline.studies.study import Cell

EXAMPLES = (
    "leadline optimize leadline-s-indoor --data rendered --out runs/demo",
    "leadline optimize leadline-s-indoor --data rendered:room --runtime onnxruntime --precision fp32 "
    "--precision int8-static --size 192,256 --size 224,288 --limit 16 --out runs/two-sizes",
    "leadline optimize random:fastdepth --data rendered:room --limit 8 --max-ms 20 --max-mb 5 --out runs/limits",
    "leadline optimize leadline-s-indoor --data TEST --train-data PAIRS --budget 120 --max-drop 0.02 --out runs/t",
)

FOOT = (
    "x faster: against the first row in the same rounds, in turn, so that a busy machine slows both; "
    "two medians of the ms column come from different rounds, and their quotient may differ."
)
FOOT_RUNS = (
    "A run takes the whole batch: ms per run is its median and IQR its spread, ms per picture the median over the "
    "batch, and x faster is of a picture."
)


def command(
    reference: Reference = DEFAULT_MODEL,
    *,
    data: Annotated[str, typer.Option("--data", "-d", metavar="D", help="Data set: rendered, a path, FORMAT:PATH.")],
    split: Annotated[
        Optional[str],
        typer.Option("--split", help="Part of the data set; `test` where its default would mix parts."),
    ] = None,
    protocol: Annotated[
        Optional[str],
        typer.Option(
            "--protocol",
            "-p",
            metavar="P",
            help="How accuracy is counted. Default: plain, or fidelity (agreement with the uncompressed model) where "
            "the data has no ground truth.",
        ),
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, metavar="N", help="At most N pictures.")] = None,
    runtimes: Annotated[
        Optional[list[str]], typer.Option("--runtime", help="Engine; repeat. Default: all that are quick to try.")
    ] = None,
    precisions: Annotated[
        Optional[list[str]], typer.Option("--precision", help="Repeat. Default: those that may bring time.")
    ] = None,
    sizes: Annotated[Optional[list[str]], typer.Option("--size", metavar="H,W", help="Input size; repeat.")] = None,
    calibration: Annotated[
        Optional[str], typer.Option(metavar="D", help="Data set or pictures for static INT8. Default: rendered.")
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0.0, help="Largest loss of the primary metric.")] = 0.01,
    max_ms: Annotated[Optional[float], typer.Option(min=0.0, help="Largest median latency of a run, ms.")] = None,
    max_mb: Annotated[Optional[float], typer.Option(min=0.0, help="Largest size on disk, MB.")] = None,
    train_data: Annotated[
        Optional[list[str]],
        typer.Option(
            "--train-data", metavar="D", help="DATA or DATA#SPLIT: try recipes that prune and train, too; repeat."
        ),
    ] = None,
    validation: Annotated[
        Optional[str], typer.Option("--validation", metavar="D", help="DATA or DATA#SPLIT that such recipes decide on.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", min=0.0, metavar="MINUTES", help="For the recipes; measuring comes after.")
    ] = 60.0,
    iterations: Annotated[int, typer.Option("--train-iterations", min=1, help="Of each recipe's fine-tuning.")] = 500,
    batch: Annotated[Optional[int], typer.Option(min=2, help="Pictures of each training iteration.")] = None,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option(min=5, help="Timed runs of each candidate.")] = 60,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run again, it continues there.")] = Path(
        "runs/optimize"
    ),
    as_json: Json = False,
) -> None:
    """Export a model to runtimes, precisions and sizes; measure each; write a report; recommend one."""
    from leadline.studies.optimize import optimize
    from leadline.studies.recommend import Limits

    training = _training(train_data, validation, budget, iterations, batch)
    parsed = tuple(size for size in map(parse_size, sizes or ()) if size is not None)
    display = Display(quiet=as_json)
    try:
        with display:
            found = optimize(
                reference,
                data,
                out=out,
                limits=Limits(max_drop, max_ms, max_mb),
                training=training,
                on_cell=display.cell,
                on_line=display.line,
                split=split,
                protocol=protocol,
                limit=limit,
                runtimes=tuple(runtimes or ()),
                precisions=tuple(precisions or ()),
                sizes=parsed,
                threads=threads,
                runs=runs,
                calibration=calibration,
            )
    except KeyboardInterrupt:
        typer.echo(_interrupted(display, out, bool(training)), err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(_facts(found), indent=2))
    else:
        _print(found)
    if found.advice.row is None or any(row.status == "failed" for row in found.outcome.rows):
        raise typer.Exit(1)


def _training(
    data: list[str] | None, validation: str | None, budget: float, iterations: int, batch: int | None
) -> Training | None:
    """What recipes may use; None where nothing may be trained."""
    from leadline.cli.options import parse_part
    from leadline.errors import ConfigError

    if not data:
        if validation is not None or batch is not None:
            flag = "--batch" if validation is None else "--validation"
            raise ConfigError("nothing is trained", where=flag, mend="give --train-data DATA, or leave it out")
        return None
    from leadline.compression import Judged
    from leadline.studies.searching import Training

    train: dict[str, Any] = {"sources": [parse_part(each) for each in data]} | ({"batch": batch} if batch else {})
    judged = None if validation is None else Judged(**parse_part(validation))
    return Training(train, judged, budget, iterations)


def _interrupted(display: Display, out: Path, training: bool) -> str:
    if not display.total and training:
        return f"interrupted: what recipes have done is kept in {out}; the same command goes on there"
    if not display.total:
        return f"interrupted: no candidate is finished yet; the same command starts again in {out}"
    finished = f"{display.done} of {display.total} candidates are finished"
    return f"interrupted: {finished} and kept in {out}; the same command continues there"


def _facts(found: Optimized) -> dict[str, Any]:
    return {
        "recommended": str(found.bundle) if found.bundle else None,
        "reason": found.advice.sentence,
        "caution": found.advice.caution,
        "notices": list(found.outcome.notices),
        "report": str(found.report),
        "rows": [row.model_dump(mode="json") for row in found.outcome.rows],
    }


def _print(found: Optimized) -> None:
    from leadline.cli.terminal import print_whole, wide_console
    from leadline.studies.report.candidates import shared_notes

    console = wide_console()
    for notice in found.outcome.notices:
        console.print(notice, highlight=False, soft_wrap=True, markup=False)
    for table in tables(found, console):
        print_whole(table, console)
    console.print(foot(found), highlight=False, soft_wrap=True, markup=False)
    for note in shared_notes(found.outcome.rows):
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    for row in found.outcome.rows:
        if row.status != "measured":
            console.print(f"{row.status.value} {row.name}: {row.reason}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"\n{found.advice.sentence}", style="bold", highlight=False, soft_wrap=True, markup=False)
    if found.advice.caution:
        console.print(found.advice.caution, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if found.bundle is not None:
        console.print(f"Bundle: {found.bundle}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"Report: {found.report}", highlight=False, soft_wrap=True, markup=False)


def tables(found: Optimized, console: Console) -> list[Table]:
    """One table; where it is wider than the console, two that share letters: accuracy, and cost."""
    from leadline.cli.terminal import width_of
    from leadline.studies.recommend import NAMES

    outcome, advice = found.outcome, found.advice
    reference = outcome.reference
    assert reference.accuracy
    primary = reference.accuracy.primary
    rows = [row for row in outcome.rows if row.accuracy is not None and row.latency is not None]
    chosen = [advice.row is not None and row.key == advice.row.key for row in rows]
    several = _several(found)
    cells = [_cells(row, primary, one, several=several) for row, one in zip(rows, chosen, strict=True)]
    title = f"{outcome.study.model}: {reference.accuracy.protocol}, {reference.accuracy.scored} pictures"
    cost_heads = (*(RUNS if several else SINGLE), *COST)
    columns = ["candidate", "ran in", NAMES.get(primary, primary), "change [95 %]", *cost_heads]
    whole = _table(title, columns, cells, chosen)
    if width_of(whole, console) <= console.width:
        return [whole]
    letters = list(itertools.islice(lettered(), len(rows)))
    accuracy = [[letter, *row[:1], *row[2:4]] for letter, row in zip(letters, cells, strict=True)]
    cost = [[letter, row[1], *row[4:]] for letter, row in zip(letters, cells, strict=True)]
    return [
        _table(title, ["", columns[0], *columns[2:4]], accuracy, chosen),
        _table("", ["", columns[1], *cost_heads], cost, chosen),
    ]


SINGLE, RUNS = ("ms p50", "IQR"), ("ms per run", "IQR", "ms per picture")
COST = ("x faster", "MB", "peak MiB")
_WORDS = ("", "candidate", "ran in")


def _table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], chosen: Sequence[bool]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row, best in zip(cells, chosen, strict=True):
        table.add_row(*row, style="bold green" if best else "")
    return table


def _several(found: Optimized) -> bool:
    """Whether a run of some candidate takes more than a picture."""
    return any(row.batch > 1 for row in found.outcome.rows)


def foot(found: Optimized) -> str:
    """What the columns of the table mean."""
    return f"{FOOT} {FOOT_RUNS}" if _several(found) else FOOT


def _cells(row: Measurement, primary: str, chosen: bool, *, several: bool) -> list[str]:
    from leadline.studies.recommend import ends
    from leadline.studies.units import megabytes, milliseconds, speedup

    assert row.accuracy
    assert row.latency
    change = row.accuracy.change.get(primary)
    return [
        ("> " if chosen else "  ") + row.name,
        row.precision_ran,
        f"{row.accuracy.metrics[primary].value:.3f}",
        f"{change.value:+.3f}{ends(change) or ' [n/a]'}" if change else "reference",
        milliseconds(row.latency.p50),
        milliseconds(row.latency.iqr),
        *([milliseconds(row.latency.per_picture)] if several else []),
        speedup(1 / row.latency.ratio),
        megabytes(row.size_mb) if row.size_mb is not None else "n/a",
        f"{row.memory_mb:.0f}" if row.memory_mb is not None else "n/a",
    ]


class Display:
    """Live progress of a study on stderr; plain lines where stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.quiet = quiet
        self.bar: Any = None
        self.done = self.total = 0
        self.progress = Progress()

    def __enter__(self) -> Display:
        if not self.quiet and self.console.is_terminal:
            from rich import progress

            columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn())
            counters = (progress.TextColumn("{task.fields[count]}"), progress.TimeElapsedColumn())
            self.bar = progress.Progress(*columns, *counters, console=self.console)
            self.task = self.bar.add_task("reading the model", total=1, count="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def line(self, text: str) -> None:
        """Show what a recipe does."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(text, highlight=False, markup=False)

    def cell(self, done: int, total: int, cell: Cell, what: str) -> None:
        """Show what is done with which cell."""
        first = not self.total
        self.done, self.total = done, total
        self.progress.note(done, total, cell, what)
        if self.quiet:
            return
        if first:
            self.console.print(f"{total} candidates", highlight=False, markup=False)
        label, left = f"{cell.name}: {what}", self.progress.left()
        if self.bar is not None:
            count = f"{done}/{total}{f', {left}' if left else ''}"
            self.bar.update(self.task, completed=self.progress.finished, total=total, description=label, count=count)
        else:
            more = f" ({left})" if left else ""
            self.console.print(f"[{done}/{total}] {label}{more}", highlight=False, markup=False, soft_wrap=True)
