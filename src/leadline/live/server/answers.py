"""A depth map as the answer to a request: 16-bit PNG, NPY, colours, or its statistics."""

from __future__ import annotations

import io
import json
import struct
import zlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.colors import color_indices, display_range, palette
from leadline.png import SIGNATURE, png_bytes
from leadline.saving import to_codes

if TYPE_CHECKING:
    from leadline.depth import Depth
    from leadline.saving import Camera

FORMULA = "value = scale * code + offset; code 0 is not valid"
PERCENTILES = (2, 25, 50, 75, 98)
_HEADER_BYTES = 25  # of a PNG's first chunk, IHDR


class Format(StrEnum):
    """What a client gets."""

    PNG16 = "png16"
    NPY = "npy"
    COLOR = "color"
    JSON = "json"


TYPES = {
    Format.PNG16: "image/png",
    Format.NPY: "application/x-npy",
    Format.COLOR: "image/png",
    Format.JSON: "application/json",
}


def encoded(depth: Depth, wanted: Format, facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The body, and what further headers say of it.

    Args:
        depth: raw values; never rescaled without a word.
        wanted: format.
        facts: of the model and camera, for the JSON form and the text within the PNG.

    Returns:
        Bytes, and header names (without `Depth-`) with numbers.
    """
    if wanted is Format.NPY:
        buffer = io.BytesIO()
        np.save(buffer, depth.values, allow_pickle=False)
        return buffer.getvalue(), {}
    if wanted is Format.COLOR:
        lo, hi = display_range(depth)
        return png_bytes(color_indices(depth, lo, hi), palette()), {"Low": lo, "High": hi}
    if wanted is Format.JSON:
        return json.dumps({**facts, **statistics(depth)}, allow_nan=False).encode(), {}
    codes, scale, offset = to_codes(depth)
    notes = {"Scale": scale, "Offset": offset, "Invalid": 0}
    said = {**facts, "scale": scale, "offset": offset, "invalid": 0, "formula": FORMULA}
    return with_text(png_bytes(codes), "Depth", json.dumps(said, allow_nan=False)), notes


def statistics(depth: Depth) -> dict[str, Any]:
    """Numbers about a map; None where no value is valid."""
    values = depth.values[depth.valid]
    points = np.percentile(values, PERCENTILES) if values.size else [None] * len(PERCENTILES)
    return {
        "height": depth.shape[0],
        "width": depth.shape[1],
        "valid_share": round(values.size / depth.values.size, 6),
        "minimum": float(values.min()) if values.size else None,
        "maximum": float(values.max()) if values.size else None,
        "mean": float(values.mean(dtype=np.float64)) if values.size else None,
        "percentiles": {
            str(at): None if value is None else float(value) for at, value in zip(PERCENTILES, points, strict=True)
        },
        "degenerate": depth.is_degenerate,
    }


def headers(depth: Depth, model: str, runtime: str, camera: Camera, notes: dict[str, Any]) -> dict[str, str]:
    """What every answer says of its values."""
    return {
        "Depth-Kind": depth.kind.value,
        "Depth-Unit": depth.unit,
        "Depth-Model": model,
        "Depth-Runtime": runtime,
        "Depth-Camera": camera.origin,
        **{f"Depth-{name}": f"{value:.9g}" for name, value in notes.items()},
    }


def with_text(png: bytes, keyword: str, text: str) -> bytes:
    """A PNG with a text chunk (tEXt, latin-1) behind its header, so that the file itself says what its codes mean."""
    at = len(SIGNATURE) + _HEADER_BYTES
    body = b"tEXt" + keyword.encode("latin-1") + b"\0" + text.encode("latin-1", "replace")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:at] + chunk + png[at:]
