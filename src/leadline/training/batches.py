"""Batches: which samples, seen how. Stateless: batch k is a function of the seed and k alone, so resuming is exact."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from leadline.data.dataset import open_dataset
from leadline.data.transforms import Augmentation, apply_change, draw_change, draw_colours
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, LeadlineError
from leadline.training.parts import Part, Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from leadline.contract import Contract
    from leadline.data.dataset import Dataset, Offset, Sample
    from leadline.depth import Intrinsics
    from leadline.training.config import TrainConfig
    from leadline.training.parts import Item

CACHE_OVERSIZE = 1.25  # pictures are kept this much larger than the network's input, so that zooming stays sharp


@dataclass(frozen=True)
class Clip:
    """The frames around some of a batch's pictures, all of an item seen through one and the same change of camera.

    Lengths are in the unit of the network's depth: metres, for a metric network divided by the zoom as its depth is.

    Args:
        rows: R int64, which rows of the batch.
        image: R x 3 x H x W float32, 0..1 RGB, in true colours: what losses compare.
        sources: R x S x 3 x H x W float32, the neighbours likewise.
        seen: R x (1 + S) x 3 x H x W float32, 0..1 RGB, in changed colours, the picture first: for a pose network.
        offsets: S steps along the sequence, or `stereo`.
        intrinsics: R x 3 x 3 float32, pixels of H x W, pixel centres at integers + 0.5.
        poses: R x S x 4 x 4 float32, from the picture's camera to the neighbour's; NaN where unknown.
    """

    rows: Tensor
    image: Tensor
    sources: Tensor
    seen: Tensor
    offsets: tuple[Offset, ...]
    intrinsics: Tensor
    poses: Tensor

    def to(self, device: torch.device) -> Clip:
        """The clip on `device`."""
        tensors = ("rows", "image", "sources", "seen", "intrinsics", "poses")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors})


@dataclass(frozen=True)
class Batch:
    """What one iteration sees.

    Args:
        image: N x 3 x H x W float32, prepared by the contract.
        target: N x 1 x H x W float32, in each sample's kind; 0 where nothing is known.
        valid: N x 1 x H x W bool.
        kinds: the kind of each target.
        names: where each sample came from, for messages.
        clip: the frames around those pictures whose source has `frames`; None where none has.
    """

    image: Tensor
    target: Tensor
    valid: Tensor
    kinds: tuple[Kind, ...]
    names: tuple[str, ...]
    clip: Clip | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        image = self.image.to(device, memory_format=torch.channels_last, non_blocking=True)
        clip = self.clip.to(device) if self.clip else None
        return Batch(image, self.target.to(device), self.valid.to(device), self.kinds, self.names, clip)


@dataclass(frozen=True)
class _Seen:
    """One picture of a batch: `pictures` and `coloured` start with it, its neighbours follow; H x W x 3 uint8."""

    name: str
    depth: Depth
    pictures: list[NDArray[np.uint8]]
    coloured: list[NDArray[np.uint8]]
    intrinsics: Intrinsics
    poses: list[NDArray[np.float64]]


class Mix:
    """The sources of a run, their samples decoded once where memory allows, and the batches made of them.

    Raises:
        ConfigError: a source without samples or sequences, or sources that disagree about their frames.
        DataError: a data set cannot be opened, or lacks labels.
    """

    def __init__(
        self, config: TrainConfig, contract: Contract, size: tuple[int, int], rows: slice = slice(None)
    ) -> None:
        self.contract, self.size, self.seed, self.rows = contract, size, config.seed, rows
        options = config.augmentation.model_dump()
        self.keep_aspect = contract.input.resize == "keep_aspect"
        self.jitter_per_frame = bool(options.pop("jitter_per_frame", False))
        self.augmentation = Augmentation(**options)
        shelf, height = Shelf(config.cache_mb * 2**20), round(size[0] * CACHE_OVERSIZE)
        self.sources = [
            Part(
                open_dataset(source.data, source.split, skip_bad=config.skip_bad),
                source,
                number,
                height=height,
                shelf=shelf,
                skip_bad=config.skip_bad,
            )
            for number, source in enumerate(config.sources)
        ]
        self.counts = _split_batch(config.batch, [source.share for source in config.sources])
        self.offsets = _common_frames(self.sources)
        self.skip_bad = config.skip_bad
        self.skipped: dict[str, str] = {}
        self.unpaired = {
            problem.item: problem.what for part in self.sources for problem in part.dataset.problems() if problem.fatal
        }
        self.unpaired |= {name: "picture without label" for part in self.sources for name in part.unlabelled}
        self.notices = [notice for part in self.sources for notice in part.notices]
        self.notices += [said for part in self.sources if (said := _unlabelled(part.dataset))]
        self.notices += [
            f"{problem.item}: {problem.what}"
            for part in self.sources
            for problem in part.dataset.problems()
            if part.dataset.format == "frames" and not problem.fatal
        ]

    def batch(self, iteration: int) -> Batch:
        """This process's rows of batch number `iteration` (0-based)."""
        draws = [
            (part, slot, count) for part, count in zip(self.sources, self.counts, strict=True) for slot in range(count)
        ]
        made = [self._seen(part, iteration, slot, count) for part, slot, count in draws[self.rows]]
        pictures = np.stack([self.contract.normalise(one.coloured[0]) for one in made])
        target = torch.from_numpy(np.nan_to_num(np.stack([one.depth.values for one in made])[:, None]))
        valid = torch.from_numpy(np.stack([one.depth.valid for one in made])[:, None])
        kinds, names = tuple(one.depth.kind for one in made), tuple(one.name for one in made)
        return Batch(torch.from_numpy(pictures), target, valid, kinds, names, _clip(made, self.offsets))

    def _seen(self, part: Part, iteration: int, slot: int, count: int) -> _Seen:
        rng = np.random.default_rng([self.seed, part.number, iteration, slot])
        item = self._readable(part, part.index(iteration * count + slot, self.seed))
        sample = _trusted(item.sample, part.dataset.max_depth)
        metric = self.contract.output.kind is Kind.METRIC_DEPTH
        camera = self.contract.input.camera if metric else None
        change = draw_change(sample, self.size, camera, rng, self.augmentation, self.keep_aspect)
        seen = [apply_change(frame, change, camera) for frame in (sample, *item.sources)]
        colours = draw_colours(rng, self.augmentation)
        coloured = []
        for number, frame in enumerate(seen):
            if number and self.jitter_per_frame:
                colours = draw_colours(rng, self.augmentation)
            coloured.append(colours.apply(frame.image, rng))
        unknown = np.full((4, 4), np.nan)
        return _Seen(
            name=sample.name,
            depth=seen[0].depth or _unmeasured(self.size, self.contract.output.kind),
            pictures=[frame.image for frame in seen],
            coloured=coloured,
            intrinsics=change.intrinsics,
            poses=[unknown if pose is None else change.pose(pose) for pose in item.poses],
        )

    def _readable(self, part: Part, index: int) -> Item:
        """Item `index`, or the next that can be read where bad ones are left out."""
        while True:
            name = part.name(index)
            try:
                return part.item(index)
            except MemoryError as error:
                mend = "lower cache_mb, the batch or the size"
                raise DataError("out of memory while reading a training sample", where=name, mend=mend) from error
            except LeadlineError as error:
                if not self.skip_bad:
                    raise DataError("cannot use a training sample", where=name, why=str(error)) from error
                self.skipped[name] = str(error)
                part.bad.add(index)
                if len(part.bad) >= len(part):
                    raise DataError("no usable sample is left", where=part.dataset.name, why=str(error)) from error
                index = part.after(index)
            except Exception as error:
                error.add_note(f"while reading the training sample {name}")
                raise


