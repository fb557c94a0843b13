"""`leadline models`: what comes with the package, and what it can build."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import Json
from leadline.cli.terminal import folded

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    _lists(packaged, known)


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
    if folder.exists():
        why = "it is no checkpoint or bundle folder (no manifest.json of Leadline in it)"
        mend = "see `leadline models`; weights from elsewhere become a checkpoint by `leadline convert`"
        raise ModelReferenceError("no model", where=name, why=why, mend=mend)
    mend = closest(name, [*packaged, *known]) if Path(name).parts == (name,) else "check the path"
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
    for key in ("name", "what", "architecture", "runtime", "precision", "parameters", "licence"):
        if key in details:
            value = f"{details[key]:,}" if key == "parameters" else details[key]
            typer.echo(folded(f"{key:>13}  ", value))
    if "bytes" in details:
        typer.echo(f"{'size':>13}  {details['bytes'] / 1e6:.1f} MB")
    for label, text in _contract_lines(details["contract"]):
        typer.echo(folded(f"{label:>13}  ", text))
    if details.get("lineage"):
        steps = ", then ".join(str(entry.get("step", "?")) for entry in details["lineage"])
        typer.echo(folded(f"{'made by':>13}  ", steps))
    typer.echo("\nThe whole contract and lineage: --json")
    if details.get("card"):
        _card(details["card"].strip())


def _contract_lines(contract: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the network expects and returns, in words."""
    from leadline.depth import Kind

    spec, out = contract["input"], contract["output"]
    size = f"{spec['height']}x{spec['width']} (height x width)"
    if spec["dynamic"]:
        size += f", or any multiple of {spec['multiple_of']} from {spec['min_side']} to {spec['max_side']}"
    yield "input", size
    yield "resize", f"{spec['resize']}, {spec['interpolation']}{', antialiased' if spec['antialias'] else ''}"
    mean, std = (" ".join(f"{value:.4g}" for value in spec[key]) for key in ("mean", "std"))
    yield "values", f"{spec['channels']}, 0 to {spec['value_max']:g}, minus mean {mean}, by std {std}"
    if spec["camera"]:
        fov_x, fov_y = (
            2 * math.degrees(math.atan(0.5 / spec["camera"][key])) for key in ("fx_over_width", "fy_over_height")
        )
        yield "camera", f"of training: {fov_x:.0f} degrees wide, {fov_y:.0f} high; metres are right only for it"
    limits = [f"{name} {out[name]:g}" for name in ("minimum", "maximum") if out[name] is not None]
    yield "output", ", ".join([out["kind"], "metres" if Kind(out["kind"]).unit == "m" else "no unit", *limits])
    for label, text in (("provenance", contract["provenance"]), ("data", "; ".join(contract["training_data"]))):
        if text:
            yield label, text


def _card(card: str) -> None:
    """The model card: rendered on a terminal, as it is written elsewhere."""
    typer.echo("")
    if not sys.stdout.isatty():
        typer.echo(card)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(card))


def _lists(packaged: list[dict[str, Any]], known: list[dict[str, Any]]) -> None:
    typer.echo("Packaged models")
    for row in packaged:
        size = f"{row['parameters']:,} parameters, {row['bytes'] / 1e6:.1f} MB"
        typer.echo(folded(f"  {row['name']}  ", f"{row['kind']}, input {_input(row)}, {size}"))
        typer.echo(folded("    licence: ", row["licence"]))
        for line in _accuracy(row):
            typer.echo(folded("    ", line))
        typer.echo(f"    everything about it: leadline models {row['name']}")
    typer.echo("\nArchitecture variants, without weights (input as height x width)")
    width = max(len(row["name"]) for row in known)
    for row in known:
        typer.echo(f"  {row['name']:{width}}  {row['kind']:18}  {_input(row)}")


def _input(row: dict[str, Any]) -> str:
    return f"{row['input'][0]}x{row['input'][1]}"


def _accuracy(row: dict[str, Any]) -> list[str]:
    """One line per protocol of the card: the model's own figures, without their intervals."""
    found: dict[str, list[str]] = {}
    for line in row["figures"]:
        cells = dict(line)
        protocol, metric = cells.pop(next(iter(cells))), cells.pop("metric", None)
        if metric is not None:  # one row per metric: further columns are other models
            cells = {metric: cells.get(row["name"], next(iter(cells.values()), ""))}
        short = [f"{name} {cell.partition(' [')[0]}" for name, cell in cells.items()]
        found.setdefault(protocol.strip("`"), []).extend(short)
    return [f"{protocol}: {', '.join(cells)}" for protocol, cells in found.items()]
