"""Lidar sweeps as depth maps: KITTI's calibration files and both rules for points that share a pixel (SPEC 4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from leadline.errors import DataError, ImageReadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Rule = Literal["correct", "bit-faithful"]
MAX_SWEEP_BYTES = 64 * 2**20  # 4 million points; a 64-beam sweep has 130,000


def read_sweep(path: Path) -> NDArray[np.float32]:
    """A velodyne sweep.

    Returns:
        N x 4 float32: x forward, y left, z up in metres, and reflectance 0..1.

    Raises:
        ImageReadError: missing, empty, too large, truncated, or holding NaN or infinity.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_SWEEP_BYTES else b""
    except OSError as error:
        raise ImageReadError("cannot read the sweep", where=path, why=error.strerror or str(error)) from error
    if size > MAX_SWEEP_BYTES:
        why = f"{size >> 20} MiB, {MAX_SWEEP_BYTES >> 20} are allowed"
        raise ImageReadError("the sweep is too large", where=path, why=why)
    if not data or len(data) % 16:
        why = f"{len(data)} bytes, not a multiple of 16 (four float32 per point)"
        raise ImageReadError("damaged sweep", where=path, why=why)
    points = np.frombuffer(data, "<f4").reshape(-1, 4)
    if not np.isfinite(points).all():
        raise ImageReadError("damaged sweep", where=path, why="it holds NaN or infinity")
    return points


def read_calibration(path: Path) -> dict[str, NDArray[np.float64]]:
    """The numeric lines `key: values` of a KITTI calibration file, by key.

    Raises:
        DataError: missing, unreadable or without any such line.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise DataError("no calibration", where=path, why=error.strerror or str(error)) from error
    found: dict[str, NDArray[np.float64]] = {}
    for line in lines:
        key, colon, rest = line.partition(":")
        try:
            values = np.array([float(word) for word in rest.split()])
        except ValueError:  # calib_time holds a date
            continue
        if colon and values.size and np.isfinite(values).all():
            found[key.strip()] = values
    if not found:
        raise DataError("damaged calibration", where=path, why="no line of the form `key: numbers`")
    return found


def matrix(
    calibration: dict[str, NDArray[np.float64]], key: str, shape: tuple[int, int], where: Path
) -> NDArray[np.float64]:
    """One entry of a calibration as a matrix.

    Raises:
        DataError: the key is missing, or has another number of values.
    """
    values = calibration.get(key)
    if values is None or values.size != shape[0] * shape[1]:
        got = "missing" if values is None else f"{values.size} values, {shape[0] * shape[1]} are needed"
        raise DataError("damaged calibration", where=where, why=f"{key}: {got}")
    return values.reshape(shape)


def homogeneous(rotation: NDArray[np.float64], translation: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """A 3 x 3 rotation (and 3 translation, metres) as a 4 x 4 float64 matrix."""
    out = np.eye(4)
    out[:3, :3] = rotation
    if translation is not None:
        out[:3, 3] = translation
    return out


def project_sweep(
    points: NDArray[np.float32], projection: NDArray[np.float64], size: tuple[int, int], rule: Rule = "correct"
) -> NDArray[np.float32]:
    """A velodyne sweep as the depth map of a rectified camera.

    Args:
        points: N x 4 float32, metres, x forward.
        projection: 3 x 4, sweep to pixels; KITTI counts pixel centres at integers.
        size: (height, width) of the picture, pixels.
        rule: `correct` stores the camera's z and keeps the nearest point of a pixel. `bit-faithful` repeats the
            widespread Eigen export: x forward as depth, pixels rounded and lessened by one, and duplicates searched
            by an index that several pixels share.

    Returns:
        H x W float32, metres; 0 where no point falls.
    """
    if rule == "bit-faithful":
        return _eigen_export(points, projection, size)
    ahead = points[points[:, 0] > 0, :3].astype(np.float64)
    u, v, z = (ahead @ projection[:, :3].T + projection[:, 3]).T
    seen = z > 0
    u, v, z = u[seen] / z[seen], v[seen] / z[seen], z[seen]
    return scatter_nearest(np.rint(v), np.rint(u), z, size)


def scatter_nearest(
    rows: NDArray[np.float64], columns: NDArray[np.float64], depth: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Depths at whole pixels as a map; the nearest wins, pixels outside are left out.

    Args:
        rows: N whole numbers.
        columns: N whole numbers.
        depth: N, metres, greater than zero.
        size: (height, width), pixels.

    Returns:
        H x W float32, 0 where nothing falls.
    """
    height, width = size
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = np.full(height * width, np.inf, np.float32)
    index = rows[inside].astype(np.intp) * width + columns[inside].astype(np.intp)
    np.minimum.at(flat, index, depth[inside].astype(np.float32))
    flat[np.isinf(flat)] = 0
    return flat.reshape(size)


def _eigen_export(
    points: NDArray[np.float32], projection: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    height, width = size
    forward = points[points[:, 0] >= 0].astype(np.float64)
    forward[:, 3] = 1.0
    u, v, w = (forward @ projection.T).T
    nonzero = w != 0
    columns, rows = np.rint(u[nonzero] / w[nonzero]) - 1, np.rint(v[nonzero] / w[nonzero]) - 1
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    x, y = columns[inside].astype(np.intp), rows[inside].astype(np.intp)
    depth = forward[nonzero, 0][inside]
    out = np.zeros(size)
    out[y, x] = depth  # of several points in one pixel the last one written stays, unless the next lines change it
    shared = y * (width - 1) + x - 1
    keys, first, group, count = np.unique(shared, return_index=True, return_inverse=True, return_counts=True)
    smallest = np.full(keys.size, np.inf)
    np.minimum.at(smallest, group, depth)
    several = count > 1
    out[y[first[several]], x[first[several]]] = smallest[several]
    return out.astype(np.float32)
