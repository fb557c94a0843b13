"""Batches: which samples, seen how. Stateless: batch k is a function of the seed and k alone, so resuming is exact."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from leadline.data.dataset import Sample, open_dataset
from leadline.data.transforms import Augmentation, jitter, shrink, view
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, LeadlineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from leadline.contract import Contract
    from leadline.data.dataset import Dataset
    from leadline.training.config import Source, TrainConfig

CACHE_OVERSIZE = 1.25  # pictures are kept this much larger than the network's input, so that zooming stays sharp


@dataclass(frozen=True)
class Batch:
    """What one iteration sees.

    Args:
        image: N x 3 x H x W float32, prepared by the contract.
        target: N x 1 x H x W float32, in each sample's kind; 0 where nothing is known.
        valid: N x 1 x H x W bool.
        kinds: the kind of each target.
        names: where each sample came from, for messages.
    """

    image: Tensor
    target: Tensor
    valid: Tensor
    kinds: tuple[Kind, ...]
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        image = self.image.to(device, memory_format=torch.channels_last, non_blocking=True)
        return Batch(image, self.target.to(device), self.valid.to(device), self.kinds, self.names)


class Mix:
    """The sources of a run, their samples decoded once where memory allows, and the batches made of them."""

    def __init__(self, config: TrainConfig, contract: Contract, size: tuple[int, int]) -> None:
        self.contract, self.size, self.seed = contract, size, config.seed
        self.augmentation = Augmentation(**config.augmentation.model_dump())
        self.sources = [_Part(source, index, config) for index, source in enumerate(config.sources)]
        self.counts = _split_batch(config.batch, [source.share for source in config.sources])
        self.skip_bad = config.skip_bad
        self.skipped: dict[str, str] = {}
        self.unpaired = {
            problem.item: problem.what for part in self.sources for problem in part.dataset.problems() if problem.fatal
        }
        self._cache: dict[tuple[int, int], Sample] = {}
        self._room = config.cache_mb * 2**20

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration` (0-based)."""
        made = [
            self._seen(part, iteration, slot, count)
            for part, count in zip(self.sources, self.counts, strict=True)
            for slot in range(count)
        ]
        pictures = np.stack([self.contract.normalise(sample.image) for sample, _ in made])
        depths = [depth for _, depth in made]
        target = torch.from_numpy(np.nan_to_num(np.stack([depth.values for depth in depths])[:, None]))
        valid = torch.from_numpy(np.stack([depth.valid for depth in depths])[:, None])
        kinds = tuple(depth.kind for depth in depths)
        return Batch(torch.from_numpy(pictures), target, valid, kinds, tuple(sample.name for sample, _ in made))

    def _seen(self, part: _Part, iteration: int, slot: int, count: int) -> tuple[Sample, Depth]:
        rng = np.random.default_rng([self.seed, part.number, iteration, slot])
        index = part.index(iteration * count + slot, self.seed)
        while True:
            try:
                sample, depth = self._decoded(part, index)
                break
            except LeadlineError as error:
                name = part.dataset.names()[index]
                if not self.skip_bad:
                    raise DataError("cannot use a training sample", where=name, why=str(error)) from error
                self.skipped[name] = str(error)
                part.bad.add(index)
                if len(part.bad) >= len(part):
                    raise DataError("no usable sample is left", where=part.dataset.name, why=str(error)) from error
                index = part.first + (index - part.first + 1) % len(part)
        limit = part.dataset.max_depth
        if limit is not None and depth.kind is Kind.METRIC_DEPTH:
            kept = np.where(depth.values <= limit, depth.values, np.float32(0))
            sample = Sample(sample.name, sample.image, Depth(kept, depth.kind), sample.intrinsics)
        camera = self.contract.input.camera if self.contract.output.kind is Kind.METRIC_DEPTH else None
        seen = view(sample, self.size, camera, rng, self.augmentation)
        assert seen.depth is not None
        return Sample(seen.name, jitter(seen.image, rng, self.augmentation)), seen.depth

    def _decoded(self, part: _Part, index: int) -> tuple[Sample, Depth]:
        key = (part.number, index)
        sample = self._cache.get(key)
        if sample is None:
            sample = shrink(part.dataset[index], round(self.size[0] * CACHE_OVERSIZE))
            cost = sample.image.nbytes + (sample.depth.values.nbytes if sample.depth else 0)
            if part.dataset.format != "rendered" and cost <= self._room:
                self._room -= cost
                self._cache[key] = sample
        if sample.depth is None:
            raise DataError("a training sample has no depth", where=sample.name, mend="pair it, or leave it out")
        return sample, sample.depth


class _Part:
    """One source: a range of a data set, and the order in which its samples are drawn."""

    def __init__(self, source: Source, number: int, config: TrainConfig) -> None:
        self.dataset: Dataset = open_dataset(source.data, source.split, skip_bad=config.skip_bad)
        self.number = number
        span = range(len(self.dataset))[source.first : source.last]
        if not span:
            why = f"{source.first}:{source.last} of {len(self.dataset)} samples is empty"
            raise ConfigError("a training source has no samples", where=source.data, why=why)
        self.first, self._length = span.start, len(span)
        self.bad: set[int] = set()  # indices that cannot be read
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._length

    def index(self, draw: int, seed: int) -> int:
        """Index of draw number `draw`: every sample once per epoch, in an order of its own each epoch."""
        epoch, place = divmod(draw, self._length)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([seed, self.number, 7, epoch]).permutation(self._length)
        return self.first + int(self._order[1][place])


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


def ahead(mix: Mix, start: int, stop: int, depth: int = 3) -> Iterator[Batch]:
    """Batches `start` to `stop` - 1, made in a background thread, at most `depth` waiting.

    Raises:
        LeadlineError: whatever went wrong while making a batch; the message names the sample.
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
    over = threading.Event()

    def offer(item: Batch | BaseException) -> bool:
        while not over.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for iteration in range(start, stop):
                if not offer(mix.batch(iteration)):
                    return
        except BaseException as error:  # noqa: BLE001  handed to the training thread, which raises it
            offer(error)

    worker = threading.Thread(target=work, daemon=True, name="leadline-batches")
    worker.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        worker.join(timeout=30)
