"""KITTI's neighbours: before, after and the other eye, with the baseline that the calibration gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_datasets as tiny
from leadline.contract import Contract
from leadline.data.dataset import open_dataset
from leadline.errors import DataError
from leadline.training.batches import Mix
from leadline.training.config import TrainConfig

DRIVE = "2011_09_26/2011_09_26_drive_0009_sync"
PLAIN = {"zoom": 1, "roll_deg": 0, "flip": 0, "shift": 0, "colour": 0, "gamma": 0, "hue": 0}
CONTRACT = Contract.model_validate(
    {"name": "d", "input": {"height": 32, "width": 96}, "output": {"kind": "scaled_disparity"}}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four frames, both eyes; the left 0.06 m left of camera 0, the right 0.48 m right of it."""
    root = tiny.kitti(tmp_path / "kitti")
    file = root / "2011_09_26" / "calib_cam_to_cam.txt"
    left, right = "10 0 12 0.6 0 10 4 0 0 0 1 0", "10 0 12 -4.8 0 10 4 0 0 0 1 0"
    text = file.read_text().replace(f"P_rect_02: {tiny.P}", f"P_rect_02: {left}")
    file.write_text(text.replace(f"P_rect_03: {tiny.P}", f"P_rect_03: {right}"))
    return root


def clips(root: Path, frames: list[int | str], augmentation: dict[str, object], query: str = "?truth=none") -> Mix:
    source = {"data": f"kitti-raw:{root}{query}", "split": "all", "frames": frames}
    says = {"model": "random:leadline-s", "sources": [source], "batch": 4, "augmentation": augmentation}
    return Mix(TrainConfig.model_validate(says), CONTRACT, (32, 96))


