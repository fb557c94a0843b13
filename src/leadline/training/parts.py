"""One source of the mix: which of its samples are drawn, with which neighbours and labels, decoded once where it pays.

A picture is kept shrunk, under its own name: as a sample and as the neighbour of two others it is decoded once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.transforms import shrink
from leadline.data.units import check_intrinsics
from leadline.errors import ConfigError, DataError, LeadlineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.data.dataset import Dataset, Offset, Sample
    from leadline.data.label_store import LabelStore
    from leadline.depth import Depth
    from leadline.training.config import Source

LOOKED_AT = 8  # pictures without depth after which a source counts as having none
ASPECT_SLACK = 1.5  # pixels by which a labelled picture's proportions may differ from the picture's


@dataclass(frozen=True)
class Item:
    """One sample with what its source adds.

    Args:
        sample: the picture, its depth (or label) and camera; shrunk.
        sources: its neighbours in the order of the source's `frames`, shrunk.
        poses: for each of them 4 x 4, metres, from the picture's camera to the neighbour's; None where unknown.
    """

    sample: Sample
    sources: tuple[Sample, ...] = ()
    poses: tuple[NDArray[np.float64] | None, ...] = ()


class Shelf:
    """Decoded pictures and depth, kept as long as there is room.

    Args:
        room: bytes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.pictures: dict[tuple[int, str], Sample] = {}
        self.depths: dict[tuple[int, str], Depth | None] = {}
        self._lock = threading.Lock()

    def keep(self, key: tuple[int, str], sample: Sample, *, whole: bool) -> None:
        """Keep a sample's picture and, where the sample is `whole`, its depth (or that it has none)."""
        with self._lock:
            cost = 0 if key in self.pictures else sample.image.nbytes
            cost += sample.depth.values.nbytes if whole and sample.depth else 0
            if cost > self.room or key in self.depths:
                return
            self.room -= cost
            self.pictures.setdefault(key, replace(sample, depth=None))
            if whole:
                self.depths[key] = sample.depth


