"""`ddad`: scenes in the DGP layout; depth is a sample's lidar sweep in one of its cameras (SPEC 9)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.arrays import read_array
from leadline.data.dataset import Dataset, Problem, Sample, split_options
from leadline.data.dgp import Index, Pose, Scene, SceneCalibration, parse
from leadline.data.lidar import scatter_nearest
from leadline.data.units import check_intrinsics, check_metres
from leadline.depth import Depth, Intrinsics
from leadline.errors import DataError, closest
from leadline.image import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = {"train": "0", "val": "1", "test": "2", "train_overfit": "3"}
CAMERAS = ("CAMERA_01", "CAMERA_05", "CAMERA_06", "CAMERA_07", "CAMERA_08", "CAMERA_09")
OPTIONS = {"camera": CAMERAS, "collisions": ("nearest", "last")}


@dataclass(frozen=True)
class Item:
    """One picture with the sweep of its sample; the test split has no sweeps."""

    name: str
    picture: Path
    picture_pose: Pose
    cloud: Path | None
    cloud_pose: Pose | None
    calibration: Path


class Format(Dataset):
    """DDAD, or any DGP scene data set.

    Splits: `train`, `val`, `test`, `train_overfit`; without one, every scene once. Options: `camera` (CAMERA_01), and
    `collisions`: `nearest` keeps the nearest point of a pixel; `last` repeats DGP, where the last one written stays.
    """

    format = "ddad"
    name = "ddad"
    max_depth = 250.0
    licence = "DDAD: CC BY-NC-SA 4.0"
    source = "https://github.com/TRI-ML/DDAD"

    def __init__(self, root: Path, scenes: list[str], camera: str, collisions: str) -> None:
        self.camera, self.collisions = camera, collisions
        self._items: list[Item] = []
        self._problems: list[Problem] = []
        for scene in scenes:
            self._collect(root / scene, Path(scene).parent.as_posix())
        if not self._items and not self._problems:
            raise DataError("no pictures", where=root, why=f"no sample has {camera}", mend="choose another camera")

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True for a dataset json with scene splits, or a folder that holds one beside scene folders."""
        if path.is_dir():
            return next(path.glob("*/scene_*.json"), None) is not None and _find_index(path) is not None
        return path.suffix == ".json" and _has_scenes(path)

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open the dataset json, or the folder that holds it.

        Raises:
            DataError: another layout, a damaged JSON file, or a split that is not there.
        """
        place, options = split_options(path, OPTIONS)
        file = place if place.is_file() else _find_index(place)
        if file is None:
            raise DataError("not the DGP layout", where=place, why="no dataset json with scene_splits")
        index = parse(Index, file).scene_splits
        present = [name for name, key in SPLITS.items() if key in index]
        if split is not None and split not in present:
            raise DataError("no such split", where=split, mend=closest(split, present))
        chosen = present if split is None else [split]
        scenes = list(dict.fromkeys(scene for name in chosen for scene in index[SPLITS[name]].filenames))
        for scene in scenes:
            if Path(scene).is_absolute() or ".." in Path(scene).parts:
                raise DataError("a scene outside the data set", where=file, why=scene)
        return cls(file.parent, scenes, options["camera"], options["collisions"])

    def _collect(self, file: Path, prefix: str) -> None:
        folder = file.parent
        scene = parse(Scene, file)
        data = {datum.key: datum for datum in scene.data}
        for number, entry in enumerate(scene.samples):
            datums = [data[key] for key in entry.datum_keys if key in data]
            image = next((d.datum.image for d in datums if d.datum.image and d.id.name == self.camera), None)
            cloud = next((d.datum.point_cloud for d in datums if d.datum.point_cloud), None)
            if image is None:
                self._problems.append(Problem(f"{prefix}/sample {number}", f"no picture of {self.camera}"))
                continue
            name = f"{prefix}/{Path(image.filename).with_suffix('').as_posix()}"
            picture = _inside(folder, image.filename, file)
            other = picture.with_suffix(".jpg" if picture.suffix == ".png" else ".png")
            picture = picture if picture.is_file() or not other.is_file() else other
            sweep = _inside(folder, cloud.filename, file) if cloud else None
            missing = [path for path in (picture, sweep) if path is not None and not path.is_file()]
            if missing:
                self._problems.append(Problem(name, f"no file {missing[0].relative_to(folder)}"))
                continue
            calibration = _inside(folder, f"calibration/{entry.calibration_key}.json", file)
            pose = cloud.pose if cloud else None
            self._items.append(Item(name, picture, image.pose, sweep, pose, calibration))

    def __len__(self) -> int:
        """Number of pictures of the chosen camera."""
        return len(self._items)

    def names(self) -> list[str]:
        """Relative paths of the pictures, without suffix, in the order of the scenes."""
        return [item.name for item in self._items]

    def problems(self) -> list[Problem]:
        """Samples whose picture or sweep is missing."""
        return list(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Read one picture and project its sweep.

        Raises:
            ImageReadError: a damaged picture or sweep.
            DataError: a damaged calibration.
        """
        item = self._items[index]
        image = read_image(item.picture)
        size = image.shape[0], image.shape[1]
        camera = _read_camera(item.calibration, self.camera)
        check_intrinsics(camera, size, item.calibration)
        pose = item.picture_pose.matrix()
        if item.cloud is None or item.cloud_pose is None:
            return Sample(item.name, image, None, camera, pose)
        points = read_array(item.cloud, "data")
        if points.ndim != 2 or points.shape[1] < 3 or not np.isfinite(points[:, :3]).all():
            raise DataError("damaged sweep", where=item.cloud, why=f"expected N x 4 numbers, got {points.shape}")
        to_camera = np.linalg.inv(pose) @ item.cloud_pose.matrix()
        values = project(points[:, :3].astype(np.float64), to_camera, camera, size, self.collisions)
        depth = Depth(values, self.kind, camera, str(item.cloud))
        check_metres(depth, self.max_depth)
        return Sample(item.name, image, depth, camera, pose)


