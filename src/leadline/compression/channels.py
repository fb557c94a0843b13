"""Structured pruning as a step: whole channels leave, and what remains is a smaller network of the same architecture.

Choose widths, rank the channels of each group over all layers that are tied to it, keep the strongest, fine-tune; in
one go or in rounds. Faster on every engine, for nothing sparse is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from leadline.compression.base import Place, Step, Target
from leadline.compression.graph import groups, keep
from leadline.compression.importance import Importance, strongest
from leadline.compression.measure import scored
from leadline.compression.planning import Limits, between, by_macs, by_ratio, checked_plan, macs, table
from leadline.compression.sensitivity import amounts_of_file
from leadline.compression.tuning import tune
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.compression.graph import Group
    from leadline.reference import LoadedModel


class PruneChannels(Step):
    """Remove channels, attention heads and MLP widths, with everything that reads them."""

    uses: ClassVar[frozenset[str]] = frozenset({"train", "calibration"})

    step: Literal["prune-channels"] = "prune-channels"
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of each group's channels to remove")
    macs: float | None = Field(
        default=None, gt=0, lt=1, description="share of the MACs to keep; all groups ranked together"
    )
    plan: dict[str, int] | None = Field(default=None, description="widths by group, as in {conv5.3: 256}")
    importance: Importance = Field(default="l2", description="what makes a channel matter")
    fallback: Importance | None = Field(
        default=None, description="importance of groups without batch norm, under bn-scale; refused where absent"
    )
    batches: Annotated[int, Field(ge=1)] = Field(default=20, description="training batches that `taylor` looks at")
    multiple: Annotated[int, Field(ge=1)] = Field(default=8, description="widths are multiples of it; heads go whole")
    min_width: Annotated[int, Field(ge=1)] = Field(default=8, description="fewest channels of a group")
    exclude: tuple[str, ...] = Field(default=(), description="groups, layers or modules whose channels stay, by path")
    sensitivity: Path | None = Field(
        default=None, description="sensitivity.json of kind `channels`: `ratio` then is the share over all groups"
    )
    rounds: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="remove a little, fine-tune, go on")
    iterations: Annotated[int, Field(ge=0)] = Field(default=0, description="of fine-tuning after each round")
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate of the fine-tuning")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of `random`, and of the calibration pictures")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if sum(given is not None for given in (self.ratio, self.macs, self.plan)) != 1:
            raise ValueError("say how much goes, by exactly one of ratio, macs and plan")
        if self.sensitivity is not None and self.ratio is None:
            raise ValueError("a sensitivity file shares out a `ratio`")
        if self.plan is not None and self.exclude:
            raise ValueError("a plan names what changes: leave exclude out")
        if self.rounds > 1 and not self.iterations:
            raise ValueError("rounds without training between them are one round: set iterations")
        if self.fallback is not None and (self.importance != "bn-scale" or self.fallback == "bn-scale"):
            raise ValueError("fallback is another importance beside bn-scale")
        return self

    def needs_train(self) -> bool:
        """To train between rounds, or to look at gradients."""
        return bool(self.iterations) or "taylor" in (self.importance, self.fallback)

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse names that the network does not have."""
        if source.architecture is not None and (self.plan or self.exclude):
            whole = groups(source)
            Limits(self.multiple, self.min_width, self.exclude).check(whole)
            checked_plan(whole, self.plan or {})

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The narrower network, fine-tuned where `iterations` say so.

        Raises:
            ConfigError: the network is not of the registry, nothing can be removed, the target cannot be reached, or
                importance and training need what the recipe does not have.
        """
        whole = groups(source)
        limits = Limits(self.multiple, self.min_width, self.exclude)
        limits.check(whole)
        goal = self._goal(source, whole, limits, place)
        result = source
        for number in range(1, self.rounds + 1):
            if self.rounds > 1:
                place.say(f"round {number} of {self.rounds}")
            found = groups(result)
            values = self._scores(result, found, place)
            share = number / self.rounds
            if goal is None:
                assert self.macs is not None
                limit = (1 - (1 - self.macs) * share) * macs(source, {})
                widths = by_macs(result, found, values, limit, limits)
            else:
                widths = between(whole, goal, share)
            if number == self.rounds:
                _check_change(source, widths, limits)
            for line in table(result, widths, found):
                place.say(line)
            result = keep(result, _strongest(found, values, widths))
            if self.iterations:
                changes = {"iterations": self.iterations, "learning_rate": self.learning_rate}
                result = tune(result, place, changes, folder=place.folder / f"round-{number:02d}")
        return result

    def _goal(self, source: LoadedModel, found: list[Group], limits: Limits, place: Place) -> dict[str, int] | None:
        """Final widths where they do not depend on scores."""
        if self.plan is not None:
            return checked_plan(found, self.plan)
        if self.ratio is None:
            return None
        if self.sensitivity is None:
            return by_ratio(found, self.ratio, limits)
        amounts = amounts_of_file(self.sensitivity, self.ratio, source.name, place.say, "channels")
        names = {group.name for group in found}
        if strange := sorted(set(amounts) - names):
            why = f"{source.name} has no group {strange[0]!r}"
            raise ConfigError("a sensitivity file of another network", where=self.sensitivity, why=why)
        return by_ratio(found, amounts, limits)

    def _scores(self, source: LoadedModel, found: list[Group], place: Place) -> dict[str, Tensor]:
        return scored(
            source, found, place, self.importance, fallback=self.fallback, batches=self.batches, seed=self.seed
        )


def _strongest(found: list[Group], values: dict[str, Tensor], widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The channels that stay in each group that becomes narrower."""
    narrower = [group for group in found if widths.get(group.name, group.width) < group.width]
    return {group.name: strongest(group, values[group.name], widths[group.name]) for group in narrower}


def _check_change(source: LoadedModel, widths: dict[str, int], limits: Limits) -> None:
    """Refuse to call a network pruned from which nothing was removed."""
    found = groups(source)
    if all(widths.get(group.name, group.width) == group.width for group in found):
        widest = max(found, key=lambda group: group.width)
        why = f"no group loses a channel at multiples of {limits.multiple} with {limits.min_width} or more left"
        mend = f"ask for more, or lower `multiple` and `min_width` (the widest group has {widest.width})"
        raise ConfigError("nothing to remove", where=source.name, why=why, mend=mend)