def test_neighbours_by_frame_number_whatever_the_split_lists(root: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.txt"
    split.write_text(f"{DRIVE} 2 l\n{DRIVE} 0 r\n{DRIVE} 1 r\n")
    data = open_dataset(f"kitti-raw:{root}?truth=none", str(split))
    assert data.neighbour_name(0, -1) == f"{DRIVE}/image_02/data/0000000001"
    assert data.neighbour_name(0, "stereo") == f"{DRIVE}/image_03/data/0000000002"
    assert data.neighbour_name(1, -1) is None
    assert data.with_neighbours([-1, 1]) == [0, 2]
    assert data.with_neighbours([-2, "stereo"]) == [0]
    neighbour = data.neighbour(2, 1)
    assert neighbour is not None
    assert neighbour.depth is None
    right = open_dataset(f"kitti-raw:{root}?camera=3", "all")
    assert np.array_equal(neighbour.image, right[2].image)
    assert neighbour.intrinsics == right[2].intrinsics


def test_a_missing_picture_breaks_the_neighbourhood(root: Path) -> None:
    (root / DRIVE / "image_02" / "data" / "0000000002.png").unlink()
    data = open_dataset(f"kitti-raw:{root}", "all")
    assert len(data) == 3
    assert data.with_neighbours([1]) == [0]
    assert data.with_neighbours(["stereo"]) == [0, 1, 2]


def test_the_other_eye_is_where_the_calibration_says(root: Path) -> None:
    """A point 5 m ahead of the left camera lies 0.54 m farther left for the right one: t = (-0.48) - 0.06."""
    left, right = open_dataset(f"kitti-raw:{root}", "all"), open_dataset(f"kitti-raw:{root}?camera=3", "all")
    pose = left.relative_pose(0, "stereo")
    assert pose is not None
    assert pose[:3, 3] == pytest.approx([-0.54, 0, 0])
    assert np.array_equal(pose[:3, :3], np.eye(3))
    back = right.relative_pose(0, "stereo")
    assert back is not None
    assert back @ pose == pytest.approx(np.eye(4))
    assert left.relative_pose(0, 1) is None


def test_a_mirrored_item_has_its_other_eye_on_the_other_side(root: Path) -> None:
    for flip, x in ((0, -0.54), (1, 0.54)):
        clip = clips(root, [-1, "stereo"], PLAIN | {"flip": flip}).batch(0).clip
        assert clip is not None
        assert clip.offsets == (-1, "stereo")
        assert clip.poses[:, 1, 0, 3].tolist() == pytest.approx([x] * 4)
        assert torch.isnan(clip.poses[:, 0]).all()
        centre = 12.5 * 4  # cx of the file + 0.5, at four times the size
        assert clip.intrinsics[0, 0].tolist() == pytest.approx([40, 0, 96 - centre if flip else centre])


def test_monodepth2s_camera_is_an_option(root: Path) -> None:
    camera = open_dataset(f"kitti-raw:{root}?intrinsics=monodepth2", "all")[0].intrinsics
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((0.58 * 24, 1.92 * 8, 12, 4))
    clip = clips(root, [1], PLAIN, "?truth=none&intrinsics=monodepth2").batch(0).clip
    assert clip is not None
    assert clip.intrinsics[0].flatten().tolist() == pytest.approx([0.58 * 96, 0, 48, 0, 1.92 * 32, 16, 0, 0, 1])
    with pytest.raises(DataError, match="monodepth2"):
        open_dataset(f"kitti-raw:{root}?intrinsics=monodepth", "all")


def test_a_damaged_calibration_is_refused(root: Path) -> None:
    file = root / "2011_09_26" / "calib_cam_to_cam.txt"
    file.write_text(file.read_text().replace("P_rect_03: 10", "P_rect_03: 0"))
    data = open_dataset(f"kitti-raw:{root}", "all")
    with pytest.raises(DataError, match="P_rect_03 has no inverse"):
        data.relative_pose(0, "stereo")


@pytest.mark.data
def test_the_real_drive_has_its_published_baseline_and_neighbours(shared_data: Path) -> None:
    """0.5327 m between the colour cameras of 2011_09_26 (their P_rect: 44.85728 and -339.5242 over 721.5377)."""
    data = open_dataset(f"kitti-raw:{shared_data / 'kitti_raw'}?truth=none", "all")
    pose = data.relative_pose(0, "stereo")
    assert pose is not None
    assert pose[0, 3] == pytest.approx((-339.5242 - 44.85728) / 721.5377, abs=5e-3)
    assert len(data.with_neighbours([-1, 1])) == len(data) - 2
    assert len(data.with_neighbours([-1, 1, "stereo"])) == len(data) - 2


@pytest.mark.data
def test_a_real_clip_shows_three_different_moments_of_one_view(shared_data: Path) -> None:
    source = {"data": f"kitti-raw:{shared_data / 'kitti_raw'}?truth=none", "split": "all", "frames": [-1, 1]}
    says = {"model": "random:leadline-s", "sources": [source], "batch": 2, "augmentation": PLAIN}
    clip = Mix(TrainConfig.model_validate(says), CONTRACT, (96, 320)).batch(0).clip
    assert clip is not None
    assert clip.seen.shape == (2, 3, 3, 96, 320)
    between = (clip.sources - clip.image[:, None]).abs().mean((2, 3, 4))
    assert (between > 0.01).all()  # the car drives
    assert (between < 0.2).all()  # through the same street
    assert clip.intrinsics[0, 0, 0] == pytest.approx(721.5377 / 1242 * 320, rel=1e-3)


@pytest.mark.data
def test_measured_depth_carries_the_left_picture_onto_the_right_one(shared_data: Path) -> None:
    """Pixels with true depth, moved by the calibrated pose, meet their own colour; moved the other way they do not."""
    data = open_dataset(f"kitti-raw:{shared_data / 'kitti_raw'}", "depth")
    sample, right, pose = data[10], data.neighbour(10, "stereo"), data.relative_pose(10, "stereo")
    assert sample.depth is not None
    assert sample.intrinsics is not None
    assert right is not None
    assert pose is not None
    rows, columns = np.nonzero((sample.depth.values > 4) & (sample.depth.values < 25))
    z, k = sample.depth.values[rows, columns], sample.intrinsics
    difference = []
    for sign in (1, -1):
        moved = columns + 0.5 + sign * k.fx * pose[0, 3] / z
        inside = (moved > 1) & (moved < sample.image.shape[1] - 1)
        there = right.image[rows[inside], np.floor(moved[inside]).astype(int)].astype(float)
        difference.append(np.median(np.abs(there - sample.image[rows[inside], columns[inside]]).mean(1)))
    assert difference[0] < 0.5 * difference[1]
