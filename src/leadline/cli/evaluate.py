"""`leadline evaluate`: accuracy of a model on a data set under a named protocol."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import DEFAULT_MODEL, REFERENCE_HELP, Json, Reference, Size, SkipBad, Threads, parse_size
from leadline.cli.terminal import print_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from leadline.evaluation.bootstrap import Interval
    from leadline.evaluation.evaluate import Evaluation, Predicts

HELP = """Measure the accuracy of a model, checkpoint or exported bundle on a data set.

Protocols: nyu-eigen, kitti-eigen, kitti-benchmark, ddad, fastdepth-224, zero-shot-disparity, plain (no crop, the
data set's cap, the least alignment that the model's kind needs), and fidelity (agreement with the model of --against,
for pictures without ground truth). An alignment behind a slash changes one:
nyu-eigen/median, also lsq-depth, lsq-disparity, none. A model whose output the protocol cannot compare with the
ground truth is refused. Intervals are 95 % bootstrap intervals over the pictures. A picture that cannot be read is
reported and the rest go on; the exit status is then 1."""

EXAMPLES = (
    "leadline evaluate leadline-s-indoor --data rendered --protocol nyu-eigen --limit 20",
    "leadline evaluate leadline-s-indoor --data rendered --protocol nyu-eigen/median --limit 20 --csv rows.csv",
    "leadline export leadline-s-indoor --runtime onnxruntime --precision int8-dynamic --out small",
    "leadline evaluate small --data rendered --protocol fidelity --against leadline-s-indoor --limit 20 --json",
)
_MOST_NAMED = 10


def command(
    reference: Reference = DEFAULT_MODEL,
    *,
    data: Annotated[str, typer.Option("--data", "-d", metavar="D", help="Data set: rendered, a path, FORMAT:PATH.")],
    protocol: Annotated[str, typer.Option("--protocol", "-p", metavar="P", help="How accuracy is counted.")],
    split: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--split", help="Part of the data set; `test` where its default would mix parts."),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", min=1, metavar="N", help="At most N pictures, spread evenly over the data set."),
    ] = None,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--against",
            metavar="REF",
            help=f"Compare with this model, picture by picture, at the same --size. {REFERENCE_HELP}",
        ),
    ] = None,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--csv", metavar="FILE", help="Write one line per picture."),
    ] = None,
    skip_bad: SkipBad = False,
    size: Size = None,
    threads: Threads = 1,
    focal: Annotated[
        bool, typer.Option("--focal/--no-focal", help="Correct metric depth for the pictures' focal length.")
    ] = True,
    json: Json = False,
) -> None:
    """Measure the accuracy of a model on a data set."""
    from leadline.data.dataset import open_dataset
    from leadline.evaluation.evaluate import evaluate, opened, paired_differences
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.results import check_csv
    from leadline.evaluation.splits import choose_split

    counted, wanted_size = get_protocol(protocol), parse_size(size)
    if csv is not None:
        check_csv(csv)
    split, chosen = choose_split(data, split)
    dataset = open_dataset(data, split, skip_bad=skip_bad)
    is_fidelity = counted.truth == "model"

    def measured(model: Predicts, name: str, truth: Predicts | None) -> Evaluation:
        with _progress(name, json) as on_progress:
            found = evaluate(
                model,
                dataset,
                counted,
                limit=limit,
                reference=truth,
                focal_correction=focal,
                skip_bad=skip_bad,
                name=name,
                on_progress=on_progress,
            )
        return replace(found, notes=[chosen, *found.notes]) if chosen else found

    with ExitStack() as models:
        first = opened(reference, threads, wanted_size, models)
        second = opened(against, threads, wanted_size, models) if against is not None else None  # refused before A runs
        result = measured(first, reference, second if is_fidelity else None)
        other = measured(second, str(against), None) if second is not None and not is_fidelity else None
    differences = paired_differences(result, other) if other is not None and result.scored and other.scored else {}
    if csv is not None:
        result.to_csv(csv)
    if json:
        typer.echo(_as_json(result, other, differences, against))
    else:
        _print(result, other, differences, against)
    if result.failed or not result.scored or (other is not None and other.failed):
        raise typer.Exit(1)


def _as_json(
    result: Evaluation, other: Evaluation | None, differences: dict[str, Interval], against: str | None
) -> str:
    out: dict[str, Any] = result.to_dict()
    if other is not None:
        out["against"] = other.to_dict()
        out["difference"] = {name: value.as_dict() for name, value in differences.items()}
    elif against is not None:
        out["reference"] = against
    return json_module.dumps(out, indent=2, ensure_ascii=False, allow_nan=False)


def _print(result: Evaluation, other: Evaluation | None, differences: dict[str, Interval], against: str | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # nothing is folded for a program that reads it
    cap = result.protocol.cap
    limits = f", cap {cap:g} m" if cap != float("inf") else ""
    typer.echo(f"{result.data}, protocol {result.label}{limits}")
    for letter, one in (("A", result), ("B", other)):
        if one is not None:
            typer.echo(f"{letter}: {one.model}, {one.count('scored')} of {len(one.rows)} pictures scored")
    if other is None and against is not None:
        typer.echo(f"Truth: the output of {against}")
    print_whole(_table(result, other, differences), console)
    for note in result.notes:
        typer.echo(note)
    for note in other.notes if other is not None else ():
        if note not in result.notes:  # those of data set and options are the same for both
            typer.echo(note)
    for letter, one in (("A", result), ("B", other)):
        for line in _remarks(one) if one is not None else ():
            typer.echo(f"{letter}: {line}")
    if result.caution:
        typer.echo(f"Caution: {result.caution}.")


def _table(result: Evaluation, other: Evaluation | None, differences: dict[str, Interval]) -> Table:
    from rich import box
    from rich.table import Table

    from leadline.evaluation.metrics import LABELS

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("metric")
    for title in ("A", "95 % interval", *(("B", "A - B", "95 % interval") if other is not None else ())):
        table.add_column(title, justify="right", no_wrap=True)
    theirs = other.summary() if other is not None else {}
    for name, value in result.summary().items():
        cells = [LABELS[name], _figure(value.value), _span(value)]
        if other is not None:
            cells.append(_figure(theirs[name].value) if name in theirs else "n/a")
            gap = differences.get(name)
            cells += [_figure(gap.value, "+"), _span(gap, "+")] if gap else []
        table.add_row(*cells)
    if not result.scored:
        table.add_row("all", "n/a", "n/a", *(["n/a"] * 3 if other is not None else []))
    return table


def _figure(value: float, sign: str = "-") -> str:
    return f"{value:{sign}.{4 if abs(value) < 10 else 2}f}"


def _span(value: Interval, sign: str = "-") -> str:
    return f"{_figure(value.low, sign)} .. {_figure(value.high, sign)}" if value.n > 1 else "n/a"


def _remarks(one: Evaluation) -> list[str]:
    lines = []
    if one.count("n/a"):
        lines.append(f"without valid ground truth (n/a): {one.count('n/a')}")
    if one.count("degenerate"):
        from leadline.evaluation.scoring import DEGENERATE

        why = f"{DEGENERATE}: the figures say nothing about the scene"
        lines.append(f"DEGENERATE predictions: {one.count('degenerate')} ({why})")
    if one.count("inverted"):
        lines.append(f"INVERTED predictions: {one.count('inverted')} (near and far exchanged: is the kind right?)")
    lines += [f"failed {row['name']}: {row['reason']}" for row in one.failed[:_MOST_NAMED]]
    if len(one.failed) > _MOST_NAMED:
        lines.append(f"and {len(one.failed) - _MOST_NAMED} more failed; --csv FILE or --json names them")
    return lines


@contextmanager
def _progress(model: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
