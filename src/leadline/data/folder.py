"""`folder`: pictures with depth of the same stem and a dataset.json that says what the depth means; or pictures alone.

```
dataset.json             {"kind": "metric_depth", "unit": "m", "depth_scale": 1000, ...}
images/a.jpg             or rgb/; any format that leadline.image reads
depth/a.png              or .npy, .npz; depth = value / depth_scale + depth_offset
train/images, ...        one such pair per split where dataset.json names splits, with an optional list.txt of stems
```
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leadline.data.arrays import read_array
from leadline.data.dataset import Dataset, Problem, Sample, split_options
from leadline.data.units import check_intrinsics, check_metres, clean
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import DataError, closest
from leadline.image import SUFFIXES, read_depth_png, read_image, resize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from numpy.typing import NDArray

MAPS = (".png", ".npy", ".npz")
PICTURE_DIRS = ("rgb", "images")
TEMPLATE = '{"kind": "metric_depth", "unit": "m", "depth_scale": 1000}'
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Split(BaseModel):
    """One part of a folder data set: `dir` relative to dataset.json."""

    dir: str = "."


class Camera(BaseModel):
    """The pinhole camera of all pictures, in pixels of the stated width and height."""

    fx: float
    fy: float
    cx: float
    cy: float


class Description(BaseModel):
    """What dataset.json must and may say; other keys are the owner's notes and are left alone."""

    model_config = ConfigDict(extra="ignore")

    kind: Kind
    unit: Literal["m", "none"]
    depth_scale: Positive  # stored value per unit
    depth_offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    invalid_value: float | None = None  # stored value that means "not measured"; 0 for depth where the key is absent
    max_depth: Positive | None = None
    name: str = ""
    licence: str = "unknown"
    source: str = ""
    width: int | None = None
    height: int | None = None
    intrinsics: Camera | None = None
    align: Literal["exact", "resize"] = "exact"  # resize: depth of another size covers the same view
    image_dir: str | None = None  # relative to the split's folder
    depth_dir: str = "depth"
    splits: dict[str, Split] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unit != self.kind.unit:
            raise ValueError(f"kind {self.kind} has the unit {self.kind.unit!r}, not {self.unit!r}")
        if "invalid_value" not in self.model_fields_set and self.kind is not Kind.RELATIVE_DISPARITY:
            self.invalid_value = 0.0
        return self


class Format(Dataset):
    """A folder of pictures, with depth where a dataset.json says what the depth means.

    Without a split, all splits follow one another. Pictures and depth belong together by their stem; names are the
    pictures' relative paths without suffix.
    """

    format = "folder"

    def __init__(self, root: Path, description: Description | None, splits: list[str]) -> None:
        self.root, self.description = root, description
        self._items: list[tuple[str, Path, Path | None]] = []
        self._problems: list[Problem] = []
        self.name = root.resolve().name
        if description is None:
            self._items = _pictures_alone(root)
        else:
            self.name = description.name or self.name
            self.kind, self.max_depth = description.kind, description.max_depth
            self.licence, self.source = description.licence, description.source
            for split in splits:
                self._collect(description, description.splits[split].dir)
            if not description.splits:
                self._collect(description, ".")
        if not self._items and not self._problems:
            raise DataError("no pictures", where=root, mend=f"expected files ending in {', '.join(SUFFIXES)}")

    @classmethod
    def detect(cls, path: Path) -> bool:
        """True for a folder with a dataset.json, or with a picture anywhere in it."""
        return path.is_dir() and ((path / "dataset.json").is_file() or next(_walk(path), None) is not None)

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open a folder.

        Raises:
            DataError: no folder, a dataset.json that does not say kind, unit and scale, or an unknown split.
        """
        root, _ = split_options(path, {})
        if not root.is_dir():
            raise DataError("not a folder", where=root, mend="give the folder that holds the pictures")
        description = read_description(root / "dataset.json")
        known = list(description.splits) if description else []
        if split is not None and split not in known:
            mend = closest(split, known) if known else "this folder has no splits; leave the split out"
            raise DataError("no such split", where=split, mend=mend)
        return cls(root, description, known if split is None else [split])

    def _collect(self, description: Description, directory: str) -> None:
        base = self.root / directory
        names = [description.image_dir] if description.image_dir else PICTURE_DIRS
        image_dir = next((base / name for name in names if (base / name).is_dir()), None)
        depth_dir = base / description.depth_dir
        if image_dir is None or not depth_dir.is_dir():
            missing = " or ".join(names) + "/" if image_dir is None else f"{description.depth_dir}/"
            raise DataError("incomplete folder data set", where=base, why=f"no {missing}", mend="see dataset.json")
        pictures, maps = _by_stem(image_dir, SUFFIXES), _by_stem(depth_dir, MAPS)
        listing = base / "list.txt"
        wanted = _listed(listing) if listing.is_file() else sorted(pictures.keys() | maps.keys())
        prefix = "" if directory == "." else f"{directory}/"
        for stem in wanted:
            name = prefix + stem
            if stem in pictures and stem in maps:
                self._items.append((name, pictures[stem], maps[stem]))
            elif stem in pictures:
                self._problems.append(Problem(name, "picture without depth", f"add {description.depth_dir}/{stem}.png"))
            elif stem in maps:
                self._problems.append(Problem(name, "depth without picture", f"add {image_dir.name}/{stem}.jpg"))
            else:
                self._problems.append(Problem(name, "listed in list.txt, but neither picture nor depth exists"))

    def __len__(self) -> int:
        """Number of complete samples."""
        return len(self._items)

    def names(self) -> list[str]:
        """Relative paths without suffix, sorted or as list.txt orders them."""
        return [name for name, _, _ in self._items]

    def problems(self) -> list[Problem]:
        """Pictures without depth and the reverse."""
        return list(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            ImageReadError: a damaged file.
            DataError: sizes that differ, depth in another unit than declared, or a camera that does not fit.
        """
        name, picture, map_path = self._items[index]
        image = read_image(picture)
        if map_path is None or self.description is None:
            return Sample(name, image)
        size = image.shape[0], image.shape[1]
        camera = self._camera(self.description, size, picture)
        depth = Depth(_read_map(map_path, self.description, size), self.kind, camera, str(map_path))
        check_metres(depth, self.max_depth, self.description.depth_scale)
        return Sample(name, image, depth, camera)

    def _camera(self, says: Description, size: tuple[int, int], picture: Path) -> Intrinsics | None:
        if says.intrinsics is None:
            return None
        stated = (says.height or size[0], says.width or size[1])
        if stated != size:
            why = f"dataset.json says {stated[0]}x{stated[1]}, the picture is {size[0]}x{size[1]} (height x width)"
            mend = "give the intrinsics for the pictures' own size"
            raise DataError("intrinsics are for another size", where=picture, why=why, mend=mend)
        return check_intrinsics(Intrinsics(**says.intrinsics.model_dump()), size, self.root / "dataset.json")


