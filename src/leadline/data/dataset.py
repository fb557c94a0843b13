"""Data sets: pictures with depth, kinds, units and cameras, opened by format and path."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import DataError, closest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

Offset = int | Literal["stereo"]  # steps along the sequence, or the other eye of a stereo pair

FORMATS = {
    "rendered": "leadline.data.rendered",
    "nyu-mat": "leadline.data.nyu",
    "fastdepth-h5": "leadline.data.fastdepth_h5",
    "kitti-raw": "leadline.data.kitti",
    "kitti-object": "leadline.data.kitti_object",
    "ddad": "leadline.data.ddad",
    "pseudo": "leadline.data.pseudo",
    "frames": "leadline.data.frames",
    "folder": "leadline.data.folder",
}


@dataclass(frozen=True)
class Sample:
    """One picture with what is known about it.

    Args:
        name: unique in its data set; a relative path without suffix where files exist.
        image: H x W x 3 uint8 RGB.
        depth: H x W, in the data set's kind; 0 where nothing was measured (readers turn NaN, infinity and negative
            values into 0; NaN for relative disparity, where 0 is a value). None for pictures without depth.
        intrinsics: the picture's camera in pixels, if known.
        pose: 4 x 4 float64, camera to world, metres, if known.
    """

    name: str
    image: NDArray[np.uint8]
    depth: Depth | None = None
    intrinsics: Intrinsics | None = None
    pose: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong with one item of a data set: what, and how to mend it. Fatal ones make the item unusable."""

    item: str
    what: str
    mend: str = ""
    fatal: bool = True


class Dataset(ABC):
    """A finite, indexed collection of samples; a format is one module that subclasses this and is listed in FORMATS.

    A format's module names its class `Format`.
    """

    format: ClassVar[str]
    name: str
    kind: Kind = Kind.METRIC_DEPTH
    max_depth: float | None = None  # metres; values above are not trusted
    licence: str = "unknown"
    source: str = ""

    @classmethod
    @abstractmethod
    def detect(cls, path: Path) -> bool:
        """True where `path` looks like this format."""

    @classmethod
    @abstractmethod
    def open(cls, path: str, split: str | None) -> Dataset:
        """Open the data set at `path`.

        Raises:
            DataError: the layout contradicts the format, or the split does not exist (the message lists those that do).
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            ImageReadError, DataError: a file of the sample is damaged or contradicts the data set.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all samples, in order, without reading them."""

    def problems(self) -> list[Problem]:
        """What is wrong with the layout, found without decoding (pictures without depth, and the reverse).

        The items concerned are not among the samples; `open_dataset` refuses them unless told to leave them out.
        """
        return []

    def doubt(self, index: int, sample: Sample) -> Problem | None:
        """What speaks against a sample that was read without a fault, for `leadline data check`; None where nothing."""
        return None

    def neighbour_name(self, index: int, offset: Offset) -> str | None:
        """Name of the frame `offset` steps away, found without decoding; None where there is none.

        Args:
            index: of the sample.
            offset: steps along the sequence, never 0, or `stereo` for the other eye at the same moment.
        """
        return None

    def neighbour(self, index: int, offset: Offset) -> Sample | None:
        """The picture of that frame, without depth; None where there is none.

        Raises:
            ImageReadError, DataError: its file is damaged or contradicts the data set.
        """
        return None

    def relative_pose(self, index: int, offset: Offset) -> NDArray[np.float64] | None:
        """4 x 4, metres: from the sample's camera to that neighbour's, where a calibration knows it.

        None where it does not; the samples' own poses may still tell.
        """
        return None

    def with_neighbours(self, offsets: Sequence[Offset]) -> list[int]:
        """Indices of the samples that have all of these neighbours, found without decoding."""
        return [
            index
            for index in range(len(self))
            if all(self.neighbour_name(index, offset) is not None for offset in offsets)
        ]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def open_dataset(reference: str, split: str | None = None, *, skip_bad: bool = False) -> Dataset:
    """Open a data set by reference.

    Args:
        reference: `rendered`, a path whose format is recognised, or `FORMAT:PATH`. A format's options follow the path
            as in `kitti-raw:PATH?camera=3&rule=bit-faithful`, a part of it follows all as in `PATH#train`.
        split: the part, where the reference does not name it (`train`, `test`, ...); None for the format's default.
        skip_bad: leave incomplete items out (`problems()` lists them) instead of refusing the data set.

    Raises:
        DataError: unknown format, missing path, a layout that no format recognises, or incomplete items.
    """
    reference, named = part_of(reference)
    if named is not None and split not in (None, named):
        why = f"the reference names {named!r}, the split is {split!r}"
        raise DataError("two parts of a data set", where=reference, why=why, mend="name one of them")
    split = named or split
    name, _, rest = reference.partition(":")
    if name not in FORMATS:
        name, rest = _recognised(reference), reference
    dataset = _format(name).open(rest, split)
    bad = [problem for problem in dataset.problems() if problem.fatal]
    if bad and not skip_bad:
        why = f"{len(bad)} incomplete item{'s' if len(bad) > 1 else ''}, the first: {bad[0].item}: {bad[0].what}"
        mend = "`leadline data check` lists them all; --skip-bad leaves them out"
        raise DataError("incomplete data set", where=reference, why=why, mend=mend)
    return dataset


