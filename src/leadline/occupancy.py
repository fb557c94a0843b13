"""Occupancy maps: what stands between two heights around the camera, as seen from above.

The camera is assumed to be level. Then each column of pixels looks in one direction of the map, and its rays are cast:
a cell is *occupied* where a point of the slice lies in it, *free* where some ray passes through it inside the slice and
nothing nearer in that column stands in the slice, and *unknown* otherwise: behind things, outside the field of view,
and where every ray is above or below the slice. Depth that is blurred at the edge of a thing leaves occupied cells
between it and what is behind it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.depth import Kind
from leadline.errors import ConfigError, KindError
from leadline.point_cloud import points, require_points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.depth import Depth

OCCUPIED, UNKNOWN, FREE = 0, 205, 254  # grey values of ROS's map_saver
_FREE_BELOW, _OCCUPIED_ABOVE = 0.1, 0.65  # occupancy is (255 - grey) / 255: 0.196 for UNKNOWN lies between
_MOST_CELLS = 16_000_000


@dataclass(frozen=True)
class Slice:
    """Which part of the scene is mapped.

    Args:
        low: lower end, metres above the camera (negative: below it).
        high: upper end, the same.
        cell: side of a cell, metres.
        reach: metres ahead and to each side.

    Raises:
        ConfigError: an empty slice, or cells that no map can hold.
    """

    low: float = -0.5
    high: float = 0.5
    cell: float = 0.05
    reach: float = 10.0

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            mend = "give LOW below HIGH, metres above the camera, as in -0.5,0.5"
            raise ConfigError("the slice is empty", where=f"--slice {self.low:g},{self.high:g}", mend=mend)
        if not (np.isfinite([self.cell, self.reach]).all() and 0 < self.cell <= self.reach):
            mend = "both are metres above 0, and --reach is no shorter than --cell"
            raise ConfigError("impossible map", where=f"--cell {self.cell:g} --reach {self.reach:g}", mend=mend)
        if 2 * (self.reach / self.cell) ** 2 > _MOST_CELLS:
            why = f"it would have more than {_MOST_CELLS // 1_000_000} million cells"
            mend = "take larger cells or a shorter reach"
            raise ConfigError(
                "the map is too large", where=f"--cell {self.cell:g} --reach {self.reach:g}", why=why, mend=mend
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(cells ahead, cells across)."""
        ahead = max(1, round(self.reach / self.cell))
        return ahead, 2 * ahead


def require_metres(kind: Kind) -> None:
    """Pass where values of this kind are metres.

    Raises:
        KindError: they are not, so that neither heights nor cells mean anything.
    """
    require_points(kind, "occupancy map")
    if kind is not Kind.METRIC_DEPTH:
        why = "its scale is unknown, while heights and cells are metres"
        mend = "use a metric model, or find the scale and convert with Depth.to_metric"
        raise KindError("no occupancy map from", where=f"{kind} values", why=why, mend=mend)


def occupancy(depth: Depth, part: Slice) -> NDArray[np.uint8]:
    """The map of one picture, by the rules above.

    Args:
        depth: metric depth with its intrinsics, H x W.
        part: which heights, how fine, how far.

    Returns:
        `part.shape` uint8 of OCCUPIED, UNKNOWN and FREE; row 0 is nearest to the camera, columns run from left to
        right with the camera in the middle.

    Raises:
        KindError: other values than metres.
        DataError: no intrinsics, or impossible ones.
    """
    require_metres(depth.kind)
    cloud = points(depth)
    camera = depth.intrinsics
    assert camera is not None  # `points` refuses it
    hits, free = _along_columns(cloud, camera.fy, camera.cy, part)
    ahead, across = part.shape
    z = (np.arange(ahead) + 0.5) * part.cell
    x = (np.arange(across) + 0.5 - across / 2) * part.cell
    columns = np.floor(x / z[:, None] * camera.fx + camera.cx)
    seen = (columns >= 0) & (columns < depth.shape[1])
    columns = np.where(seen, columns, 0).astype(np.int64)
    rows = np.arange(ahead)[:, None]
    grid = np.where(seen & free[columns, rows], FREE, UNKNOWN).astype(np.uint8)
    grid[seen & hits[columns, rows]] = OCCUPIED
    inside = _inside(cloud, part) & (np.abs(cloud[:, :, 0]) < across / 2 * part.cell)
    nearest = (cloud[:, :, 2][inside] / part.cell).astype(np.int64)
    grid[nearest, np.floor(cloud[:, :, 0][inside] / part.cell + across / 2).astype(np.int64)] = OCCUPIED
    return grid


