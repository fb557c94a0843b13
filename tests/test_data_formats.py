"""What is particular to each data set format; expected values are worked out by hand or from SPEC.md."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_datasets as tiny
from leadline.data import ddad
from leadline.data.arrays import read_array
from leadline.data.dataset import open_dataset
from leadline.data.lidar import project_sweep, read_sweep
from leadline.data.matlab import read_vectors
from leadline.depth import Intrinsics, Kind
from leadline.errors import DataError, ImageReadError


class TestFolder:
    def test_millimetres_become_metres_and_the_invalid_value_becomes_zero(self, tmp_path: Path) -> None:
        depth = open_dataset(str(tiny.folder(tmp_path)))[1].depth
        assert (depth.values[0] == 0).all()
        np.testing.assert_array_equal(depth.values[1:], np.float32(2.1))

    def test_offset_scale_and_no_invalid_value(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path, depth_scale=25.5, depth_offset=0.02, invalid_value=None)
        tiny.picture(tmp_path / "rgb" / "a.png", 4, 4)
        values = np.full((4, 4), 51)
        values[0, 0] = 0
        tiny.png16(tmp_path / "depth" / "a.png", values)
        depth = open_dataset(str(tmp_path))[0].depth.values
        assert depth[0, 0] == pytest.approx(0.02)
        assert depth[1, 1] == pytest.approx(2.02)

    def test_nan_infinity_and_negative_depth_become_zero(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path, depth_scale=1)
        tiny.picture(tmp_path / "images" / "a.png", 2, 4)
        (tmp_path / "depth").mkdir()
        values = np.array([[1.5, np.nan, np.inf, -1], [-np.inf, 0, 2, 3]], np.float32)
        np.save(tmp_path / "depth" / "a.npy", values)
        depth = open_dataset(str(tmp_path))[0].depth.values
        np.testing.assert_array_equal(depth, np.array([[1.5, 0, 0, 0], [0, 0, 2, 3]], np.float32))

    def test_relative_disparity_keeps_zero_as_a_value(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path, kind="relative_disparity", unit="none", depth_scale=255, max_depth=None)
        tiny.picture(tmp_path / "images" / "a.png", 2, 2)
        tiny.png16(tmp_path / "depth" / "a.png", np.array([[0, 255], [51, 102]]))
        depth = open_dataset(str(tmp_path))[0].depth
        assert depth.kind is Kind.RELATIVE_DISPARITY
        assert depth.valid.all()
        np.testing.assert_allclose(depth.values, [[0, 1], [0.2, 0.4]], rtol=1e-6)

    def test_npz_and_npy_are_read(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path, depth_scale=1)
        (tmp_path / "depth").mkdir()
        for stem in "ab":
            tiny.picture(tmp_path / "images" / f"{stem}.png", 2, 3)
        np.save(tmp_path / "depth" / "a.npy", np.full((2, 3), 1.25))
        np.savez_compressed(tmp_path / "depth" / "b.npz", depth=np.full((2, 3), 2, np.float16))
        dataset = open_dataset(str(tmp_path))
        assert [float(sample.depth.values[0, 0]) for sample in dataset] == [1.25, 2.0]

    def test_unpaired_files_are_listed_and_refused_unless_skipped(self, tmp_path: Path) -> None:
        root = tiny.folder(tmp_path, 4)
        (root / "depth" / "001.png").unlink()
        (root / "images" / "002.png").unlink()
        with pytest.raises(DataError, match=r"2 incomplete items, the first: 001: picture without depth.*--skip-bad"):
            open_dataset(str(root))
        dataset = open_dataset(str(root), skip_bad=True)
        assert dataset.names() == ["000", "003"]
        assert [(problem.item, problem.what) for problem in dataset.problems()] == [
            ("001", "picture without depth"),
            ("002", "depth without picture"),
        ]

    def test_sizes_that_differ_are_refused_unless_declared(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path)
        tiny.picture(tmp_path / "images" / "a.png", 4, 8)
        tiny.png16(tmp_path / "depth" / "a.png", np.array([[1000, 2000], [3000, 4000]]))
        with pytest.raises(DataError, match=r"depth is 2x2, the picture 4x8.*align.*resize"):
            open_dataset(str(tmp_path))[0]
        tiny.describe(tmp_path, align="resize")
        depth = open_dataset(str(tmp_path))[0].depth.values
        np.testing.assert_array_equal(depth, np.kron(np.array([[1, 2], [3, 4]], np.float32), np.ones((2, 4))))

    def test_millimetres_read_as_metres_propose_the_scale(self, tmp_path: Path) -> None:
        root = tiny.folder(tmp_path, depth_scale=1)
        with pytest.raises(DataError, match="Set depth_scale to 1000"):
            open_dataset(str(root))[0]

    def test_metres_read_as_millimetres_propose_the_scale(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path)
        tiny.picture(tmp_path / "images" / "a.png", 4, 4)
        (tmp_path / "depth").mkdir()
        np.save(tmp_path / "depth" / "a.npy", np.full((4, 4), 2.5, np.float32))
        with pytest.raises(DataError, match="Set depth_scale to 1 "):
            open_dataset(str(tmp_path))[0]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "depth"}, "kind: .*metric_depth, relative_depth"),
            ({"kind": "absent"}, "kind: Field required"),
            ({"unit": "mm"}, "unit: .*depth_scale 1000"),
            ({"unit": "none"}, "has the unit 'm'"),
            ({"depth_scale": "absent"}, "depth_scale: Field required.*1000 for millimetres"),
            ({"depth_scale": 0}, "depth_scale: "),
        ],
    )
    def test_a_description_that_says_too_little_is_refused(
        self, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        root = tiny.folder(tmp_path)
        tiny.describe(root, **changes)
        with pytest.raises(DataError, match=message):
            open_dataset(str(root))

    def test_broken_json_is_refused(self, tmp_path: Path) -> None:
        (tiny.folder(tmp_path) / "dataset.json").write_text('{"kind": ')
        with pytest.raises(DataError, match=r"not a valid dataset\.json"):
            open_dataset(str(tmp_path))

    @pytest.mark.parametrize(
        ("camera", "message"),
        [
            ({"fx": 0, "fy": 10, "cx": 8, "cy": 6}, "focal lengths must be positive"),
            ({"fx": 10, "fy": -10, "cx": 8, "cy": 6}, "focal lengths must be positive"),
            ({"fx": 10, "fy": 10, "cx": 80, "cy": 6}, "principal point .* outside 12x16"),
            ({"fx": 10, "fy": 10, "cx": 8, "cy": -1}, "principal point"),
        ],
    )
    def test_a_camera_that_cannot_be_is_refused(self, tmp_path: Path, camera: dict[str, float], message: str) -> None:
        root = tiny.folder(tmp_path)
        tiny.describe(root, intrinsics=camera)
        with pytest.raises(DataError, match=message):
            open_dataset(str(root))[0]

    def test_a_camera_for_another_size_is_refused(self, tmp_path: Path) -> None:
        root = tiny.folder(tmp_path)
        tiny.describe(root, width=32, height=24, intrinsics={"fx": 10, "fy": 10, "cx": 8, "cy": 6})
        with pytest.raises(DataError, match="says 24x32, the picture is 12x16"):
            open_dataset(str(root))[0]

    def test_splits_and_their_names(self, tmp_path: Path) -> None:
        root = str(tiny.split_folder(tmp_path))
        assert open_dataset(root, "train").names() == ["train/a", "train/b"]
        assert open_dataset(root, "test").names() == ["test/c"]
        assert open_dataset(root).names() == ["train/a", "train/b", "test/c"]
        with pytest.raises(DataError, match="Did you mean 'train'"):
            open_dataset(root, "trian")

    def test_list_txt_says_which_and_in_what_order(self, tmp_path: Path) -> None:
        root = tiny.folder(tmp_path)
        (root / "list.txt").write_text("002\n000.png\n")
        assert open_dataset(str(root)).names() == ["002", "000"]
        (root / "list.txt").write_text("002\n777\n")
        with pytest.raises(DataError, match="777: listed"):
            open_dataset(str(root))

    def test_two_pictures_of_one_stem_are_refused(self, tmp_path: Path) -> None:
        root = tiny.folder(tmp_path)
        tiny.picture(root / "images" / "000.jpg", 12, 16)
        with pytest.raises(DataError, match="two files of one stem"):
            open_dataset(str(root))

    def test_depth_without_a_description_is_refused(self, tmp_path: Path) -> None:
        (tiny.folder(tmp_path) / "dataset.json").unlink()
        with pytest.raises(DataError, match="nothing says what its values mean"):
            open_dataset(str(tmp_path))

    def test_pictures_of_one_name_keep_their_suffix(self, tmp_path: Path) -> None:
        tiny.picture(tmp_path / "a.png", 4, 4)
        tiny.picture(tmp_path / "a.jpg", 4, 4)
        assert open_dataset(str(tmp_path)).names() == ["a.jpg", "a.png"]


class TestArrays:
    def test_objects_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(ImageReadError, match="not an array of numbers"):
            read_array(tmp_path / "a.npy")

    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path: Path) -> None:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000), }".ljust(117) + b"\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("depth.npy", content + bytes(2**20))
        with pytest.raises(ImageReadError, match=r"array too large.*76294 MiB"):
            read_array(tmp_path / "a.npz")

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.ones((10, 10)))
        (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
        with pytest.raises(ImageReadError, match="792 of 800 bytes"):
            read_array(tmp_path / "a.npy")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY", b"some text"])
    def test_junk_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ImageReadError, match="damaged array file"):
            read_array(tmp_path / "a.npz")

    def test_fortran_order_and_a_missing_key(self, tmp_path: Path) -> None:
        values = np.asfortranarray(np.arange(6).reshape(2, 3))
        np.savez(tmp_path / "a.npz", data=values, other=values)
        np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "data"), values)
        with pytest.raises(ImageReadError, match="holds data, other"):
            read_array(tmp_path / "a.npz", "depth")
        with pytest.raises(ImageReadError, match="which array"):
            read_array(tmp_path / "a.npz")


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


class TestNyu:
    def test_pictures_are_turned_from_matlabs_order(self, tmp_path: Path) -> None:
        import h5py

        sample = open_dataset(str(tiny.nyu(tmp_path)))[2]
        assert sample.name == "0003"
        rows, columns = np.mgrid[:6, :8]
        np.testing.assert_allclose(sample.depth.values, 3 + rows / 10 + columns / 100, rtol=1e-6)
        with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat") as file:
            stored = file["images"]  # N x 3 x W x H
            assert sample.image[4, 7].tolist() == stored[2, :, 7, 4].tolist()

    def test_raw_depth_has_holes(self, tmp_path: Path) -> None:
        values = open_dataset(f"{tiny.nyu(tmp_path)}?depth=raw")[0].depth.values
        assert (values[0] == 0).all()
        assert (values[1:] > 0).all()

    def test_official_numbers_start_at_one(self, tmp_path: Path) -> None:
        root = tiny.nyu(tmp_path)
        assert open_dataset(str(root), "train").names() == ["0002", "0003", "0005"]
        assert open_dataset(str(root / "nyu_depth_v2_labeled.mat"), "test").names() == ["0001", "0004"]

    def test_without_splits_mat_only_all_pictures_can_be_had(self, tmp_path: Path) -> None:
        root = tiny.nyu(tmp_path, splits=False)
        assert len(open_dataset(str(root))) == 5
        with pytest.raises(DataError, match=r"Put the official splits\.mat beside"):
            open_dataset(str(root), "test")

    def test_splits_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        root = tiny.nyu(tmp_path)
        tiny.mat5(root / "splits.mat", trainNdxs=[0, 1], testNdxs=[6])
        for split in ("train", "test"):
            with pytest.raises(DataError, match="different numbers from 1 to 5"):
                open_dataset(str(root), split)

    @pytest.mark.parametrize("compressed", [True, False])
    def test_matlab_vectors(self, tmp_path: Path, compressed: bool) -> None:
        found = read_vectors(tiny.mat5(tmp_path / "a.mat", compressed, trainNdxs=[3, 1449], ab=[7]))
        assert {name: values.tolist() for name, values in found.items()} == {"trainNdxs": [3, 1449], "ab": [7]}

    @pytest.mark.parametrize("compressed", [True, False])
    def test_matlab_vectors_as_scipy_writes_them(self, tmp_path: Path, compressed: bool) -> None:
        io = pytest.importorskip("scipy.io")
        numbers = np.arange(1, 655)[:, None]
        variables = {"testNdxs": numbers.astype(float), "small": np.uint16([[5, 6]]), "text": "words", "cell": [[1]]}
        io.savemat(tmp_path / "a.mat", variables, do_compression=compressed)
        found = read_vectors(tmp_path / "a.mat")
        assert found["testNdxs"].tolist() == list(range(1, 655))
        assert found["small"].tolist() == [5, 6]

    def test_damaged_matlab_files_are_refused(self, tmp_path: Path) -> None:
        good = tiny.mat5(tmp_path / "a.mat", trainNdxs=list(range(100))).read_bytes()
        for bad in (b"", good[:100], good[:180], good[:150] + bytes(40) + good[190:]):
            (tmp_path / "b.mat").write_bytes(bad)
            with pytest.raises(ImageReadError, match=r"MATLAB"):
                read_vectors(tmp_path / "b.mat")


class TestFastDepth:
    def test_the_holdout_rule(self, tmp_path: Path) -> None:
        root = str(tiny.fastdepth(tmp_path))
        assert open_dataset(root, "train").names() == ["train/room/00002", "train/room/00401"]
        assert open_dataset(root, "holdout").names() == ["train/room/00001", "train/room/00201"]
        assert open_dataset(root, "val").names() == ["val/official/00001"]

    def test_what_was_not_measured_is_zero(self, tmp_path: Path) -> None:
        depth = open_dataset(str(tiny.fastdepth(tmp_path)), "val")[0].depth.values
        assert depth[0].tolist() == [0, 0, 0, 2.5, 2.5, 2.5, 2.5, 2.5]

    def test_a_damaged_table_of_contents_is_refused(self, tmp_path: Path) -> None:
        root = tiny.fastdepth(tmp_path)
        file = root / "val" / "official" / "00001.h5"
        file.write_bytes(file.read_bytes().replace(b"SNOD", b"XXXX"))  # HDF5's symbol table node
        with pytest.raises(ImageReadError, match=r"00001\.h5.*"):
            open_dataset(str(root), "val")[0]

    def test_a_damaged_file_names_itself(self, tmp_path: Path) -> None:
        root = tiny.fastdepth(tmp_path)
        (root / "val" / "official" / "00001.h5").write_bytes(b"\x89HDF no more")
        with pytest.raises(ImageReadError, match=r"00001\.h5.*not an HDF5 file"):
            open_dataset(str(root), "val")[0]


class TestDdad:
    def test_a_sweep_lands_where_poses_and_camera_put_it(self, tmp_path: Path) -> None:
        sample = open_dataset(str(tiny.ddad(tmp_path)))[0]
        values = sample.depth.values
        assert {(int(r), int(c)): float(values[r, c]) for r, c in np.argwhere(values)} == pytest.approx(tiny.PROJECTED)
        np.testing.assert_allclose(sample.pose[:3, 3], [101, -3, 2])
        np.testing.assert_allclose(sample.pose[:3, 2], [1, 0, 0], atol=1e-12)  # looks along the world's x
        assert sample.intrinsics == Intrinsics(10, 10, 12, 4)

    def test_the_nearest_or_the_last_point_stays(self) -> None:
        points = np.array([(0, 0, 5.0), (0, 0, 9.0)])
        camera = Intrinsics(10, 10, 4, 4)
        assert ddad.project(points, np.eye(4), camera, (8, 8))[4, 4] == 5
        assert ddad.project(points, np.eye(4), camera, (8, 8), "last")[4, 4] == 9

    def test_only_dgps_own_rule_cuts_half_a_pixel_outside_to_zero(self) -> None:
        points = np.array([(-0.45, -0.45, 1.0)])  # lands at -0.5, -0.5
        camera = Intrinsics(10, 10, 4, 4)
        assert not ddad.project(points, np.eye(4), camera, (8, 8)).any()
        assert ddad.project(points, np.eye(4), camera, (8, 8), "last")[0, 0] == 1

    def test_a_scene_listed_in_two_splits_is_read_once(self, tmp_path: Path) -> None:
        root = str(tiny.ddad(tmp_path))
        assert len(open_dataset(root)) == len(open_dataset(root, "train")) == len(open_dataset(root, "val")) == 2
        with pytest.raises(DataError, match="no such split"):
            open_dataset(root, "test")

    def test_files_outside_the_scene_are_refused(self, tmp_path: Path) -> None:
        root = tiny.ddad(tmp_path)
        scene = root / "000150" / "scene_ab.json"
        scene.write_text(scene.read_text().replace("rgb/CAMERA_01/0.png", "../../secret.png"))
        with pytest.raises(DataError, match="outside the scene"):
            open_dataset(str(root))
        (root / "ddad.json").write_text(json.dumps({"scene_splits": {"0": {"filenames": ["../x/scene_a.json"]}}}))
        with pytest.raises(DataError, match="outside the data set"):
            open_dataset(str(root))

    def test_a_missing_sweep_is_listed(self, tmp_path: Path) -> None:
        root = tiny.ddad(tmp_path)
        (root / "000150" / "point_cloud" / "LIDAR" / "1.npz").unlink()
        dataset = open_dataset(str(root), skip_bad=True)
        assert len(dataset) == 1
        assert "1.npz" in dataset.problems()[0].what

    def test_damaged_json_names_the_place(self, tmp_path: Path) -> None:
        root = tiny.ddad(tmp_path)
        scene = root / "000150" / "scene_ab.json"
        scene.write_text(scene.read_text().replace('"qw"', '"w"', 1))
        with pytest.raises(DataError, match=r"scene_ab\.json.*qw: Field required"):
            open_dataset(str(root))


@pytest.mark.data
class TestRealData:
    @pytest.mark.parametrize(
        ("path", "split", "count", "size"),
        [
            ("nyu", "train", 795, (480, 640)),
            ("nyu", "test", 109, (480, 640)),
            ("rgbd/hololens", None, 10, (360, 540)),
            ("rgbd/sevenscenes", None, 10, (480, 640)),
            ("photos", None, 2000, None),
            ("kitti_raw", "depth", 39, (375, 1242)),
            ("kitti_raw", "lidar", 5, (375, 1242)),
            ("kitti_raw", "all", 154, (375, 1242)),
            ("kitti_object", None, 3, None),
            ("ddad", "train", 3, (1216, 1936)),
        ],
    )
    def test_counts_and_sizes(
        self, shared_data: Path, path: str, split: str | None, count: int, size: tuple[int, int] | None
    ) -> None:
        dataset = open_dataset(str(shared_data / path), split)
        assert len(dataset) == count
        image = dataset[count - 1].image
        assert size is None or image.shape == (*size, 3)

    @pytest.mark.parametrize(("path", "share"), [("rgbd/hololens", 0.678), ("rgbd/sevenscenes", 0.8997)])
    def test_the_share_of_measured_pixels(self, shared_data: Path, path: str, share: float) -> None:
        shares = [float(sample.depth.valid.mean()) for sample in open_dataset(str(shared_data / path))]
        assert np.mean(shares) == pytest.approx(share, abs=1e-4)

    def test_the_share_of_measured_pixels_of_kitti(self, shared_data: Path) -> None:
        root = shared_data / "kitti_raw"
        shares = [float(sample.depth.valid.mean()) for sample in open_dataset(str(root), "depth")]
        assert np.mean(shares) == pytest.approx(0.0421, abs=5e-5)

    def test_nyu_has_the_stated_range_and_no_holes(self, shared_data: Path) -> None:
        dataset = open_dataset(str(shared_data / "nyu"), "test")
        for index in range(20):
            values = dataset[index].depth.values
            assert values.min() >= 18.5 * 9.99547 / 255 - 1e-4
            assert values.max() <= 255.5 * 9.99547 / 255 + 1e-4

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

    def test_ddad_and_kitti_object_depth_is_plausible(self, shared_data: Path) -> None:
        for path, median in (("ddad", (3, 40)), ("kitti_object", (5, 30))):
            for sample in open_dataset(str(shared_data / path)):
                measured = sample.depth.values[sample.depth.valid]
                assert measured.size > 1000
                assert median[0] < np.median(measured) < median[1]


def test_a_plain_copy_of_a_data_set_elsewhere_reads_the_same(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "here")
    shutil.copytree(root, tmp_path / "there")
    first, second = open_dataset(str(root))[0], open_dataset(str(tmp_path / "there"))[0]
    assert first.name == second.name
    np.testing.assert_array_equal(first.depth.values, second.depth.values)
