"""Channel search for a target's latency: lines through the measured table of pieces (SPEC.md 8)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import tiny_models
from channel_search import SIZE, place, step
from leadline.compression import latency_price, resources
from leadline.compression.channel_map import channel_map
from leadline.compression.latency_price import LatencyPrice
from leadline.errors import ConfigError
from leadline.evaluation.complexity import count_macs
from leadline.reference import LoadedModel


class Counting:
    """Multiply-accumulates for latency, in the place of `resources.Latency`."""

    measured = 0

    def __init__(self, *_: object) -> None:
        self.factor = 0.0

    def measure(self, network: LoadedModel) -> float:
        Counting.measured += 1  # a busy machine: never the same again
        self.refer(network, 10.0 * Counting.measured)
        return 10.0 * Counting.measured

    def refer(self, network: LoadedModel, measured: float) -> None:
        self.factor = measured / count_macs(network.model, SIZE)

    def estimate(self, network: LoadedModel) -> float:
        return self.factor * count_macs(network.model, SIZE)


def test_latency_is_priced_by_lines_through_the_table() -> None:
    chart = channel_map(tiny_models.cnn())
    first, second = chart.spans[0], chart.spans[1]
    asked: list[dict[str, int]] = []

    def estimate(widths: Mapping[str, int]) -> float:
        asked.append(dict(widths))
        return 0.5 + widths[first.name] ** 2 + 3.0 * widths[second.name]

    price = LatencyPrice(chart, estimate, asked=20)
    row = torch.ones(chart.units)
    row[first.start] = 0.0
    row.requires_grad_()
    width, slope = first.count - 1, 2 * first.count - 1 - min(8, first.count - 2)
    cost = price.of(row)
    assert float(cost.detach()) == pytest.approx(0.5 + width**2 + 3 * second.count)
    (gradient,) = torch.autograd.grad(cost, row)
    assert gradient[first.start].item() == pytest.approx(slope)  # between one more and a step of the grid less
    assert gradient[second.start].item() == pytest.approx(3.0)
    assert gradient[chart.spans[2].start].item() == 0.0
    made = len(asked)
    less = row.detach().clone()
    less[second.start] = 0.0
    assert float(price.of(less)) == pytest.approx(0.5 + width**2 + 3 * (second.count - 1))
    assert len(asked) == made  # the lines are renewed ten times in a search, here at every second asking
    price.of(less)
    assert len(asked) > made
    assert price.exact(less) == 0.5 + width**2 + 3 * (second.count - 1)


def test_a_search_for_latency_reaches_it_and_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "Latency", Counting)
    monkeypatch.setattr(Counting, "measured", 0)
    monkeypatch.setattr(latency_price, "RENEWALS", 2)  # at iterations 1 and 4; the interruption falls between them
    source = tiny_models.cnn()
    rest = [span.name for span in channel_map(source).spans][2:]
    asked = step(targets={"latency": 0.99}, finetune=0, exclude=rest)
    assert asked.needs() == {"train", "target"}
    assert step().needs() == {"train"}
    whole = asked.apply(source, place(tmp_path / "whole"))
    report = json.loads((tmp_path / "whole" / "search.json").read_text())
    found = report["resources"]["latency"]
    assert found["before"] == pytest.approx(10.0)
    share = count_macs(whole.model, SIZE) / count_macs(source.model, SIZE)
    assert found["share"] == pytest.approx(share)
    assert found["share"] < 0.99

    class Killed(Exception):
        pass

    def say(line: str) -> None:
        if line.startswith("2/6"):
            raise Killed

    with pytest.raises(Killed):
        asked.apply(source, dataclasses.replace(place(tmp_path / "cut"), say=say))
    resumed = asked.apply(source, place(tmp_path / "cut"))
    assert resumed.config == whole.config


def test_what_latency_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "Latency", Counting)
    with pytest.raises(ConfigError, match=r"target latency 0\.001 cannot be met"):
        step(targets={"latency": 0.001}).apply(tiny_models.cnn(), place(tmp_path))
