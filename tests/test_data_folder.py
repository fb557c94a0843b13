"""The folder format and the array files that it may hold; expected values are worked out by hand."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tiny_datasets as tiny
from leadline.data.arrays import read_array
from leadline.data.dataset import open_dataset
from leadline.depth import Kind
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
            ({"fx": 0.6, "fy": 0.8, "cx": 0.5, "cy": 0.5}, "view of 171 degrees.*multiply fx and cx by the width"),
            ({"fx": 1000, "fy": 1000, "cx": 8, "cy": 6}, "field of view of 0.917 degrees"),  # 2 atan(8 / 1000)
            ({"fx": 10, "fy": 41, "cx": 8, "cy": 6}, "differ by more than 4 times"),
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


def test_a_plain_copy_of_a_data_set_elsewhere_reads_the_same(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "here")
    shutil.copytree(root, tmp_path / "there")
    first, second = open_dataset(str(root))[0], open_dataset(str(tmp_path / "there"))[0]
    assert first.name == second.name
    np.testing.assert_array_equal(first.depth.values, second.depth.values)
