"""A frame and its depth as one picture to look at: depth alone, beside the frame, or laid over it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from leadline.colors import color_indices, palette
from leadline.depth import Depth, Kind

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
    from PIL import Image

    indices = color_indices(Depth(np.asarray(values, np.float32), kind), lo, hi)
    shown = Image.fromarray(indices)
    if indices.shape != tuple(size):
        target = (size[1], size[0])
        shown = shown.resize(target, Image.Resampling.BILINEAR)
        hidden = indices == 0
        if hidden.any():  # half of nothing is no colour
            mask = Image.fromarray(hidden).resize(target, Image.Resampling.NEAREST)
            shown.paste(0, mask=mask)
    shown.putpalette(palette().tobytes())
    return np.asarray(shown.convert("RGB"))


def _laid_over(picture: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    grey = Image.fromarray(picture).convert("L").convert("RGB")
    return np.asarray(Image.blend(grey, Image.fromarray(colours), OPACITY))