def read_description(path: Path) -> Description | None:
    """Read dataset.json; None where there is none.

    Raises:
        DataError: broken JSON, a missing key, or an unknown kind or unit.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError("cannot read", where=path, why=error.strerror or str(error)) from error
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        mends = {
            "kind": f"kinds: {', '.join(Kind)}",
            "unit": 'unit is "m" for metric depth, else "none"; millimetres are unit "m" with depth_scale 1000',
            "depth_scale": "it is the stored value per unit: 1000 for millimetres, 256 for KITTI, 1 for metres",
        }
        why = f"{key}: {first['msg']}" if key else first["msg"]
        mend = mends.get(key, f"for example {TEMPLATE}")
        raise DataError("not a valid dataset.json", where=path, why=why, mend=mend) from error


def _read_map(path: Path, says: Description, size: tuple[int, int]) -> NDArray[np.float32]:
    stored = read_depth_png(path) if path.suffix.lower() == ".png" else np.squeeze(read_array(path))
    if stored.ndim != 2:
        raise DataError("a depth map must have two dimensions", where=path, why=f"got {stored.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and infinity is not measured
        values = np.asarray(stored / says.depth_scale + says.depth_offset, np.float32)
    if says.invalid_value is not None:
        values[stored == says.invalid_value] = np.nan
    values = clean(values, says.kind)
    if values.shape == size:
        return values
    if says.align == "resize":
        return np.ascontiguousarray(resize(values, size, "nearest"))
    why = f"depth is {values.shape[0]}x{values.shape[1]}, the picture {size[0]}x{size[1]} (height x width)"
    mend = 'where both show the same view, add "align": "resize" to dataset.json'
    raise DataError("picture and depth differ in size", where=path, why=why, mend=mend)


def _pictures_alone(root: Path) -> list[tuple[str, Path, Path | None]]:
    if (root / "depth").is_dir():
        why = "there is a depth/ folder, but nothing says what its values mean"
        raise DataError("no dataset.json", where=root, why=why, mend=f"write one, such as {TEMPLATE}")
    found = sorted(_walk(root))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in found]
    count = Counter(names)
    return [
        (path.relative_to(root).as_posix() if count[name] > 1 else name, path, None)
        for name, path in zip(names, found, strict=True)
    ]


def _walk(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _by_stem(directory: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below `directory` by their relative path without suffix.

    Raises:
        DataError: two files share a stem, so that a pair would be a guess.
    """
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("[!.]*")):
        if path.suffix.lower() not in suffixes:
            continue
        stem = path.relative_to(directory).with_suffix("").as_posix()
        if stem in found:
            why = f"{found[stem].name} is there too"
            raise DataError("two files of one stem", where=path, why=why, mend="keep one")
        found[stem] = path
    return found


def _listed(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read the list", where=path, why=str(error)) from error
    stems = [str(Path(line).with_suffix("")) if line.lower().endswith(SUFFIXES) else line for line in lines if line]
    if len(set(stems)) < len(stems):
        raise DataError("an item is listed twice", where=path, mend="name each once")
    return stems
