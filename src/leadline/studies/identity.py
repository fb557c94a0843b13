"""A study's folder holds one study: another model, data set or way of measuring needs a folder of its own."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from leadline.errors import OutputError
from leadline.output import write_atomic
from leadline.studies.store import NAMES, Store

if TYPE_CHECKING:
    from pathlib import Path

    from leadline.studies.study import Study

FILE = "study.json"
# What may change from run to run of one study: its candidates, and where PyTorch runs the reference.
FREE = ("runtimes", "precisions", "sizes", "networks", "batches", "devices", "on", "timeout", "reference_device")
WORDS = {"calibration_count": "number of calibration pictures", "both_alignments": "scored with both alignments"}
UNSAID = {"limit": "all pictures", "calibration": "rendered scenes", "split": "the default"}


def claim(out: Path, study: Study, weights: str) -> None:
    """Note in a study's folder which study it is, unless it holds figures of another one.

    Args:
        out: the folder.
        study: what is compared.
        weights: hash of the model's weights; empty where it is not known.

    Raises:
        OutputError: it holds figures of another study; the message says what differs.
        DataError: its store is none, or of a newer version.
    """
    refuse_other(out, study, weights)
    write_atomic(out / FILE, json.dumps(_facts(study) | {"weights": weights}, indent=2).encode())


def refuse_other(out: Path, study: Study, weights: str = "") -> None:
    """Refuse a folder with figures of another study, and change nothing; arguments and errors are those of `claim`."""
    path = out / NAMES[0]
    if not path.is_file():
        return
    with Store(path) as store:
        models = {row.model for row in store.all()}
    if not models:
        return
    held, mine = _held(out), _facts(study)
    if held is None:  # a version before this file was written
        others = sorted(models - {study.model})
        differ = [f"model is {others[0]} there and {study.model} here"] if others else []
    else:
        differ = [
            f"{WORDS.get(key, key)} is {_shown(key, held[key])} there and {_shown(key, value)} here"
            for key, value in mine.items()
            if key in held and held[key] != value
        ]
        if not differ and weights and held.get("weights") not in ("", None, weights):
            differ = [f"the weights of {study.model} have changed since"]
    if differ:
        mend = "choose another folder with --out, or remove this one"
        raise OutputError("another study lies in", where=out, why="; ".join(differ), mend=mend)


def _facts(study: Study) -> dict[str, Any]:
    return {one.name: getattr(study, one.name) for one in fields(study) if one.name not in FREE}


def _held(out: Path) -> dict[str, Any] | None:
    try:
        held = json.loads((out / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNSAID.get(key, "not said") if value is None else str(value)
