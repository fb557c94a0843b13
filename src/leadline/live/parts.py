"""Finished parts of a film in a hidden folder, from which the same command goes on after an interruption.

A part is a fixed number of frames: what was encoded of them, their times, and the state from which the next part is
made exactly as it would have been without an interruption. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.depth import Depth
from leadline.errors import DataError
from leadline.live.writers import NpyFile, film_segment, raw_segment
from leadline.output import atomic_folder, sha256_file
from leadline.saving import to_codes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.data.video import Account
    from leadline.depth import Kind

VIEW, RAW, NPY, NOTE, STATE = "view.mkv", "raw.mkv", "values.npy", "part.json", "state.npz"
MADE = 2  # raised when the same film would come out otherwise: parts made before are not gone on with
PENDING, UNFINISHED = "pending", "unfinished"


@dataclass(frozen=True)
class Row:
    """One finished frame: its number and presentation time, the colour scale's ends, and its codes' meaning."""

    frame: int
    time: float
    lo: float
    hi: float
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Part:
    """A part on disk.

    Args:
        folder: it.
        rows: one per frame.
        notes: sizes, and for the last part what became of the whole film.
    """

    folder: Path
    rows: list[Row]
    notes: dict[str, Any]

    @property
    def is_last(self) -> bool:
        """Whether the film ends with it."""
        return "account" in self.notes

    def state(self) -> dict[str, NDArray[Any]]:
        """Where the next part begins.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with np.load(self.folder / STATE, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except (OSError, ValueError, KeyError) as error:
            mend = f"remove {str(self.folder.parent)!r}, and run again"
            raise DataError("a kept part is damaged", where=self.folder, why=str(error), mend=mend) from error


@dataclass
class PartWriter:
    """Takes the frames of one part.

    Args:
        folder: to write into.
        formats: of mp4, raw16 and npy.
        kind: of the values.
    """

    folder: Path
    formats: Collection[str]
    kind: Kind
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._view = film_segment(self.folder / VIEW) if "mp4" in self.formats else None
        self._raw = raw_segment(self.folder / RAW) if "raw16" in self.formats else None
        self._npy = NpyFile(self.folder / NPY) if "npy" in self.formats else None

    def add(self, row: Row, values: NDArray[np.float32], drawn: NDArray[np.uint8] | None) -> None:
        """The next frame.

        Args:
            row: its number, time and colour scale.
            values: h x w float32, raw.
            drawn: what is shown of it; needed for mp4 only.
        """
        if self._view is not None and drawn is not None:
            self._view.add(drawn)
        if self._raw is not None:
            codes, scale, offset = to_codes(Depth(values, self.kind))
            self._raw.add(codes)
            row = Row(row.frame, row.time, row.lo, row.hi, scale, offset)
        if self._npy is not None:
            self._npy.add(values)
        self.notes.setdefault("map", [values.shape[0], values.shape[1]])
        self.rows.append(row)

    def close(self) -> None:
        """End the files."""
        for file in (self._view, self._raw, self._npy):
            if file is not None:
                file.close()

    def seal(self, state: dict[str, NDArray[Any]] | None) -> None:
        """Write what the part is, last."""
        if state is not None:
            with (self.folder / STATE).open("wb") as file:
                np.savez(file, **state)  # type: ignore[arg-type]  # names are keywords
        content = {"rows": [list(asdict(row).values()) for row in self.rows], **self.notes}
        (self.folder / NOTE).write_text(json.dumps(content), encoding="utf-8")


class Parts:
    """The hidden folder of one film under one set of options.

    Args:
        base: path of the results without ending.
        key: of film, model and options; parts of other keys are never used.
    """

    def __init__(self, base: Path, key: str) -> None:
        self.folder = base.with_name(f".{base.name[:80]}.parts-{key[:12]}")
        self.base = base

    def finished(self) -> list[Part]:
        """The parts that follow one another from the first frame on; what was being written at a crash is removed."""
        for name in (*self.folder.glob(".*.tmp"), self.folder / PENDING, self.folder / UNFINISHED):
            shutil.rmtree(name, ignore_errors=True)
        found: list[Part] = []
        while (self.folder / f"{len(found):05d}").is_dir():
            found.append(_read(self.folder / f"{len(found):05d}"))
        return found

    def others(self) -> list[Path]:
        """Unfinished work on the same result with other options."""
        name = self.folder.name.rpartition("-")[0]
        return sorted(path for path in self.folder.parent.glob(f"{name}-*") if path != self.folder)

    @contextmanager
    def writer(self, formats: Collection[str], kind: Kind) -> Iterator[PartWriter]:
        """Files for one part, in a folder `pending` that the caller commits; gone when the block fails.

        Raises:
            OutputError: the disk is full, or the place cannot be written.
        """
        shutil.rmtree(self.folder / PENDING, ignore_errors=True)
        with atomic_folder(self.folder / PENDING) as folder, ExitStack() as stack:
            writer = PartWriter(folder, formats, kind)
            stack.callback(writer.close)
            yield writer

    def keep(self, name: str) -> Part:
        """Give the pending part its name."""
        (self.folder / PENDING).rename(self.folder / name)
        return _read(self.folder / name)

    def remove(self) -> None:
        """All of it: the film is finished, or nothing of it was."""
        shutil.rmtree(self.folder, ignore_errors=True)


def key_of(film: Path, model: str, options: dict[str, Any]) -> str:
    """What a part depends on: the film's bytes, the model, every option that changes a result, and how it is made."""
    said = json.dumps({"film": sha256_file(film), "model": model, "made": MADE, **options}, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def account_note(account: Account) -> dict[str, Any]:
    """What decoding came to, for the last part's note."""
    return {
        "decoded": account.decoded,
        "expected": account.expected,
        "whole": account.whole,
        "said": account.complaints(),
    }


def _read(folder: Path) -> Part:
    try:
        notes = json.loads((folder / NOTE).read_bytes())
        return Part(folder, [Row(*values) for values in notes.pop("rows")], notes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"remove {str(folder.parent)!r}, and run again"
        raise DataError("a kept part is damaged", where=folder, why=str(error), mend=mend) from error
