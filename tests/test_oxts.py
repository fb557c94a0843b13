"""The car's own motion in KITTI: closed forms, what is missing or damaged, and the real drive."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import tiny_datasets as tiny
from leadline.data.dataset import open_dataset
from leadline.data.oxts import EARTH_M, car_motion
from leadline.errors import DataError

DATE = "2011_09_26"
DRIVE = f"{DATE}/2011_09_26_drive_0009_sync"
METRE = math.degrees(1 / EARTH_M)  # degrees of a great circle
AHEAD = np.array([5.0, 0, 0, 1])  # x forward, y left, z up


def record(drive: Path, frame: int, *values: float | str) -> Path:
    file = drive / "oxts" / "data" / f"{frame:010d}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(" ".join(map(str, [*values, *[0] * 24])) + "\n")
    return file


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ((0, 0, 0, 0, 0, 0), (0, 2 * METRE, 0, 0, 0, 0), (3, 0, 0)),  # two metres east, facing east
        ((60, 0, 0, 0, 0, 0), (60, 2 * METRE, 0, 0, 0, 0), (4, 0, 0)),  # a degree of longitude is half as long there
        ((49, 8, 0, 0, 0, math.pi / 2), (49 + 2 * METRE, 8, 0, 0, 0, math.pi / 2), (3, 0, 0)),  # north, facing north
        ((49, 8, 100, 0, 0, 1), (49, 8, 101, 0, 0, 1), (5, 0, -1)),  # up
        ((49, 8, 0, 0, 0, 0), (49, 8, 0, 0, 0, math.pi / 2), (0, -5, 0)),  # turned left: what was ahead is right
        ((49, 8, 0, 0, 0, 0), (49, 8, 0, 0, math.pi / 6, 0), (5 * math.cos(math.pi / 6), 0, 2.5)),  # its front down
        ((49, 8, 0, 0, 0, 0), (49, 8, 0, 0.3, 0, 0), (5, 0, 0)),  # rolled about the axis ahead
    ],
)
def test_a_point_ahead_moves_as_the_car_does_not(
    tmp_path: Path, before: tuple[float, ...], after: tuple[float, ...], seen: tuple[float, ...]
) -> None:
    record(tmp_path, 0, *before)
    record(tmp_path, 1, *after)
    motion = car_motion(tmp_path, 0, 1)
    assert motion is not None
    assert (motion @ AHEAD)[:3] == pytest.approx(seen, abs=1e-6)
    back = car_motion(tmp_path, 1, 0)
    assert back is not None
    assert back @ motion == pytest.approx(np.eye(4), abs=1e-6)


def test_the_camera_moves_with_the_car_it_is_mounted_on(tmp_path: Path) -> None:
    """The sensor is 1 m behind the velodyne and the camera; the car turns left by 90 degrees on the spot."""
    root = tiny.kitti(tmp_path / "kitti")
    data = open_dataset(f"kitti-raw:{root}", "all")
    assert data.relative_pose(0, 1) is None
    record(root / DRIVE, 0, 49, 8, 0, 0, 0, 0)
    record(root / DRIVE, 1, 49, 8, 0, 0, 0, math.pi / 2)
    assert data.relative_pose(0, 1) is None  # where the sensor is mounted is not known
    (root / DATE / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 1\nT: -1 0 0\n")
    pose = data.relative_pose(0, 1)
    assert pose is not None
    # 4 m ahead of the camera is 5 m ahead of the sensor, then 5 m to its right; x is right and z ahead in a camera
    assert (pose @ [0, 0, 4, 1])[:3] == pytest.approx([5, 0, -1], abs=1e-6)
    assert data.relative_pose(0, 2) is None


@pytest.mark.parametrize("values", [("north", 8), (89, 8, 0, 0, 0, 0), ("nan", 8, 0, 0, 0, 0)])
def test_a_damaged_record_is_named(tmp_path: Path, values: tuple[float | str, ...]) -> None:
    record(tmp_path, 0, 49, 8, 0, 0, 0, 0)
    bad = record(tmp_path, 1, *values)
    with pytest.raises(DataError, match="damaged oxts record") as caught:
        car_motion(tmp_path, 0, 1)
    assert str(bad) in str(caught.value)
    bad.write_text("49 8 100\n")
    with pytest.raises(DataError, match="must begin with latitude"):
        car_motion(tmp_path, 0, 1)


@pytest.mark.data
def test_measured_depth_moves_onto_the_measured_depth_of_the_next_frame(shared_data: Path) -> None:
    """Four frames later measured points lie where the recorded motion puts them; moved backwards they do not."""
    data = open_dataset(f"kitti-raw:{shared_data / 'kitti_raw'}", "depth")
    for index in (30, 34, 37):  # frames 120, 136 and 148: at speed, little else moves
        pose = data.relative_pose(index, 4)
        assert pose is not None
        assert 1.5 < np.linalg.norm(pose[:3, 3]) < 4
        assert misfit(data, index, pose) < 0.02
        assert misfit(data, index, np.linalg.inv(pose)) > 0.05


def misfit(data, index: int, pose: np.ndarray) -> float:
    """Median relative difference to the next measured frame's depth, where both have some."""
    sample, later = data[index], data[index + 1]
    depth, k = sample.depth.values, sample.intrinsics
    rows, columns = np.nonzero((depth > 4) & (depth < 40))
    z = depth[rows, columns]
    x, y, far, _ = pose @ [(columns + 0.5 - k.cx) / k.fx * z, (rows + 0.5 - k.cy) / k.fy * z, z, np.ones(len(z))]
    u, v = np.floor(x / far * k.fx + k.cx).astype(int), np.floor(y / far * k.fy + k.cy).astype(int)
    inside = (far > 1) & (u >= 0) & (u < depth.shape[1]) & (v >= 0) & (v < depth.shape[0])
    there = later.depth.values[v[inside], u[inside]]
    return float(np.median(np.abs(there - far[inside])[there > 0] / there[there > 0]))
