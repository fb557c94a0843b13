"""A small channel search for tests: its step, and a place to work in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leadline.compression import Place
from leadline.compression.search import SearchChannels

SIZE = (64, 96)
DATA = "rendered:room,count=8,height=48,width=64"


def place(folder: Path, lines: list[str] | None = None, **changes: Any) -> Place:
    train = {
        "sources": [{"data": DATA}],
        "objectives": [{"loss": "silog"}],
        "size": [32, 64],
        "batch": 2,
        "warmup": 0,
        "decay": 0,
        "threads": 1,
        "save_every": 1,
    }
    say = (lambda line: None) if lines is None else lines.append
    return Place(folder, train=train | changes, say=say)


def step(**changes: Any) -> SearchChannels:
    values = {"targets": {"macs": 0.6}, "warmup": 2, "iterations": 6, "finetune": 1, "mask_rate": 0.2}
    return SearchChannels.model_validate(values | {"learning_rate": 0.01} | changes)
