"""Sources of pictures for tests of the camera."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import tiny_films as tiny
from leadline.live.capture import Shot, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path


def shots(source: Source) -> list[np.ndarray]:
    """Every picture of a source."""
    return [shot.picture for shot in source.shots(threading.Event(), lambda text: None)]


def given(make: Callable[[threading.Event, Any], Generator[Shot]], *, live: bool = True, ends: bool = True) -> Source:
    """A source that a function makes."""
    return Source("test", make, live=live, ends=ends)


def shot(number: int = 0) -> Shot:
    """One frame of the small film."""
    return Shot(tiny.scene(number), time.perf_counter(), time.time())


def write_pictures(folder: Path, numbers: Iterator[int] | range, ending: str = ".png") -> None:
    """Frames of the small film as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(tiny.scene(number)).save(folder / f"frame-{number}{ending}")
