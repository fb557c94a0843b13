"""Which pictures a command line names, and where the result of each is written."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.errors import DataError, OutputError
from leadline.image import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_log = logging.getLogger(__name__)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PNG_GREY16 = bytes([16, 0])  # bit depth and colour type, bytes 24 and 25 of the file
_PICTURE_BRANDS = (b"heic", b"heix", b"heif", b"mif1", b"msf1", b"avif", b"avis")  # MP4's box around pictures
_FILM_STARTS = (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"\x30\x26\xb2\x75")  # MKV, FLV, MPEG, WMV
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".wmv", ".flv", ".3gp"),
)


@dataclass(frozen=True)
class Item:
    """One picture and the path, without ending, that its results get."""

    source: Path
    base: Path


def find_pictures(
    sources: Sequence[str], out: Path, *, recursive: bool = False, on_notice: Callable[[str], None] = _log.warning
) -> list[Item]:
    """The pictures that files, folders and globs name, each once, with names under `out` that never collide.

    A file named outright is taken whatever its ending, and whether or not it can be read; folders and globs give the
    files with a picture's ending. A folder inside which `out` lies does not give what was written there earlier,
    and with `recursive` no PNG of 16-bit grey, which is how data sets keep depth beside their pictures.

    Args:
        sources: files, folders, and patterns with `*`, `?`, `[...]` and `**`.
        out: folder for the results; folders below a source are kept below it.
        recursive: take folders below the named ones as well.
        on_notice: takes one sentence about what was left out; logged as a warning by default.

    Raises:
        DataError: a folder or pattern that matches nothing, a video, or a URL.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for source in sources:
        for path, relative in _matches(source, out, recursive, on_notice):
            found.setdefault(_real(path), (path, relative))
    paths, relatives = [path for path, _ in found.values()], [relative for _, relative in found.values()]
    return [Item(path, out / name) for path, name in zip(paths, _distinct(relatives), strict=True)]


def find_films(sources: Sequence[str], out: Path) -> list[Item] | None:
    """The films that files and globs name, each once, with names under `out` that never collide.

    Args:
        sources: files, and patterns that end in a film's ending, as `clips/*.mp4`.
        out: folder for the results.

    Returns:
        None where no film is named.

    Raises:
        DataError: films and pictures together, or a pattern that matches nothing.
    """
    films = [source for source in sources if _is_film(source)]
    if not films:
        return None
    if other := [source for source in sources if source not in films]:
        why, mend = f"{films[0]!r} is a film, and this is none", "predict films and pictures one after the other"
        raise DataError("cannot predict together", where=other[0], why=why, mend=mend)
    found: dict[Path, Path] = {}
    for source in films:
        paths = [Path(source)]
        if not paths[0].exists() and glob.has_magic(source):
            paths = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207  may be absolute
            if not paths:
                raise DataError("no films match", where=source, why="nothing matches", mend="check the pattern")
        for path in paths:
            found.setdefault(_real(path), path)
    names = _distinct([Path(path.name) for path in found.values()])
    return [Item(path, out / name) for path, name in zip(found.values(), names, strict=True)]


def refuse_overwriting_sources(items: Iterable[Item], outputs: Callable[[Path], Iterable[Path]]) -> None:
    """Pass where no result would replace a picture that is read.

    Raises:
        OutputError: one would.
    """
    items = list(items)
    sources = {_real(item.source) for item in items}
    for item in items:
        for path in outputs(item.base):
            if _real(path) in sources:
                why = f"the result of {str(item.source)!r} would replace this picture"
                raise OutputError("will not overwrite", where=path, why=why, mend="choose another folder with --out")


def _matches(source: str, out: Path, recursive: bool, on_notice: Callable[[str], None]) -> list[tuple[Path, Path]]:
    """(file, its path relative to what named it) for one source."""
    if not source.strip():
        raise DataError(
            "no picture", why="the name is empty", mend="name a picture, a folder (. is this one) or a glob"
        )
    if _URL.match(source):
        why, mend = "it is a URL, and nothing is fetched over the network", "download it first and name the file"
        raise DataError("cannot read", where=source, why=why, mend=mend)
    path = Path(source)
    if path.is_dir():
        inside = path.rglob("*") if recursive else path.glob("*")
        ours = _real(out) if _real(out) != _real(path) else None
        files = [file for file in inside if _is_picture(file) and (ours is None or ours not in _real(file).parents)]
        maps = {file for file in files if recursive and _is_depth_map(file)}
        if maps:
            count = f"{len(maps)} PNG file{'s' if len(maps) > 1 else ''} of 16-bit grey"
            insist = "to predict on such pictures, name them or a glob"
            on_notice(f"{source}: {count} left out as depth maps, the first {min(maps)}; {insist}")
            files = [file for file in files if file not in maps]
        if not files:
            films = sum(_is_film(str(file)) for file in path.glob("*"))
            mend = "name another folder" if recursive else "add --recursive for the folders below it"
            if films:
                mend = f"it holds {films} film{'s' if films > 1 else ''}: name them, as in {source}/*.mp4"
            why = "only depth maps" if maps else f"none ends in {_endings()}"
            raise DataError("no pictures in the folder", where=source, why=why, mend=mend)
        return [(file, file.relative_to(path)) for file in sorted(files)]
    if not path.exists() and glob.has_magic(source):
        matched = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207  may be absolute
        files = [file for file in matched if _is_picture(file)]
        if not files:
            why = f"{len(matched)} matches, none a picture" if matched else "nothing matches"
            raise DataError("no pictures match", where=source, why=why, mend="check the pattern")
        return [(file, Path(file.name)) for file in files]
    if path.suffix.lower() in VIDEO_SUFFIXES:
        mend = "give it to leadline predict without pictures beside it"
        raise DataError("not a picture", where=source, why="it is a film", mend=mend)
    return [(path, Path(path.name))]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` raises where links go in a circle


def _is_picture(path: Path) -> bool:
    """A picture's ending on a file, or on a dangling link: that one fails by name when it is read."""
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_film(source: str) -> bool:
    """A film's ending, or where there is none a film's first bytes."""
    path = Path(source)
    if _URL.match(source) or path.is_dir():
        return False
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    if path.suffix.lower() in SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False  # it fails by name when it is read
    mp4 = head[4:8] == b"ftyp" and head[8:12] not in _PICTURE_BRANDS
    avi = head.startswith(b"RIFF") and head[8:12] == b"AVI "
    return mp4 or avi or head.startswith(_FILM_STARTS)


def _is_depth_map(path: Path) -> bool:
    """A PNG of one channel with 16 bits, by its header."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False  # it fails by name when it is read
    return head.startswith(b"\x89PNG") and head[24:] == _PNG_GREY16


def _endings() -> str:
    return ", ".join(SUFFIXES)


def _distinct(relatives: list[Path]) -> list[Path]:
    """Names without ending; the ending is kept where two would be the same, a number added where that is not enough.

    Upper and lower case count as the same, since some file systems think so.
    """
    plain = [relative.with_suffix("") for relative in relatives]
    shared = Counter(_key(name) for name in plain)
    wanted = [
        name if shared[_key(name)] == 1 else name.with_name(f"{name.name}_{relative.suffix.removeprefix('.')}")
        for name, relative in zip(plain, relatives, strict=True)
    ]
    taken: set[str] = set()
    names = []
    for name in wanted:
        free, number = name, 2
        while _key(free) in taken or (free != name and _key(free) in shared):
            free, number = name.with_name(f"{name.name}-{number}"), number + 1
        taken.add(_key(free))
        names.append(free)
    return names


def _key(name: Path) -> str:
    return str(name).casefold()
