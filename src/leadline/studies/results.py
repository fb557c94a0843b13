"""What a recipe's steps left on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = "source"


@dataclass(frozen=True)
class Result:
    """The source of a recipe (number 0), or what one step made.

    Args:
        number: of the step, from 1.
        step: its name.
        options: of the step, defaults filled in; plain values.
        folder: the step's own.
        ref: model reference of the result, for every other verb.
        key: hash of what it was made from; of the source, of what it is.
        bundle: it is a bundle and not a network.
        reused: it was there before.
        checkpoint: it lies in a checkpoint; False for bundles, and for a source that is none of our architectures.
    """

    number: int
    step: str
    options: dict[str, Any]
    folder: Path
    ref: str
    key: str
    bundle: bool
    reused: bool
    checkpoint: bool = True

    @property
    def label(self) -> str:
        """`2 finetune`, as tables call it."""
        return f"{self.number} {self.step}"
