"""What every data set format keeps: one class of tests, which each format passes on a tiny data set of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

import tiny_datasets as tiny
from leadline.data.dataset import FORMATS, Dataset, open_dataset
from leadline.errors import DataError


class DatasetContract:
    """Subclasses say how a tiny data set is made, and what is known about it."""

    format: str
    count: int
    has_depth = True
    has_camera = False
    query = ""

    def make(self, root: Path) -> Path | str:
        raise NotImplementedError

    @pytest.fixture
    def reference(self, tmp_path: Path) -> str:
        return f"{self.make(tmp_path / 'data set ü')}{self.query}"

    @pytest.fixture
    def dataset(self, reference: str) -> Dataset:
        return open_dataset(reference)

    def test_names_are_unique_and_counted(self, dataset: Dataset) -> None:
        names = dataset.names()
        assert len(names) == len(dataset) == self.count
        assert len(set(names)) == len(names)
        assert all(name and not name.startswith("/") for name in names)
        assert dataset.problems() == []

    def test_samples_keep_their_types(self, dataset: Dataset) -> None:
        for name, sample in zip(dataset.names(), dataset, strict=True):
            assert sample.name == name
            assert sample.image.dtype == np.uint8
            assert sample.image.ndim == 3
            assert sample.image.shape[2] == 3
            assert (sample.depth is not None) == self.has_depth
            if sample.depth is None:
                continue
            assert sample.depth.kind is dataset.kind
            assert sample.depth.shape == sample.image.shape[:2]
            assert np.isfinite(sample.depth.values).all()
            assert (sample.depth.values >= 0).all()
            assert sample.depth.valid.any()
            assert sample.depth.intrinsics == sample.intrinsics

    def test_the_camera_lies_inside_the_picture(self, dataset: Dataset) -> None:
        for sample in dataset:
            assert (sample.intrinsics is not None) == self.has_camera
            if sample.intrinsics is not None:
                height, width = sample.image.shape[:2]
                assert sample.intrinsics.fx > 0
                assert sample.intrinsics.fy > 0
                assert 0 < sample.intrinsics.cx < width
                assert 0 < sample.intrinsics.cy < height

    def test_reading_twice_gives_the_same(self, reference: str, dataset: Dataset) -> None:
        again = open_dataset(reference)
        worker = copy.deepcopy(dataset)  # what a worker process gets
        for index in range(len(dataset)):
            first = dataset[index]
            for other in (dataset[index], again[index], worker[index]):
                assert other.name == first.name
                np.testing.assert_array_equal(other.image, first.image)
                if first.depth is not None:
                    np.testing.assert_array_equal(other.depth.values, first.depth.values)

    def test_neighbours_are_found_without_decoding_and_are_what_they_are_called(self, dataset: Dataset) -> None:
        for offset in (-1, 1, "stereo"):
            having = dataset.with_neighbours([offset])
            for index in range(len(dataset)):
                name, neighbour = dataset.neighbour_name(index, offset), dataset.neighbour(index, offset)
                assert (index in having) == (name is not None) == (neighbour is not None)
                if neighbour is None:
                    continue
                assert neighbour.name == name
                assert neighbour.image.shape == dataset[index].image.shape
                assert neighbour.depth is None
                assert (neighbour.intrinsics is not None) == self.has_camera

    def test_an_index_beyond_the_end_is_an_index_error(self, dataset: Dataset) -> None:
        with pytest.raises(IndexError):
            dataset[len(dataset)]

    def test_an_unknown_split_is_refused(self, reference: str) -> None:
        with pytest.raises(DataError, match="split"):
            open_dataset(reference, "no-such-split")


class OnDisk(DatasetContract):
    """Formats that are found by their layout below one path."""

    def test_the_format_is_recognised(self, reference: str, dataset: Dataset) -> None:
        assert dataset.format == self.format
        assert type(open_dataset(f"{self.format}:{reference}")) is type(dataset)

    def test_an_unknown_option_is_refused(self, reference: str) -> None:
        with pytest.raises(DataError, match="option"):
            open_dataset(f"{self.format}:{reference.partition('?')[0]}?colour=red")

    def test_a_missing_path_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            open_dataset(f"{self.format}:{tmp_path / 'nowhere'}")


class TestFolder(OnDisk):
    format, count, has_camera = "folder", 3, True

    def make(self, root: Path) -> Path:
        return tiny.folder(root)


class TestFolderWithSplits(OnDisk):
    format, count = "folder", 3

    def make(self, root: Path) -> Path:
        return tiny.split_folder(root)


class TestPicturesAlone(OnDisk):
    format, count, has_depth = "folder", 3, False

    def make(self, root: Path) -> Path:
        return tiny.pictures(root)


class TestNyuMat(OnDisk):
    format, count = "nyu-mat", 5

    def make(self, root: Path) -> Path:
        return tiny.nyu(root)


class TestFastDepth(OnDisk):
    format, count = "fastdepth-h5", 5

    def make(self, root: Path) -> Path:
        return tiny.fastdepth(root)


class TestKittiRaw(OnDisk):
    format, count, has_camera = "kitti-raw", 2, True

    def make(self, root: Path) -> Path:
        return tiny.kitti(root)


class TestKittiRawRight(OnDisk):
    format, count, has_camera, query = "kitti-raw", 2, True, "?camera=3&rule=bit-faithful"

    def make(self, root: Path) -> Path:
        return tiny.kitti(root)


class TestKittiObject(OnDisk):
    format, count, has_camera = "kitti-object", 2, True

    def make(self, root: Path) -> Path:
        return tiny.kitti_object(root)


class TestDdad(OnDisk):
    format, count, has_camera = "ddad", 2, True

    def make(self, root: Path) -> Path:
        return tiny.ddad(root)


class TestDdadOtherCamera(OnDisk):
    format, count, has_camera, query = "ddad", 2, True, "?camera=CAMERA_05&collisions=last"

    def make(self, root: Path) -> Path:
        return tiny.ddad(root)


class TestPseudoLabels(DatasetContract):
    format, count = "pseudo", 2

    def make(self, root: Path) -> str:
        for stem in "ab":
            tiny.picture(root / "photos" / f"{stem}.png", 8, 10)
            tiny.png16(root / "labels" / f"{stem}.png", np.arange(20).reshape(4, 5) * 100)
        return f"pseudo:{root / 'photos'},{root / 'labels'}"


class TestRendered(DatasetContract):
    format, count, has_camera = "rendered", 2, True

    def make(self, root: Path) -> str:
        return "rendered:room,count=2,height=32,width=48"


class TestRenderedSequence(DatasetContract):
    format, count, has_camera = "rendered", 6, True

    def make(self, root: Path) -> str:
        return "rendered:room?count=2&sequence=3&height=32&width=48"


class TestFramesOfAFolder(DatasetContract):
    format, count, has_depth, has_camera = "frames", 3, False, True

    def make(self, root: Path) -> str:
        return f"frames:{tiny.pictures(root)}?fov=60"


class TestFramesOfAFilm(OnDisk):
    format, count, has_depth, has_camera, query = "frames", 4, False, True, "?fov=60"

    def make(self, root: Path) -> Path:
        return tiny.film(root / "film.mp4", count=4)


def test_every_format_keeps_the_contract() -> None:
    tested = {case.format for base in (OnDisk, DatasetContract) for case in base.__subclasses__() if case is not OnDisk}
    assert tested == set(FORMATS)


def test_an_unknown_format_proposes_the_closest() -> None:
    with pytest.raises(DataError, match="Did you mean 'kitti-raw'"):
        open_dataset("kiti-raw:somewhere")


def test_an_unrecognised_layout_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match="kitti-object"):
        open_dataset(str(tmp_path))
