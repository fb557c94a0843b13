"""Options that several verbs share, so that they are spelled and explained once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from leadline.errors import ConfigError

DEFAULT_MODEL = "leadline-s"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`H,W` or `HxW` as (height, width) in pixels; None stays None.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in re.split("[,x×]", text.lower())]
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() for part in parts):
        mend = "write height,width in pixels, as in 224,320 or 224x320"
        raise ConfigError("not a size", where=text, why="two whole numbers are needed", mend=mend)
    return int(parts[0]), int(parts[1])


def cores_but_one() -> int:
    """Threads for an engine that leaves one core to what goes on beside it; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def parse_part(reference: str) -> dict[str, str | None]:
    """`DATA` or `DATA#SPLIT` as `data` and `split` of a configuration."""
    from leadline.data.dataset import part_of

    data, split = part_of(reference)
    return {"data": data, "split": split}


REFERENCE_HELP = "Zoo name, checkpoint or bundle folder, .onnx with a contract beside it, hf:OWNER/NAME or HF folder."

Model = Annotated[str, typer.Option("--model", "-m", metavar="REF", help=REFERENCE_HELP)]
Reference = Annotated[str, typer.Argument(metavar="REF", help=REFERENCE_HELP)]
References = Annotated[
    list[str], typer.Argument(metavar="REF...", help=REFERENCE_HELP, default_factory=lambda: [DEFAULT_MODEL])
]
Threads = Annotated[
    int, typer.Option("--threads", "-t", min=0, max=256, help="Threads of the engine; 0: the engine chooses.")
]
Device = Annotated[str, typer.Option("--device", help="Device or provider, by the engine's own name.")]
Size = Annotated[
    Optional[str],  # noqa: UP045  typer reads the annotation at run time
    typer.Option(
        "--size", metavar="H,W", help="Input size of the network in pixels, height first: 224,288 or 224x288."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave incomplete or damaged items out, and count them.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for what is written.")]
