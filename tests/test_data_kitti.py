"""KITTI and its lidar: projection by both collision rules, and the raw and object formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_datasets as tiny
from leadline.data.dataset import open_dataset
from leadline.data.lidar import project_sweep, read_sweep
from leadline.depth import Intrinsics
from leadline.errors import DataError, ImageReadError

P = np.array([[10.0, 0, 12, 0], [0, 10, 4, 0], [0, 0, 1, 0]])
AXES = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def eigen_export_by_loops(points: np.ndarray, projection: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """SPEC 4.5 word by word, one point at a time."""
    height, width = size
    kept = []
    for x, y, z in points[:, :3].astype(np.float64):
        if x < 0:
            continue
        u, v, w = projection @ (x, y, z, 1.0)
        if w == 0:
            continue
        column, row = np.round(u / w) - 1, np.round(v / w) - 1
        if 0 <= column < width and 0 <= row < height:
            kept.append((int(row), int(column), x))
    depth = np.zeros(size)
    for row, column, x in kept:
        depth[row, column] = x
    groups: dict[int, list[tuple[int, int, float]]] = {}
    for row, column, x in kept:
        groups.setdefault(row * (width - 1) + column - 1, []).append((row, column, x))
    for members in groups.values():
        if len(members) > 1:
            depth[members[0][0], members[0][1]] = min(x for _, _, x in members)
    return depth.astype(np.float32)


class TestLidar:
    def test_the_correct_rule_keeps_the_nearest_in_the_true_pixel(self) -> None:
        points = np.array([(*point, 0.5) for point in tiny.POINTS], np.float32)
        expected = np.zeros((tiny.HEIGHT, tiny.WIDTH), np.float32)
        for place, depth in tiny.PROJECTED.items():
            expected[place] = depth
        np.testing.assert_array_equal(project_sweep(points, P @ AXES, expected.shape), expected)
        np.testing.assert_array_equal(project_sweep(points[::-1], P @ AXES, expected.shape), expected)

    def test_the_camera_in_front_of_the_lidar_sees_less_depth(self) -> None:
        ahead = AXES.copy()
        ahead[2, 3] = -0.27  # the camera stands 0.27 m ahead of the lidar, as on KITTI's car
        depth = project_sweep(np.array([[10.27, 0, 0, 0]], np.float32), P @ ahead, (8, 24))
        assert depth[4, 12] == pytest.approx(10.0)
        forward = project_sweep(np.array([[10.27, 0, 0, 0]], np.float32), P @ ahead, (8, 24), "bit-faithful")
        assert forward[3, 11] == pytest.approx(10.27)

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 200))
    def test_the_bit_faithful_rule_follows_the_specification(self, seed: int, count: int) -> None:
        random = np.random.default_rng(seed)
        points = random.uniform((-5, -15, -5, 0), (20, 15, 5, 1), (count, 4)).astype(np.float32)
        projection = P @ AXES
        expected = eigen_export_by_loops(points, projection, (8, 24))
        np.testing.assert_array_equal(project_sweep(points, projection, (8, 24), "bit-faithful"), expected)

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_the_order_of_the_points_does_not_matter(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        points = random.uniform((-5, -15, -5, 0), (20, 15, 5, 1), (300, 4)).astype(np.float32)
        first = project_sweep(points, P @ AXES, (8, 24))
        assert first.any()
        np.testing.assert_array_equal(project_sweep(random.permutation(points), P @ AXES, (8, 24)), first)

    @pytest.mark.parametrize("content", [b"", b"123", np.full(8, np.nan, "<f4").tobytes()])
    def test_damaged_sweeps_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(ImageReadError, match="damaged sweep"):
            read_sweep(tmp_path / "a.bin")


class TestKitti:
    def test_the_splits_say_which_depth(self, tmp_path: Path) -> None:
        root = str(tiny.kitti(tmp_path))
        frames = {
            split: [name[-1] for name in open_dataset(root, split).names()] for split in ("depth", "lidar", "all")
        }
        assert frames == {"depth": ["1", "2"], "lidar": ["0", "2"], "all": ["0", "1", "2", "3"]}
        assert open_dataset(root, "depth")[0].depth.values[3, 5] == 7.5
        swept = open_dataset(root, "lidar")[0].depth.values
        assert {(int(r), int(c)): float(swept[r, c]) for r, c in np.argwhere(swept)} == tiny.PROJECTED
        assert open_dataset(root, "all")[0].depth is None

    def test_intrinsics_count_pixel_centres_from_a_half(self, tmp_path: Path) -> None:
        sample = open_dataset(str(tiny.kitti(tmp_path)), "lidar")[0]
        assert sample.intrinsics == Intrinsics(10, 10, 12.5, 4.5)

    def test_intrinsics_follow_stretched_pictures(self, tmp_path: Path) -> None:
        root = tiny.kitti(tmp_path)
        tiny.picture(root / "2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000003.png", 16, 36)
        sample = open_dataset(str(root), "all")[3]
        assert sample.intrinsics == Intrinsics(15, 20, 18.75, 9)

    def test_a_split_file_names_frames_and_sides(self, tmp_path: Path) -> None:
        root = tiny.kitti(tmp_path / "kitti")
        drive = "2011_09_26/2011_09_26_drive_0009_sync"
        lines = tmp_path / "files.txt"
        lines.write_text(f"{drive} 2 l\n{drive} 0000000001 l\n")
        dataset = open_dataset(str(root), str(lines))
        assert dataset.names() == [f"{drive}/image_02/data/{n:010d}" for n in (2, 1)]
        assert dataset[0].depth.values[3, 5] == 7.5
        lines.write_text(f"{drive} 2 r\n{drive} 0 l\n")
        swept = open_dataset(f"{root}?truth=lidar", str(lines))
        assert [name.split("/")[2] for name in swept.names()] == ["image_03", "image_02"]
        assert swept[0].depth.values[4, 12] == 10
        assert open_dataset(f"{root}?truth=none", str(lines))[0].depth is None
        with pytest.raises(DataError, match=r"2 incomplete items.*picture without depth"):
            open_dataset(f"{root}?truth=improved", str(lines))

    @pytest.mark.parametrize("line", ["only-one-word", "a/b x l", "a/b 1 up", "../../etc 1 l", "/etc/passwd 1 l"])
    def test_a_malformed_split_file_is_refused(self, tmp_path: Path, line: str) -> None:
        root = tiny.kitti(tmp_path / "kitti")
        (tmp_path / "files.txt").write_text(line + "\n")
        with pytest.raises(DataError, match=r"malformed split file.*line 1"):
            open_dataset(str(root), str(tmp_path / "files.txt"))

    def test_eight_bit_depth_is_refused(self, tmp_path: Path) -> None:
        from PIL import Image

        root = tiny.kitti(tmp_path)
        target = root / "2011_09_26/2011_09_26_drive_0009_sync/proj_depth/groundtruth/image_02/0000000001.png"
        Image.fromarray(np.zeros((tiny.HEIGHT, tiny.WIDTH), np.uint8)).save(target)
        with pytest.raises(DataError, match="16-bit"):
            open_dataset(str(root), "depth")[0]

    def test_a_damaged_calibration_names_the_key(self, tmp_path: Path) -> None:
        root = tiny.kitti(tmp_path)
        (root / "2011_09_26" / "calib_velo_to_cam.txt").write_text("R: 1 0 0\nT: 0 0 0\n")
        with pytest.raises(DataError, match="R: 3 values, 9 are needed"):
            open_dataset(str(root), "lidar")[0]

    def test_an_object_frame_without_its_sweep_is_listed(self, tmp_path: Path) -> None:
        root = tiny.kitti_object(tmp_path)
        (root / "training" / "velodyne" / "000007.bin").unlink()
        dataset = open_dataset(str(root), skip_bad=True)
        assert dataset.names() == ["training/000000"]
        assert [problem.what for problem in dataset.problems()] == ["no file in velodyne"]
        values = dataset[0].depth.values
        assert {(int(r), int(c)): float(values[r, c]) for r, c in np.argwhere(values)} == tiny.PROJECTED


@pytest.mark.data
class TestRealSweeps:
    def test_our_projection_is_the_given_one(self, shared_data: Path) -> None:
        """The PNG rounds to 1/256 m, so that half of that is the most that may differ; the pixels are the same."""
        root = str(shared_data / "kitti_raw")
        given, swept = open_dataset(root, "depth"), open_dataset(root, "lidar")
        both = [name for name in swept.names() if name in given.names()]
        assert [int(name[-10:]) for name in both] == [0, 40, 80, 120]
        for name in both:
            theirs = given[given.names().index(name)].depth.values
            ours = swept[swept.names().index(name)].depth.values
            np.testing.assert_array_equal(ours > 0, theirs > 0)
            assert np.abs(ours - theirs).max() <= 1 / 512 + 1e-5

    def test_the_bit_faithful_rule_on_a_real_sweep(self, shared_data: Path) -> None:
        from leadline.data.kitti import sweep_projection

        date = shared_data / "kitti_raw" / "2011_09_26"
        size, projection = sweep_projection(date, 2)
        assert size == (375, 1242)
        points = read_sweep(date / "2011_09_26_drive_0005_sync" / "velodyne_points" / "data" / "0000000000.bin")
        expected = eigen_export_by_loops(points, projection, size)
        np.testing.assert_array_equal(project_sweep(points, projection, size, "bit-faithful"), expected)
