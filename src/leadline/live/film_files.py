"""The files that a film's depth becomes, put in their places only when they are complete."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import OutputError
from leadline.live.parts import NPY, RAW, VIEW
from leadline.live.writers import join
from leadline.output import atomic_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from leadline.live.parts import Part, Row

ENDINGS = {"mp4": "_depth.mp4", "raw16": "_depth.mkv", "npy": "_depth_npy", "frames": "_frames.csv", "side": ".json"}
COLUMNS = ("frame", "time", "lo", "hi", "scale", "offset")
TIMES = "times.npy"
JOINED = "joined"
_STARTS = {"_depth.mp4": (4, b"ftyp"), "_depth.mkv": (0, b"\x1a\x45\xdf\xa3"), "_frames.csv": (0, b"frame,time,")}


@dataclass(frozen=True)
class FilmFiles:
    """Where results go: format (and `frames`, `side`) to path."""

    base: Path
    paths: dict[str, Path]

    def check_replaceable(self) -> None:
        """Pass where nothing but earlier results of this kind would be replaced.

        Raises:
            OutputError: something else is there.
        """
        for name, path in self.paths.items():
            if path.exists() and not _is_ours(path, ENDINGS[name]):
                why, mend = "it is not a result of Leadline for a film", "choose another folder with --out"
                raise OutputError("will not replace", where=path, why=why, mend=mend)

    def partial(self) -> dict[str, Path]:
        """The same with `.partial` in their names, for a film that was stopped."""
        return {name: _named(self.base, ".partial" + ENDINGS[name]) for name in self.paths}

    def publish(
        self,
        place: Path,
        parts: Sequence[Part],
        film: Path,
        side: dict[str, Any],
        notices: list[str],
        complete: bool,
    ) -> dict[str, Path]:
        """Join the parts and put every file in its place; those of an earlier, stopped run are removed.

        Args:
            place: a folder on the same disk in which the files are made.
            parts: of the film, in order.
            film: its sound is taken from it.
            side: content of the side file, to which the files are added.
            notices: gets what is worth saying.
            complete: whether the film is; the names say so.

        Raises:
            OutputError: the disk is full, or the place cannot be written.
        """
        targets = self.paths if complete else self.partial()
        rows = [row for part in parts for row in part.rows]
        shutil.rmtree(place / JOINED, ignore_errors=True)  # holds what an earlier call replaced
        with atomic_folder(place / JOINED) as folder:
            made = {name: folder / path.name for name, path in targets.items()}
            side["files"] = _make(made, parts, rows, film, notices)
            side["notices"] = notices
            made["side"].write_text(
                json.dumps(side, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )
            for name, target in targets.items():
                _sync(made[name])
                _take_place(made[name], target, folder / f"{name}.old")
        if complete:
            for path in self.partial().values():
                _remove(path)
        return targets


def film_files(base: Path, formats: Sequence[str]) -> FilmFiles:
    """The results of `base` (a path without ending) in these formats."""
    return FilmFiles(base, {name: _named(base, ENDINGS[name]) for name in (*formats, "frames", "side")})


def _make(
    made: dict[str, Path], parts: Sequence[Part], rows: Sequence[Row], film: Path, notices: list[str]
) -> dict[str, Any]:
    """Write what is named in `made`; the side file's words on each."""
    times = [row.time for row in rows]
    stated = parts[-1].notes["time_base"]
    base = None if stated is None else Fraction(*stated)
    notes: dict[str, Any] = {"frames": {"file": made["frames"].name, "columns": list(COLUMNS), "time": "seconds"}}
    if "mp4" in made:
        segments = [part.folder / VIEW for part in parts]
        joined = join(segments, times, made["mp4"], container="mp4", time_base=base, sound_of=film)
        if joined.left_out:
            notices.append(joined.left_out)
        notes["mp4"] = {"file": made["mp4"].name, "sound": joined.sound or None, "near": "bright", "invalid": "black"}
    if "raw16" in made:
        join([part.folder / RAW for part in parts], times, made["raw16"], container="matroska")
        scales, offsets = {row.scale for row in rows}, {row.offset for row in rows}
        fixed = len(scales) == len(offsets) == 1
        notes["raw16"] = {
            "file": made["raw16"].name,
            "codec": "ffv1",
            "pixels": "gray16le",
            "scale": rows[0].scale if fixed else f"of each frame, in {made['frames'].name}",
            "offset": rows[0].offset if fixed else f"of each frame, in {made['frames'].name}",
            "invalid": 0,
            "formula": "value = scale * code + offset",
        }
    if "npy" in made:
        made["npy"].mkdir()
        for number, part in enumerate(parts):
            _linked(part.folder / NPY, made["npy"] / f"{number:05d}.npy")
        np.save(made["npy"] / TIMES, np.array(times, np.float64), allow_pickle=False)
        names = [f"{number:05d}.npy" for number in range(len(parts))]
        notes["npy"] = {"folder": made["npy"].name, "files": names, "times": TIMES, "dtype": "float32", "axes": "N h w"}
    with made["frames"].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([getattr(row, name) for name in COLUMNS] for row in rows)
    return notes


def _linked(source: Path, target: Path) -> None:
    """The same bytes under another name, so that a failure behind this leaves the part whole."""
    try:
        os.link(source, target)
    except OSError:  # file systems without links
        shutil.copyfile(source, target)


def _is_ours(path: Path, ending: str) -> bool:
    if ending in _STARTS:
        if not path.is_file():
            return False
        place, start = _STARTS[ending]
        with path.open("rb") as file:
            head = file.read(64)
        return not head or head[place : place + len(start)] == start
    if ending == ENDINGS["npy"]:
        if not path.is_dir():
            return False
        names = {each.name for each in path.iterdir()}
        return not names or (TIMES in names and all(name.endswith(".npy") for name in names))
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        return isinstance(content, dict) and {"schema_version", "kind", "source", "files"} <= set(content)
    return False


def _take_place(made: Path, target: Path, old: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        target.rename(old)
        try:
            made.rename(target)
        except OSError:
            old.rename(target)
            raise
    else:
        made.replace(target)


def _sync(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _named(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)
