"""How much a channel matters: one number per channel of a group, over all layers that are tied to it.

A group's layers lose the same channels, so they are ranked together: the norm of a channel runs over the weights of all
of them. (The published NetAdapt code ranked each of the tied layers on its own, after which the summands of an addition
kept different channels: SPEC.md 2.3.)
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal, get_args

import torch

from leadline.compression.graph import producer_rows, space_of, weight_at, wiring_of
from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from leadline.compression.graph import Group
    from leadline.reference import LoadedModel

Importance = Literal["l1", "l2", "bn-scale", "taylor", "activation", "random"]
MEASURED = ("taylor", "activation")  # need pictures


def scores(
    source: LoadedModel,
    group: Group,
    importance: Importance = "l2",
    activations: Mapping[str, Tensor] | None = None,
    *,
    fallback: Importance | None = None,
    seed: int = 0,
) -> Tensor:
    """How much each channel of a group matters; the larger the more.

    Args:
        source: the network.
        group: of it.
        importance: `l1`, `l2`: norm of the weights that produce the channel, over all producers; `bn-scale`: norm of
            the scales of the batch norms behind them; `activation`: mean magnitude of what the following layers
            read, over pictures; `taylor`: change of the loss without the channel, to the first order; `random`: a
            seeded baseline.
        activations: by group, what pictures showed (`measure.py`); for `activation` and `taylor`.
        fallback: what to take for a group with a producer that has no batch norm; refused where absent.
        seed: of `random`.

    Returns:
        `group.width` float64 values >= 0.

    Raises:
        ConfigError: unknown group or importance, no batch norm, or nothing measured.
    """
    wiring = wiring_of(source)
    space = space_of(wiring, group.name)
    if importance not in get_args(Importance):
        raise ConfigError("unknown importance", where=importance, mend=closest(importance, get_args(Importance)))
    if importance == "random":
        generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
        return torch.rand(group.width, generator=generator, dtype=torch.float64)
    if importance == "bn-scale":
        unnormed = [path for path in group.producers if path not in space.norms]
        if unnormed and fallback is None:
            why, mend = "no batch norm behind it", "choose another importance, a `fallback`, or exclude the group"
            raise ConfigError("bn-scale says nothing about", where=unnormed[0], why=why, mend=mend)
        if unnormed:
            assert fallback is not None
            return scores(source, group, fallback, activations, seed=seed)
        return _joint([weight_at(source.model, space.norms[path])[:, None] for path in group.producers])
    if importance in MEASURED:
        return _measured(group, importance, activations)
    rows = [producer_rows(weight_at(source.model, path), wiring, space, path) for path in group.producers]
    if importance == "l1":
        return torch.cat(rows, dim=1).double().abs().sum(dim=1).cpu()
    return _joint(rows)


def strongest(group: Group, values: Tensor, width: int) -> tuple[int, ...]:
    """Ascending indices of the `width` channels of the highest scores, in whole bundles.

    Args:
        group: of the network.
        values: `group.width` scores.
        width: a multiple of the group's bundle, at least one.

    Raises:
        ConfigError: no such number of channels can be kept.
    """
    if not 0 < width <= group.width or width % group.multiple:
        known = f"of {group.width} channels" + (f" in bundles of {group.multiple}" if group.multiple > 1 else "")
        raise ConfigError(f"cannot keep {width} channels", where=group.name, why=known)
    bundles = bundled(group, values)
    order = bundles.argsort(descending=True, stable=True)[: width // group.multiple].sort().values
    inside = torch.arange(group.multiple)
    return tuple((order[:, None] * group.multiple + inside).flatten().tolist())


def bundled(group: Group, values: Tensor) -> Tensor:
    """Scores of a group's bundles: the norm over their channels."""
    norms: Tensor = torch.linalg.vector_norm(values.double().reshape(-1, group.multiple), dim=1)
    return norms


def _joint(rows: list[Tensor]) -> Tensor:
    """L2 norm of each channel over the rows of all producers."""
    norms: Tensor = torch.linalg.vector_norm(torch.cat([row.double() for row in rows], dim=1), dim=1)
    return norms.cpu()


def _measured(group: Group, importance: str, activations: Mapping[str, Tensor] | None) -> Tensor:
    if activations is None or group.name not in activations:
        how = "gradients" if importance == "taylor" else "mean_activations"
        mend = f"give what `leadline.compression.measure.{how}` returns for this network"
        raise ConfigError(f"{importance} needs what pictures showed", where=group.name, mend=mend)
    return activations[group.name].double()
