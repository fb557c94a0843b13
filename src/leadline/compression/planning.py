"""How wide each group becomes: a share of its channels, a share of the network's work, or what the user says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from leadline.compression.graph import with_widths
from leadline.compression.importance import bundled
from leadline.errors import ConfigError, closest
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.models.registry import architecture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from torch import Tensor, nn

    from leadline.compression.graph import Group
    from leadline.reference import LoadedModel

Widths = dict[str, int]


@dataclass(frozen=True)
class Limits:
    """Which widths are allowed.

    Args:
        multiple: of channels; groups with bundles of their own (heads) go by these instead.
        min_width: fewest channels of a group.
        exclude: groups, layers or modules whose channels stay.
    """

    multiple: int = 8
    min_width: int = 8
    exclude: tuple[str, ...] = ()

    def allowed(self, group: Group) -> list[int]:
        """Widths from the present one down; it alone where nothing can be removed."""
        step = group.multiple if group.multiple > 1 else self.multiple
        if any(_inside(path, name) for path in group.producers for name in self.exclude):
            return [group.width]
        lowest = max(self.min_width, 1)
        return [
            group.width,
            *(width for width in range(group.width - 1, 0, -1) if width % step == 0 and width >= lowest),
        ]

    def check(self, found: Sequence[Group]) -> None:
        """Refuse to exclude what is not there.

        Raises:
            ConfigError: a name fits no group.
        """
        paths = [path for group in found for path in group.producers]
        for name in self.exclude:
            if not any(_inside(path, name) for path in paths):
                raise ConfigError("nothing to exclude", where=name, mend=closest(name, paths))


def by_ratio(found: Sequence[Group], shares: Mapping[str, float] | float, limits: Limits) -> Widths:
    """Each group without a share of its channels: the allowed width nearest to that, the larger of two equally near.

    Args:
        found: the groups.
        shares: of channels to remove, 0 to 1; for all, or by group (a group not named stays whole).
        limits: on widths.
    """
    widths = {}
    for group in found:
        share = shares if isinstance(shares, float) else shares.get(group.name, 0.0)
        wanted = group.width * (1 - share)
        widths[group.name] = min(limits.allowed(group), key=lambda width: (abs(width - wanted), -width))
    return widths


def by_macs(
    source: LoadedModel, found: Sequence[Group], values: Mapping[str, Tensor], limit: float, limits: Limits
) -> Widths:
    """The widest network within a limit of MACs when all channels stand in one row, by their share of the group's mean.

    A group keeps the channels above the common threshold, rounded up to an allowed width; the threshold is the lowest
    at which the network fits the limit.

    Args:
        source: the network.
        found: its groups.
        values: scores by group.
        limit: multiply-accumulates at the contract's size.
        limits: on widths.

    Raises:
        ConfigError: even the smallest allowed network does more.
    """
    normal = {group.name: _normalised(group, values[group.name]) for group in found}
    thresholds = sorted({0.0, *torch.cat(list(normal.values())).tolist()})

    def above(threshold: float) -> Widths:
        return {
            group.name: _at_least(limits.allowed(group), int((normal[group.name] > threshold).sum()) * group.multiple)
            for group in found
        }

    least = {group.name: limits.allowed(group)[-1] for group in found}
    if (fewest := macs(source, least)) > limit:
        now = macs(source, {})
        why = f"the smallest allowed network keeps {fewest / now:.4f} ({fewest:,} of {now:,})"
        mend = "ask for more, lower `multiple` and `min_width`, or exclude less"
        raise ConfigError("cannot keep so few multiply-accumulates", where=round(limit / now, 4), why=why, mend=mend)
    low, high = 0, len(thresholds) - 1  # at the highest threshold nothing but the least is left
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if macs(source, above(thresholds[middle])) <= limit else (middle + 1, high)
    return above(thresholds[low])


def macs(source: LoadedModel, widths: Mapping[str, int]) -> int:
    """Multiply-accumulates of the network with other widths, at the contract's size."""
    spec = source.contract.input
    return count_macs(_shapes(source, with_widths(source, widths)), (spec.height, spec.width))


def table(source: LoadedModel, widths: Mapping[str, int], found: Sequence[Group]) -> list[str]:
    """Lines: each group with its width before and after, then MACs and parameters of the network."""
    width = max(len(group.name) for group in found)
    lines = [f"{'group':{width}}  before  after"]
    lines += [f"{group.name:{width}}  {group.width:6}  {widths.get(group.name, group.width):5}" for group in found]
    spec = source.contract.input
    before = _shapes(source, with_widths(source, {}))
    after = _shapes(source, with_widths(source, widths))
    for what, was, now in (
        ("MACs", macs(source, {}), macs(source, widths)),
        ("parameters", count_parameters(before), count_parameters(after)),
    ):
        at = f" at {spec.height} x {spec.width}" if what == "MACs" else ""
        lines.append(f"{what}{at}: {was:,} -> {now:,} ({now / was:.3f})")
    return lines


def _shapes(source: LoadedModel, config: BaseModel) -> nn.Module:
    assert source.architecture is not None
    with torch.device("meta"):
        return architecture(source.architecture).build(config)


def _normalised(group: Group, values: Tensor) -> Tensor:
    """Scores of bundles over their mean; all alike where the group says nothing at all."""
    bundles = bundled(group, values)
    mean = float(bundles.mean())
    return bundles / mean if mean > 0 else torch.ones_like(bundles)


def _at_least(allowed: list[int], width: int) -> int:
    return next((each for each in reversed(allowed) if each >= width), allowed[0])


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def checked_plan(found: Sequence[Group], plan: Mapping[str, int]) -> Widths:
    """Widths that the user named, for groups by name or by any of their producers.

    Raises:
        ConfigError: no such group, a width that it cannot have, or two for one group.
    """
    by_path = {path: group for group in found for path in group.producers}
    widths: Widths = {}
    for path, width in plan.items():
        if path not in by_path:
            raise ConfigError("no such group of channels", where=path, mend=closest(path, by_path))
        group = by_path[path]
        if widths.setdefault(group.name, width) != width:
            tied = ", ".join(group.producers)
            raise ConfigError("two widths for one group", where=path, why=f"{width} and {widths[group.name]}: {tied}")
        if not 0 < width <= group.width or width % group.multiple:
            mend = f"choose one of {group.multiple}, {2 * group.multiple}, ... up to {group.width}"
            raise ConfigError(f"cannot keep {width} channels", where=path, why=f"it has {group.width}", mend=mend)
    return widths


def between(found: Sequence[Group], widths: Mapping[str, int], share: float) -> Widths:
    """Widths a part of the way to a plan, in whole bundles, rounded up."""
    way = {}
    for group in found:
        last = widths.get(group.name, group.width)
        bundles = -int(-(group.width + (last - group.width) * share) // group.multiple)
        way[group.name] = min(group.width, bundles * group.multiple)
    return way