def map_files(grid: NDArray[np.uint8], part: Slice, image: str) -> tuple[bytes, bytes]:
    """The map as ROS's map_server reads it: (YAML, PGM); the map's x is right and its y forward of the camera.

    Args:
        grid: as `occupancy` returns it.
        part: what it was made for.
        image: name of the PGM file beside the YAML file.
    """
    height, width = grid.shape
    lines = [
        f"# {explained(part)['heights']}; {explained(part)['axes']}",
        f"image: {json.dumps(image, ensure_ascii=False)}",
        "mode: trinary",
        f"resolution: {part.cell!r}",
        f"origin: [{-width / 2 * part.cell!r}, 0.0, 0.0]",
        "negate: 0",
        f"occupied_thresh: {_OCCUPIED_ABOVE}",
        f"free_thresh: {_FREE_BELOW}",
    ]
    picture = f"P5\n{width} {height}\n255\n".encode("ascii") + grid[::-1].tobytes()
    return ("\n".join(lines) + "\n").encode(), picture


def explained(part: Slice) -> dict[str, Any]:
    """What a map's numbers mean, for its files."""
    return {
        "heights": f"{part.low:g} to {part.high:g} m above the camera, which is assumed to be level",
        "axes": "x right, y forward of the camera, metres",
        "cell": part.cell,
        "reach": part.reach,
    }


def _inside(cloud: NDArray[np.float32], part: Slice) -> NDArray[np.bool_]:
    """The points between both heights and before the map's end; H x W."""
    height, z = -cloud[:, :, 1], cloud[:, :, 2]
    inside: NDArray[np.bool_] = (height >= part.low) & (height <= part.high) & (z < part.shape[0] * part.cell)
    return inside


def _along_columns(
    cloud: NDArray[np.float32], fy: float, cy: float, part: Slice
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each column of pixels and each row of cells: whether a point lies there, and whether it is free."""
    height, width = cloud.shape[:2]
    cells, known = part.shape[0], np.isfinite(cloud[:, :, 2])
    z = np.where(known, cloud[:, :, 2], 0.0)
    rows, columns = np.nonzero(_inside(cloud, part))
    hits = np.zeros((width, cells), bool)
    hits[columns, (z[rows, columns] / part.cell).astype(np.int64)] = True
    nearest = np.full(width, np.inf)
    np.minimum.at(nearest, columns, z[rows, columns])

    rise = -(np.arange(height) + 0.5 - cy) / fy  # metres of height per metre ahead
    with np.errstate(divide="ignore"):
        ends = np.array([part.low, part.high]) / np.where(rise == 0, 1e-12, rise)[:, None]
    enters, leaves = np.maximum(ends.min(axis=1), 0.0), ends.max(axis=1)
    # a row of cells counts by its centre: those from `first` up to before `last` lie on the ray, inside the slice
    first = np.minimum(np.ceil(enters / part.cell - 0.5), cells).astype(np.int64)
    last = np.minimum(np.ceil(np.minimum(leaves[:, None], z) / part.cell - 0.5), cells).astype(np.int64)
    passed = np.zeros((width, cells + 1), np.int32)
    rows, columns = np.nonzero(known & (last > first[:, None]))
    np.add.at(passed, (columns, first[rows]), 1)
    np.add.at(passed, (columns, last[rows, columns]), -1)
    before = (np.arange(cells) + 0.5) * part.cell < nearest[:, None]
    return hits, (np.cumsum(passed[:, :-1], axis=1) > 0) & before
