"""Groups of channels that leave a network together, and the network without some of them."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from leadline.errors import ConfigError, closest
from leadline.models.registry import architecture, config_from, resized
from leadline.models.wiring import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from torch import Tensor, nn

    from leadline.models.wiring import Axis, Space, Wiring
    from leadline.reference import LoadedModel


@dataclass(frozen=True)
class Group:
    """Channels that are kept or removed together, in every layer that produces or reads them.

    Args:
        name: module path of the first producer, as `conv5.3`.
        width: channels.
        producers: module paths of all layers whose output channels these are (tied by additions); depthwise layers
            follow and are not among them.
        kernels: weights per channel over all producers, without biases and batch norms.
        multiple: channels come in bundles of so many (attention heads, pixel shuffles); indices 0 .. multiple - 1 are
            the first bundle.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    kernels: int
    multiple: int = 1

    def __str__(self) -> str:
        tied = f" with {', '.join(self.producers[1:])}" if len(self.producers) > 1 else ""
        return f"{self.name} ({self.width}){tied}"


def groups(source: LoadedModel) -> list[Group]:
    """All groups in the order of the network; picture and output channels are in none.

    Raises:
        ConfigError: the network is not of the registry.
    """
    state = source.model.state_dict()
    return [_group(space, state) for space in wiring_of(source).spaces]


def wiring_of(source: LoadedModel) -> Wiring:
    """Which channels of the network belong together.

    Raises:
        ConfigError: the network is not of the registry.
    """
    if source.architecture is None or source.config is None:
        mend = "from Python, `leadline.compression.foreign.prune_module` prunes any torch.nn.Module"
        raise ConfigError("no groups of channels", where=source.name, why="it is no network of the registry", mend=mend)
    return architecture(source.architecture).wiring(source.config)


def keep(source: LoadedModel, chosen: Mapping[str, Sequence[int]]) -> LoadedModel:
    """The network with the chosen channels only: the same function of what stays, as plain configuration.

    Args:
        source: stays as it is.
        chosen: by name of a group, ascending indices of the channels that stay; a group not named stays whole.

    Returns:
        A network in eval mode, on the source's device, with the source's name, contract and lineage.

    Raises:
        ConfigError: there is no such group or channel, a bundle is torn, or nothing would stay.
    """
    wiring = wiring_of(source)
    units = _kept_units(wiring, chosen)
    state = {name: _cut(value, wiring.axes.get(name, ()), units) for name, value in source.model.state_dict().items()}
    assert source.architecture is not None
    assert source.config is not None
    config = config_from(source.architecture, source.config, {name: value.shape for name, value in state.items()})
    with torch.random.fork_rng(devices=[]):
        model = architecture(source.architecture).build(config)
    model.load_state_dict(state)
    device = next(iter(state.values())).device
    return replace(source, model=model.to(device).eval(), config=config)


def with_widths(source: LoadedModel, widths: Mapping[str, int]) -> BaseModel:
    """The configuration of the network with other widths, by name of a group; a group not named stays as wide.

    Raises:
        ConfigError: the network is not of the registry.
    """
    wiring = wiring_of(source)
    assert source.architecture is not None
    assert source.config is not None
    return resized(source.architecture, source.config, wiring, wiring.sized(widths))


def space_of(wiring: Wiring, name: str) -> Space:
    """The channels of the group `name`.

    Raises:
        ConfigError: there is no such group.
    """
    spaces = {space.name: space for space in wiring.spaces}
    if name not in spaces:
        raise ConfigError("no such group of channels", where=name, mend=closest(name, spaces))
    return spaces[name]


def per_channel(weight: Tensor, axis: int, space_axis: Axis) -> Tensor:
    """A weight as one row per channel of the one space that `axis` runs over: width x everything else.

    An axis that repeats the space (query, key and value) gives all repetitions of a channel to its row.
    """
    (part,) = space_axis
    assert not isinstance(part, int)
    rows = weight.transpose(0, axis).reshape(part.times, part.space.units * part.each, -1)
    return rows.transpose(0, 1).flatten(1)


def producer_rows(weight: Tensor, wiring: Wiring, space: Space, path: str) -> Tensor:
    """The weight of the producer `path` of a space (or another tensor of its form), one row per channel."""
    axis = output_axis(wiring, space, path)
    return per_channel(weight, axis, wiring.axes[f"{path}.weight"][axis])


def output_axis(wiring: Wiring, space: Space, path: str) -> int:
    """The axis of a producer's weight that runs over its output channels."""
    bias = wiring.axes.get(f"{path}.bias")
    axes = wiring.axes[f"{path}.weight"]
    if bias is not None:
        return axes.index(bias[0])
    fitting = (i for i, axis in enumerate(axes) if len(axis) == 1 and getattr(axis[0], "space", None) is space)
    return next(fitting)


def _group(space: Space, state: Mapping[str, Tensor]) -> Group:
    kernels = sum(state[f"{path}.weight"].numel() for path in space.producers) // space.width
    return Group(space.name, space.width, tuple(space.producers), kernels, space.bundle)


def weight_at(model: nn.Module, path: str) -> Tensor:
    """The weight of a layer, without its gradient."""
    weight = model.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _kept_units(wiring: Wiring, chosen: Mapping[str, Sequence[int]]) -> dict[Space, list[int]]:
    """By space, indices of the units that stay."""
    kept = {}
    for name, indices in chosen.items():
        space = space_of(wiring, name)
        kept[space] = _units(space, [operator.index(index) for index in indices])
    return kept


def _units(space: Space, indices: list[int]) -> list[int]:
    if not indices:
        raise ConfigError("no channel would stay", where=space.name, mend="keep at least one")
    if any(later <= sooner for sooner, later in itertools.pairwise(indices)):
        raise ConfigError("channels are not ascending and distinct", where=space.name, why=f"got {indices[:8]}")
    if indices[0] < 0 or indices[-1] >= space.width:
        wrong = indices[0] if indices[0] < 0 else indices[-1]
        raise ConfigError("no such channel", where=space.name, why=f"{wrong} of {space.width}")
    units = sorted({index // space.bundle for index in indices})
    if len(units) * space.bundle != len(indices):
        why = f"its channels come in bundles of {space.bundle}"
        raise ConfigError("a bundle is torn", where=space.name, why=why, mend="keep whole bundles")
    return units


def _cut(value: Tensor, axes: Sequence[Axis], units: Mapping[Space, list[int]]) -> Tensor:
    for number, axis in enumerate(axes):
        if any(not isinstance(part, int) and part.space in units for part in axis):
            value = value.index_select(number, _indices(axis, units).to(value.device))
    return value.clone()


def _indices(axis: Axis, units: Mapping[Space, list[int]]) -> Tensor:
    """Elements of an axis that stay."""
    stretches, start = [], 0
    for part in axis:
        everything = torch.arange(start, start + size((part,)))
        start += len(everything)
        if not isinstance(part, int) and part.space in units:
            grid = everything.reshape(part.times, part.space.units, part.each)
            everything = grid[:, units[part.space]].flatten()
        stretches.append(everything)
    return torch.cat(stretches)
