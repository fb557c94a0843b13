"""`leadline models`: what comes with the package, and what it can build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import Json

if TYPE_CHECKING:
    from leadline.contract import Contract

EXAMPLES = (
    "leadline models",
    "leadline models leadline-s-indoor",
    "leadline models fastdepth-pruned --json",
    "leadline benchmark random:fastdepth-pruned",
)
HELP = """List the packaged models and the architecture variants, or show one.

A packaged model (or any checkpoint folder) is a model reference for every verb. A variant is an architecture without
weights: `leadline train` trains it, `random:VARIANT` measures its speed.
"""


def command(
    name: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Argument(metavar="[NAME]", help="Packaged model, architecture variant, checkpoint or bundle folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the packaged models and the architecture variants, or show one."""
    if name is not None:
        _show(_details(name), as_json)
        return
    packaged, known = _packaged(), _variants()
    if as_json:
        typer.echo(json.dumps({"models": packaged, "variants": known}, indent=2))
        return
    _tables(packaged, known)


def figures(card: str) -> list[dict[str, str]]:
    """Rows of the card's table whose first column is `protocol` (Markdown), as column to cell; empty without one."""
    rows: list[list[str]] = []
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []
        if rows and not cells:
            break
        if rows or (cells and cells[0].lower() == "protocol"):
            rows.append(cells)
    return [dict(zip(rows[0], row, strict=False)) for row in rows[2:]]


def _packaged() -> list[dict[str, Any]]:
    from leadline.reference import zoo

    return [_checkpoint(folder) for folder in zoo().values()]


def _checkpoint(folder: Path) -> dict[str, Any]:
    from leadline.checkpoint import WEIGHTS, load_checkpoint

    saved = load_checkpoint(folder)
    return {
        "name": saved.name,
        "what": "checkpoint",
        "architecture": saved.architecture,
        "parameters": saved.parameters,
        "bytes": (folder / WEIGHTS).stat().st_size,
        **_facts(saved.contract),
        "figures": figures(saved.card),
    }


def _facts(contract: Contract) -> dict[str, Any]:
    kind, spec = contract.output.kind, contract.input
    return {"kind": str(kind), "unit": kind.unit, "input": [spec.height, spec.width], "licence": contract.licence}


def _variants() -> list[dict[str, Any]]:
    from leadline.models.registry import architecture, variants

    return [
        {"name": name, "architecture": kind, **_facts(architecture(kind).contract(config))}
        for name, (kind, config) in variants().items()
    ]


def _details(name: str) -> dict[str, Any]:
    from leadline.errors import ModelReferenceError, closest
    from leadline.manifest import manifest_kind
    from leadline.models.registry import variants
    from leadline.reference import zoo

    packaged = zoo()
    folder = packaged.get(name, Path(name))
    kind = manifest_kind(folder)
    if kind == "checkpoint":
        from leadline.checkpoint import load_checkpoint

        saved = load_checkpoint(folder)
        details = {"contract": saved.contract.model_dump(mode="json"), "lineage": list(saved.lineage)}
        return {**_checkpoint(folder), **details, "card": saved.card}
    if kind == "bundle":
        return _bundle(folder)
    known = variants()
    if name in known:
        return _variant(name)
    mend = closest(name, [*packaged, *known]) if Path(name).parts == (name,) else ""
    raise ModelReferenceError("no model", where=name, why="neither a packaged model, a variant nor a folder", mend=mend)


def _bundle(folder: Path) -> dict[str, Any]:
    from leadline.bundle import load_bundle

    bundle = load_bundle(folder)
    return {
        "name": bundle.contract.name,
        "what": "bundle",
        "runtime": bundle.runtime,
        "precision": bundle.precision,
        "bytes": bundle.size_bytes,
        **_facts(bundle.contract),
        "contract": bundle.contract.model_dump(mode="json"),
        "lineage": list(bundle.lineage),
        "measurements": bundle.measurements(),
    }


def _variant(name: str) -> dict[str, Any]:
    import torch

    from leadline.models.registry import architecture, variants

    kind, config = variants()[name]
    with torch.device("meta"):
        parameters = sum(value.numel() for value in architecture(kind).build(config).parameters())
    contract = architecture(kind).contract(config)
    return {
        "name": name,
        "what": "architecture variant, without weights",
        "architecture": kind,
        "parameters": parameters,
        **_facts(contract),
        "contract": contract.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
    }


def _show(details: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(details, indent=2))
        return
    for key in ("name", "what", "architecture", "runtime", "precision", "parameters", "kind", "unit", "licence"):
        if key in details:
            value = f"{details[key]:,}" if key == "parameters" else details[key]
            typer.echo(f"{key:>13}  {value}")
    typer.echo(f"{'input':>13}  {','.join(map(str, details['input']))} (height,width)")
    if "bytes" in details:
        typer.echo(f"{'size':>13}  {details['bytes'] / 1e6:.1f} MB")
    typer.echo("\ncontract")
    typer.echo(json.dumps(details["contract"], indent=2))
    if details.get("card"):
        typer.echo(f"\n{details['card'].strip()}")


def _tables(packaged: list[dict[str, Any]], known: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    def name(heading: str) -> Column:
        return Column(heading, no_wrap=True, overflow="ignore")  # a name cut short cannot be copied

    console = Console()
    if packaged:
        columns = ("kind", "input", "parameters", "MB", "licence", "figures")
        table = Table(name("model"), *columns, box=None, title="Packaged models", title_justify="left")
        for row in packaged:
            size = f"{row['bytes'] / 1e6:.1f}"
            table.add_row(
                row["name"], row["kind"], _input(row), f"{row['parameters']:,}", size, row["licence"], _text(row)
            )
        console.print(table)
    title = "Architecture variants, without weights"
    table = Table(name("variant"), "kind", "input", box=None, title=title, title_justify="left")
    for row in known:
        table.add_row(row["name"], row["kind"], _input(row))
    console.print(table)


def _input(row: dict[str, Any]) -> str:
    return f"{row['input'][0]},{row['input'][1]}"


def _text(row: dict[str, Any]) -> str:
    return "\n".join(" ".join(f"{key} {cell}" for key, cell in line.items()) for line in row["figures"])
