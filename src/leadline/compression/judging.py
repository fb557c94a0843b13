"""How a step decides: the accuracy of a candidate on the recipe's validation data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.data.dataset import Subset, open_dataset
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


def judge(model: nn.Module, contract: Contract, place: Place, *, reference: str | None = None) -> Evaluation:
    """Score a network in PyTorch on the validation data.

    Args:
        model: float32, in eval mode.
        contract: of the network.
        place: names the data.
        reference: model reference that counts as truth under `fidelity`.

    Raises:
        ConfigError: the recipe has no `validation`.
        DataError: the data cannot be read.
        KindError: the protocol cannot compare this network with the ground truth.
    """
    wanted = needed(place)
    dataset = Subset(open_dataset(wanted.data, wanted.split), wanted.first, wanted.last)
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
