"""Vectors out of MATLAB v5 files, as NYU's splits.mat needs (the "MAT-File Format" document, level 5)."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ImageReadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
MATRIX, COMPRESSED = 14, 15
MAX_BYTES = 16 * 2**20


def read_vectors(path: Path) -> dict[str, NDArray[np.int64]]:
    """The real, numeric variables of a little-endian MATLAB v5 file, flattened to whole numbers.

    Raises:
        ImageReadError: missing, not such a file, damaged, or larger than 16 MiB.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageReadError("too large for an index file", where=path)
        data = path.read_bytes()
    except OSError as error:
        raise ImageReadError("cannot read", where=path, why=error.strerror or str(error)) from error
    if len(data) < 128 or data[126:128] != b"IM":
        raise ImageReadError("not a MATLAB v5 file", where=path, mend="save it with `save -v7 splits.mat`")
    found = {}
    try:
        for kind, body in _elements(data[128:]):
            if kind == COMPRESSED:
                body = zlib.decompressobj().decompress(body, MAX_BYTES)
                kind, body = next(_elements(body))
            if kind == MATRIX:
                name, values = _matrix(body)
                found[name] = values
    except (struct.error, zlib.error, ValueError, StopIteration) as error:
        why = str(error) or "it ends too early"
        raise ImageReadError("damaged MATLAB file", where=path, why=why) from error
    return found


def _matrix(body: bytes) -> tuple[str, NDArray[np.int64]]:
    """Flags, dimensions, name and values of one matrix; an empty vector for what is not numeric."""
    parts = list(_elements(body))
    if len(parts) < 4:
        return "", np.zeros(0, np.int64)
    kind, values = parts[3]
    name = parts[2][1].decode("ascii", "replace")
    if kind not in NUMBERS:
        return name, np.zeros(0, np.int64)
    return name, np.frombuffer(values, NUMBERS[kind]).astype(np.int64)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; the small form packs up to four bytes into the tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, after = at + 4, at + 8
        else:
            start = at + 8
            after = start + size if kind == COMPRESSED else start + (size + 7) // 8 * 8
        if start + size > len(data):
            raise ValueError("an element reaches beyond the end")
        yield kind, data[start : start + size]
        at = after
