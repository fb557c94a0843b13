"""Exact visibility: which surface each pixel sees, how far away, and where on the surface.

A face is P = corner + u*along + v*up. With M = [along up corner] relative to the eye, (u, v, 1)/z = M^-1 d for the ray
d of a pixel, so u/z, v/z and 1/z are affine in the pixel: three additions a pixel give an exact hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.data.scenes.builder import Surfaces
    from leadline.depth import Intrinsics

NEAR = 0.05  # metres


@dataclass(frozen=True)
class View:
    """A pinhole camera in the world.

    Args:
        intrinsics: pixels.
        pose: 4 x 4 float64 camera to world, metres.
        height: pixels.
        width: pixels.
    """

    intrinsics: Intrinsics
    pose: NDArray[np.float64]
    height: int
    width: int

    @property
    def ray_matrix(self) -> NDArray[np.float64]:
        """3 x 3: (x, y, 1) in pixels to the ray in camera coordinates with z = 1."""
        k = self.intrinsics
        return np.array([[1 / k.fx, 0, -k.cx / k.fx], [0, 1 / k.fy, -k.cy / k.fy], [0, 0, 1]])


@dataclass(frozen=True)
class Hits:
    """What each pixel sees.

    Args:
        nearness: H x W float32, 1/z in 1/m, 0 where nothing is hit.
        surface: H x W uint16, 1 + the index in Surfaces, 0 where nothing is hit.
        u: H x W float32, u/z on a face (0 <= u <= 1); undefined on rounds.
        v: H x W float32, v/z.
    """

    nearness: NDArray[np.float32]
    surface: NDArray[np.uint16]
    u: NDArray[np.float32]
    v: NDArray[np.float32]


@lru_cache(maxsize=8)
def pixel_grid(height: int, width: int) -> NDArray[np.float32]:
    """(x, y, 1) of each pixel's centre, float32 (3, H*W); shared, so never to be written to."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x.ravel(), y.ravel(), np.ones(height * width)]).astype(np.float32)


def world_rays(view: View) -> NDArray[np.float32]:
    """The ray of each pixel in world directions, of length 1 along the optical axis; float32 (3, H*W)."""
    return (view.pose[:3, :3] @ view.ray_matrix).astype(np.float32) @ pixel_grid(view.height, view.width)


def cast(surfaces: Surfaces, view: View) -> Hits:
    """Find the nearest surface along the ray through each pixel's centre (integer + 0.5)."""
    shape = (view.height, view.width)
    hits = Hits(np.zeros(shape, np.float32), np.zeros(shape, np.uint16), *np.zeros((2, *shape), np.float32))
    rotation, eye = view.pose[:3, :3], view.pose[:3, 3]
    corner = (surfaces.corner - eye) @ rotation
    along, up = surfaces.along @ rotation, surfaces.up @ rotation
    _draw_faces(hits, corner, along, up, surfaces, view)
    _draw_rounds(hits, surfaces, view)
    return hits


def _draw_faces(
    hits: Hits, corner: NDArray[np.float64], along: NDArray[np.float64], up: NDArray[np.float64],
    surfaces: Surfaces, view: View,
) -> None:  # fmt: skip
    matrix = np.stack([along, up, corner], axis=2)
    towards = np.linalg.det(matrix)  # normal . corner: negative where the face looks at the eye
    area = np.linalg.norm(np.cross(along, up), axis=1)
    boxes = _screen_boxes(corner, along, up, view)
    seen = (towards < -1e-6 * area) & (area > 1e-9) & (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])
    index = np.flatnonzero(seen)
    if not index.size:
        return
    middle = corner[index] + 0.5 * (along[index] + up[index])
    index = index[np.argsort((middle**2).sum(axis=1), kind="stable")]  # near first, so that most hidden faces end early
    affine = np.linalg.inv(matrix[index]) @ view.ray_matrix
    columns = (affine[:, :, 0, None] * (np.arange(view.width) + 0.5)).astype(np.float32)
    rows = (affine[:, :, 1, None] * (np.arange(view.height) + 0.5) + affine[:, :, 2, None]).astype(np.float32)
    for i, face in enumerate(index):
        y0, y1, x0, x1 = boxes[face]
        here = (slice(y0, y1), slice(x0, x1))
        column, row = columns[i, :, None, x0:x1], rows[i, :, y0:y1, None]
        w = row[2] + column[2]
        inside = w > hits.nearness[here]
        if not inside.any():
            continue
        u, v = row[0] + column[0], row[1] + column[1]
        if surfaces.disc[face]:
            inside &= (u - 0.5 * w) ** 2 + (v - 0.5 * w) ** 2 <= 0.25 * w * w
        else:
            inset = surfaces.taper[face] * v if surfaces.taper[face] else 0.0
            inside &= u >= inset
            inside &= u <= w - inset
            inside &= v >= 0
            inside &= v <= w
        np.copyto(hits.nearness[here], w, where=inside)
        np.copyto(hits.surface[here], np.uint16(face + 1), where=inside)
        np.copyto(hits.u[here], u, where=inside)
        np.copyto(hits.v[here], v, where=inside)


