"""Pseudo-labels: pictures with the depth that teachers gave them, from label stores or folders of PNG files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leadline.data.dataset import Dataset, Problem, Sample, open_dataset
from leadline.data.label_store import LabelStore, is_store, picture_hash
from leadline.depth import Depth, Kind
from leadline.errors import DataError, KindError
from leadline.image import SUFFIXES, read_depth_png, read_image, resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.data.label_store import Facts


@dataclass(frozen=True)
class _Labelled:
    """One picture and one teacher's label of it."""

    name: str
    picture: Callable[[], Sample]
    label: Callable[[tuple[int, int]], Depth]
    facts: Callable[[], Facts] | None = None  # of a label store


class Format(Dataset):
    """`pseudo:PICTURES,LABELS`: pictures with a teacher's labels; `pseudo:PICTURES,LABELS,LABELS` with several.

    LABELS is a store of `leadline pseudo-label`, whose labels have the store's kind, and PICTURES then anything that
    was labelled (a folder, a film, a data set). Or LABELS is a folder of LABELS/stem.png (8 or 16 bits, relative
    disparity, larger = nearer) for PICTURES/stem.jpg. With several teachers a picture occurs once for each, all of one
    kind, named `name@LABELS`.

    Labels of relative kinds have a scale and shift of their own each, so only losses and protocols that forgive both
    may use them. A label of another size than its picture (teachers often store less) is enlarged bilinearly.
    """

    format: ClassVar[str] = "pseudo"

    def __init__(self, pictures: str, folders: list[Path], split: str | None) -> None:
        self.items: list[_Labelled] = []
        self.alone: list[str] = []
        kinds = {folder: LabelStore(folder).info.kind if is_store(folder) else _PNG_KIND for folder in folders}
        self.kind = kinds[folders[0]]
        if set(kinds.values()) != {self.kind}:
            why = ", ".join(f"{folder.name}: {kind}" for folder, kind in kinds.items())
            mend = "give each kind a source of its own"
            raise KindError("teachers of different kinds in one data set", where=pictures, why=why, mend=mend)
        for folder in folders:
            found = _of_store(pictures, LabelStore(folder), split) if is_store(folder) else _of_folder(pictures, folder)
            items, alone = found
            if not items:
                why = f"no name occurs in {folder} too"
                raise DataError("no labelled pictures", where=pictures, why=why, mend="run `leadline pseudo-label`")
            mark = f"@{folder.name}" if len(folders) > 1 else ""
            self.items += [replace(item, name=item.name + mark) for item in items]
            self.alone += [name + mark for name in alone]
        self.name = Path(pictures).name
        self.source = f"{pictures} with labels of {', '.join(str(folder) for folder in folders)}"
        self.licence = _licence(folders)

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Never: pictures and labels must be named."""
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open `PICTURES,LABELS` or `PICTURES,LABELS,LABELS,...`; a split is one of the pictures' data set.

        Raises:
            DataError: a folder is missing, nothing pairs, or a split of a plain folder was asked for.
            KindError: the labels are of different kinds.
        """
        pictures, *labels = path.split(",")
        if not labels:
            raise DataError("pseudo-labels need pictures and labels", where=path, mend="write pseudo:PICTURES,LABELS")
        folders = [Path(folder) for folder in labels]
        for folder in folders:
            if not folder.is_dir():
                raise DataError("no such folder", where=folder)
            if split is not None and not is_store(folder):
                raise DataError("pseudo-labels in a plain folder have no splits", where=split)
        return cls(pictures, folders, split)

    def __len__(self) -> int:
        return len(self.items)

    def names(self) -> list[str]:
        """Names of the pictures, in order."""
        return [item.name for item in self.items]

    def problems(self) -> list[Problem]:
        """Pictures without a label."""
        return [Problem(name, "no label", "run the teacher on it", fatal=False) for name in self.alone]

    def doubt(self, index: int, sample: Sample) -> Problem | None:
        """A picture of the labelled one's size whose pixels are others than those that were labelled."""
        facts = self.items[index].facts
        if facts is None:
            return None
        known, (height, width) = facts(), sample.image.shape[:2]
        same_size = (height, width) == (known.picture_height, known.picture_width)
        if not same_size or known.picture == picture_hash(sample.image):
            return None
        mend = "if it was replaced, delete its label and run the teacher again; a copy that was stored anew may stay"
        return Problem(sample.name, "the label was made for other pixels", mend, fatal=False)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        seen = item.picture()
        depth = item.label((seen.image.shape[0], seen.image.shape[1]))
        return Sample(item.name, seen.image, depth, seen.intrinsics, seen.pose)


_PNG_KIND = Kind.RELATIVE_DISPARITY


def _of_store(pictures: str, store: LabelStore, split: str | None) -> tuple[list[_Labelled], list[str]]:
    dataset = open_dataset(pictures, split, skip_bad=True)
    known = set(store.names())

    def labelled(index: int, name: str) -> _Labelled:
        def label(size: tuple[int, int]) -> Depth:
            depth = store.get(name, size)
            if depth is None:
                raise DataError("the label has gone", where=store.path(name), mend="run `leadline pseudo-label` again")
            return depth

        return _Labelled(name, lambda: dataset[index], label, lambda: store.facts(name))

    names = dataset.names()
    items = [labelled(index, name) for index, name in enumerate(names) if name in known]
    return items, [name for name in names if name not in known]


def _of_folder(pictures: str, labels: Path) -> tuple[list[_Labelled], list[str]]:
    if not Path(pictures).is_dir():
        raise DataError("no such folder", where=pictures)
    found = {path.stem: path for path in sorted(Path(pictures).iterdir()) if path.suffix.lower() in SUFFIXES}
    stems = {path.stem: path for path in sorted(labels.glob("*.png"))}

    def labelled(name: str) -> _Labelled:
        def label(size: tuple[int, int]) -> Depth:
            raw = read_depth_png(stems[name]).astype(np.float32)
            values = np.asarray(resize(raw, size, "bilinear"), np.float32)
            return Depth(values, _PNG_KIND, source=str(stems[name]))

        return _Labelled(name, lambda: Sample(name, read_image(found[name])), label)

    return [labelled(name) for name in found if name in stems], [name for name in found if name not in stems]


def _licence(folders: list[Path]) -> str:
    """The teachers' licences: they may bind what is trained on their labels."""
    found = {LabelStore(folder).info.licence for folder in folders if is_store(folder)}
    return f"labels of teachers under {', '.join(sorted(found))}" if found else "unknown"
