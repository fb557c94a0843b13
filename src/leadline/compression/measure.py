"""What pictures say about channels: how large they are, and what the loss would be without them."""

from __future__ import annotations

import copy
import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from leadline.compression.graph import per_channel, producer_rows, wiring_of
from leadline.compression.importance import scores
from leadline.compression.tuning import configured
from leadline.errors import ConfigError, DataError, NumericalError
from leadline.models.wiring import Part, size
from leadline.runtimes.calibration import calibration_inputs
from leadline.training.batches import Mix, ahead
from leadline.training.learner import prepare
from leadline.training.objectives import Seen, total_loss
from leadline.training.team import Team, own_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from leadline.compression.base import Place
    from leadline.compression.graph import Group
    from leadline.compression.importance import Importance
    from leadline.models.wiring import Axis, Space, Wiring
    from leadline.reference import LoadedModel


def scored(
    source: LoadedModel,
    found: Iterable[Group],
    place: Place,
    importance: Importance,
    *,
    fallback: Importance | None = None,
    batches: int = 20,
    seed: int = 0,
) -> dict[str, Tensor]:
    """How much each channel of each group matters, with what the recipe's pictures show where importance asks for it.

    Args:
        source: stays as it is.
        found: groups of it.
        place: its calibration pictures for `activation`, its training data for `taylor`.
        importance: see `scores`.
        fallback: likewise.
        batches: of training that `taylor` looks at.
        seed: of `random`, and of the calibration pictures.
    """
    evidence = None
    if "activation" in (importance, fallback):
        said = place.calibration
        inputs = calibration_inputs(said.data, source.contract, None, said.count, seed=seed, split=said.split)
        evidence = mean_activations(source, inputs)
    elif "taylor" in (importance, fallback):
        evidence = gradients(source, place, batches)
    return {group.name: scores(source, group, importance, evidence, fallback=fallback, seed=seed) for group in found}


def mean_activations(source: LoadedModel, pictures: Iterable[NDArray[Any]]) -> dict[str, Tensor]:
    """Mean magnitude of every channel where the next layers read it, after activations, over pictures and places.

    Args:
        source: the network.
        pictures: prepared inputs, each N x 3 x H x W float32.

    Returns:
        By group, `width` float64 values; the mean over the layers that read the group.

    Raises:
        DataError: there are no pictures.
        NumericalError: an activation is not finite.
    """
    wiring = wiring_of(source)
    sums = {space: torch.zeros(space.width, dtype=torch.float64) for space in wiring.spaces}
    readings = dict.fromkeys(wiring.spaces, 0)
    device = next(source.model.parameters()).device
    count = 0

    def reading(path: str, axis: Axis) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            (x,) = given
            magnitude = x.detach().abs().movedim(1 if x.ndim == 4 else -1, 0).flatten(1).mean(dim=1).double().cpu()
            if not bool(magnitude.isfinite().all()):
                raise NumericalError("an activation is not finite", where=path)
            for part, values in zip(axis, torch.split(magnitude, [size((part,)) for part in axis]), strict=True):
                if isinstance(part, Part):
                    sums[part.space] += values.repeat_interleave(part.space.bundle // part.each)
                    readings[part.space] += 1

        return look

    with ExitStack() as stack, torch.inference_mode():
        for path, axis in wiring.readers.items():
            if any(isinstance(part, Part) for part in axis):
                handle = source.model.get_submodule(path).register_forward_pre_hook(reading(path, axis))
                stack.callback(handle.remove)
        for picture in pictures:
            source.model(torch.from_numpy(picture).to(device))
            count += 1
    if not count:
        raise DataError("no pictures to look at", where=source.name, mend="name some under `calibration`")
    return {space.name: total / max(readings[space], 1) for space, total in sums.items()}


def gradients(source: LoadedModel, place: Place, batches: int) -> dict[str, Tensor]:
    """How much the training loss would change without each channel, to the first order (Molchanov et al. 2019).

    The change is the sum of gradient times parameter over what makes the channel: scale and shift of the batch norm
    behind each producer, or its weights and bias where there is none. Batch norms keep their running statistics, for
    with those of the batch the loss does not depend on the size of a weight.

    Args:
        source: stays as it is.
        place: the recipe's training data.
        batches: how many are looked at.

    Returns:
        By group, `width` float64 values: the mean over batches of the change's magnitude.

    Raises:
        ConfigError: the recipe has no `train`.
        NumericalError: a gradient is not finite.
        See `leadline.training.fit.fit` for the rest.
    """
    config = configured(source, place, {"precision": "fp32", "compile": False, "ema": 0.0})
    wiring, contract = wiring_of(source), source.contract
    sums = {space: torch.zeros(space.width, dtype=torch.float64) for space in wiring.spaces}
    mix = Mix(config, contract, config.size or (contract.input.height, contract.input.width))
    with Team(own_device(config.device)) as team:
        if team.size > 1:
            raise ConfigError("gradients are looked at by one process", why=f"{team.size} were started")
        model = copy.deepcopy(source.model).requires_grad_()
        learner = prepare(config, model, {}, team, contract)
        model.eval()
        for batch in itertools.islice(ahead(mix, 0, batches), batches):
            here = batch.to(team.device)
            learner.optimizer.zero_grad(set_to_none=True)
            seen = Seen(learner.see(here.image), contract.output.kind, here, learner.auxiliary, model)
            loss, _ = total_loss(config.objectives, seen)
            loss.backward()  # type: ignore[no-untyped-call]
            for space, total in sums.items():
                total += _change(model, wiring, space).abs().double().cpu()
    for space, total in sums.items():
        if not bool(total.isfinite().all()):
            raise NumericalError("a gradient is not finite", where=space.name)
    return {space.name: total / batches for space, total in sums.items()}


def _change(model: nn.Module, wiring: Wiring, space: Space) -> Tensor:
    """Sum of gradient times parameter over all producers of a space, by channel."""
    change = torch.zeros(space.width, device=next(model.parameters()).device)
    for path in space.producers:
        layer = model.get_submodule(space.norms.get(path, path))
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, torch.Tensor)
        if isinstance(weight.grad, torch.Tensor):
            product = weight.detach() * weight.grad
            change += product if path in space.norms else producer_rows(product, wiring, space, path).sum(dim=1)
        if isinstance(bias, torch.Tensor) and bias.grad is not None:
            product = bias.detach() * bias.grad
            change += product if path in space.norms else per_channel(product, 0, wiring.axes[f"{path}.bias"][0]).sum(1)
    return change