def _screen_boxes(
    corner: NDArray[np.float64], along: NDArray[np.float64], up: NDArray[np.float64], view: View
) -> NDArray[np.int64]:
    """The pixel rectangle (y0, y1, x0, x1) of each face after cutting it at the near plane; empty where y0 >= y1."""
    points = np.stack([corner, corner + along, corner + along + up, corner + up], axis=1)
    following = np.roll(points, -1, axis=1)
    z, z_next = points[..., 2], following[..., 2]
    crosses = (z > NEAR) != (z_next > NEAR)
    share = np.where(crosses, (NEAR - z) / np.where(crosses, z_next - z, 1.0), 0.0)
    cuts = points + share[..., None] * (following - points)
    every = np.concatenate([points, cuts], axis=1)
    usable = np.concatenate([z > NEAR, crosses], axis=1)
    depth = np.where(usable, np.maximum(every[..., 2], NEAR), 1.0)
    k = view.intrinsics
    x = k.fx * every[..., 0] / depth + k.cx
    y = k.fy * every[..., 1] / depth + k.cy
    low_x, high_x = np.where(usable, x, np.inf).min(axis=1), np.where(usable, x, -np.inf).max(axis=1)
    low_y, high_y = np.where(usable, y, np.inf).min(axis=1), np.where(usable, y, -np.inf).max(axis=1)
    box = np.stack([np.ceil(low_y - 0.5), np.floor(high_y + 0.5), np.ceil(low_x - 0.5), np.floor(high_x + 0.5)], axis=1)
    return _on_screen(box, view)


def _draw_rounds(hits: Hits, surfaces: Surfaces, view: View) -> None:
    boxes = _round_boxes(surfaces, view)
    if not ((boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])).any():
        return
    first = len(surfaces.corner)
    rays = world_rays(view).reshape(3, view.height, view.width)
    flat = rays[0] * rays[0] + rays[1] * rays[1]
    full = flat + rays[2] * rays[2]
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        if y0 >= y1 or x0 >= x1:
            continue
        here = (slice(y0, y1), slice(x0, x1))
        dx, dy, dz = rays[:, y0:y1, x0:x1]
        ox, oy, oz = (float(value) for value in surfaces.centre[i] - view.pose[:3, 3])
        upright = surfaces.height[i] > 0
        reach2 = ox * ox + oy * oy - surfaces.radius[i] ** 2
        square, middle = flat[here], ox * dx + oy * dy
        if not upright:
            square, middle, reach2 = full[here], middle + oz * dz, reach2 + oz * oz
        if reach2 <= 0:
            continue  # the eye is inside
        root = middle * middle - np.float32(reach2) * square
        inside = (root > 0) & (middle > 0)
        # z = (middle - sqrt(root)) / square, rationalised: 1/z without cancellation
        nearness = (middle + np.sqrt(np.maximum(root, 0))) / np.float32(reach2)
        if upright:
            climb = dz - np.float32(oz) * nearness  # (height above the foot) / z
            inside &= (climb >= 0) & (climb <= np.float32(surfaces.height[i]) * nearness)
        inside &= nearness > hits.nearness[here]
        np.copyto(hits.nearness[here], nearness, where=inside)
        np.copyto(hits.surface[here], np.uint16(first + i + 1), where=inside)


def _round_boxes(surfaces: Surfaces, view: View) -> NDArray[np.int64]:
    """Pixel rectangles of the boxes around cylinders and balls; the whole picture where one reaches the near plane."""
    if not len(surfaces.centre):
        return np.zeros((0, 4), np.int64)
    rotation, eye = view.pose[:3, :3], view.pose[:3, 3]
    radius, ball = surfaces.radius[:, None], surfaces.height[:, None] == 0
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 1)], np.float64)
    x = surfaces.centre[:, :1] + radius * signs[:, 0]
    y = surfaces.centre[:, 1:2] + radius * signs[:, 1]
    rise = np.where(ball, radius * (2 * signs[:, 2] - 1), surfaces.height[:, None] * signs[:, 2])
    z = surfaces.centre[:, 2:3] + rise
    corners = (np.stack([x, y, z], axis=2) - eye) @ rotation
    depth = np.maximum(corners[..., 2], NEAR)
    k = view.intrinsics
    px, py = k.fx * corners[..., 0] / depth + k.cx, k.fy * corners[..., 1] / depth + k.cy
    box = np.stack([py.min(1) - 1, py.max(1) + 2, px.min(1) - 1, px.max(1) + 2], axis=1)
    box[(corners[..., 2] <= NEAR).any(axis=1)] = [0, view.height, 0, view.width]
    box[(corners[..., 2] <= NEAR).all(axis=1)] = 0
    return _on_screen(box, view)


def _on_screen(boxes: NDArray[np.float64], view: View) -> NDArray[np.int64]:
    """Pixel rectangles (y0, y1, x0, x1) without what lies outside the picture."""
    limit = np.array([view.height, view.height, view.width, view.width])
    inside: NDArray[np.float64] = np.clip(boxes, 0, limit)
    return inside.astype(np.int64)
