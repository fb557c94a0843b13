"""`fastdepth-h5`: NYU Depth V2 as FastDepth trains on it, one HDF5 file per picture (SPEC 1.5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leadline.data.dataset import Dataset, Sample, split_options
from leadline.data.hdf5 import Hdf5
from leadline.data.units import check_metres, clean
from leadline.depth import Depth
from leadline.errors import DataError, closest

SPLITS = ("train", "holdout", "val")
HELD_OUT = ("00001.h5", "00201.h5")


class Format(Dataset):
    """`{train,val}/SCENE/NAME.h5` with `rgb` (3 x H x W uint8) and `depth` (H x W float, metres).

    Splits: `train`, `holdout` (the files ending in 00001.h5 and 00201.h5, which train leaves out) and `val`; without
    one, all of them.
    """

    format = "fastdepth-h5"
    name = "nyu-fastdepth"
    max_depth = 10.0
    licence = "NYU Depth V2: no licence stated; research use"
    source = "http://datasets.lids.mit.edu/fastdepth/data/"

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.root, self._files = root, files

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True where train/ or val/ holds scene folders of .h5 files."""
        return path.is_dir() and next(path.glob("train/*/*.h5"), next(path.glob("val/*/*.h5"), None)) is not None

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open the folder that holds train/ and val/.

        Raises:
            DataError: another layout, an unknown or an empty split.
        """
        root, _ = split_options(path, {})
        if split is not None and split not in SPLITS:
            raise DataError("no such split", where=split, mend=closest(split, SPLITS))
        files = [file for name in SPLITS if split in (name, None) for file in _list(root, name)]
        if not files:
            why = f"expected {'val' if split == 'val' else 'train'}/SCENE/NAME.h5"
            raise DataError("no .h5 files", where=root, why=why)
        return cls(root, files)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def names(self) -> list[str]:
        """Relative paths without suffix, sorted."""
        return [self._name(file) for file in self._files]

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).with_suffix("").as_posix()

    def __getitem__(self, index: int) -> Sample:
        """Read one file.

        Raises:
            ImageReadError: a damaged file.
            DataError: datasets of other shapes or units.
        """
        path = self._files[index]
        with Hdf5(path) as file:
            rgb, stored = file.read("rgb"), file.read("depth")
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8 or stored.shape != rgb.shape[1:]:
            why = f"rgb {rgb.dtype} {rgb.shape}, depth {stored.shape}; expected uint8 3 x H x W and H x W"
            raise DataError("not a FastDepth file", where=path, why=why)
        depth = Depth(clean(stored.astype(np.float32), self.kind), self.kind, None, str(path))
        check_metres(depth, self.max_depth)
        return Sample(self._name(path), np.ascontiguousarray(rgb.transpose(1, 2, 0)), depth)


def _list(root: Path, split: str) -> list[Path]:
    folder = "val" if split == "val" else "train"
    files = sorted(root.glob(f"{folder}/*/*.h5"))
    return files if split == "val" else [file for file in files if file.name.endswith(HELD_OUT) == (split == "holdout")]
