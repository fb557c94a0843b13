"""Where the pixels of one frame lie in another, and where that can be trusted.

The flow is OpenCV's DIS (Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016).
"""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from leadline.depth import Intrinsics

UNMATCHED = 0.06  # difference of grey, 0 to 1, beyond which a pixel was not found again
RETURNS = (1.0, 0.05)  # pixels, and share of the way, by which there and back may miss


@dataclass(frozen=True)
class Flow:
    """From each pixel of a frame to the same point of the scene in another frame.

    Args:
        offset: H x W x 2 float32, (x, y) in pixels of a frame of H x W.
        trusted: H x W float32, 0 to 1: the point is visible in both frames.
    """

    offset: NDArray[np.float32]
    trusted: NDArray[np.float32]

    def bring(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the other frame says, H x W, at the pixels of this one; beyond its borders the nearest value."""
        return _remapped(values, self._places)

    @cached_property
    def _places(self) -> NDArray[np.float32]:
        return _places(self.offset)

    def then(self, further: Flow) -> Flow:
        """Over the other frame to a third; `further` leads from the other to the third."""
        cv2 = opencv()
        trusted = cv2.multiply(self.trusted, self.bring(further.trusted))
        return Flow(cv2.add(self.offset, self.bring(further.offset)), trusted)


def flows_between(first: NDArray[np.uint8], second: NDArray[np.uint8], *, careful: bool = False) -> tuple[Flow, Flow]:
    """The flow from the first frame to the second, and back.

    Args:
        first: H x W uint8, grey.
        second: the same.
        careful: a slower, finer search.

    Raises:
        UnavailableError: OpenCV is not installed.
    """
    cv2 = opencv()
    preset = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM if careful else cv2.DISOPTICAL_FLOW_PRESET_FAST
    search = cv2.DISOpticalFlow_create(preset)
    there, back = search.calc(first, second, None), search.calc(second, first, None)
    return (
        Flow(there, _trust(first, second, there, back)),
        Flow(back, _trust(second, first, back, there)),
    )


def flow_of_motion(
    depth: NDArray[np.float32], camera: Intrinsics, motion: NDArray[np.float64], other_depth: NDArray[np.float32]
) -> Flow:
    """The exact flow of a static scene between two frames whose depth and poses are known.

    Args:
        depth: of the first frame, H x W, metres along the optical axis.
        camera: of both frames.
        motion: 4 x 4, points of the first camera to the second.
        other_depth: of the second frame; tells what is hidden there.
    """
    height, width = depth.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    points = np.stack([(x - camera.cx) / camera.fx * depth, (y - camera.cy) / camera.fy * depth, depth])
    moved = np.tensordot(motion[:3, :3], points, 1) + motion[:3, 3][:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        to_x = camera.fx * moved[0] / moved[2] + camera.cx
        to_y = camera.fy * moved[1] / moved[2] + camera.cy
    offset = np.nan_to_num(np.stack([to_x - x, to_y - y], axis=-1), posinf=0, neginf=0).astype(np.float32)
    seen = _bring(other_depth, offset)
    inside = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    agrees = np.abs(seen - moved[2]) < 0.05 * moved[2]
    return Flow(offset, (inside & agrees & (depth > 0) & (moved[2] > 0)).astype(np.float32))


def _trust(
    here: NDArray[np.uint8], other: NDArray[np.uint8], there: NDArray[np.float32], back: NDArray[np.float32]
) -> NDArray[np.float32]:
    cv2 = opencv()
    height, width = here.shape
    places = _places(there)
    to_x, to_y = cv2.split(places)
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    missed = cv2.magnitude(*cv2.split(cv2.add(there, _remapped(back, places))))
    limit = RETURNS[0] + RETURNS[1] * cv2.magnitude(*cv2.split(there))
    apart = here.astype(np.float32) - _remapped(other.astype(np.float32), places)
    unlike = np.abs(cv2.GaussianBlur(apart, (0, 0), 1.0))
    trusted: NDArray[np.float32] = (inside & (missed < limit) & (unlike < 255 * UNMATCHED)).astype(np.float32)
    return trusted


def _bring(values: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    return _remapped(values, _places(offset))


def _places(offset: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where each pixel goes to, H x W x 2."""
    return np.asarray(opencv().add(_grid(offset.shape[0], offset.shape[1]), offset))


def _remapped(values: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    cv2 = opencv()
    brought: NDArray[np.float32] = cv2.remap(values, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return brought


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> NDArray[np.float32]:
    """(x, y) of each pixel, H x W x 2."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y], axis=-1)


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV computes in the thread that calls it: steps that run side by side keep the cores busy without its own."""
    if importlib.util.find_spec("cv2") is None:
        yield
        return
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def opencv() -> Any:
    """The module.

    Raises:
        UnavailableError: it is not installed.
    """
    if importlib.util.find_spec("cv2") is None:
        why, mend = "OpenCV is not installed", 'run pip install "leadline[video]", or leave smoothing out'
        raise UnavailableError("following pixels from frame to frame needs OpenCV", why=why, mend=mend)
    import cv2

    return cv2