class Part:
    """A range of a data set, and the order in which its samples are drawn.

    Args:
        dataset: the source's data set.
        source: what the configuration says about it.
        number: of the source in the mix.
        height: rows that pictures are shrunk to.
        shelf: shared by the sources of a mix.
        skip_bad: leave samples without a label out, instead of refusing the source.

    Raises:
        ConfigError: no sample is left, or frames that make no sense.
        DataError: labels are missing, or nothing has depth.
    """

    def __init__(
        self, dataset: Dataset, source: Source, number: int, *, height: int, shelf: Shelf, skip_bad: bool
    ) -> None:
        self.dataset, self.number, self.height, self.shelf = dataset, number, height, shelf
        self.frames: tuple[Offset, ...] = tuple(source.frames)
        self.bad: set[int] = set()  # indices that cannot be read
        self.notices: list[str] = []
        self.unlabelled: list[str] = []
        self._names = dataset.names()
        indices = np.arange(len(dataset))[source.first : source.last]
        if not len(indices):
            why = f"{source.first}:{source.last} of {len(dataset)} samples is empty"
            raise ConfigError("a training source has no samples", where=source.data, why=why)
        if self.frames:
            indices = self._having_neighbours(indices, source.data)
        self._labels: LabelStore | None = None
        if source.labels is not None:
            indices = self._labelled(indices, source.labels, skip_bad)
        elif not self.frames:
            self._check_depth(indices, source.data)
        self.indices: NDArray[np.intp] = indices
        self._order: tuple[int, NDArray[np.intp]] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def _having_neighbours(self, indices: NDArray[np.intp], where: str) -> NDArray[np.intp]:
        if 0 in self.frames or len(set(self.frames)) < len(self.frames):
            mend = 'use whole numbers but 0, and "stereo", each at most once, as in frames: [-1, 1]'
            raise ConfigError("bad frames of a training source", where=where, why=f"{list(self.frames)}", mend=mend)
        kept = indices[np.isin(indices, self.dataset.with_neighbours(self.frames))]
        wanted = ", ".join(str(offset) for offset in self.frames)
        if not len(kept):
            why = f"none of {len(indices)} samples of format {self.dataset.format} has the neighbours {wanted}"
            mend = "use frames:FOLDER, frames:FILM, kitti-raw or a rendered sequence, or leave `frames` out"
            steps = [offset for offset in self.frames if offset != "stereo"]
            needed = 1 + max([0, *steps]) - min([0, *steps])
            if self.dataset.format == "frames" and len(indices) < needed:
                mend = f"a sequence of at least {needed} frames is needed"
            raise ConfigError("a training source has no sequences", where=where, why=why, mend=mend)
        if len(kept) < len(indices):
            left = len(indices) - len(kept)
            said = f"{left} of {len(indices)} samples left out: not all of the neighbours {wanted} exist"
            self.notices.append(f"{where}: {said}")
        return kept

    def _check_depth(self, indices: NDArray[np.intp], where: str) -> None:
        """Refuse pictures alone at once, instead of at the sample that happens to be drawn first."""
        count = min(LOOKED_AT, len(indices))
        for index in (int(indices[k * len(indices) // count]) for k in range(count)):
            try:
                if self.dataset[index].depth is not None:
                    return
            except LeadlineError:
                return  # what cannot be read is named, or left out, when it is drawn
        looked = "" if count == len(indices) else f"{count} looked at of "
        why = f"none of {looked}{len(indices)} pictures has any"
        mend = "let a model label them: `leadline train --teacher REF`; or give pictures with depth"
        raise DataError("no depth to learn from", where=where, why=why, mend=mend)

    def _labelled(self, indices: NDArray[np.intp], folder: str, skip_bad: bool) -> NDArray[np.intp]:
        from leadline.data.label_store import LabelStore

        self._labels = LabelStore(Path(folder))
        known = set(self._labels.names())
        has = np.array([self._names[index] in known for index in indices], bool)
        self.unlabelled = [self._names[index] for index in indices[~has]]
        if self.unlabelled and (not skip_bad or not has.any()):
            why = f"{len(self.unlabelled)} of {len(indices)} samples, the first: {self.unlabelled[0]}"
            mend = "finish `leadline pseudo-label` over the same data, or leave them out with --skip-bad"
            raise DataError("samples without a label", where=folder, why=why, mend=mend)
        kept: NDArray[np.intp] = indices[has]
        return kept

    def name(self, index: int) -> str:
        """Name of the sample `index` of the data set."""
        return self._names[index]

    def index(self, draw: int, seed: int) -> int:
        """Index of draw number `draw`: every sample once per epoch, in an order of its own each epoch."""
        epoch, place = divmod(draw, len(self))
        order = self._order  # once: another thread may be an epoch ahead
        if order is None or order[0] != epoch:
            order = epoch, np.random.default_rng([seed, self.number, 7, epoch]).permutation(len(self))
            self._order = order
        return int(self.indices[order[1][place]])

    def after(self, index: int) -> int:
        """The sample that stands in for a bad one: the next of the range."""
        place = int(np.searchsorted(self.indices, index))
        return int(self.indices[(place + 1) % len(self)])

    def item(self, index: int) -> Item:
        """Sample `index` with its label and neighbours.

        Raises:
            LeadlineError: a file cannot be read, or a sample has neither depth nor frames, or frames but no camera.
        """
        sample = self._whole(index)
        if not self.frames:
            if sample.depth is None:
                raise DataError("a training sample has no depth", where=sample.name, mend="pair it, or leave it out")
            return Item(sample)
        _check_camera(sample)
        sources = tuple(self._neighbour(index, offset) for offset in self.frames)
        for other in sources:
            if other.image.shape != sample.image.shape:
                (rows, cols), (height, width) = sample.image.shape[:2], other.image.shape[:2]
                why = f"{rows}x{cols} and {height}x{width} (height x width) in {other.name}"
                mend = "give each size a folder of its own"
                raise DataError("frames of one sequence differ in shape", where=sample.name, why=why, mend=mend)
        poses = tuple(
            self._relative(index, offset, sample, other) for offset, other in zip(self.frames, sources, strict=True)
        )
        return Item(sample, sources, poses)

    def _whole(self, index: int) -> Sample:
        key = self.number, self._names[index]
        if key in self.shelf.depths:
            return replace(self.shelf.pictures[key], depth=self.shelf.depths[key])
        full = self.dataset[index]
        sample = shrink(full, self.height)
        if self._labels is not None:
            sample = replace(sample, depth=_label(self._labels, full, sample))
        self._keep(key, sample, whole=True)
        return sample

    def _neighbour(self, index: int, offset: Offset) -> Sample:
        name = self.dataset.neighbour_name(index, offset)
        key = self.number, name or ""
        if key in self.shelf.pictures:
            return self.shelf.pictures[key]
        full = self.dataset.neighbour(index, offset)
        if full is None:
            raise DataError("a neighbouring frame has gone", where=self._names[index], why=f"offset {offset}")
        sample = shrink(replace(full, depth=None), self.height)
        _check_camera(sample)
        self._keep(key, sample, whole=False)
        return sample

    def _keep(self, key: tuple[int, str], sample: Sample, *, whole: bool) -> None:
        if self.dataset.format != "rendered" or self.frames:  # scenes are many, and each is seen once or twice
            self.shelf.keep(key, sample, whole=whole)

    def _relative(self, index: int, offset: Offset, sample: Sample, other: Sample) -> NDArray[np.float64] | None:
        known = self.dataset.relative_pose(index, offset)
        if known is None and sample.pose is not None and other.pose is not None:
            known = np.linalg.inv(other.pose) @ sample.pose
        return known


def _check_camera(sample: Sample) -> None:
    if sample.intrinsics is None:
        mend = "give the camera: ?fov=60 or ?fx=..&fy=..&cx=..&cy=.. after the path, or a dataset.json with intrinsics"
        raise DataError("no camera for a frame", where=sample.name, why="self-supervision needs intrinsics", mend=mend)
    check_intrinsics(sample.intrinsics, (sample.image.shape[0], sample.image.shape[1]), sample.name)


def _label(store: LabelStore, full: Sample, shrunk: Sample) -> Depth:
    """The store's label for the picture, at the shrunk picture's size; it covers the same view."""
    label = store.get(full.name, (shrunk.image.shape[0], shrunk.image.shape[1]))
    if label is None:
        raise DataError("no label", where=full.name, mend="finish `leadline pseudo-label` over the same data")
    facts = store.facts(full.name)
    (rows, cols), (height, width) = full.image.shape[:2], (facts.picture_height, facts.picture_width)
    if abs(height * cols / rows - width) > ASPECT_SLACK * max(1.0, cols / rows):
        why = f"the labelled picture was {height}x{width}, this one is {rows}x{cols} (height x width)"
        mend = "label these pictures themselves, not crops of them"
        raise DataError("a label of other proportions than its picture", where=full.name, why=why, mend=mend)
    return replace(label, intrinsics=shrunk.intrinsics)
