"""Writing so that nothing finished before is ever lost: atomic files and folders, locks, early checks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_NAME = ".leadline.lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def cache_folder() -> Path:
    """Where this user's programs keep what can be made or fetched again: LEADLINE_CACHE, or the system's own place."""
    if given := os.environ.get("LEADLINE_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "leadline" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "leadline"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadline"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all; missing parent folders are made.

    Raises:
        OutputError: the disk is full, or the place cannot be written; an older file at `path` is then intact.
    """
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_named(path: Path, data: bytes) -> None:
    """Write a file that the user named: a link's target and a device are written through, a file atomically.

    Raises:
        OutputError: as of `write_atomic`.
    """
    if not _is_stream(path):
        write_atomic(Path(os.path.realpath(path)), data)
        return
    try:
        with path.open("ab") as file:  # a terminal, a pipe, or the file that /dev/stdout stands for
            file.write(data)
    except OSError as error:
        raise _explained(error, path) from error


def check_named(path: Path, start: bytes, what: str) -> None:
    """Prove, before any work, that a file that the user named can be written and would replace only its like.

    Args:
        path: the file; devices always pass.
        start: how an older file must begin to be replaced; an empty one may be.
        what: such a file, in words: `table of evaluate`.

    Raises:
        OutputError: it cannot be written, or holds something else.
    """
    if _is_stream(path):
        return
    real = Path(os.path.realpath(path))
    check_writable(real.parent)
    try:
        with real.open("rb") as file:
            found = file.read(len(start))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explained(error, path) from error
    if found and found != start:
        mend = "choose another file, or remove this one"
        raise OutputError("will not replace", where=path, why=f"it is not a {what}", mend=mend)


def _is_stream(path: Path) -> bool:
    """A device or a pipe, which is written to and never replaced."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def atomic_folder(path: Path, replaces: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block succeeds and is removed when it fails.

    An existing folder at `path` stays intact until the new one is complete.

    Args:
        path: the folder.
        replaces: `checkpoint` or `bundle`, what an existing folder may be to be replaced; None: empty folders only.

    Raises:
        OutputError: the disk is full, the place cannot be written, or `path` holds something else.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow a link that is to be replaced
    _check_replaceable(path, replaces)
    temporary = _beside(path, "tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise _explained(error, path) from error
        try:
            yield temporary
        except Exception as error:
            cause = _write_fault(error, temporary)
            if cause is None:
                raise
            raise cause from error
        try:
            _sync_tree(temporary)
            _take_place(temporary, path)
        except OSError as error:
            raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if missing) for this process; the lock of a process that died counts no more.

    Raises:
        OutputError: another run holds it; the message names its process id.
    """
    path, made = folder / LOCK_NAME, not folder.exists()
    descriptor = _locked_file(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        if sys.platform != "win32":  # Windows does not remove an open file; the lock itself ends with the descriptor
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # a run that ended before it wrote anything leaves no folder


def check_writable(folder: Path) -> None:
    """Prove, before any work, that files can be made in `folder` (or where it will be made); nothing is left behind.

    Raises:
        OutputError: they cannot.
    """
    place = Path(os.path.abspath(folder))  # noqa: PTH100 - a dangling link must not be followed
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError("cannot write to", where=folder, why=f"{str(place)!r} is not a folder")
    probe = _beside(place / "probe", "tmp")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _explained(error, folder) from error


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.{ending}")


def _check_replaceable(path: Path, replaces: str | None) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    found = _kind_of(path)
    if found is None or found != replaces:
        holds = f"it holds a {found}" if found else "it holds files that Leadline did not write"
        why = holds if path.is_dir() else "it is a file"
        raise OutputError("will not replace", where=path, why=why, mend="choose another output folder")
    if strangers := _strangers(path):
        why = f"it holds {strangers[0]!r} beside a {found}"
        raise OutputError("will not replace", where=path, why=why, mend="choose another output folder")


def _strangers(path: Path) -> list[str]:
    """What lies in a checkpoint or bundle without belonging to it; hidden names and caches of Python apart."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    listed = {str(Path(name).parts[0]) for name in manifest.get("files", {})}
    own = listed | {"manifest.json", "measurements.json", LOCK_NAME, "__pycache__"}
    return sorted(each.name for each in path.iterdir() if each.name not in own and not each.name.startswith("."))


def refuse_finished(folder: Path) -> None:
    """Refuse a folder that is a checkpoint, a bundle or a data set as the place of a study or recipe.

    Raises:
        OutputError: it is one.
    """
    if found := _kind_of(folder):
        mend = "choose another output folder"
        raise OutputError("will not write into", where=folder, why=f"it holds a {found}", mend=mend)


def _kind_of(path: Path) -> str | None:
    """`data set`, `checkpoint`, `bundle`, or None for what Leadline did not write."""
    if (path / "dataset.json").is_file():
        return "data set"
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    return kind if kind in ("checkpoint", "bundle") else None


def _take_place(temporary: Path, path: Path) -> None:
    old = _beside(path, "old") if path.exists() else None
    if old is not None:
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if old is not None:
            old.rename(path)
        raise
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _write_fault(error: BaseException | None, folder: Path) -> OutputError | None:
    """The output fault behind an exception of the block; engines wrap or only quote the system's error."""
    while error is not None:
        if isinstance(error, OSError):
            inside = error.filename is not None and str(error.filename).startswith(str(folder))
            if error.errno in _FULL or (inside and error.errno in _FORBIDDEN):
                return _explained(error, folder.parent)
        elif "No space left on device" in str(error) or "os error 28" in str(error):
            return _explained(OSError(errno.ENOSPC, "No space left on device"), folder.parent)
        error = error.__cause__ or error.__context__
    return None


def _explained(error: OSError, path: Path) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return OutputError("disk full (or over quota) while writing", where=path, why=reason, mend="free some space")
    return OutputError("cannot write to", where=path, why=reason, mend="choose another output folder")


def _locked_file(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            if not _try_lock(descriptor):
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                why = f"process {holder} is writing to it"
                raise OutputError("output folder in use", where=path.parent, why=why, mend="wait, or choose another")
            # The former holder may have unlinked the file between our open and our lock.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
            os.close(descriptor)
    except OSError as error:
        raise _explained(error, path.parent) from error


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the process id, which others must be able to read
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
