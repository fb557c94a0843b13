"""The latency of a network from measured pieces, kept on disk and interpolated between measured widths.

A look-up table of single layers, as NetAdapt's authors used it (SPEC.md 2.2), misses what engines fuse and what lies
between layers. Here the pieces are those of `leadline.compression.pieces`, and each is measured inside a small network
that makes its inputs; the time of networks that only make them is subtracted. So call overhead (counted once for a
network), the picture's way in and the change into the engine's own memory layout fall out, and what remains adds up
over a network. Batch 1.

Widths are sampled on a grid that is as fine as 8 channels up to 64, then about an eighth of the width, and only where
somebody asks; between the grid's points the time is linear in each width.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from leadline.compression.piece import Piece, Ref
from leadline.compression.piece_timing import Reading
from leadline.compression.pieces import pieces
from leadline.errors import DataError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import nn

CALL = Piece((), ((1, 1, 1, 1),), (), (Ref("x"),))
STEP = 8
FINE = 64  # widths up to here are sampled at every step
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS latency (
    key TEXT PRIMARY KEY,
    identity TEXT NOT NULL,
    piece TEXT NOT NULL,
    milliseconds REAL NOT NULL,
    spread REAL NOT NULL,
    runs INTEGER NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
"""


class Timer(Protocol):
    """What measures a piece: `EngineTimer`, or a known cost in a test."""

    identity: dict[str, Any]

    def scale(self, known: float | None = None) -> float:
        """The unit of its times, milliseconds: that of earlier measurements where known, so that all fit together."""

    def time(self, piece: Piece) -> Reading:
        """Milliseconds of a piece with the making of its inputs."""


class LatencyTable:
    """Milliseconds by piece and width, measured when they are first asked for. Use it in a `with` block.

    Args:
        path: SQLite file; made if missing. Several engines, versions, thread counts and machines may share it.
        timer: measures what is not there yet; its identity is part of every key.

    Raises:
        DataError: the file is no such table, or of a newer version.
        OutputError: the place cannot be written.
    """

    def __init__(self, path: Path, timer: Timer) -> None:
        self.path, self._timer = path, timer
        self._identity = json.dumps(timer.identity, sort_keys=True)
        self._known: dict[str, Reading] = {}
        self.measured = 0  # by this object
        self._connection = _connected(path)
        self._set_scale()

    def __enter__(self) -> LatencyTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def network(self, model: nn.Module, size: tuple[int, int]) -> float:
        """Milliseconds of a network: the sum over its pieces, as far as they add up (see `Latency` for the rest).

        Args:
            model: takes 1 x 3 x H x W; only its shapes count, so it may lie on the meta device.
            size: (height, width) of the input, pixels.

        Raises:
            UnavailableError: the engine lacks an operator.
            OutputError: the file cannot be written.
        """
        return self.total(pieces(model, size))

    def total(self, found: Iterable[Piece]) -> float:
        """Milliseconds of some pieces and one call of the engine."""
        listed = [(piece.text, piece) for piece in found]
        count, one = Counter(text for text, _ in listed), dict(listed)
        return self._call() + sum(times * self.piece(one[text]) for text, times in count.items())

    def piece(self, piece: Piece) -> float:
        """Milliseconds that a piece adds to a network; a little below 0 may happen, sums are what counts."""
        entrances = piece.entrances()
        calls = 1 - len(entrances)  # each of these measurements holds one
        return self._between(piece) - sum(self._between(each) for each in entrances) - calls * self._call()

    def _call(self) -> float:
        """Milliseconds of a call that computes nothing to speak of."""
        return self._at(CALL).milliseconds

    def readings(self) -> list[Reading]:
        """What this object has looked up so far."""
        return list(self._known.values())

    def _between(self, piece: Piece) -> float:
        """Linear in each width between the points of the grid around it."""
        total = 0.0
        around = [surrounding(width) for _, width in piece.widths]
        for corner in itertools.product(*around):
            share = 1.0
            for (_, width), ends, point in zip(piece.widths, around, corner, strict=True):
                share *= weight(width, ends, point)
            if share:
                total += share * self._at(piece.at(corner)).milliseconds
        return total

    def _at(self, piece: Piece) -> Reading:
        key = hashlib.sha256(f"{self._identity} {piece.text}".encode()).hexdigest()
        if key not in self._known:
            self._known[key] = self._stored(key) or self._measured(key, piece)
        return self._known[key]

    def _set_scale(self) -> None:
        key = hashlib.sha256(f"{self._identity} unit".encode()).hexdigest()
        stored = self._stored(key)
        unit = self._timer.scale(stored.milliseconds if stored else None)
        if not stored:
            self._store(key, "unit", Reading(unit, 0.0, 0))

    def _stored(self, key: str) -> Reading | None:
        query = "SELECT milliseconds, spread, runs FROM latency WHERE key = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return Reading(*row) if row else None

    def _measured(self, key: str, piece: Piece) -> Reading:
        found = self._timer.time(piece)
        self.measured += 1
        self._store(key, piece.text, found)
        return found

    def _store(self, key: str, what: str, found: Reading) -> None:
        row = (key, self._identity, what, found.milliseconds, found.spread, found.runs)
        insert = "INSERT OR REPLACE INTO latency (key, identity, piece, milliseconds, spread, runs) VALUES "
        try:
            with self._connection as connection:
                connection.execute(f"{insert} (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise OutputError("cannot write to the latency table", where=self.path, why=str(error)) from error


def surrounding(width: int) -> tuple[int, ...]:
    """The point of the grid that a width is, or the two that it lies between.

    Multiples of 8 up to 64, of 16 up to 128, of 32 up to 256 and so on; every number below 8.
    """
    if width <= STEP:
        return (width,)
    step = STEP
    while width > step * FINE // STEP:
        step *= 2
    low = width // step * step
    return (low,) if low == width else (low, low + step)


def weight(width: int, ends: tuple[int, ...], point: int) -> float:
    """Share of one end in the linear interpolation at `width`."""
    if len(ends) == 1:
        return 1.0
    low, high = ends
    return (high - width) / (high - low) if point == low else (width - low) / (high - low)


def described(identity: Mapping[str, Any]) -> str:
    """`onnxruntime 1.31.0, 1 thread`."""
    threads = identity["threads"]
    return f"{identity['engine']} {identity['version']}, {threads or 'all'} thread{'' if threads == 1 else 's'}"


def _connected(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise DataError("latency table of a newer version", where=path, mend="update leadline")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={_VERSION}")
        connection.commit()
    except sqlite3.OperationalError as error:
        raise OutputError("cannot open the latency table", where=path, why=str(error)) from error
    except sqlite3.DatabaseError as error:
        mend = "move it away to measure again"
        raise DataError("not a latency table", where=path, why=str(error), mend=mend) from error
    except OSError as error:
        raise OutputError("cannot write to", where=path, why=error.strerror or str(error)) from error
    return connection
