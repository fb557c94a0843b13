"""Training between compression's decisions: the one training loop, on a network that a step has changed."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrize

from leadline.errors import ConfigError
from leadline.training.config import TrainConfig, explain
from leadline.training.fit import Start, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from leadline.compression.base import Place
    from leadline.reference import LoadedModel
    from leadline.training.log import Progress

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def configured(source: LoadedModel, place: Place, changes: Mapping[str, Any]) -> TrainConfig:
    """The recipe's training configuration with a step's changes over it.

    Raises:
        ConfigError: the recipe has no `train`, or a value is not valid.
    """
    if not place.train:
        mend = "add `train: FILE.yaml`, or `train: {sources: [...], ...}`"
        raise ConfigError("this step trains", where=str(place.folder), why="the recipe has no `train`", mend=mend)
    size = source.contract.input.height, source.contract.input.width
    # what a step took away changes the statistics of what stays: they are learned again, few pictures or not
    values = {"size": size, "norm_statistics": "learn", **place.train, **changes, "model": source.name}
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("bad training configuration", where="train", **explain(error, TrainConfig)) from error


def tune(
    source: LoadedModel,
    place: Place,
    changes: Mapping[str, Any],
    *,
    folder: Path | None = None,
    keep_zeros: bool = False,
) -> LoadedModel:
    """Train a network further; called again with the same folder, it goes on where it was stopped.

    Args:
        source: stays as it is.
        place: the recipe's training data.
        changes: keys of a training configuration: iterations, learning_rate, objectives, ...
        folder: of the run's state; the place's own where absent.
        keep_zeros: weights of convolutions and linear layers that are exactly 0 stay so.

    Returns:
        The trained network with the source's name, configuration and lineage.

    Raises:
        ConfigError: no training data, or a wrong value.
        KeyboardInterrupt: it was interrupted; its state is saved.
        See `leadline.training.fit.fit` for the rest.
    """
    assert source.architecture is not None, "only networks of the registry are trained"
    assert source.config is not None
    config = configured(source, place, changes)
    model = _copy(source.model)
    start = Start(model, source.contract, source.architecture, source.config)

    def tell(news: Progress) -> None:
        every = max(1, news.iterations // 20)
        if news.iteration % every == 0 or news.iteration == news.iterations:
            place.say(f"{news.iteration}/{news.iterations} loss {news.loss:.4f} {news.seconds:.2f} s/it")

    with zeros_kept(model) if keep_zeros else _unchanged():
        result = fit(config, start, folder or place.folder / "training", on_progress=tell)
        if result.interrupted or result.asked:  # its last iteration is not the recipe's
            raise KeyboardInterrupt
        if keep_zeros:
            settle(result.model)
    kept = {"name": source.contract.name, "provenance": source.contract.provenance}
    data = tuple(dict.fromkeys((*source.contract.training_data, *result.contract.training_data)))
    terms = {"training_data": data, "licence": config.licence or source.contract.licence}  # of both trainings
    contract = result.contract.model_copy(update=kept | terms)
    return replace(source, model=result.model.eval(), contract=contract, quantization=None)


class _Kept(nn.Module):
    """A weight whose zeros stay zero."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", weight != 0)
        self.mask: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, 0 where it was 0."""
        return weight * self.mask


@contextmanager
def zeros_kept(model: nn.Module) -> Iterator[None]:
    """Weights that are 0 now stay 0 while the block trains the network; afterwards they are plain weights again."""
    for module in model.modules():
        if isinstance(module, WEIGHTED) and bool((module.weight == 0).any()):
            parametrize.register_parametrization(module, "weight", _Kept(module.weight.detach()))
    try:
        yield
    finally:
        settle(model)


def settle(model: nn.Module) -> None:
    """Make parametrised weights plain ones, with the values that they have now."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            # PyTorch's own removal takes the attribute from the class, which copies of the network (its average) share.
            weight = module.get_parameter("parametrizations.weight.original")
            with torch.no_grad():
                value = module.parametrizations.get_submodule("weight")()  # type: ignore[union-attr]
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            others = dict(module.named_parameters(recurse=False))
            for name in others:
                delattr(module, name)
            for name, parameter in {"weight": nn.Parameter(value, weight.requires_grad), **others}.items():
                module.register_parameter(name, parameter)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def _copy(model: nn.Module) -> nn.Module:
    import copy

    with torch.no_grad():
        return copy.deepcopy(model).requires_grad_()  # an earlier run's average takes no gradients
