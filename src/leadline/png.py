"""PNG at the level of its chunks: the checksums that Pillow skips, and an encoder that is quick for depth."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_UP = 2  # the filter that stores each byte as its difference to the one above: depth is smooth


def damage(data: bytes) -> str | None:
    """What is wrong with the chunks of a PNG file, or None; Pillow does not look at the checksum of pixel data."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        name = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return f"damaged: bad checksum in chunk {name.decode('latin-1')} at byte {at}"
        if name == b"IEND":
            return None
        at = end + 4
    return f"truncated: the file ends at byte {len(data)}, inside a chunk or before the last one"


def png_bytes(values: NDArray[np.uint8] | NDArray[np.uint16], palette: NDArray[np.uint8] | None = None) -> bytes:
    """A PNG file, compressed lightly: a third of Pillow's time on depth, at about the same size.

    Args:
        values: H x W uint8 or uint16 grey, H x W x 3 uint8 RGB, or H x W uint8 indices into the palette.
        palette: 256 x 3 uint8 RGB.
    """
    height, width = values.shape[:2]
    colours = _RGB if values.ndim == 3 else _GREY if palette is None else _PALETTE
    depth = 8 * values.dtype.itemsize
    big_endian = values.astype(">u2", copy=False) if depth == 16 else values
    rows = np.ascontiguousarray(big_endian).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if palette is not None:
        chunks.append((b"PLTE", palette.tobytes()))
    chunks += [(b"IDAT", packed), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))
