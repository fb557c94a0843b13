"""How a step decides: the accuracy of a candidate on the recipe's validation data."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from leadline.data.dataset import Dataset, Sample, Subset, open_dataset
from leadline.errors import ConfigError
from leadline.evaluation.evaluate import evaluate
from leadline.predictor import Predictor
from leadline.runtimes.base import SessionOptions
from leadline.runtimes.torch_eager import open_model

if TYPE_CHECKING:
    from torch import nn

    from leadline.compression.base import Judged, Place
    from leadline.contract import Contract
    from leadline.evaluation.evaluate import Evaluation

REMEMBERED_BYTES = 512 * 2**20


def judge(
    model: nn.Module, contract: Contract, place: Place, *, reference: str | Predictor | None = None
) -> Evaluation:
    """Score a network in PyTorch on the validation data.

    Args:
        model: float32, in eval mode.
        contract: of the network.
        place: names the data.
        reference: model reference, or an opened model, that counts as truth under `fidelity`.

    Raises:
        ConfigError: the recipe has no `validation`.
        DataError: the data cannot be read.
        KindError: the protocol cannot compare this network with the ground truth.
    """
    wanted = needed(place)
    dataset = _remembered(wanted.data, wanted.split, wanted.first, wanted.last)
    session = open_model(model, contract, SessionOptions(threads=place.target.threads))
    return evaluate(Predictor(session), dataset, wanted.protocol, limit=wanted.limit, reference=reference)


def needed(place: Place) -> Judged:
    """The recipe's validation data.

    Raises:
        ConfigError: it names none.
    """
    if place.validation is None:
        mend = "add `validation: {data: ..., protocol: ...}`, pictures that are neither learned nor finally scored"
        raise ConfigError("this step decides by accuracy", where=str(place.folder), why="no `validation`", mend=mend)
    return place.validation


class _Remembering(Subset):
    """Samples that are read once, as long as they fit into memory: a step judges many networks on the same pictures."""

    def __init__(self, whole: Dataset, first: int, last: int | None) -> None:
        super().__init__(whole, first, last)
        self._held: dict[int, Sample] = {}
        self._room = REMEMBERED_BYTES

    def __getitem__(self, index: int) -> Sample:
        if index in self._held:
            return self._held[index]
        sample = super().__getitem__(index)
        size = sample.image.nbytes + (sample.depth.values.nbytes if sample.depth is not None else 0)
        if size <= self._room:
            self._room -= size
            self._held[index] = sample
        return sample


@functools.lru_cache(maxsize=1)
def _remembered(data: str, split: str | None, first: int, last: int | None) -> Dataset:
    return _Remembering(open_dataset(data, split), first, last)
