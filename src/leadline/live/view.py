"""A frame and its depth as one picture to look at: depth alone, beside the frame, or laid over it."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from leadline.colors import color_indices, palette
from leadline.depth import Depth, Kind
from leadline.image import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPACITY = 0.6  # of the colours over the frame
PANORAMA = 2.0  # width over height from which the depth lies below the frame, not beside it


class View(StrEnum):
    """What is shown of a frame."""

    DEPTH = "depth"
    SIDE = "side"
    OVERLAY = "overlay"


def draw(
    picture: NDArray[np.uint8], values: NDArray[np.float32], kind: Kind, lo: float, hi: float, view: View | str
) -> NDArray[np.uint8]:
    """The picture of a frame; near is bright, what is not valid is black.

    Args:
        picture: H x W x 3 uint8 RGB.
        values: raw values of the same field of view, of any size; their colours are brought to the picture's.
        kind: of the values.
        lo: lower end of the colour scale in the map's own values.
        hi: upper end.
        view: `depth`: H x W; `side`: H x 2W, or 2H x W for panoramas; `overlay`: H x W, colours over the grey frame.

    Returns:
        uint8 RGB.

    Raises:
        ConfigError: `lo` is above `hi`.
        ValueError: no such view.
    """
    view = View(view)
    height, width = picture.shape[:2]
    colours = paint(values, kind, lo, hi, (height, width))
    if view is View.DEPTH:
        return colours
    if view is View.SIDE:
        return np.concatenate([picture, colours], axis=0 if width >= PANORAMA * height else 1)
    return _laid_over(picture, colours)


def paint(values: NDArray[np.float32], kind: Kind, lo: float, hi: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The colours of a map at (height, width) `size`, uint8 RGB, as `leadline.colors.colorize` has them.

    Raises:
        ConfigError: `lo` is above `hi`.
    """
    indices = color_indices(Depth(np.asarray(values, np.float32), kind), lo, hi)
    if importlib.util.find_spec("cv2") is None:
        return palette()[_brought(indices, size)]
    import cv2

    return np.asarray(cv2.applyColorMap(_brought_fast(indices, size), np.array(palette()[:, None])), np.uint8)


def _brought_fast(indices: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Indices at another size by OpenCV, several times faster than by Pillow."""
    import cv2

    if indices.shape == tuple(size):
        return indices
    target, shrinks = (size[1], size[0]), indices.size > size[0] * size[1]
    shown = cv2.resize(indices, target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if not indices.all():  # half of nothing is no colour
        hidden = (indices == 0).astype(np.uint8)
        shown[cv2.resize(hidden, target, interpolation=cv2.INTER_NEAREST) > 0] = 0
    return np.asarray(shown, np.uint8)


def _brought(indices: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if indices.shape == tuple(size):
        return indices
    shown = np.array(resize(indices, size, "bilinear"), np.uint8)
    if not indices.all():
        shown[resize(indices, size, "nearest") == 0] = 0
    return shown


def _laid_over(picture: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    grey = Image.fromarray(picture).convert("L").convert("RGB")
    return np.asarray(Image.blend(grey, Image.fromarray(colours), OPACITY))
