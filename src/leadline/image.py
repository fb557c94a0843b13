"""Pictures in and out: read safely, resize by a stated rule, write raw depth and its colours."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interpolation = Literal["nearest", "bilinear", "bicubic"]


def resize(
    values: NDArray[Any],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    *,
    antialias: bool = True,
    align_corners: bool = False,
) -> NDArray[Any]:
    """Resize a picture or a map.

    Args:
        values: H x W x 3 uint8, or H x W float32.
        size: (height, width) wanted, pixels.
        interpolation: how values between pixels are made.
        antialias: widen the kernel when shrinking (Pillow's rule); without it, OpenCV's and torch's plain rule.
        align_corners: map the centres of the corner pixels onto each other; only without antialiasing.

    Returns:
        The same dtype where Pillow does it (antialias, or nearest); float32 in the input's range otherwise.
    """
    from PIL import Image

    height, width = values.shape[:2]
    if (height, width) == tuple(size):
        return values
    if interpolation == "nearest":
        rows = np.minimum((np.arange(size[0]) + 0.5) * (height / size[0]), height - 1).astype(np.intp)
        cols = np.minimum((np.arange(size[1]) + 0.5) * (width / size[1]), width - 1).astype(np.intp)
        return values[rows[:, None], cols[None, :]]
    if antialias and not align_corners:
        method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(values).resize((size[1], size[0]), method))
    shrunk = _apply_taps(values.astype(np.float32), *_taps(height, size[0], interpolation, align_corners), axis=0)
    return _apply_taps(shrunk, *_taps(width, size[1], interpolation, align_corners), axis=1)


@lru_cache(maxsize=64)
def _taps(
    source: int, target: int, interpolation: str, align_corners: bool
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each output position the source indices (target x taps) and their weights, edges replicated."""
    if align_corners:
        centre = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        centre = (np.arange(target) + 0.5) * (source / target) - 0.5
        if interpolation == "bilinear":
            centre = np.clip(centre, 0, source - 1)
    left = np.floor(centre).astype(np.intp)
    fraction = centre - left
    if interpolation == "bilinear":
        offsets = np.array([0, 1])
        weights = np.stack([1 - fraction, fraction], axis=1)
    else:
        offsets = np.array([-1, 0, 1, 2])
        weights = _cubic(np.abs(fraction[:, None] - offsets[None, :]))
    return np.clip(left[:, None] + offsets[None, :], 0, source - 1), weights.astype(np.float32)


def _cubic(x: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    """Keys' cubic kernel with OpenCV's and torch's a = -0.75."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _apply_taps(
    values: NDArray[np.float32], index: NDArray[np.intp], weights: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    shape = [1] * values.ndim
    shape[axis] = -1
    out = values.take(index[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for tap in range(1, index.shape[1]):
        out += values.take(index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return out
