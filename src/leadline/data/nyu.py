"""`nyu-mat`: the labelled NYU Depth V2 file (MATLAB v7.3, which is HDF5) with the official splits.mat (SPEC 9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leadline.data.dataset import Dataset, Sample, split_options
from leadline.data.hdf5 import Hdf5
from leadline.data.matlab import read_vectors
from leadline.data.units import check_metres, clean
from leadline.depth import Depth, Intrinsics
from leadline.errors import DataError, closest

MATRIX_FILE = "nyu_depth_v2_labeled.mat"
SPLITS = {"train": "trainNdxs", "test": "testNdxs"}
OPTIONS = {"depth": ("filled", "raw")}
CAMERA = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362)  # the toolbox's colour camera, for 480 x 640


class Format(Dataset):
    """The labelled .mat file, or the folder that holds it.

    Splits `train` and `test` need splits.mat beside it; without a split, all pictures. Option `depth`: `filled`
    (`depths`, without holes) or `raw` (`rawDepths`, 0 where the sensor saw nothing). Names are the official 1-based
    numbers, four digits.
    """

    format = "nyu-mat"
    name = "nyu-v2-labelled"
    max_depth = 10.0
    licence = "NYU Depth V2: no licence stated; research use"
    source = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"

    def __init__(self, file: Path, indices: list[int], key: str) -> None:
        self.file, self.key, self._indices = file, key, indices

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True for the labelled .mat file or a folder that holds it."""
        return path.name == MATRIX_FILE if path.is_file() else (path / MATRIX_FILE).is_file()

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open the .mat file.

        Raises:
            DataError: datasets of other shapes, an unknown split, or no splits.mat.
            ImageReadError: a damaged file.
        """
        place, options = split_options(path, OPTIONS)
        file = place if place.is_file() else place / MATRIX_FILE
        key = "depths" if options["depth"] == "filled" else "rawDepths"
        with Hdf5(file) as data:
            images, depths = data.shape("images"), data.shape(key)
        if len(images) != 4 or images[1] != 3 or depths != (images[0], *images[2:]):
            why = f"images {images}, {key} {depths}; expected N x 3 x W x H and N x W x H"
            raise DataError("not the labelled NYU file", where=file, why=why)
        if split is None:
            return cls(file, list(range(images[0])), key)
        if split not in SPLITS:
            raise DataError("no such split", where=split, mend=closest(split, SPLITS))
        return cls(file, _read_split(file.parent / "splits.mat", split, images[0]), key)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._indices)

    def names(self) -> list[str]:
        """The official numbers, from 0001."""
        return [f"{index + 1:04d}" for index in self._indices]

    def __getitem__(self, index: int) -> Sample:
        """Read one picture.

        Raises:
            ImageReadError: a damaged file.
            DataError: depth that is not in metres.
        """
        at = self._indices[index]
        with Hdf5(self.file) as data:
            image, stored = data.read("images", at), data.read(self.key, at)
        if image.dtype != np.uint8:
            raise DataError("not the labelled NYU file", where=self.file, why=f"images are {image.dtype}, not uint8")
        image = np.ascontiguousarray(image.transpose(2, 1, 0))
        camera = CAMERA if image.shape[:2] == (480, 640) else None
        values = np.ascontiguousarray(clean(stored.T.astype(np.float32), self.kind))
        depth = Depth(values, self.kind, camera, f"{self.file}[{at + 1}]")
        check_metres(depth, self.max_depth)
        return Sample(f"{at + 1:04d}", image, depth, camera)


def _read_split(path: Path, split: str, count: int) -> list[int]:
    key = SPLITS[split]
    if not path.is_file():
        mend = f"put the official splits.mat beside {MATRIX_FILE}, or leave the split out to read all {count} pictures"
        raise DataError(f"no {split} split", where=path, why="no such file", mend=mend)
    with path.open("rb") as file:
        is_hdf5 = b"HDF" in file.read(1024)
    if is_hdf5:
        with Hdf5(path) as data:
            numbers = data.read(key).astype(np.int64).ravel()
    else:
        numbers = read_vectors(path).get(key, np.zeros(0, np.int64))
    if numbers.size == 0 or numbers.min() < 1 or numbers.max() > count or np.unique(numbers).size < numbers.size:
        why = f"{key} must hold different numbers from 1 to {count}"
        raise DataError("splits.mat does not fit", where=path, why=why)
    return [int(number) - 1 for number in numbers]
