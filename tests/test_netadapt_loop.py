"""NetAdapt's rules and its loop on a toy whose optimum is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from leadline.compression.netadapt import NetAdapt
from leadline.compression.netadapt_loop import (
    Adaptation,
    Narrowing,
    Proposal,
    Schedule,
    Turn,
    narrowing,
    ranked,
    selected,
)
from leadline.errors import ConfigError

Widths = Mapping[str, int]


class Toy:
    """The resource is the sum of price x width, the accuracy 1 minus the sum of worth x channels lost."""

    def __init__(self, groups: dict[str, tuple[int, float, float]], multiple: int = 8) -> None:
        self.start = {name: width for name, (width, _, _) in groups.items()}
        self.price = {name: price for name, (_, price, _) in groups.items()}
        self.worth = {name: worth for name, (_, _, worth) in groups.items()}
        self.multiple = multiple
        self.asked: list[tuple[int, str, int]] = []

    def resource(self, widths: Widths) -> float:
        return sum(self.price[name] * width for name, width in widths.items())

    def accuracy(self, widths: Widths) -> float:
        return 1 - sum(self.worth[name] * (self.start[name] - width) for name, width in widths.items())

    def groups(self, network: Widths) -> Mapping[str, tuple[int, int]]:
        return {name: (width, self.multiple) for name, width in network.items()}

    def estimate(self, network: Widths, widths: Widths) -> float:
        return self.resource({**network, **widths})

    def proposals(self, network: Widths, iteration: int, narrowings: Sequence[Narrowing]) -> list[Proposal]:
        self.asked += [(iteration, each.group, each.width) for each in narrowings]
        return [Proposal(each, self.accuracy({**network, each.group: each.width})) for each in narrowings]

    def adopted(self, network: Widths, iteration: int, proposal: Proposal) -> tuple[Proposal, Widths, float]:
        widths = {**network, proposal.narrowing.group: proposal.narrowing.width}
        return proposal, widths, self.resource(widths)


def run(toy: Toy, schedule: Schedule, lines: list[str] | None = None) -> tuple[Widths, list[Turn]]:
    history = [Turn(iteration=0, accuracy=1.0, resource=toy.resource(toy.start))]
    adaptation = Adaptation(toy, schedule, (lines if lines is not None else []).append)
    return adaptation.run(toy.start, history, lambda turns: None), history


def test_takes_what_costs_least_accuracy_per_resource() -> None:
    # a loses 0.001 per unit of resource, b 0.002, c 0.01: a is taken first, as far as it goes, then b, never c
    toy = Toy({"a": (32, 1.0, 0.001), "b": (32, 1.0, 0.002), "c": (32, 1.0, 0.01)})
    widths, history = run(toy, Schedule(budget=0.55, ratio=0.08, decay=1.0, max_iterations=99))
    # each target is 7.68 below, so 8 channels go in each turn
    assert [(turn.group, turn.before, turn.width) for turn in history[1:]] == [
        ("a", 32, 24),
        ("a", 24, 16),
        ("a", 16, 8),
        ("b", 32, 24),
        ("b", 24, 16),
        ("b", 16, 8),
    ]
    assert widths == {"a": 8, "b": 8, "c": 32}
    assert [turn.resource for turn in history] == [96, 88, 80, 72, 64, 56, 48]
    assert history[-1].accuracy == pytest.approx(1 - 24 * 0.001 - 24 * 0.002)


def test_targets_follow_the_published_schedule() -> None:
    toy = Toy({"a": (800, 1.0, 0.0), "b": (200, 1.0, 1.0)})
    _, history = run(toy, Schedule(budget=0.5, ratio=0.1, decay=0.5, max_iterations=3))
    # R0 = 1000; target_t = R_{t-1} - 100 * 0.5^(t-1); widths of a are the largest multiple of 8 strictly below
    assert [turn.target for turn in history[1:]] == [900, 846, 815]
    assert [turn.width for turn in history[1:]] == [696, 640, 608]
    assert [turn.resource for turn in history] == [1000, 896, 840, 808]


@pytest.mark.parametrize(("target", "width"), [(100.0, 96), (96.0, 88), (96.5, 96), (8.0, 8), (8.5, 8), (200.0, 104)])
def test_width_is_the_largest_multiple_strictly_below_the_target(target: float, width: int) -> None:
    found = narrowing("a", 107, 8, target, float)
    assert found.width == width
    assert found.resource == width
    assert found.reached == (width < target)


def test_looks_at_the_narrowest_once_where_it_does_not_help() -> None:
    asked: list[int] = []

    def cost(width: int) -> float:
        asked.append(width)
        return 50.0 + width

    found = narrowing("a", 64, 8, 40.0, cost)
    assert (found.width, found.reached) == (8, False)
    assert asked == [8]


def proposal(group: str, resource: float, accuracy: float, reached: bool = True) -> Proposal:
    return Proposal(Narrowing(group, 64, 8, resource, reached), accuracy)


def test_rules_differ() -> None:
    last = Turn(iteration=3, accuracy=0.90, resource=100.0)
    # ratio: 0.02 / 40 = 0.0005 beats 0.01 / 10 = 0.001; accuracy: 0.89 beats 0.88
    wide, careful = proposal("wide", 60.0, 0.88), proposal("careful", 90.0, 0.89)
    assert selected([careful, wide], last, "ratio") is wide
    assert selected([careful, wide], last, "accuracy") is careful


def test_accuracy_alone_does_not_choose_what_misses_its_target() -> None:
    last = Turn(iteration=0, accuracy=0.9, resource=100.0)
    idle, working = proposal("idle", 99.0, 0.9, reached=False), proposal("working", 90.0, 0.5)
    assert selected([idle, working], last, "accuracy") is working
    assert selected([idle], last, "accuracy") is idle


def test_reaching_keeps_lucky_trifles_out() -> None:
    # (0.90 - 0.91) / 1 = -0.01 beats 0.01 / 20 = 0.0005 by the published ratio, and gains nothing to speak of
    last = Turn(iteration=0, accuracy=0.90, resource=100.0)
    lucky, useful = proposal("lucky", 99.0, 0.91, reached=False), proposal("useful", 80.0, 0.89)
    assert selected([lucky, useful], last, "ratio") is lucky
    assert selected([lucky, useful], last, "ratio", reaching=True) is useful
    assert selected([lucky], last, "ratio", reaching=True) is lucky


def test_reaching_carries_out_only_what_may_win() -> None:
    # a turn takes 20: a alone may give 24, b only 4
    groups = {"a": (32, 1.0, 0.001), "b": (16, 0.5, 0.0)}
    schedule = Schedule(budget=0.51, ratio=0.5, decay=1.0, max_iterations=1, reaching=True)
    toy = Toy(groups)
    run(toy, schedule)
    assert {group for _, group, _ in toy.asked} == {"a"}
    published = Toy(groups)
    run(published, replace(schedule, reaching=False))
    assert {group for _, group, _ in published.asked} == {"a", "b"}
    neither = Toy({"a": (32, 1.0, 0.001), "b": (32, 1.0, 0.0)})  # a turn takes 32 of 64, either alone 24
    run(neither, schedule)
    assert {group for _, group, _ in neither.asked} == {"a", "b"}


def test_small_terms_of_the_ratio_are_the_published_ones() -> None:
    # equal losses of 0: (0 + 1e-6) / (gain + 1e-5), so the larger gain wins even without any loss
    last = Turn(iteration=0, accuracy=0.5, resource=10.0)
    assert [
        each.narrowing.group for each in ranked([proposal("a", 9.0, 0.5), proposal("b", 8.0, 0.5)], last, "ratio")
    ] == [
        "b",
        "a",
    ]


def test_dearer_proposals_are_never_chosen() -> None:
    last = Turn(iteration=4, accuracy=0.5, resource=10.0)
    with pytest.raises(ConfigError, match=r"nothing left to adapt 'iteration 5'.*none of 2 groups"):
        selected([proposal("a", 10.0, 0.9), proposal("b", 11.0, 0.9)], last, "ratio")


def test_impossible_budget_names_the_least_reachable() -> None:
    # 8 + 8 of 64 channels at least: a quarter
    toy = Toy({"a": (32, 1.0, 0.1), "b": (32, 1.0, 0.1)})
    with pytest.raises(
        ConfigError, match=r"budget out of reach '20.0%'.*25.0% of the start is left. Set .* 0.25 or more"
    ):
        run(toy, Schedule(budget=0.2))
    assert toy.asked == []


def test_channels_that_cost_nothing_are_no_way_to_a_budget() -> None:
    with pytest.raises(ConfigError, match=r"100.0% of the start is left. Fewer channels do not make .* cheaper"):
        run(Toy({"a": (32, 0.0, 0.1), "fixed": (1, 64.0, 0.0)}), Schedule(budget=0.5))


def test_groups_of_one_channel_stay() -> None:
    toy = Toy({"one": (1, 10.0, 0.0), "few": (8, 1.0, 0.0), "many": (64, 1.0, 0.1)})
    widths, _ = run(toy, Schedule(budget=0.5, ratio=0.2, max_iterations=50))
    assert widths["one"] == 1
    assert widths["few"] == 8
    assert {group for _, group, _ in toy.asked} == {"many"}


def test_missed_targets_and_budgets_are_said() -> None:
    lines: list[str] = []
    toy = Toy({"a": (16, 1.0, 0.1), "b": (16, 1.0, 0.2)})
    run(toy, Schedule(budget=0.51, ratio=0.4, decay=1.0, max_iterations=1), lines)
    assert any("missed its target: 24 is above 19.2" in line for line in lines)
    assert any("the budget of 51.0% is not met: 75.0% of the start after 1 iterations" in line for line in lines)


def test_goes_on_behind_the_history() -> None:
    groups = {"a": (32, 1.0, 0.001), "b": (32, 1.0, 0.002), "c": (32, 2.0, 0.003)}
    schedule = Schedule(budget=0.4, ratio=0.06, max_iterations=20)
    whole, history = run(Toy(groups), schedule)
    toy = Toy(groups)
    kept = history[:4]
    network = dict(toy.start)
    for turn in kept[1:]:
        network[turn.group] = turn.width
    again = list(kept)
    assert Adaptation(toy, schedule).run(network, again, lambda turns: None) == whole
    assert again == history
    assert min(iteration for iteration, _, _ in toy.asked) == 4


def test_a_met_budget_changes_nothing() -> None:
    toy = Toy({"a": (32, 1.0, 0.1)})
    history = [Turn(iteration=0, accuracy=1.0, resource=32.0), Turn(iteration=1, accuracy=1.0, resource=8.0)]
    assert Adaptation(toy, Schedule(budget=0.5)).run({"a": 8}, history, lambda turns: None) == {"a": 8}
    assert len(history) == 2
    assert replace(Schedule(), budget=0.5).budget == 0.5


def test_a_schedule_that_cannot_reach_its_budget_says_so_before_it_starts() -> None:
    timid = Schedule(budget=0.55, ratio=0.1, decay=0.5, max_iterations=3)
    assert timid.taken(3) == pytest.approx(0.1 + 0.05 + 0.025)
    assert timid.shortfall.endswith("sure of 17.5%, and the budget asks for 45.0%: raise ratio or decay")
    few = Schedule(budget=0.55, ratio=0.1, decay=1.0, max_iterations=3)
    assert few.shortfall.endswith("set max_iterations to 5, or raise ratio or decay")
    assert Schedule(budget=0.55, ratio=0.1, decay=1.0, max_iterations=5).shortfall == ""
    lines: list[str] = []
    run(Toy({"a": (32, 1.0, 0.1)}), timid, lines)
    assert lines[0] == f"warning: {timid.shortfall}"


def test_the_step_s_own_schedule_reaches_its_budget() -> None:
    step = NetAdapt()
    assert Schedule(step.budget, step.ratio, step.decay, step.max_iterations).shortfall == ""
