"""Colours for depth: one even colour scale on which near is bright."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.depth import Depth

_SAMPLES = 1 << 16  # enough values for a percentile; a stride takes them evenly


def colorize(depth: Depth, lo: float | None = None, hi: float | None = None) -> NDArray[np.uint8]:
    """The picture of a depth map: near is bright yellow, far is dark violet, what is not valid is black.

    Give the same `lo` and `hi` to several maps to compare them; values outside take the colour of the end.

    Args:
        depth: any kind; its values are not changed.
        lo: lower end of the scale in the map's own values; None for the range of `display_range`.
        hi: upper end.

    Returns:
        H x W x 3 uint8 RGB.

    Raises:
        ConfigError: `lo` is above `hi`.
    """
    if lo is None or hi is None:
        low, high = display_range(depth)
        lo, hi = low if lo is None else lo, high if hi is None else hi
    return palette()[color_indices(depth, lo, hi)]


def color_indices(depth: Depth, lo: float, hi: float) -> NDArray[np.uint8]:
    """Indices into `palette`, H x W: 0 where not valid, 1 (far) to 255 (near) elsewhere, 128 if `lo` equals `hi`.

    Raises:
        ConfigError: `lo` is above `hi`.
    """
    if lo > hi:
        raise ConfigError("the colour scale is upside down", where=f"{lo:g} to {hi:g}", mend="give lo below hi")
    valid = depth.valid
    position = np.clip(np.where(valid, depth.values, np.float32(lo)), lo, hi)
    position -= np.float32(lo)
    position *= np.float32(254 / (hi - lo) if hi > lo else 0)
    if hi == lo:
        position += 127
    if not depth.kind.is_disparity:
        np.subtract(254, position, out=position)
    position += 1.5  # the first colour is black, and the cast rounds down
    return np.where(valid, position, 0).astype(np.uint8)


def display_range(depth: Depth, low: float = 2.0, high: float = 98.0) -> tuple[float, float]:
    """The 2nd and 98th percentile of the valid values, (0, 0) where there are none; outliers do not spoil it."""
    values = depth.values[depth.valid]
    if values.size == 0:
        return 0.0, 0.0
    lo, hi = np.percentile(values[:: max(1, values.size // _SAMPLES)], (low, high))
    return float(lo), float(hi)


@lru_cache(maxsize=1)
def palette() -> NDArray[np.uint8]:
    """256 x 3 uint8 RGB: black, then from far to near violet, red, orange, yellow in equal steps of lightness.

    Made in OKLCH (Ottosson 2020): lightness rises in a straight line, so that equal steps of value look equally far
    apart and the scale survives in grey print; chroma is as strong as sRGB allows, up to a limit.
    """
    t = np.linspace(0, 1, 255)
    lightness, hue = 0.24 + 0.72 * t, np.radians(285 + 180 * t)
    inside, outside = np.zeros(t.size), np.full(t.size, 0.25)
    for _ in range(16):
        middle = (inside + outside) / 2
        linear = _oklch_to_linear(lightness, middle, hue)
        fits = ((linear >= 0) & (linear <= 1)).all(axis=1)
        inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
    linear = np.clip(_oklch_to_linear(lightness, np.minimum(inside, 0.19), hue), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = np.zeros((256, 3), np.uint8)
    table[1:] = np.round(255 * encoded)
    table.setflags(write=False)
    return table


def _oklch_to_linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    to_cone_root = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray((lab @ to_cone_root.T) ** 3 @ to_linear.T)