def _trusted(sample: Sample, limit: float | None) -> Sample:
    """The sample without metric depth beyond `limit` metres."""
    depth = sample.depth
    if limit is None or depth is None or depth.kind is not Kind.METRIC_DEPTH:
        return sample
    return replace(sample, depth=replace(depth, values=np.where(depth.values <= limit, depth.values, np.float32(0))))


def _unmeasured(size: tuple[int, int], kind: Kind) -> Depth:
    """Depth of a picture that has frames alone: nothing is known anywhere."""
    return Depth(np.full(size, np.nan, np.float32), kind)


def _unlabelled(dataset: Dataset) -> str:
    """How many pictures of `pseudo:` nobody has labelled; nothing where all are, or for another format."""
    left = [problem.item for problem in dataset.problems() if dataset.format == "pseudo" and not problem.fatal]
    if not left:
        return ""
    return f"{len(left)} of {len(left) + len(dataset)} pictures without a label left out, the first: {left[0]}"


def _common_frames(parts: list[Part]) -> tuple[Offset, ...]:
    """The frames of those sources that have any.

    Raises:
        ConfigError: they differ, so that their clips could not be stacked.
    """
    first, *others = [part.frames for part in parts if part.frames] or [()]
    for other in others:
        if other != first:
            why, mend = f"{list(first)} and {list(other)}", "give all of them the same list, or none"
            raise ConfigError("training sources differ in their frames", why=why, mend=mend)
    return first


