"""Point clouds: depth and a camera to coloured points, as binary PLY or PCD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import FOV_RANGE, Kind
from leadline.errors import DataError, KindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.depth import Depth, Intrinsics

__all__ = ["FOV_RANGE", "VERTEX", "check_intrinsics", "pcd_bytes", "ply_bytes", "points", "require_points", "unit_of"]

VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


def require_points(kind: Kind, what: str = "point cloud") -> None:
    """Pass where a camera turns this kind into points.

    Args:
        kind: of the values.
        what: is to be made of them, for the message.

    Raises:
        KindError: the kind is known only up to a shift, which would bend every flat wall.
    """
    if kind in (Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY):
        why = "its unknown shift would bend every flat surface"
        mend = "use a metric model, or align the values and convert them with Depth.to_metric"
        raise KindError(f"no {what} from", where=f"{kind} values", why=why, mend=mend)


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


def unit_of(kind: Kind) -> str:
    """The unit of the points of this kind, in words."""
    return "metres" if kind is Kind.METRIC_DEPTH else f"one unknown scale (from {kind})"


def ply_bytes(depth: Depth, image: NDArray[np.uint8]) -> bytes:
    """A binary PLY file of the valid points with their colours.

    Args:
        depth: as for `points`, H x W.
        image: H x W x 3 uint8 RGB.

    Raises:
        KindError, DataError: as `points`.
    """
    vertices = _vertices(depth, image)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment x right, y down, z forward; unit: {unit_of(depth.kind)}",
        f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + vertices.tobytes()


def pcd_bytes(depth: Depth, image: NDArray[np.uint8]) -> bytes:
    """A binary PCD file (version 0.7) of the valid points; `rgb` holds the bits 0x00RRGGBB, as PCL expects.

    Args:
        depth: as for `points`, H x W.
        image: H x W x 3 uint8 RGB.

    Raises:
        KindError, DataError: as `points`.
    """
    vertices = _vertices(depth, image)
    packed = np.empty(len(vertices), np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")]))
    red, green, blue = vertices["rgb"].astype(np.uint32).T
    packed["xyz"], packed["rgb"] = vertices["xyz"], red << 16 | green << 8 | blue
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        f"# x right, y down, z forward; unit: {unit_of(depth.kind)}",
        "VERSION 0.7",
        "FIELDS x y z rgb",
        "SIZE 4 4 4 4",
        "TYPE F F F F",
        "COUNT 1 1 1 1",
        f"WIDTH {len(packed)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(packed)}",
        "DATA binary",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + packed.tobytes()


def _vertices(depth: Depth, image: NDArray[np.uint8]) -> NDArray[np.void]:
    cloud = points(depth)
    seen = np.isfinite(cloud[:, :, 2])
    vertices = np.empty(int(seen.sum()), VERTEX)
    vertices["xyz"], vertices["rgb"] = cloud[seen], image[seen]
    return vertices
