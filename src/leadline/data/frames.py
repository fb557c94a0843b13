"""`frames`: pictures that follow one another, from a folder or a film, with the camera that took them.

```
frames:FOLDER?fov=60               each folder that holds pictures is a sequence, in natural order (2 before 10)
frames:FOLDER                      with FOLDER/intrinsics.txt (or one per sequence), or a dataset.json with intrinsics
frames:film.mp4?fov=60&every=2     any film that FFmpeg reads; fps=10 keeps at most ten frames a second instead
frames:FILMS?fx=700&fy=700&cx=640&cy=360      a folder of films, each a sequence
```

The camera is needed for self-supervision only. `fov` is the horizontal field of view in degrees, pixels square;
fx, fy, cx, cy are pixels of the upright frame as stored, centres at integers + 0.5.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from leadline.data import video
from leadline.data.dataset import Dataset, Problem, Sample
from leadline.data.units import check_intrinsics
from leadline.depth import Intrinsics
from leadline.errors import DataError, closest
from leadline.image import SUFFIXES, read_image

if TYPE_CHECKING:
    from leadline.data.dataset import Offset

LIMITS = {
    "fov": (1.0, 179.0),
    "fx": (1e-3, 1e6),
    "fy": (1e-3, 1e6),
    "cx": (0.0, 1e6),
    "cy": (0.0, 1e6),
    "every": (1.0, 1e6),
    "fps": (1e-3, 1e4),
    "height": (16.0, 8192.0),
}
WHOLE = ("every", "height")
PINHOLE = ("fx", "fy", "cx", "cy")
KEPT_HEIGHT = 480  # rows of a film's frames that are kept


@dataclass(frozen=True)
class StatedCamera:
    """A camera as stated: by its field of view, or by its matrix for pictures of `size` (height, width; None: any)."""

    where: object
    fov_deg: float | None = None
    pinhole: Intrinsics | None = None
    size: tuple[int, int] | None = None

    def intrinsics(self, stored: tuple[int, int], kept: tuple[int, int], name: str) -> Intrinsics:
        """The camera of a picture of `kept` size whose file has `stored` size.

        Raises:
            DataError: it is for another size, or does not fit the picture (FAULTS row 36).
        """
        if self.pinhole is None:
            return Intrinsics.from_fov(self.fov_deg or 0.0, *kept)
        if self.size is not None and self.size != stored:
            why = f"it is for {self.size[0]}x{self.size[1]}, the picture is {stored[0]}x{stored[1]} (height x width)"
            raise DataError("intrinsics are for another size", where=name, why=why, mend=f"see {self.where}")
        check_intrinsics(self.pinhole, stored, self.where)
        return self.pinhole.resized(kept[0] / stored[0], kept[1] / stored[1])


@dataclass(frozen=True)
class Still:
    """One picture of a folder."""

    name: str
    sequence: int
    path: Path


@dataclass(frozen=True)
class Moment:
    """One kept frame of a film."""

    name: str
    sequence: int
    film: video.Film
    place: int


class Format(Dataset):
    """Sequences of pictures without depth: `frames:FOLDER?fov=60`, `frames:film.mp4?fov=60&every=2`.

    Each folder that holds pictures is a sequence, in natural order, and so is each film; neighbours are the frames
    before and after. The camera, which self-supervision needs, is `fov` (horizontal, degrees), or `fx`, `fy`, `cx` and
    `cy` in pixels, or stated in an intrinsics.txt (`fx fy cx cy`) or dataset.json beside the pictures. `every=N` takes
    each N-th frame, `fps=N` at most N of a film's frames a second. A folder's pictures are read at their own size; a
    film is decoded once, when the data set is opened, its frames kept at `height` rows (480).
    """

    format = "frames"

    def __init__(self, root: Path, options: dict[str, float]) -> None:
        self.root, self.name = root, root.resolve().stem
        self._items: list[Still | Moment] = []
        self._cameras: dict[int, StatedCamera] = {}
        self._problems: list[Problem] = []
        stated = _stated(options, root)
        every = int(options.get("every", 1))
        base = root if root.is_dir() else root.parent
        for number, (folder, stills) in enumerate(_sequences(root, SUFFIXES)):
            self._items += [Still(_name(path, base, stills), number, path) for path in stills[::every]]
            camera = stated or _beside(folder, root)
            if camera is not None:
                self._cameras[number] = camera
        sequence = len(self._items)  # no folder has that number
        films = [root] if root.is_file() else [film for _, found in _sequences(root, video.SUFFIXES) for film in found]
        for path in films:
            sequence = self._film(path, base, sequence, stated or _beside(path.parent, base), options)
        if not self._items:
            mend = f"expected pictures ({', '.join(SUFFIXES[:3])}, ...) or films ({', '.join(video.SUFFIXES[:3])}, ...)"
            raise DataError("no frames", where=root, mend=mend)

    def _film(
        self, path: Path, base: Path, sequence: int, camera: StatedCamera | None, options: dict[str, float]
    ) -> int:
        """Add a film's frames; each unbroken stretch is a sequence. Returns the next free number."""
        height, every = int(options.get("height", KEPT_HEIGHT)), int(options.get("every", 1))
        film = video.Film(path, height, every, options.get("fps"))
        film.decode()
        stem = path.relative_to(base).as_posix()
        for place, (number, run) in enumerate(film.kept):
            self._items.append(Moment(f"{stem}/{number:06d}", sequence + run, film, place))
            if camera is not None:
                self._cameras[sequence + run] = camera
        self._problems += [Problem(stem, said, "", fatal=False) for said in film.account.complaints()]
        return sequence + film.kept[-1][1] + 1

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True for a film; a folder of pictures is `folder` unless this format is named."""
        return path.is_file() and path.suffix.lower() in video.SUFFIXES

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open a folder of pictures, a film, or a folder of films.

        Raises:
            DataError: nothing there, an option out of range, a film that cannot be decoded, or a split.
            UnavailableError: a film, and PyAV is not installed.
        """
        place, _, query = path.partition("?")
        if query and Path(path).exists():
            place, query = path, ""
        if not place or not Path(place).exists():
            raise DataError(
                "cannot open the data set", where=place, why="no such file or folder", mend="check the path"
            )
        if split is not None:
            raise DataError("no such split", where=split, why="frames have no splits", mend="leave the split out")
        return cls(Path(place), _options(query, path))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._items)

    def names(self) -> list[str]:
        """Relative paths without suffix; FILM/NUMBER for films, counted over all its frames."""
        return [item.name for item in self._items]

    def problems(self) -> list[Problem]:
        """Films that are incomplete; what decoded is used."""
        return list(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Read one frame; its camera is None where none is stated.

        Raises:
            ImageReadError: a damaged picture.
            DataError: a camera that does not fit.
        """
        item = self._items[index]
        image = read_image(item.path) if isinstance(item, Still) else item.film.image(item.place)
        size = image.shape[0], image.shape[1]
        camera = self._cameras.get(item.sequence)
        stored = size if isinstance(item, Still) else item.film.full
        return Sample(item.name, image, None, camera.intrinsics(stored, size, item.name) if camera else None)

    def neighbour_name(self, index: int, offset: Offset) -> str | None:
        """The frame's name; None beyond the ends of the sequence."""
        there = self._step(index, offset)
        return None if there is None else self._items[there].name

    def neighbour(self, index: int, offset: Offset) -> Sample | None:
        """The frame itself."""
        there = self._step(index, offset)
        return None if there is None else self[there]

    def _step(self, index: int, offset: Offset) -> int | None:
        if offset == "stereo":
            return None
        index = range(len(self))[index]
        there = index + int(offset)
        inside = 0 <= there < len(self) and self._items[there].sequence == self._items[index].sequence
        return there if inside else None


def _options(query: str, reference: str) -> dict[str, float]:
    options: dict[str, float] = {}
    for part in filter(None, query.split("&")):
        key, _, text = part.partition("=")
        if key not in LIMITS:
            why = f"unknown option {key!r}"
            raise DataError("cannot open the data set", where=reference, why=why, mend=closest(key, LIMITS))
        low, high = LIMITS[key]
        try:
            value = float(int(text)) if key in WHOLE else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            mend = f"use a {'whole ' if key in WHOLE else ''}number from {low:g} to {high:g}"
            raise DataError("option out of range", where=reference, why=part, mend=mend)
        options[key] = value
    if "every" in options and "fps" in options:
        raise DataError("two ways to thin a film", where=reference, why="every and fps", mend="give one of them")
    return options


def _stated(options: dict[str, float], root: Path) -> StatedCamera | None:
    """The camera that the reference itself gives."""
    given = [key for key in PINHOLE if key in options]
    if "fov" in options:
        if given:
            raise DataError("two cameras stated", where=root, why=f"fov and {given[0]}", mend="give one of them")
        return StatedCamera(f"fov={options['fov']:g}", fov_deg=options["fov"])
    if not given:
        return None
    if len(given) < len(PINHOLE):
        mend = "give fx, fy, cx and cy in pixels, or fov in degrees"
        raise DataError("incomplete camera", where=root, why=f"only {', '.join(given)}", mend=mend)
    return StatedCamera("fx, fy, cx, cy", pinhole=Intrinsics(*(options[key] for key in PINHOLE)))


def _beside(folder: Path, root: Path) -> StatedCamera | None:
    """The camera that a file in the sequence's folder, or in one above it up to the root, states."""
    for place in (folder, *folder.parents):
        if (place / "intrinsics.txt").is_file():
            return StatedCamera(place / "intrinsics.txt", pinhole=_matrix(place / "intrinsics.txt"))
        described = _described(place / "dataset.json")
        if described is not None:
            return described
        if place == root:
            break
    return None


def _matrix(path: Path) -> Intrinsics:
    """`fx fy cx cy`, or the nine numbers of the camera matrix; what follows a # is a remark.

    Raises:
        DataError: anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        numbers = [float(x) for line in lines for x in re.split(r"[\s,;]+", line.partition("#")[0]) if x]
    except (OSError, ValueError) as error:
        raise DataError("cannot read the intrinsics", where=path, why=str(error)) from error
    if len(numbers) == 4:
        return Intrinsics(*numbers)
    k = np.array(numbers)
    if len(numbers) == 9 and np.allclose(k[[3, 6, 7]], 0) and k[8] == 1 and abs(k[1]) < 1e-3 * abs(k[0]):
        return Intrinsics(*(float(x) for x in k[[0, 4, 2, 5]]))
    mend = "write `fx fy cx cy` in pixels, or the 3 x 3 camera matrix row by row, without skew"
    raise DataError("not a camera", where=path, why=f"{len(numbers)} numbers", mend=mend)


class _Pinhole(BaseModel):
    fx: float
    fy: float
    cx: float
    cy: float


class _Described(BaseModel):
    """The part of a dataset.json that concerns the camera."""

    model_config = ConfigDict(extra="ignore")
    width: int | None = None
    height: int | None = None
    intrinsics: _Pinhole | None = None


def _described(path: Path) -> StatedCamera | None:
    if not path.is_file():
        return None
    try:
        says = _Described.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DataError("not a valid dataset.json", where=path, why=why) from error
    if says.intrinsics is None:
        return None
    size = (says.height, says.width) if says.height and says.width else None
    return StatedCamera(path, pinhole=Intrinsics(**says.intrinsics.model_dump()), size=size)


def _sequences(root: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, list[Path]]]:
    """Each folder at or below `root` that holds such files, with them, both in natural order."""
    if not root.is_dir():
        return []
    found: dict[Path, list[Path]] = {}
    for path in root.rglob("[!.]*"):
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.parent, []).append(path)
    return [(folder, sorted(found[folder], key=natural)) for folder in sorted(found, key=natural)]


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key that counts: img2 before img10."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _name(path: Path, root: Path, siblings: list[Path]) -> str:
    twin = any(other.stem == path.stem and other != path for other in siblings)
    relative = path.relative_to(root)
    return relative.as_posix() if twin else relative.with_suffix("").as_posix()
