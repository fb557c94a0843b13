"""NetAdapt's loop on any network, resource and accuracy (Yang et al., ECCV 2018; SPEC.md 2.1)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

N = TypeVar("N")
Rule = Literal["ratio", "accuracy"]


class Turn(BaseModel):
    """One iteration of the history; iteration 0 is the network that the loop began with.

    Args:
        iteration: 0 for the start.
        accuracy: larger is better.
        resource: measured or counted.
        group: that was narrowed.
        before: its width before.
        width: its width now.
        target: that the resource had to be below.
        predicted: the resource as estimated before it was measured.
        source: where the proposal came from.
        proposals: how many there were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    iteration: int
    accuracy: float
    resource: float
    group: str = ""
    before: int = 0
    width: int = 0
    target: float = 0.0
    predicted: float = 0.0
    source: str = ""
    proposals: int = 0


@dataclass(frozen=True)
class Narrowing:
    """What one group alone would have to become.

    Args:
        group: its name.
        before: its width.
        width: chosen.
        resource: of the whole network then, estimated.
        reached: whether that is below the target.
    """

    group: str
    before: int
    width: int
    resource: float
    reached: bool


@dataclass(frozen=True)
class Proposal:
    """A narrowing that was carried out, adapted and judged."""

    narrowing: Narrowing
    accuracy: float
    source: str = ""


class Work(Protocol[N]):
    """What the loop needs to know of networks."""

    def groups(self, network: N) -> Mapping[str, tuple[int, int]]:
        """By name of each group that may be narrowed: its width, and what widths must be multiples of."""

    def estimate(self, network: N, widths: Mapping[str, int]) -> float:
        """The resource with some groups narrowed, without doing it."""

    def proposals(self, network: N, iteration: int, narrowings: Sequence[Narrowing]) -> list[Proposal]:
        """Carry out each narrowing on its own, adapt it for a short time and judge it."""

    def adopted(self, network: N, iteration: int, proposal: Proposal) -> tuple[Proposal, N, float]:
        """The proposal as it is after further training, its network, and its resource as measured."""


@dataclass(frozen=True)
class Schedule:
    """How far and how fast.

    Args:
        budget: at which the loop ends, as a share of the first resource.
        ratio: of the first resource that the first iteration takes away.
        decay: factor of that from one iteration to the next.
        max_iterations: at most so many.
        rule: `ratio`: least accuracy lost per resource gained (the published code); `accuracy`: most accurate (paper).
        reaching: consider those above their target only where none is below it.
    """

    budget: float = 0.25
    ratio: float = 0.025
    decay: float = 0.96
    max_iterations: int = 10
    rule: Rule = "ratio"
    reaching: bool = False

    def taken(self, iterations: float) -> float:
        """Share of the first resource that so many iterations take away if each just meets its target."""
        if self.decay == 1:
            return self.ratio * iterations
        return self.ratio * (1 - math.pow(self.decay, iterations)) / (1 - self.decay)

    @property
    def shortfall(self) -> str:
        """What to change where the iterations are too few or too timid for the budget; empty if they are not."""
        wanted, taken = 1 - self.budget, self.taken(self.max_iterations)
        if taken >= wanted:
            return ""
        mend = "raise ratio or decay"
        if self.taken(math.inf) > wanted:
            enough = next(n for n in itertools.count(self.max_iterations) if self.taken(n) >= wanted)
            mend = f"set max_iterations to {enough}, or raise ratio or decay"
        return f"{self.max_iterations} iterations are sure of {taken:.1%}, and the budget asks for {wanted:.1%}: {mend}"


