"""The manifest of a folder: what it is, and the size and SHA-256 of each file in it."""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from leadline.output import sha256_file, write_atomic

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from leadline.errors import LeadlineError

MANIFEST, MEASUREMENTS = "manifest.json", "measurements.json"
SCHEMA_VERSION = 1


def write_manifest(folder: Path, kind: str, fields: Mapping[str, Any], *, leave_out: Collection[str] = ()) -> None:
    """Write `manifest.json` for all files below `folder`, except itself and those named in `leave_out`.

    Args:
        folder: holds the finished files.
        kind: `checkpoint` or `bundle`.
        fields: further entries, plain JSON values.
        leave_out: names of files that may change later.
    """
    files = {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in sorted(_names(folder))
        if name != MANIFEST and name not in leave_out
    }
    entries = {"schema_version": SCHEMA_VERSION, "kind": kind, **fields, "files": files}
    write_atomic(folder / MANIFEST, (json.dumps(entries, indent=2, sort_keys=False) + "\n").encode())


def manifest_kind(folder: Path) -> str | None:
    """`checkpoint` or `bundle` as the folder's manifest says; None where there is no readable manifest."""
    try:
        entries = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    kind = entries.get("kind") if isinstance(entries, dict) else None
    return kind if isinstance(kind, str) else None


def read_manifest(folder: Path, kind: str, fault: type[LeadlineError]) -> dict[str, Any]:
    """The manifest of `folder`, its own form checked; `verify_files` checks what it lists.

    Args:
        folder: a checkpoint or bundle.
        kind: what it must be.
        fault: the error to raise.
    """
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "it does not exist"
        raise fault(f"not a {kind} folder", where=folder, why=why)
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise fault(f"not a {kind}", where=folder, why=f"no {MANIFEST} in it", mend=_again(kind)) from error
    except (ValueError, OSError) as error:
        raise fault(f"unreadable {kind} manifest", where=path, why=str(error), mend=_again(kind)) from error
    if not isinstance(entries, dict) or not isinstance(entries.get("files"), dict):
        raise fault(f"not a {kind} manifest", where=path, mend=_again(kind))
    if entries.get("kind") != kind:
        raise fault(f"not a {kind}", where=folder, why=f"its manifest says it is a {entries.get('kind')}")
    version = entries.get("schema_version")
    if version != SCHEMA_VERSION:
        why = f"it has schema version {version}, this Leadline reads {SCHEMA_VERSION}"
        raise fault(f"cannot read {kind}", where=folder, why=why, mend="install the Leadline that wrote it")
    return entries


def verify_files(folder: Path, entries: dict[str, Any], fault: type[LeadlineError], required: Collection[str]) -> None:
    """Check that each listed file is there, inside the folder, with the listed size and SHA-256.

    Args:
        folder: a checkpoint or bundle.
        entries: its manifest.
        fault: the error to raise.
        required: names that the manifest must list.
    """
    kind = entries["kind"]
    for name in required:
        if name not in entries["files"]:
            raise fault(f"incomplete {kind}", where=folder, why=f"its manifest does not list {name}", mend=_again(kind))
    for name, entry in entries["files"].items():
        path = folder / checked_name(name, folder, fault)
        if not path.is_file():
            raise fault(f"incomplete {kind}", where=path, why="the file is missing", mend=_again(kind))
        wanted = entry if isinstance(entry, dict) else {}
        size = path.stat().st_size
        if size != wanted.get("size"):
            raise _differs(fault, kind, path, f"it has {size} bytes, {MANIFEST} says {wanted.get('size')}")
        if sha256_file(path) != wanted.get("sha256"):
            raise _differs(fault, kind, path, f"its SHA-256 is not the one in {MANIFEST}")


def _differs(fault: type[LeadlineError], kind: str, path: Path, how: str) -> LeadlineError:
    why = f"{how}, so it was edited, cut short or damaged since the {kind} was made"
    return fault("file differs from the manifest", where=path, why=why, mend=f"undo the edit, or {_again(kind)}")


def checked_name(name: str, folder: Path, fault: type[LeadlineError]) -> str:
    """The name itself if it stays inside the folder: relative, forward slashes, no `..`."""
    path = PurePosixPath(name)
    unsafe = not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name
    if unsafe or str(path) != name:
        raise fault("unsafe file name", where=name, why=f"the manifest of {str(folder)!r} points outside the folder")
    return name


def write_measurements(folder: Path, values: Mapping[str, Any]) -> None:
    """Write (or replace) `measurements.json`, which no manifest lists; plain JSON values, no NaN."""
    text = json.dumps(dict(values), indent=2, allow_nan=False) + "\n"
    write_atomic(folder / MEASUREMENTS, text.encode())


def read_measurements(folder: Path, fault: type[LeadlineError]) -> dict[str, Any]:
    """What `write_measurements` wrote last; empty if nothing.

    Args:
        folder: a checkpoint or bundle.
        fault: the error to raise where the file is not valid JSON.
    """
    path = folder / MEASUREMENTS
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise fault("unreadable measurements", where=path, why=str(error), mend="measure it again") from error
    return values if isinstance(values, dict) else {}


def refuse_links(folder: Path, fault: type[LeadlineError]) -> None:
    """Refuse symbolic links, hard links and special files anywhere below the folder."""
    for path in folder.rglob("*"):
        state = path.lstat()
        if stat.S_ISDIR(state.st_mode):
            continue
        linked = stat.S_ISREG(state.st_mode) and state.st_nlink > 1
        if not stat.S_ISREG(state.st_mode) or linked:
            why = "it is a hard link" if linked else "it is a link" if path.is_symlink() else "it is not a plain file"
            mend = "copy the folder with `cp -rL --no-preserve=links` if you trust it"
            raise fault("refused", where=path, why=f"{why}, which may reach outside the folder", mend=mend)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def unlisted(folder: Path, entries: dict[str, Any]) -> list[str]:
    """Names of files below the folder that the manifest does not list."""
    return sorted(name for name in _names(folder) if name != MANIFEST and name not in entries["files"])


def _again(kind: str) -> str:
    return "copy it again from where it was made" if kind == "checkpoint" else "export it again, or copy it again"
