"""Depth: a result with its kind and unit, which only explicit conversions change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import KindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOV_RANGE = (2.0, 170.0)  # horizontal, degrees: beyond, a typing error is likelier than a lens
MOST_ANAMORPHIC = 4


class Kind(StrEnum):
    """What a depth value means."""

    METRIC_DEPTH = "metric_depth"  # metres
    RELATIVE_DEPTH = "relative_depth"  # depth up to an unknown scale and shift
    RELATIVE_DISPARITY = "relative_disparity"  # inverse depth up to an unknown scale and shift; larger is nearer
    SCALED_DISPARITY = "scaled_disparity"  # inverse depth up to one unknown scale (self-supervision)

    @property
    def is_disparity(self) -> bool:
        """True where larger values are nearer."""
        return self in (Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY)

    @property
    def unit(self) -> str:
        """`m` for metric depth, `none` for everything that has no unit."""
        return "m" if self is Kind.METRIC_DEPTH else "none"


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels of the current picture; pixel centres lie at integers + 0.5.

    Args:
        fx: focal length along x, pixels.
        fy: focal length along y, pixels.
        cx: principal point, pixels from the left edge.
        cy: principal point, pixels from the upper edge.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def resized(self, scale_y: float, scale_x: float) -> Intrinsics:
        """The camera after the picture was resized by these factors."""
        return Intrinsics(self.fx * scale_x, self.fy * scale_y, self.cx * scale_x, self.cy * scale_y)

    def cropped(self, top: float, left: float) -> Intrinsics:
        """The camera after `top` rows and `left` columns were cut away."""
        return replace(self, cx=self.cx - left, cy=self.cy - top)

    def flipped(self, width: int) -> Intrinsics:
        """The camera after the picture of `width` pixels was mirrored left to right."""
        return replace(self, cx=width - self.cx)

    def implausible(self, height: int, width: int) -> str:
        """Why no lens has these focal lengths for a picture of this size in pixels; empty where one may."""
        if not (np.isfinite([self.fx, self.fy]).all() and min(self.fx, self.fy) > 0):
            return "focal lengths must be positive"
        fov = 2 * float(np.degrees(np.arctan(width / (2 * self.fx))))
        if not FOV_RANGE[0] <= fov <= FOV_RANGE[1]:
            return f"fx is a horizontal field of view of {fov:.3g} degrees, which no pinhole camera has"
        if not 1 / MOST_ANAMORPHIC <= self.fy / self.fx <= MOST_ANAMORPHIC:
            return f"fx and fy differ by more than {MOST_ANAMORPHIC} times"
        return ""

    @classmethod
    def from_fov(cls, fov_x_deg: float, height: int, width: int) -> Intrinsics:
        """Square pixels, centred, with this horizontal field of view in degrees (0 to 180, exclusive)."""
        focal = 0.5 * width / float(np.tan(np.radians(fov_x_deg) / 2))
        return cls(focal, focal, width / 2, height / 2)


@dataclass(frozen=True)
class Depth:
    """A depth map with its meaning.

    Args:
        values: float32, H x W; metres for `metric_depth`, no unit otherwise. Raw: never rescaled for display.
        kind: what the values mean; travels with model, file and data set.
        intrinsics: the camera of this map, if known.
        source: where the map came from (a path or a model), for messages and side files.

    Raises:
        KindError: `values` is not a two-dimensional float32 array.
    """

    values: NDArray[np.float32]
    kind: Kind
    intrinsics: Intrinsics | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32:
            shape, dtype = self.values.shape, self.values.dtype
            raise KindError("a depth map must be float32 H x W", where=self.source or None, why=f"got {dtype} {shape}")

    @property
    def unit(self) -> str:
        """`m` or `none`."""
        return self.kind.unit

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Finite values; for depth kinds also greater than zero. H x W."""
        finite = np.isfinite(self.values)
        return finite if self.kind is Kind.RELATIVE_DISPARITY else finite & (self.values > 0)

    @property
    def is_degenerate(self) -> bool:
        """True where the map is constant (or empty) and therefore says nothing about the scene."""
        values = self.values[np.isfinite(self.values)]
        return values.size == 0 or float(np.ptp(values)) <= 1e-6 * max(1.0, float(np.abs(values).max()))

    def to_disparity(self) -> Depth:
        """`metric_depth` to `scaled_disparity` (1/depth, 0 where invalid).

        Raises:
            KindError: the map is relative depth, whose unknown shift forbids inversion, or is disparity already.
        """
        if self.kind is not Kind.METRIC_DEPTH:
            raise KindError("cannot invert", where=self.kind, why="only metric depth has a disparity without alignment")
        return replace(self, values=_invert(self.values), kind=Kind.SCALED_DISPARITY)

    def to_metric(self, scale: float, shift: float = 0.0) -> Depth:
        """Metres from values whose scale and shift are known: depth = scale*v + shift, or 1/(scale*v + shift).

        Args:
            scale: factor that was found by an alignment; 1/m for the disparity kinds.
            shift: offset that was found by an alignment; metres, or 1/m for the disparity kinds.

        Raises:
            KindError: the map is metric already.
        """
        if self.kind is Kind.METRIC_DEPTH:
            raise KindError("already metric", where=self.source or None)
        line = (scale * self.values + shift).astype(np.float32)
        return replace(self, values=_invert(line) if self.kind.is_disparity else line, kind=Kind.METRIC_DEPTH)


def _invert(values: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.zeros_like(values)
    np.divide(1.0, values, out=out, where=np.isfinite(values) & (values > 1e-6))
    return out