def part_of(reference: str) -> tuple[str, str | None]:
    """`DATA#SPLIT` as data and split, `DATA` and None where none is named or something at that very path exists."""
    data, mark, split = reference.rpartition("#")
    name, _, rest = reference.partition(":")
    if not mark or Path(rest if name in FORMATS else reference).exists():
        return reference, None
    return data, split


def split_options(reference: str, known: Mapping[str, tuple[str, ...]]) -> tuple[Path, dict[str, str]]:
    """The path and the options of `PATH?key=value&key=value`; an option that is not given has its first value.

    Args:
        reference: what follows the format's name.
        known: the values that each option may have, the default first.

    Raises:
        DataError: missing path, unknown option or value.
    """
    path, _, query = reference.partition("?")
    if query and Path(reference).exists():
        path, query = reference, ""
    if not path or not Path(path).exists():
        raise DataError("cannot open the data set", where=path, why="no such file or folder", mend="check the path")
    chosen = {key: values[0] for key, values in known.items()}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in known:
            why = f"unknown option {key!r}" if known else f"unknown option {key!r}; this format has none"
            mend = closest(key, known) if known else f"write {path}"
            raise DataError("cannot open the data set", where=reference, why=why, mend=mend)
        if value not in known[key]:
            why = f"option {key} cannot be {value!r}"
            raise DataError("cannot open the data set", where=reference, why=why, mend=closest(value, known[key]))
        chosen[key] = value
    return Path(path), chosen


def _recognised(reference: str) -> str:
    path = Path(reference)
    if not path.exists():
        path = Path(reference.partition("?")[0])
    if not path.exists():
        name, colon, _ = reference.partition(":")
        hint = closest(name, FORMATS if colon else ["rendered"])  # the one format without a path
        mend = hint if colon or hint.startswith("did you mean") else "check the path"
        raise DataError("cannot open the data set", where=reference, why="no such file or folder", mend=mend)
    if path.is_dir() and not any(path.iterdir()):
        raise DataError("no data", where=path, why="the folder is empty")
    for known in list(FORMATS)[1:]:  # the first is made, not found
        if _format(known).detect(path):
            return known
    mend = f"name the format, as in FORMAT:{reference}; formats: {', '.join(FORMATS)}"
    raise DataError("no known data set layout", where=path, mend=mend)


def _format(name: str) -> type[Dataset]:
    kind: type[Dataset] = importlib.import_module(FORMATS[name]).Format
    return kind


class Subset(Dataset):
    """Samples `first` to `last` - 1 of another data set, with everything else unchanged."""

    format = "subset"

    def __init__(self, whole: Dataset, first: int = 0, last: int | None = None) -> None:
        self.whole = whole
        self.span = range(len(whole))[first:last]
        if not self.span:
            why = f"{first}:{last} of {len(whole)} samples"
            raise DataError("an empty part of a data set", where=whole.name, why=why)
        self.name, self.kind, self.max_depth = whole.name, whole.kind, whole.max_depth
        self.licence, self.source = whole.licence, whole.source

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Never: a part is made from a data set, not from a path."""
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Dataset:
        """Not from a path.

        Raises:
            DataError: always.
        """
        raise DataError("a part of a data set has no path of its own", where=path)

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.span[index]]

    def names(self) -> list[str]:
        """Names of the part's samples, in order."""
        every = self.whole.names()
        return [every[index] for index in self.span]

    def neighbour_name(self, index: int, offset: Offset) -> str | None:
        """As in the whole: a neighbour may lie outside the part."""
        return self.whole.neighbour_name(self.span[index], offset)

    def neighbour(self, index: int, offset: Offset) -> Sample | None:
        """As in the whole."""
        return self.whole.neighbour(self.span[index], offset)

    def relative_pose(self, index: int, offset: Offset) -> NDArray[np.float64] | None:
        """As in the whole."""
        return self.whole.relative_pose(self.span[index], offset)
