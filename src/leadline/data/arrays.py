"""Arrays of `.npy` and `.npz` files, read without pickles and within a size limit (FAULTS rows 37)."""

from __future__ import annotations

import math
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ImageReadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES = 256 * 2**20  # one 8192 x 8192 float32 map


def read_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """A numeric array of a `.npy` or `.npz` file.

    Args:
        path: the file.
        key: which array of an `.npz`; None where it holds one only.

    Returns:
        The array as stored: bool, integer or float of any shape, at most 256 MiB.

    Raises:
        ImageReadError: missing, damaged, too large, or made of Python objects.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                file.seek(0)
                return _checked(file, path)
            with zipfile.ZipFile(file) as archive, archive.open(_member(archive, key, path)) as entry:
                return _checked(entry, path)
    except FileNotFoundError as error:
        raise ImageReadError("no such file", where=path) from error
    except IsADirectoryError as error:
        raise ImageReadError("a folder, not a file", where=path) from error
    except PermissionError as error:
        raise ImageReadError("cannot be read", where=path, why="no permission") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ImageReadError("damaged array file", where=path, why=str(error) or type(error).__name__) from error


def _member(archive: zipfile.ZipFile, key: str | None, path: Path) -> str:
    names = archive.namelist()
    wanted = f"{key}.npy" if key is not None else names[0] if len(names) == 1 else None
    if wanted not in names:
        why = f"holds {', '.join(name.removesuffix('.npy') for name in names) or 'nothing'}"
        raise ImageReadError(f"no array {key!r}" if key else "which array?", where=path, why=why)
    return str(wanted)


def _checked(file: IO[bytes], path: Path) -> NDArray[Any]:
    """Judge the header before anything is allocated, then read the values."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ImageReadError("unknown .npy version", where=path, why=str(version))
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.kind not in "biuf":
        mend = "store it as plain numbers: numpy.save(path, array.astype('float32'))"
        raise ImageReadError("not an array of numbers", where=path, why=f"dtype {dtype}", mend=mend)
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        why = f"{size / 2**20:.0f} MiB, {MAX_BYTES >> 20} are allowed"
        raise ImageReadError("array too large", where=path, why=why)
    data = file.read(size)
    if len(data) < size:
        raise ImageReadError("truncated array file", where=path, why=f"{len(data)} of {size} bytes")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