def project(
    points: NDArray[np.float64],
    to_camera: NDArray[np.float64],
    camera: Intrinsics,
    size: tuple[int, int],
    collisions: str = "nearest",
) -> NDArray[np.float32]:
    """A point cloud as the depth map of a pinhole camera.

    Args:
        points: N x 3, metres, in the sensor's frame.
        to_camera: 4 x 4, sensor to camera (x right, y down, z forward).
        camera: the picture's camera.
        size: (height, width), pixels.
        collisions: `nearest`, or `last` to repeat DGP, which also cuts -0.5 to pixel 0.

    Returns:
        H x W float32, metres; 0 where no point falls.
    """
    x, y, z = to_camera[:3, :3] @ points.T + to_camera[:3, 3:]
    ahead = z > 0
    x, y, z = x[ahead], y[ahead], z[ahead]
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    if collisions == "nearest":
        return scatter_nearest(np.floor(v), np.floor(u), z, size)
    columns, rows = np.trunc(u), np.trunc(v)
    inside = (columns >= 0) & (rows >= 0) & (columns < size[1]) & (rows < size[0])
    out = np.zeros(size, np.float32)
    out[rows[inside].astype(np.intp), columns[inside].astype(np.intp)] = z[inside]
    return out


@lru_cache(maxsize=256)
def _read_camera(path: Path, name: str) -> Intrinsics:
    calibration = parse(SceneCalibration, path)
    if name not in calibration.names or len(calibration.names) != len(calibration.intrinsics):
        raise DataError("damaged calibration", where=path, why=f"no intrinsics of {name}")
    k = calibration.intrinsics[calibration.names.index(name)]
    if abs(k.skew) > 1e-6 * abs(k.fx):
        raise DataError("a camera with skew", where=path, why=f"{name}: skew {k.skew:g}")
    return Intrinsics(k.fx, k.fy, k.cx, k.cy)


def _find_index(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.json"), key=lambda path: (path.name != "ddad.json", path.name))
    return next((path for path in files if _has_scenes(path)), None)


def _has_scenes(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b'"scene_splits"' in file.read(2**20)
    except OSError:
        return False


def _inside(folder: Path, name: str, source: Path) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError("a file outside the scene", where=source, why=name)
    return folder / name
