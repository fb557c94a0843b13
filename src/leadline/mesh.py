"""Meshes: depth and a camera to a coloured triangle mesh, cut at the edges of things, as binary PLY.

Four neighbouring pixels make two triangles, split along the diagonal whose ends differ less in depth. A triangle is
left out where its farthest corner is more than `MOST_RATIO` times as far as its nearest, or where it is seen at more
than `MOST_OBLIQUE_DEG` degrees from its normal: both mean that it would span the gap between a thing and what is
behind it. Both rules are free of scale, so depth up to an unknown scale is cut like metres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.point_cloud import VERTEX, points, require_points, unit_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.depth import Depth

MOST_RATIO = 1.1
MOST_OBLIQUE_DEG = 85.0
_FACE = np.dtype([("corners", "u1"), ("vertices", "<i4", 3)])
_BAND = 256  # rows at a time, so that large pictures need little memory


def triangles(cloud: NDArray[np.float32]) -> NDArray[np.int64]:
    """The triangles between neighbouring points that lie on one surface, by the rules above.

    Args:
        cloud: H x W x 3 as `leadline.point_cloud.points` returns it; NaN where nothing is known.

    Returns:
        N x 3 indices into the H * W points, counter-clockwise as the camera sees them.
    """
    height, width = cloud.shape[:2]
    flat, index = cloud.reshape(-1, 3), np.arange(height * width).reshape(height, width)
    kept = [np.empty((0, 3), np.int64)]
    for top in range(0, height - 1, _BAND):
        rows = index[top : min(top + _BAND, height - 1) + 1]
        a, b, c, d = (each.reshape(-1) for each in (rows[:-1, :-1], rows[:-1, 1:], rows[1:, :-1], rows[1:, 1:]))
        z = flat[:, 2]
        known = np.isfinite(z[a] + z[b] + z[c] + z[d])
        a, b, c, d = a[known], b[known], c[known], d[known]
        falling = np.abs(z[a] - z[d]) <= np.abs(z[b] - z[c])
        third, fourth = np.where(falling, d, b), np.where(falling, a, c)
        for corners in ((a, c, third), (d, b, fourth)):
            faces = np.stack(corners, axis=1)
            kept.append(faces[_on_one_surface(flat[faces])])
    return np.concatenate(kept)


def mesh_bytes(depth: Depth, image: NDArray[np.uint8]) -> bytes:
    """A binary PLY file of the triangles with the picture's colours at their corners.

    Args:
        depth: metric depth or scaled disparity with its intrinsics, H x W.
        image: H x W x 3 uint8 RGB.

    Raises:
        KindError: the kind has an unknown shift.
        DataError: no intrinsics, or impossible ones.
    """
    require_points(depth.kind, "mesh")
    cloud = points(depth)
    corners = triangles(cloud)
    used, places = np.unique(corners, return_inverse=True)
    vertices = np.empty(used.size, VERTEX)
    vertices["xyz"], vertices["rgb"] = cloud.reshape(-1, 3)[used], image.reshape(-1, 3)[used]
    faces = np.empty(len(corners), _FACE)
    faces["corners"], faces["vertices"] = 3, places.reshape(-1, 3)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment x right, y down, z forward; unit: {unit_of(depth.kind)}",
        f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + vertices.tobytes() + faces.tobytes()


def _on_one_surface(corners: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which triangles (N x 3 corners x 3) both rules keep."""
    z = corners[:, :, 2]
    near = z.max(axis=1) <= MOST_RATIO * z.min(axis=1)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    ray = corners.mean(axis=1)
    lengths = np.linalg.norm(normal, axis=1) * np.linalg.norm(ray, axis=1)
    facing = np.abs((normal * ray).sum(axis=1)) > np.cos(np.radians(MOST_OBLIQUE_DEG)) * lengths
    kept: NDArray[np.bool_] = near & facing
    return kept
