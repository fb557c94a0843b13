"""`kitti-raw`: the KITTI raw layout with projected sweeps or the improved ground truth (SPEC 4.3, 4.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from leadline.data.dataset import Dataset, Problem, Sample, split_options
from leadline.data.lidar import Rule, homogeneous, matrix, project_sweep, read_calibration, read_sweep
from leadline.data.oxts import car_motion, sensor_to_velodyne
from leadline.data.units import check_intrinsics, check_metres
from leadline.depth import Depth, Intrinsics
from leadline.errors import DataError, closest
from leadline.image import read_depth_png, read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.data.dataset import Offset

Truth = Literal["improved", "lidar", "none"]
SPLITS: dict[str, Truth] = {"depth": "improved", "lidar": "lidar", "all": "none"}
OPTIONS = {
    "camera": ("2", "3"),
    "rule": ("correct", "bit-faithful"),
    "truth": ("auto", "improved", "lidar", "none"),
    "intrinsics": ("calibration", "monodepth2"),
}
SIDES = {"l": 2, "r": 3, "2": 2, "3": 3}
DRIVES = "[0-9][0-9][0-9][0-9]_[0-9][0-9]_[0-9][0-9]/*_drive_*"


@dataclass(frozen=True)
class Frame:
    """One picture of a drive: `drive` is `DATE/DRIVE`, relative to the root."""

    drive: str
    index: int
    camera: int

    @property
    def date(self) -> str:
        """The folder of the calibration files."""
        return self.drive.partition("/")[0]

    @property
    def name(self) -> str:
        """The picture's relative path without suffix."""
        return f"{self.drive}/image_{self.camera:02d}/data/{self.index:010d}"

    def neighbour(self, offset: Offset) -> Frame:
        """The frame `offset` steps later in the drive, or of the other eye; it need not exist."""
        if offset == "stereo":
            return replace(self, camera=5 - self.camera)
        return replace(self, index=self.index + int(offset))

    def picture(self, root: Path) -> Path | None:
        """The picture's file, if it exists."""
        stem = root / self.name
        found = (stem.with_suffix(suffix) for suffix in (".jpg", ".png"))
        return next((path for path in found if path.is_file()), None)

    def truth(self, root: Path, truth: Truth) -> Path:
        """The file that the depth of this frame comes from."""
        if truth == "improved":
            place = f"proj_depth/groundtruth/image_{self.camera:02d}/{self.index:010d}.png"
        else:
            place = f"velodyne_points/data/{self.index:010d}.bin"
        return root / self.drive / place


