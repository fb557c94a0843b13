"""Pictures inside a page: shrunk, coloured, and packed into data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from leadline.colors import palette
from leadline.depth import Depth
from leadline.image import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUDGET = 3_000_000  # bytes of all pictures together, before base64
SIDES = (360, 288, 224, 160, 112)  # widths to choose from, pixels
_BYTES_PER_PIXEL = 0.5  # a detailed JPEG at this quality
UNKNOWN = (128, 128, 128)


def side_for(number: int, height: int, width: int) -> int:
    """The largest width at which `number` pictures of this shape stay within the budget, in pixels."""
    for side in SIDES:
        if number * side * side * height / width * _BYTES_PER_PIXEL <= BUDGET:
            return side
    return SIDES[-1]


def shrink_image(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture, H x W x 3 uint8, at most `side` wide."""
    height, width = image.shape[:2]
    if width <= side:
        return image
    return np.asarray(resize(image, (max(1, round(height * side / width)), side), "bilinear", antialias=True))


def shrink_values(values: NDArray[np.float32], valid: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """Block means over the valid pixels of a map, about `side` wide; NaN where a block has none.

    Sparse laser points survive, which any interpolation would thin out.
    """
    height, width = values.shape
    factor = -(-width // side)
    known = np.where(valid, values, 0).astype(np.float64)
    rows, columns = -(-height // factor) * factor, -(-width // factor) * factor
    padding = ((0, rows - height), (0, columns - width))
    blocks = (rows // factor, factor, columns // factor, factor)
    total = np.pad(known, padding).reshape(blocks).sum(axis=(1, 3))
    number = np.pad(valid.astype(np.float64), padding).reshape(blocks).sum(axis=(1, 3))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)


def shrink_depth(depth: Depth, side: int) -> Depth:
    """A depth map about `side` wide; NaN (not valid) where nothing was measured."""
    return Depth(shrink_values(depth.values, depth.valid, side), depth.kind)


def error_colors(error: NDArray[np.float32], worst: float) -> NDArray[np.uint8]:
    """Blue where too near, pale where right, orange where too far, grey where unknown; H x W x 3 uint8.

    Args:
        error: signed share.
        worst: share at which the scale ends.
    """
    known = np.isfinite(error)
    position = (np.clip(np.where(known, error, 0), -worst, worst) / worst + 1) / 2
    colors = error_scale()[np.round(position * 255).astype(np.uint8)]
    return np.where(known[:, :, None], colors, np.uint8(UNKNOWN[0])).astype(np.uint8)


def error_scale() -> NDArray[np.uint8]:
    """256 x 3 uint8 from blue over near white to orange brown: told apart with every kind of colour vision."""
    stops = np.array([(5, 48, 110), (67, 147, 200), (246, 246, 244), (236, 140, 60), (127, 50, 5)], np.float64)
    at = np.linspace(0, 4, 256)
    return np.stack([np.interp(at, range(5), stops[:, i]) for i in range(3)], axis=1).round().astype(np.uint8)


def gradient(kind_is_disparity: bool) -> str:
    """The depth colours as a CSS gradient from the scale's lower end to its upper end."""
    steps = palette()[1:][:: 254 // 8]
    return _css(steps if kind_is_disparity else steps[::-1])


def error_gradient() -> str:
    """The error colours as a CSS gradient."""
    return _css(error_scale()[::15])


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A JPEG of H x W x 3 uint8 RGB inside a URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _css(colors: NDArray[np.uint8]) -> str:
    return f"linear-gradient(90deg, {', '.join(f'rgb({r} {g} {b})' for r, g, b in colors)})"
