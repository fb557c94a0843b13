"""How a KITTI car moved between two frames, by its own GPS and inertial sensors (the `oxts` folder of a drive)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.lidar import homogeneous, matrix, read_calibration
from leadline.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EARTH_M = 6_378_137.0  # radius at the equator, WGS 84
MERCATOR_LIMIT = 85.0  # degrees of latitude, beyond which the projection stretches without bound
VALUES = 6  # latitude, longitude (degrees), altitude (metres), roll, pitch, yaw (radians); more follow


def car_motion(drive: Path, first: int, second: int) -> NDArray[np.float64] | None:
    """What carries a point seen from the sensor at frame `first` to where it is seen from at frame `second`.

    Args:
        drive: folder of the drive.
        first: frame number.
        second: frame number.

    Returns:
        4 x 4, metres, in the sensor's axes (x forward, y left, z up); None where a frame was not recorded.

    Raises:
        DataError: a record is damaged.
    """
    files = [drive / "oxts" / "data" / f"{frame:010d}.txt" for frame in (first, second)]
    if not all(file.is_file() for file in files):
        return None
    start, end = (_record(file) for file in files)
    scale = float(np.cos(np.radians(start[0])))  # of the projection, one for both
    return np.asarray(np.linalg.inv(_place(end, scale)) @ _place(start, scale))


def sensor_to_velodyne(date: Path) -> NDArray[np.float64] | None:
    """The calibration of a date, 4 x 4, metres; None where its file is missing.

    Raises:
        DataError: the file is damaged.
    """
    file = date / "calib_imu_to_velo.txt"
    if not file.is_file():
        return None
    entries = read_calibration(file)
    return homogeneous(matrix(entries, "R", (3, 3), file), matrix(entries, "T", (1, 3), file)[0])


@lru_cache(maxsize=4096)
def _record(file: Path) -> tuple[float, ...]:
    """The first six numbers of a record."""
    try:
        values = tuple(float(word) for word in file.read_text(encoding="ascii").split()[:VALUES])
    except (OSError, ValueError) as error:
        raise DataError("damaged oxts record", where=file, why=str(error)) from error
    if len(values) < VALUES or not np.isfinite(values).all() or abs(values[0]) > MERCATOR_LIMIT:
        why = "it must begin with latitude, longitude, altitude, roll, pitch and yaw"
        raise DataError("damaged oxts record", where=file, why=why)
    return values


def _place(values: tuple[float, ...], scale: float) -> NDArray[np.float64]:
    """The sensor's place in the world, 4 x 4: Mercator's east and north, altitude, turned by roll, pitch, then yaw."""
    latitude, longitude, altitude, *angles = values
    east = scale * EARTH_M * np.radians(longitude)
    north = scale * EARTH_M * np.log(np.tan(np.radians(90 + latitude) / 2))
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles), np.cos(angles)
    roll = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    pitch = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return homogeneous(yaw @ pitch @ roll, np.array([east, north, altitude]))
