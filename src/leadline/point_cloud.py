"""Point clouds: depth and a camera to coloured points, as binary PLY."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import FOV_RANGE, Kind
from leadline.errors import DataError, KindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.depth import Depth, Intrinsics

__all__ = ["FOV_RANGE", "check_intrinsics", "ply_bytes", "points", "require_points"]

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


def require_points(kind: Kind) -> None:
    """Pass where a camera turns this kind into points.

    Raises:
        KindError: the kind is known only up to a shift, which would bend every flat wall.
    """
    if kind in (Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY):
        why = "its unknown shift would bend every flat surface"
        mend = "use a metric model, or align the values and convert them with Depth.to_metric"
        raise KindError("no point cloud from", where=f"{kind} values", why=why, mend=mend)


def check_intrinsics(camera: Intrinsics, height: int, width: int) -> None:
    """Pass where the camera can belong to a picture of this size in pixels.

    Raises:
        DataError: a focal length that is not positive or belongs to no lens, or a principal point outside the picture.
    """
    place = f"fx={camera.fx:g} fy={camera.fy:g} cx={camera.cx:g} cy={camera.cy:g}"
    mend = f"give them in pixels of this picture, {height} x {width} (height x width)"
    if why := camera.implausible(height, width):
        raise DataError("impossible intrinsics", where=place, why=why, mend=mend)
    if not (0 <= camera.cx <= width and 0 <= camera.cy <= height):
        why = "the principal point lies outside the picture"
        raise DataError("impossible intrinsics", where=place, why=why, mend=mend)


def points(depth: Depth) -> NDArray[np.float32]:
    """The pinhole camera's points: X = (u - cx) Z / fx, Y = (v - cy) Z / fy, with pixel centres at integers + 0.5.

    Args:
        depth: metric depth, or scaled disparity (Z = 1 / value), with its intrinsics.

    Returns:
        H x W x 3 float32: x right, y down, z forward, metres for metric depth and one unknown unit otherwise; NaN
        where the map is not valid.

    Raises:
        KindError: the kind has an unknown shift.
        DataError: no intrinsics, or impossible ones.
    """
    require_points(depth.kind)
    if depth.intrinsics is None:
        raise DataError("no camera for the point cloud", where=depth.source or None, mend="give --fov or --intrinsics")
    height, width = depth.shape
    camera = depth.intrinsics
    check_intrinsics(camera, height, width)
    z = np.full(depth.shape, np.nan, np.float32)
    if depth.kind.is_disparity:
        np.divide(1.0, depth.values, out=z, where=depth.valid)
    else:
        np.copyto(z, depth.values, where=depth.valid)
    across = ((np.arange(width) + 0.5 - camera.cx) / camera.fx).astype(np.float32)
    down = ((np.arange(height) + 0.5 - camera.cy) / camera.fy).astype(np.float32)
    return np.stack([z * across, z * down[:, None], z], axis=2)


def ply_bytes(depth: Depth, image: NDArray[np.uint8]) -> bytes:
    """A binary PLY file of the valid points with their colours.

    Args:
        depth: as for `points`, H x W.
        image: H x W x 3 uint8 RGB.

    Raises:
        KindError, DataError: as `points`.
    """
    cloud = points(depth)
    seen = np.isfinite(cloud[:, :, 2])
    vertices = np.empty(int(seen.sum()), _VERTEX)
    vertices["xyz"] = cloud[seen]
    vertices["rgb"] = image[seen]
    unit = "metres" if depth.kind is Kind.METRIC_DEPTH else "one unknown scale (from scaled_disparity)"
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment x right, y down, z forward; unit: {unit}",
        f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + vertices.tobytes()