class Adaptation(Generic[N]):
    """The loop, which goes on behind the turns that were done before.

    Args:
        work: on networks.
        schedule: how far and how fast.
        say: takes lines of progress and warnings.
    """

    def __init__(self, work: Work[N], schedule: Schedule, say: Callable[[str], None] = lambda line: None) -> None:
        self.work, self.schedule, self._say = work, schedule, say

    def run(self, network: N, history: list[Turn], keep: Callable[[list[Turn]], None]) -> N:
        """Narrow group after group until the budget is met.

        Args:
            network: that the last turn of the history left.
            history: at least iteration 0; grows.
            keep: called after each turn.

        Raises:
            ConfigError: the budget is below what is left with every group at its narrowest, or nothing can be narrowed.
        """
        first = history[0].resource
        budget = self.schedule.budget * first
        if history[-1].resource > budget:
            self._refuse_impossible(network, budget, first)
        if len(history) == 1 and self.schedule.shortfall:
            self._say(f"warning: {self.schedule.shortfall}")
        while history[-1].resource > budget and len(history) <= self.schedule.max_iterations:
            network = self._turn(network, history, first)
            keep(history)
        if history[-1].resource > budget:
            left = history[-1].resource / first
            why = f"{left:.1%} of the start after {len(history) - 1} iterations"
            self._say(f"warning: the budget of {self.schedule.budget:.1%} is not met: {why}; raise max_iterations")
        return network

    def _turn(self, network: N, history: list[Turn], first: float) -> N:
        iteration, last = len(history), history[-1]
        target = last.resource - self.schedule.ratio * first * self.schedule.decay ** (iteration - 1)
        narrowings = [
            narrowing(name, width, multiple, target, partial(self._with, network, name))
            for name, (width, multiple) in self.work.groups(network).items()
            if width > multiple
        ]
        reaching = sum(each.reached for each in narrowings)
        self._say(f"iteration {iteration}: below {target:.6g}; {reaching} of {len(narrowings)} groups reach it alone")
        if self.schedule.reaching and reaching:
            narrowings = [each for each in narrowings if each.reached]
        proposals = self.work.proposals(network, iteration, narrowings)
        best = selected(proposals, last, self.schedule.rule, reaching=self.schedule.reaching)
        best, network, resource = self.work.adopted(network, iteration, best)
        chosen, accuracy = best.narrowing, best.accuracy
        turn = Turn(
            iteration=iteration,
            accuracy=accuracy,
            resource=resource,
            group=chosen.group,
            before=chosen.before,
            width=chosen.width,
            target=target,
            predicted=chosen.resource,
            source=best.source,
            proposals=len(proposals),
        )
        change = f"{chosen.group} {chosen.before} -> {chosen.width}, accuracy {accuracy:.4f}"
        self._say(f"iteration {iteration}: {change}, {resource / first:.1%} of the first resource")
        if resource > target:
            self._say(f"warning: iteration {iteration} missed its target: {resource:.6g} is above {target:.6g}")
        history.append(turn)
        return network

    def _with(self, network: N, group: str, width: int) -> float:
        return self.work.estimate(network, {group: width})

    def _refuse_impossible(self, network: N, budget: float, first: float) -> None:
        smallest = {name: multiple for name, (width, multiple) in self.work.groups(network).items() if width > multiple}
        least = self.work.estimate(network, smallest)
        if least > budget:
            why = f"with every group at its narrowest {least / first:.1%} of the start is left"
            mend = f"set the budget to {math.ceil(1000 * least / first) / 1000:g} or more"
            if least >= first:
                mend = "fewer channels do not make this network cheaper there: choose another resource or engine"
            raise ConfigError("budget out of reach", where=f"{budget / first:.1%}", why=why, mend=mend)


def narrowing(group: str, width: int, multiple: int, target: float, cost: Callable[[int], float]) -> Narrowing:
    """The most channels of a group with which the whole network's resource is strictly below the target.

    Only multiples of `multiple` count, from the largest up to the width downwards; the first below the target is taken.
    Where the narrowest is not below it, that one is taken at once (a resource falls with the width), unreached.

    Args:
        group: its name.
        width: channels now, more than `multiple`.
        multiple: of 8 channels, say.
        target: of the resource.
        cost: resource of the whole network by the group's width.
    """
    least = cost(multiple)
    if least >= target:
        return Narrowing(group, width, multiple, least, reached=False)
    for count in range(width // multiple * multiple, multiple, -multiple):
        resource = cost(count)
        if resource < target:
            return Narrowing(group, width, count, resource, reached=True)
    return Narrowing(group, width, multiple, least, reached=True)


def selected(proposals: Sequence[Proposal], last: Turn, rule: Rule, *, reaching: bool = False) -> Proposal:
    """The best of the proposals that cost less than the network before.

    Args:
        proposals: judged.
        last: the network before.
        rule: `ratio`: the smallest (accuracy lost + 1e-6) / (resource gained + 1e-5); `accuracy`: the most accurate of
            those that are below their target, or of all where none is. The first of equals.
        reaching: `ratio` too prefers all that are below their target to those that are not. A picture or two more that
            come out right make a loss negative, and the ratio then the better the less was gained: with few pictures,
            turns go by that bring the budget no nearer.

    Raises:
        ConfigError: none costs less.
    """
    best = ranked(proposals, last, rule, reaching=reaching)
    if not best:
        why = f"none of {len(proposals)} groups can be narrowed so that the network costs less"
        place = f"iteration {last.iteration + 1}"
        raise ConfigError("nothing left to adapt", where=place, why=why, mend="raise the budget")
    return best[0]


def ranked(proposals: Sequence[Proposal], last: Turn, rule: Rule, *, reaching: bool = False) -> list[Proposal]:
    """The proposals that cost less than the network before, best first (see `selected`)."""
    cheaper = [each for each in proposals if each.narrowing.resource < last.resource]
    if rule == "accuracy":
        return sorted(cheaper, key=lambda each: (not each.narrowing.reached, -each.accuracy))

    def lost_per_gained(each: Proposal) -> tuple[bool, float]:
        ratio = (last.accuracy - each.accuracy + 1e-6) / (last.resource - each.narrowing.resource + 1e-5)
        return reaching and not each.narrowing.reached, ratio

    return sorted(cheaper, key=lost_per_gained)
