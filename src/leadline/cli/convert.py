"""`leadline convert`: official `.pth`, `.pth.tar` or safetensors files to a checkpoint, without executing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from leadline.cli.options import Json

EXAMPLES = (
    "leadline convert mobilenet-nnconv5dw-skipadd-pruned.pth.tar --out models/fastdepth-pruned",
    "leadline convert depth_anything_v2_vits.pth --out models/dav2-small --half",
    "leadline convert depth_anything_v2_metric_hypersim_vits.pth --out models/dav2-indoor --metric-max-depth 20",
    "leadline convert weights/lite-mono_640x192 --out models/lite-mono",
    "leadline predict picture.jpg --model models/fastdepth-pruned",
)
HELP = """Turn an official .pth file into a safe checkpoint.

Reads PyTorch's zip form and the stream form of PyTorch before 1.6, state dicts and whole pickled modules, and
safetensors. Nothing in the file is executed: only tensors, plain containers and the names of network classes are
read, everything else is refused. The architecture is recognised by tensor names and shapes, pruned networks included.
For Lite-Mono, give the folder that holds encoder.pth and depth.pth; pose_encoder.pth and pose.pth beside them are kept
for training that starts from the checkpoint.
"""


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".pth, .pt, .pth.tar, .bin, .safetensors, or a Lite-Mono folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the checkpoint.")],
    architecture: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--architecture", metavar="VARIANT", help="Load into this variant (see `leadline models`)."),
    ] = None,
    metric_max_depth: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--metric-max-depth",
            metavar="M",
            min=0.001,
            help="Depth Anything V2 metric files: 20 indoor, 80 outdoor, metres.",
        ),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Name of the model; otherwise the variant's or the file's."),
    ] = None,
    licence: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--licence", help="Licence of the weights, as their origin states it."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    as_json: Json = False,
) -> None:
    """Turn an official .pth file into a safe checkpoint."""
    from leadline.convert import convert
    from leadline.manifest import manifest_kind

    replaced = manifest_kind(out) == "checkpoint"
    saved, notes = convert(
        file,
        out,
        variant=architecture,
        metric_max_depth=metric_max_depth,
        name=name,
        licence=licence,
        half=half,
    )
    if replaced:
        notes = (*notes, f"this replaces the earlier checkpoint at {out}")
    spec = saved.contract.input
    kind = str(saved.contract.output.kind)
    if as_json:
        entries = {
            "folder": str(saved.folder),
            "name": saved.name,
            "architecture": saved.architecture,
            "parameters": saved.parameters,
            "kind": kind,
            "input": [spec.height, spec.width],
            "licence": saved.contract.licence,
            "notes": list(notes),
        }
        typer.echo(json.dumps(entries, indent=2))
        return
    typer.echo(f"{saved.name}: {saved.parameters:,} parameters, {kind}, input {spec.height},{spec.width}")
    for note in notes:
        typer.echo(f"note: {note}")
    if saved.contract.licence == "unknown":
        typer.echo("note: the licence of these weights is not known here; state it with --licence")
    typer.echo(f"written to {out}; try: leadline predict PICTURE --model {out}")
