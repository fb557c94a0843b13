"""The store of a study: SQLite in WAL mode, one row per cell, which survives a power cut."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from leadline.errors import DataError, OutputError
from leadline.studies.measurement import Measurement

NAMES = ("study.sqlite", "recipe.sqlite")  # as studies and recipes call theirs
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    key TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    row TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL,
    picture TEXT NOT NULL,
    row TEXT NOT NULL,
    PRIMARY KEY (key, picture)
);
"""
_VERSION = 3  # 2: batches, devices and machines of a farm; 3: quartiles of the ratio to the reference


@dataclass(frozen=True)
class Stored:
    """What a store holds.

    Args:
        path: of the file.
        rows: oldest first; those of a machine that was lost are left out.
        scores: JSON per picture, by the row's key.
    """

    path: Path
    rows: list[Measurement]
    scores: dict[str, dict[str, str]]


def read_store(place: Path) -> Stored:
    """Every row of a store that another study wrote, without changing the file.

    Args:
        place: the file, or the folder of a study or recipe that holds it.

    Raises:
        DataError: there is none, it is no store, or a newer version wrote it.
    """
    path = place
    if place.is_dir():
        path = next((place / name for name in NAMES if (place / name).is_file()), place / NAMES[0])
    if not path.is_file():
        raise DataError("no store of a study", where=path, mend="give the folder of a study, or its study.sqlite")
    mend = "give the study.sqlite of a study"
    log = path.with_name(f"{path.name}-wal")
    whole = not log.is_file() or log.stat().st_size == 0  # everything is in the file itself: no lock file is needed
    for way in ("immutable=1",) if whole else ("mode=ro", "immutable=1"):
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{way}", uri=True)) as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise DataError("store of a newer version", where=path, mend="update leadline")
                texts = connection.execute("SELECT row FROM measurements ORDER BY created, rowid").fetchall()
                scored = connection.execute("SELECT key, picture, row FROM scores").fetchall()
            break
        except sqlite3.OperationalError as error:
            if way == "immutable=1":
                raise DataError("cannot read the store", where=path, why=str(error), mend=mend) from error
        except sqlite3.DatabaseError as error:
            raise DataError("not a store", where=path, why=str(error), mend=mend) from error
    rows = [Measurement.model_validate_json(text) for (text,) in texts]
    scores: dict[str, dict[str, str]] = {}
    for key, picture, text in scored:
        scores.setdefault(key, {})[picture] = text
    return Stored(path, [row for row in rows if not row.lost], scores)


class Store:
    """Finished cells by key; a row is written in one transaction when its cell is finished.

    Raises:
        DataError: the file is no store, or was written by a newer version.
        OutputError: the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=30)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise DataError("store of a newer version", where=path, mend="update leadline")
            self._connection.executescript(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
            self._connection.commit()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OutputError("cannot open the store", where=path, why=str(error)) from error
            mend = "move it away to start the study again"
            raise DataError("not a store", where=path, why=str(error), mend=mend) from error
        except OSError as error:
            raise OutputError("cannot write to", where=path, why=error.strerror or str(error)) from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, row: Measurement, scores: dict[str, str] | None = None) -> None:
        """Write a finished cell, replacing an older row of the same key.

        Args:
            row: the measurement.
            scores: JSON per picture, for paired comparisons later.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        try:
            with self._connection as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO measurements (key, status, row) VALUES (?, ?, ?)",
                    (row.key, row.status.value, row.model_dump_json()),
                )
                connection.execute("DELETE FROM scores WHERE key = ?", (row.key,))
                connection.executemany(
                    "INSERT INTO scores (key, picture, row) VALUES (?, ?, ?)",
                    [(row.key, picture, text) for picture, text in (scores or {}).items()],
                )
        except sqlite3.OperationalError as error:
            raise OutputError("cannot write to the store", where=self.path, why=str(error)) from error

    def get(self, key: str) -> Measurement | None:
        """The row of a key, if that cell is finished."""
        with closing(self._connection.execute("SELECT row FROM measurements WHERE key = ?", (key,))) as cursor:
            found = cursor.fetchone()
        return Measurement.model_validate_json(found[0]) if found else None

    def drop(self, key: str) -> None:
        """Forget a row, if there is one."""
        with self._connection as connection:
            connection.execute("DELETE FROM measurements WHERE key = ?", (key,))
            connection.execute("DELETE FROM scores WHERE key = ?", (key,))

    def all(self) -> list[Measurement]:
        """Every row, oldest first."""
        rows = self._connection.execute("SELECT row FROM measurements ORDER BY created, rowid").fetchall()
        return [Measurement.model_validate_json(text) for (text,) in rows]

    def scores(self, key: str) -> dict[str, str]:
        """JSON per picture of a cell."""
        return dict(self._connection.execute("SELECT picture, row FROM scores WHERE key = ?", (key,)).fetchall())
