"""`kitti-object`: the KITTI object layout; depth is the sweep projected into camera 2 (SPEC 4.5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leadline.data.dataset import Dataset, Problem, Sample, split_options
from leadline.data.lidar import homogeneous, matrix, project_sweep, read_calibration, read_sweep
from leadline.data.units import check_intrinsics, check_metres
from leadline.depth import Depth, Intrinsics
from leadline.errors import DataError, closest
from leadline.image import read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("training", "testing")


class Format(Dataset):
    """KITTI object: `training/{image_2,velodyne,calib}/NNNNNN.*`; splits `training` (the default) and `testing`.

    Intrinsics count pixel centres at integers + 0.5, half a pixel more than KITTI's files.
    """

    format = "kitti-object"
    name = "kitti-object"
    max_depth = 80.0
    licence = "KITTI: CC BY-NC-SA 3.0"
    source = "https://www.cvlibs.net/datasets/kitti/eval_object.php"

    def __init__(self, root: Path, split: str) -> None:
        self.base, self.split = root / split, split
        pictures = _stems(self.base / "image_2", (".png", ".jpg"))
        sweeps, calibrations = _stems(self.base / "velodyne", (".bin",)), _stems(self.base / "calib", (".txt",))
        self._items: list[tuple[str, Path, Path, Path]] = []
        self._problems: list[Problem] = []
        for stem in sorted(pictures.keys() | sweeps.keys()):
            parts = {"image_2": pictures.get(stem), "velodyne": sweeps.get(stem), "calib": calibrations.get(stem)}
            missing = [folder for folder, path in parts.items() if path is None]
            if missing:
                self._problems.append(Problem(f"{split}/{stem}", f"no file in {', '.join(missing)}"))
            else:
                self._items.append((f"{split}/{stem}", pictures[stem], sweeps[stem], calibrations[stem]))
        if not self._items and not self._problems:
            raise DataError("no frames", where=self.base)

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True where training/ or testing/ holds image_2 and calib."""
        return any((path / split / "image_2").is_dir() and (path / split / "calib").is_dir() for split in SPLITS)

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open the folder that holds training/ or testing/.

        Raises:
            DataError: another layout, or a split that is not there.
        """
        root, _ = split_options(path, {})
        present = [name for name in SPLITS if (root / name / "image_2").is_dir()]
        if not present:
            raise DataError("not the KITTI object layout", where=root, why="no training/image_2")
        if split is not None and split not in present:
            raise DataError("no such split", where=split, mend=closest(split, present))
        return cls(root, split or present[0])

    def __len__(self) -> int:
        """Number of complete frames."""
        return len(self._items)

    def names(self) -> list[str]:
        """`SPLIT/NNNNNN`, sorted."""
        return [item[0] for item in self._items]

    def problems(self) -> list[Problem]:
        """Frames without picture, sweep or calibration."""
        return list(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Read one frame.

        Raises:
            ImageReadError: a damaged picture or sweep.
            DataError: a damaged calibration.
        """
        name, picture, sweep, calibration = self._items[index]
        image = read_image(picture)
        size = image.shape[0], image.shape[1]
        camera, projection = _read_camera(calibration)
        check_intrinsics(camera, size, calibration)
        depth = Depth(project_sweep(read_sweep(sweep), projection, size), self.kind, camera, str(sweep))
        check_metres(depth, self.max_depth)
        return Sample(name, image, depth, camera)


def _read_camera(path: Path) -> tuple[Intrinsics, NDArray[np.float64]]:
    calibration = read_calibration(path)
    p2 = matrix(calibration, "P2", (3, 4), path)
    rectify = homogeneous(matrix(calibration, "R0_rect", (3, 3), path))
    velo = matrix(calibration, "Tr_velo_to_cam", (3, 4), path)
    camera = Intrinsics(float(p2[0, 0]), float(p2[1, 1]), float(p2[0, 2]) + 0.5, float(p2[1, 2]) + 0.5)
    return camera, p2 @ rectify @ homogeneous(velo[:, :3], velo[:, 3])


def _stems(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*") if path.suffix in suffixes}
