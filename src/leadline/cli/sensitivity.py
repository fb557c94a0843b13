"""`leadline sensitivity`: what pruning or rounding each layer and block alone costs in accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli import INTERRUPTED
from leadline.cli.options import DEFAULT_MODEL, Json, Out, Reference, Threads
from leadline.cli.terminal import print_whole

if TYPE_CHECKING:
    from leadline.compression.sensitivity import Sensitivity

HELP = """Find the layers that matter: change one layer or block at a time and measure the accuracy.

--kind pruning puts the smallest weights of a layer to 0, channels takes a layer's weakest channels out, bits rounds its
weights and inputs. Nothing is trained. The number of forward passes and the time are said before it starts; stopped,
the same command goes on where it was. Writes sensitivity.json, which `prune-magnitude` (scope: sensitivity) and mixed
precision read, a table (sensitivity.md) and a picture (sensitivity.svg, .png). Do not use the data of the final
figures: what is decided on them looks better than it is."""

EXAMPLES = (
    "leadline sensitivity leadline-s-indoor --data rendered --kind pruning --limit 8 --out runs/sensitivity",
    "leadline sensitivity leadline-s-indoor --data rendered --kind bits --limit 8 --values 8,4 --out runs/bits",
    "leadline sensitivity leadline-s-indoor -d nyu:PATH --split train --protocol nyu-eigen --kind channels --out OUT",
)
MOST_SHOWN = 12


def command(
    reference: Reference = DEFAULT_MODEL,
    *,
    data: Annotated[str, typer.Option("--data", "-d", metavar="D", help="Data set with depth: rendered, a path ...")],
    kind: Annotated[str, typer.Option("--kind", "-k", metavar="K", help="pruning, channels or bits.")],
    out: Out,
    split: Annotated[Optional[str], typer.Option("--split", help="Part of the data set.")] = None,  # noqa: UP045
    protocol: Annotated[str, typer.Option("--protocol", "-p", metavar="P", help="How accuracy is counted.")] = "plain",
    metric: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--metric", help="Metric that decides; the protocol's own (δ1) where absent."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Pictures, spread evenly.")] = 50,
    values: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--values", metavar="V,V", help="Shares (pruning, channels) or bits to try."),
    ] = None,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--only", metavar="PATH", help="A layer, or a module with all in it; may be given again."),
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks/--no-blocks", help="Change the layers of a block at once too.")
    ] = True,
    calibration: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--calibration", "-c", metavar="D", help="Pictures for the ranges of inputs; those of --data."),
    ] = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Find the layers that matter."""
    from leadline.compression.sensitivity import SENSITIVITY_KINDS
    from leadline.errors import ConfigError, closest
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.splits import choose_split
    from leadline.output import check_writable

    chosen = next((one for one in SENSITIVITY_KINDS if one == kind), None)
    if chosen is None:
        raise ConfigError("unknown kind", where=kind, mend=closest(kind, SENSITIVITY_KINDS))
    get_protocol(protocol)
    numbers = _numbers(values)
    check_writable(out)
    split, note = choose_split(data, split)

    from leadline.compression.base import Judged, Pictures, Place, Target
    from leadline.compression.sensitivity_analysis import analyse
    from leadline.compression.sensitivity_report import write_report
    from leadline.reference import load_model

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if note:
        say(note)
    place = Place(
        out,
        validation=Judged(data=data, split=split, protocol=protocol, limit=limit),
        calibration=Pictures(data=calibration),
        target=Target(threads=threads),
        say=say,
    )
    source = load_model(reference)
    try:
        found = analyse(source, place, chosen, values=numbers, only=only or (), blocks=blocks, metric=metric)
    except KeyboardInterrupt:
        say(f"interrupted: what is done is kept in {out}; the same command goes on there")
        raise typer.Exit(INTERRUPTED) from None
    files = write_report(found, out)
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    _print(found)
    typer.echo(f"written to {out}: sensitivity.json, {', '.join(path.name for path in files)}")


def _numbers(text: str | None) -> list[float] | None:
    from leadline.errors import ConfigError

    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError("bad --values", where=text, mend="write numbers with commas, as in 0.5,0.7") from error


def _print(found: Sensitivity) -> None:
    """The most sensitive parts first; the file has them all."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from leadline.compression.sensitivity import order
    from leadline.compression.sensitivity_report import columns, said, title_of
    from leadline.evaluation.metrics import LABELS

    heads, layers = columns(found), found.of("layer")
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("layer")
    for head in heads:
        table.add_column(title_of(*head), justify="right", no_wrap=True)
    names = order(found, found.kind)
    for name in names[:MOST_SHOWN]:
        rows = {(row.change, row.value): row for row in layers[name]}
        table.add_row(name, *(said(rows[head].difference) if head in rows else "" for head in heads))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    metric = LABELS.get(found.metric, found.metric)
    label = found.settings["protocol"]
    typer.echo(f"{found.model}: {metric} {said(found.base, '')}, {label}, n {found.base.n}; changes, 95 % intervals:")
    print_whole(table, console)
    if len(names) > MOST_SHOWN:
        typer.echo(f"the {MOST_SHOWN} most sensitive of {len(names)}")