class Format(Dataset):
    """KITTI raw.

    Splits: `depth` (frames with improved ground truth), `lidar` (frames with a sweep), `all` (every picture, without
    depth), or a file with lines `DATE/DRIVE FRAME SIDE`. Without one, the first of these three that is there. Options:
    `camera` 2 (left) or 3; `rule` for points that share a pixel, `correct` or `bit-faithful` (the old Eigen export);
    `truth`, which depth a split file takes: `auto` (improved where any listed frame has it, else lidar), `improved`,
    `lidar` or `none`; `intrinsics`, `calibration` (the drive's own, which counts pixel centres at integers + 0.5, half
    a pixel more than KITTI's files) or `monodepth2` (fx = 0.58 width, fy = 1.92 height, centred, the published values).
    Neighbours are the pictures before and after in the drive and the other eye's, listed in the split or not.
    """

    format = "kitti-raw"
    name = "kitti-raw"
    max_depth = 80.0
    licence = "KITTI: CC BY-NC-SA 3.0"
    source = "https://www.cvlibs.net/datasets/kitti/raw_data.php"

    def __init__(
        self, root: Path, frames: list[Frame], truth: Truth, rule: Rule, intrinsics: str = "calibration"
    ) -> None:
        self.root, self.truth, self.rule, self.intrinsics = root, truth, rule, intrinsics
        self._listed: dict[tuple[str, int], frozenset[int]] = {}  # frames of a drive's camera that have a picture
        self._frames: list[tuple[Frame, Path]] = []
        self._problems: list[Problem] = []
        for frame in frames:
            picture = frame.picture(root)
            depth_file = None if truth == "none" else frame.truth(root, truth)
            if picture is None:
                self._problems.append(Problem(frame.name, "no picture (.jpg or .png)"))
            elif depth_file is not None and not depth_file.is_file():
                what = f"picture without depth ({depth_file.relative_to(root / frame.drive)})"
                self._problems.append(Problem(frame.name, what, "for pictures alone: option truth=none"))
            else:
                self._frames.append((frame, picture))
        if not self._frames and not self._problems:
            raise DataError("no frames", where=root)

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True where a date folder holds a drive."""
        return path.is_dir() and next(path.glob(DRIVES), None) is not None

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open the folder that holds the dates.

        Raises:
            DataError: another layout, an unknown split, or a split file with a malformed line.
        """
        root, options = split_options(path, OPTIONS)
        rule, camera = cast("Rule", options["rule"]), int(options["camera"])
        if not cls.detect(root):
            why = "no folder such as 2011_09_26/2011_09_26_drive_0005_sync"
            raise DataError("not the KITTI raw layout", where=root, why=why)
        if split is not None and split not in SPLITS:
            frames = _read_split(Path(split), camera)
            return cls(root, frames, _choose_truth(root, frames, options["truth"]), rule, options["intrinsics"])
        listings = {name: _list_frames(root, camera, truth) for name, truth in SPLITS.items() if split in (name, None)}
        chosen = split or next((name for name, frames in listings.items() if frames), "all")
        if not listings[chosen]:
            mend = f"splits: {', '.join(SPLITS)}, or a file with lines `DATE/DRIVE FRAME SIDE`"
            raise DataError("empty split", where=chosen, why=f"no such files for camera {camera} in {root}", mend=mend)
        return cls(root, listings[chosen], SPLITS[chosen], rule, options["intrinsics"])

    def __len__(self) -> int:
        """Number of complete frames."""
        return len(self._frames)

    def names(self) -> list[str]:
        """The pictures' relative paths without suffix."""
        return [frame.name for frame, _ in self._frames]

    def problems(self) -> list[Problem]:
        """Frames without a picture, or without the depth that was asked for."""
        return list(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Read one frame.

        Raises:
            ImageReadError: a damaged file.
            DataError: a calibration that is missing or damaged, or depth of another size than the picture.
        """
        frame, picture = self._frames[index]
        image = read_image(picture)
        size = image.shape[0], image.shape[1]
        camera = self._camera(frame, size)
        if self.truth == "none":
            return Sample(frame.name, image, None, camera)
        path = frame.truth(self.root, self.truth)
        values = _improved(path) if self.truth == "improved" else self._swept(frame, path)
        if values.shape != size:
            why = f"depth is {values.shape[0]}x{values.shape[1]}, the picture {size[0]}x{size[1]} (height x width)"
            mend = "use the pictures at their original size"
            raise DataError("picture and depth differ in size", where=path, why=why, mend=mend)
        depth = Depth(values, self.kind, camera, str(path))
        check_metres(depth, self.max_depth)
        return Sample(frame.name, image, depth, camera)

    def neighbour_name(self, index: int, offset: Offset) -> str | None:
        """The picture's relative path without suffix; None beyond the drive's ends and where a picture is missing."""
        frame = self._frames[index][0].neighbour(offset)
        place = frame.drive, frame.camera
        if place not in self._listed:
            directory = (self.root / frame.name).parent
            found = directory.iterdir() if directory.is_dir() else ()
            stems = (path.stem for path in found if path.suffix in (".jpg", ".png"))
            self._listed[place] = frozenset(int(stem) for stem in stems if stem.isdecimal())
        return frame.name if frame.index in self._listed[place] else None

    def neighbour(self, index: int, offset: Offset) -> Sample | None:
        """The neighbour's picture and camera.

        Raises:
            ImageReadError, DataError: as for a sample.
        """
        frame = self._frames[index][0].neighbour(offset)
        picture = frame.picture(self.root)
        if picture is None:
            return None
        image = read_image(picture)
        return Sample(frame.name, image, None, self._camera(frame, (image.shape[0], image.shape[1])))

    def relative_pose(self, index: int, offset: Offset) -> NDArray[np.float64] | None:
        """How a point moves from this camera to the neighbour's, 4 x 4, metres.

        The other eye's place is that of the calibration; along the drive it is the car's own motion, as its GPS and
        inertial sensors recorded it.

        Returns:
            None where the calibration or the record of either frame is missing.

        Raises:
            DataError: a calibration or a record is damaged.
        """
        frame, date = self._frames[index][0], self.root / self._frames[index][0].date
        cameras = date / "calib_cam_to_cam.txt"
        if not cameras.is_file():
            return None
        if offset == "stereo":
            return homogeneous(np.eye(3), eye_position(cameras, 5 - frame.camera) - eye_position(cameras, frame.camera))
        motion = car_motion(self.root / frame.drive, frame.index, frame.index + int(offset))
        sensor = sensor_to_velodyne(date)
        if motion is None or sensor is None or not (date / "calib_velo_to_cam.txt").is_file():
            return None
        mounted = homogeneous(np.eye(3), eye_position(cameras, frame.camera)) @ velodyne_to_camera(date) @ sensor
        return np.asarray(mounted @ motion @ np.linalg.inv(mounted))

    def _camera(self, frame: Frame, size: tuple[int, int]) -> Intrinsics | None:
        if self.intrinsics == "monodepth2":
            return Intrinsics(0.58 * size[1], 1.92 * size[0], 0.5 * size[1], 0.5 * size[0])
        file = self.root / frame.date / "calib_cam_to_cam.txt"
        if not file.is_file():
            return None
        (height, width), projection = read_camera(file, frame.camera)
        fx, fy, cx, cy = (float(projection[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
        stretched = Intrinsics(fx, fy, cx + 0.5, cy + 0.5).resized(size[0] / height, size[1] / width)
        return check_intrinsics(stretched, size, file)

    def _swept(self, frame: Frame, path: Path) -> NDArray[np.float32]:
        size, projection = sweep_projection(self.root / frame.date, frame.camera)
        return project_sweep(read_sweep(path), projection, size, self.rule)


@lru_cache(maxsize=64)
def read_camera(file: Path, camera: int) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """The rectified camera 2 (left) or 3 (right) of a calib_cam_to_cam.txt.

    Returns:
        (height, width) in pixels, and the projection P_rect, 3 x 4.

    Raises:
        DataError: the file or a key is missing, or has another number of values.
    """
    entries = read_calibration(file)
    width, height = (round(side) for side in matrix(entries, f"S_rect_{camera:02d}", (1, 2), file)[0])
    return (height, width), matrix(entries, f"P_rect_{camera:02d}", (3, 4), file)


def eye_position(file: Path, camera: int) -> NDArray[np.float64]:
    """What is added to a point of the rectified camera 0 to see it from camera 2 or 3: 3, metres.

    P_rect = K [I | t] gives t = K^-1 P_rect[:, 3].

    Raises:
        DataError: as `read_camera`, or a camera matrix that cannot be inverted.
    """
    projection = read_camera(file, camera)[1]
    if abs(np.linalg.det(projection[:, :3])) < 1e-9:
        raise DataError("damaged calibration", where=file, why=f"P_rect_{camera:02d} has no inverse")
    return np.asarray(np.linalg.solve(projection[:, :3], projection[:, 3]))


@lru_cache(maxsize=64)
def sweep_projection(date: Path, camera: int) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """The picture's (height, width) and P_rect R_rect T_velo, 3 x 4: sweep to pixels.

    Raises:
        DataError: a calibration file or key is missing, or has another number of values.
    """
    size, projection = read_camera(date / "calib_cam_to_cam.txt", camera)
    return size, projection @ velodyne_to_camera(date)


@lru_cache(maxsize=64)
def velodyne_to_camera(date: Path) -> NDArray[np.float64]:
    """From the velodyne's axes to those of the rectified camera 0, R_rect T_velo, 4 x 4, metres.

    Raises:
        DataError: as `sweep_projection`.
    """
    cameras, sensor = date / "calib_cam_to_cam.txt", date / "calib_velo_to_cam.txt"
    rectify = homogeneous(matrix(read_calibration(cameras), "R_rect_00", (3, 3), cameras))
    velo = read_calibration(sensor)
    return np.asarray(rectify @ homogeneous(matrix(velo, "R", (3, 3), sensor), matrix(velo, "T", (1, 3), sensor)[0]))


def _improved(path: Path) -> NDArray[np.float32]:
    stored = read_depth_png(path)
    if stored.dtype != np.uint16:
        raise DataError("KITTI depth must be a 16-bit PNG", where=path, why=f"got {stored.dtype}")
    return stored.astype(np.float32) / np.float32(256)


def _list_frames(root: Path, camera: int, truth: Truth) -> list[Frame]:
    """All frames that have a picture (`none`), a sweep or improved depth."""
    suffixes: tuple[str, ...]
    if truth == "none":
        inner, suffixes = f"image_{camera:02d}/data", (".jpg", ".png")
    elif truth == "improved":
        inner, suffixes = f"proj_depth/groundtruth/image_{camera:02d}", (".png",)
    else:
        inner, suffixes = "velodyne_points/data", (".bin",)
    frames = [
        Frame(drive.relative_to(root).as_posix(), int(path.stem), camera)
        for drive in sorted(root.glob(DRIVES))
        for path in sorted((drive / inner).glob("*"))
        if path.suffix in suffixes and path.stem.isdecimal()
    ]
    return list(dict.fromkeys(frames))


def _read_split(path: Path, camera: int) -> list[Frame]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        why = f"neither {', '.join(SPLITS)} nor a split file: {error.strerror}"
        raise DataError("no such split", where=path, why=why, mend=closest(str(path), SPLITS)) from error
    except UnicodeDecodeError as error:
        raise DataError("not a split file", where=path, why="it is not text") from error
    frames = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        words = line.split()
        good = len(words) in (2, 3) and words[1].isdecimal()
        if not good or (len(words) == 3 and words[2] not in SIDES) or not re.fullmatch(r"[\w-]+/[\w-]+", words[0]):
            mend = "write `DATE/DRIVE FRAME SIDE`, as in 2011_09_26/2011_09_26_drive_0005_sync 8 l"
            raise DataError("malformed split file", where=path, why=f"line {number}: {line.strip()[:80]!r}", mend=mend)
        frames.append(Frame(words[0], int(words[1]), SIDES[words[2]] if len(words) == 3 else camera))
    if len(set(frames)) < len(frames):
        raise DataError("a frame is listed twice", where=path, mend="name each once")
    return frames


def _choose_truth(root: Path, frames: list[Frame], wanted: str) -> Truth:
    if wanted != "auto":
        return cast("Truth", wanted)
    return "improved" if any(frame.truth(root, "improved").is_file() for frame in frames) else "lidar"