def _clip(made: list[_Seen], offsets: tuple[Offset, ...]) -> Clip | None:
    rows = [row for row, one in enumerate(made) if one.poses]
    if not rows:
        return None
    items = [made[row] for row in rows]
    pictures = _unit([one.pictures for one in items])
    cameras = [one.intrinsics for one in items]
    matrices = [[[k.fx, 0.0, k.cx], [0.0, k.fy, k.cy], [0.0, 0.0, 1.0]] for k in cameras]
    return Clip(
        rows=torch.tensor(rows),
        image=pictures[:, 0],
        sources=pictures[:, 1:],
        seen=_unit([one.coloured for one in items]),
        offsets=offsets,
        intrinsics=torch.tensor(matrices, dtype=torch.float32),
        poses=torch.from_numpy(np.stack([np.stack(one.poses) for one in items]).astype(np.float32)),
    )


def _unit(pictures: list[list[NDArray[np.uint8]]]) -> Tensor:
    """R lists of F pictures (H x W x 3 uint8) as R x F x 3 x H x W float32, 0..1."""
    stacked = np.stack([np.stack([frame.transpose(2, 0, 1) for frame in frames]) for frames in pictures])
    return torch.from_numpy(stacked).to(torch.float32).div_(255)


def _split_batch(batch: int, shares: list[int]) -> list[int]:
    """How many pictures each source gives to a batch: proportional, at least one, largest remainders first."""
    if batch < len(shares):
        raise ConfigError("batch too small", where=f"batch {batch}", why=f"there are {len(shares)} sources")
    exact = [share * batch / sum(shares) for share in shares]
    counts = [max(1, int(part)) for part in exact]
    order = sorted(range(len(shares)), key=lambda k: counts[k] - exact[k])
    while sum(counts) < batch:
        counts[order[0]] += 1
        order = sorted(order, key=lambda k: counts[k] - exact[k])
    while sum(counts) > batch:
        counts[counts.index(max(counts))] -= 1
    return counts


def ahead(mix: Mix, start: int, stop: int, *, workers: int | None = None) -> Iterator[Batch]:
    """Batches `start` to `stop` - 1 in order, made in background threads; two more than there are threads may wait.

    A batch is a function of its number alone, so any number of threads gives the same batches.

    Args:
        mix: makes them.
        start: number of the first.
        stop: number after the last.
        workers: threads; by default one for four cores, at most 8.

    Raises:
        LeadlineError: whatever went wrong while making a batch, in its place; the message names the sample.
    """
    workers = workers or min(8, max(1, (os.cpu_count() or 1) // 4))
    changed, made = threading.Condition(), dict[int, Batch | BaseException]()
    begun, given, over = start, start, False  # the next batch to make, and to give

    def work() -> None:
        nonlocal begun
        while True:
            with changed:
                while not over and begun < stop and begun >= given + workers + 2:
                    changed.wait()
                if over or begun >= stop:
                    return
                number, begun = begun, begun + 1
            result: Batch | BaseException
            try:
                result = mix.batch(number)
            except BaseException as error:  # noqa: BLE001  handed to the training thread, which raises it
                result = error
            with changed:
                made[number] = result
                changed.notify_all()

    threads = [threading.Thread(target=work, daemon=True, name=f"leadline-batches-{n}") for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while given < stop:
            with changed:
                while given not in made:
                    changed.wait()
                item = made.pop(given)
                given += 1
                changed.notify_all()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        with changed:
            over = True
            changed.notify_all()
        for thread in threads:
            thread.join(timeout=30)
