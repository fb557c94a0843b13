"""What the tests of engines that convert a PyTorch network by themselves share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from leadline.bundle import Bundle
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, pictures, vit

STATIC = ExportOptions(precision=Precision.INT8_STATIC, calibration=pictures(2))


def opened(engine: str, name: str, precision: str, threads: int = 1) -> Any:
    """A session of the tiny network `cnn` or `vit`."""
    return runtime(engine).open(exported(name, engine, precision), SessionOptions(threads=threads))


def error(engine: str, name: str, precision: str) -> float:
    """Mean |difference| from PyTorch over the spread of the output."""
    model, size = (cnn(), (64, 96)) if name == "cnn" else (vit(), VIT_SIZE)
    values = picture(7, size)
    reference = expected(model, values)
    return float(np.abs(opened(engine, name, precision).run(values) - reference).mean() / reference.std())


def with_file(good: Bundle, folder: Path, file: str, data: bytes) -> Bundle:
    """A bundle whose network is other bytes."""
    (folder / file).write_bytes(data)
    return dataclasses.replace(good, folder=folder)
