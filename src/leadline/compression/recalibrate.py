"""New statistics for batch norms as a step: what pruning moved is measured again, without any training.

Channels that leave change mean and variance of all sums that read them, and batch norms go on with the old ones.
Averages over a few batches bring much of the accuracy back at once, and so tell networks apart that fine-tuning would
tell apart much later (adaptive batch normalisation; Li et al. 2020, EagleEye).
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from leadline.compression.base import Place, Step, Target
from leadline.compression.tuning import configured
from leadline.errors import ConfigError, NumericalError
from leadline.training.batches import Mix, ahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from leadline.reference import LoadedModel


class Recalibrate(Step):
    """Measure the statistics of all batch norms again, on batches of the recipe's `train`."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train"})

    step: Literal["recalibrate"] = "recalibrate"
    batches: Annotated[int, Field(ge=1)] = Field(default=20, description="that are looked at")

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse a network without batch norm."""
        norms_of(source.model, source.name)

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The same weights with other statistics.

        Raises:
            ConfigError: the network has no batch norm with statistics, or the recipe no `train`.
            NumericalError: an activation is not finite.
        """
        return recalibrated(source, pictures(source, place, self.batches))


def pictures(source: LoadedModel, place: Place, batches: int) -> list[Tensor]:
    """Inputs of the first batches of the recipe's training, augmented as there, each N x 3 x H x W float32.

    Raises:
        ConfigError: the recipe has no `train`.
        DataError: its data cannot be read.
    """
    config, spec = configured(source, place, {}), source.contract.input
    mix = Mix(config, source.contract, config.size or (spec.height, spec.width))
    return [batch.image for batch in itertools.islice(ahead(mix, 0, batches), batches)]


def norms_of(model: nn.Module, name: str) -> dict[str, nn.BatchNorm2d]:
    """Batch norms that keep statistics, by path.

    Raises:
        ConfigError: there is none.
    """
    found = {path: each for path, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    found = {path: norm for path, norm in found.items() if norm.track_running_stats}
    if not found:
        raise ConfigError("no batch norm in", where=name, mend="leave `recalibrate` out")
    return found


def recalibrated(source: LoadedModel, images: Iterable[Tensor]) -> LoadedModel:
    """A copy whose batch norms have the mean statistics of the batches, every batch counted alike.

    Args:
        source: stays as it is.
        images: batches, each N x 3 x H x W float32, prepared by the contract. In each of them a batch norm reads what
            the ones before it made with the batch's own statistics.

    Raises:
        ConfigError: no batch norm keeps statistics, or there is no batch.
        NumericalError: an activation is not finite.
    """
    model = copy.deepcopy(source.model).eval()
    norms = norms_of(model, source.name)
    momenta = {path: norm.momentum for path, norm in norms.items()}
    device, count = next(model.parameters()).device, 0
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in images:
            model(batch.to(device))
            count += 1
    if not count:
        raise ConfigError("no batch to recalibrate with", where=source.name)
    for path, norm in norms.items():
        norm.momentum = momenta[path]
        norm.eval()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if not bool(norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            raise NumericalError("an activation is not finite", where=path)
    return replace(source, model=model, quantization=None)
