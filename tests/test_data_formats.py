"""NYU, FastDepth and DDAD, and what the real samples of every format hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny_datasets as tiny
from leadline.data import ddad
from leadline.data.dataset import open_dataset
from leadline.data.matlab import read_vectors
from leadline.depth import Intrinsics
from leadline.errors import DataError, ImageReadError


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

    def test_ddad_and_kitti_object_depth_is_plausible(self, shared_data: Path) -> None:
        for path, median in (("ddad", (3, 40)), ("kitti_object", (5, 30))):
            for sample in open_dataset(str(shared_data / path)):
                measured = sample.depth.values[sample.depth.valid]
                assert measured.size > 1000
                assert median[0] < np.median(measured) < median[1]
