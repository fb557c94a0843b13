"""Differentiable channel search: masks, what they cost, the schedule, and what is found (SPEC.md 8)."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

import tiny_models
from channel_search import SIZE, place, step
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression import AnyStep, Place
from leadline.compression.channel_map import ChannelMap, channel_map
from leadline.compression.graph import keep
from leadline.compression.maskable import exact_map
from leadline.compression.masks import Masks
from leadline.compression.pricing import Costs, Searched, Terms, final_strength, strength_at
from leadline.errors import ConfigError
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.reference import LoadedModel
from leadline.training.objectives.cost import Priced


def searched(
    source: LoadedModel, terms: Terms | None = None, size: tuple[int, int] = SIZE
) -> tuple[Searched, ChannelMap]:
    chart = channel_map(source)
    model = copy.deepcopy(source.model)
    terms = terms or Terms({"macs": 1.0}, {"macs": 0.5}, {}, 1.0, 10)
    return Searched(model, chart, Costs(model, chart, size), terms), chart


@pytest.mark.parametrize("seed", [0, 1])
def test_a_masked_network_is_the_pruned_one_and_costs_what_it_costs(seed: int) -> None:
    source = tiny_models.cnn()
    network, chart = searched(source)
    torch.manual_seed(seed)
    network.masks.alpha.data.uniform_(-1, 1)
    on = network.masks.on().detach()
    pruned = keep(source, chart.named(on > 0)).model
    picture = torch.from_numpy(tiny_models.picture(seed, SIZE))
    network.eval()
    with torch.no_grad():
        assert (network(picture) - pruned(picture)).abs().max() < 1e-6
    assert 0 < int(on.sum()) < chart.units
    assert float(network.costs.of("macs", on)) == count_macs(pruned, SIZE)
    norms = sum(p.numel() for m in pruned.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert float(network.costs.of("params", on)) == count_parameters(pruned) - norms


def test_taking_the_masks_off_leaves_the_trained_weights() -> None:
    source = tiny_models.cnn()
    network, _ = searched(source)
    network.masks.alpha.data.fill_(0.2)
    released = network.release().state_dict()
    assert released.keys() == source.model.state_dict().keys()
    assert all(torch.equal(value, released[name]) for name, value in source.model.state_dict().items())


def test_heads_and_hidden_widths_of_a_transformer_are_masked_and_its_embedding_is_left_whole(tmp_path: Path) -> None:
    source = tiny_models.vit()
    lines: list[str] = []
    chart = exact_map(source, [], place(tmp_path, lines))
    names = {span.name for span in chart.spans}
    assert any("fc1" in name for name in names)
    assert any("left whole" in line for line in lines)
    assert names < {span.name for span in channel_map(source).spans}


class Chain(nn.Module):
    """3 -> 4 -> (depthwise) -> 2, with sizes that are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N x 2 x H/2 x W/2."""
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))  # type: ignore[no-any-return]


def chain() -> tuple[Chain, ChannelMap]:
    from leadline.compression.channel_map import Layer, Span

    torch.manual_seed(0)
    row, free = torch.arange(4), torch.full((3,), -1)
    layers = (
        Layer("a", free, row, False, 9, False),
        Layer("b", row, row, True, 9, True),
        Layer("c", row, torch.full((2,), -1), False, 1, True),
    )
    return Chain(), ChannelMap((Span("a", 0, 4, 1),), layers)


def test_cost_in_closed_form_with_its_gradient() -> None:
    model, chart = chain()
    costs = Costs(model, chart, (8, 16))  # 4 x 8 = 32 positions behind the stride
    row = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    n = 1.75
    weights, macs = costs.of("params", row), costs.of("macs", row)
    assert weights.item() == pytest.approx(n * 3 * 9 + n * (9 + 1) + 2 * n + 2)
    assert macs.item() == pytest.approx(32 * (n * 3 * 9 + n * 9 + 2 * n))
    (gradient,) = torch.autograd.grad(macs, row)
    assert gradient.tolist() == pytest.approx([32 * (27 + 9 + 2)] * 4)


def test_lambda_follows_the_published_schedule() -> None:
    """min(l/100 + e 0.99 l/(n/2), l), l = task loss / (initial - target)."""
    final = final_strength(0.6, 10.0, 4.0)
    assert final == pytest.approx(0.1)
    assert [strength_at(e, 100, final) for e in (0, 25, 50, 99)] == pytest.approx([0.001, 0.0505, 0.1, 0.1])
    assert final_strength(0.6, 4.0, 4.0) == 0.0
    assert final_strength(0.6, 3.0, 4.0) == 0.0


def test_the_price_is_lambda_times_the_excess_and_reaches_every_mask() -> None:
    model, chart = chain()
    costs = Costs(model, chart, (8, 16))
    whole = float(costs.of("macs", torch.ones(4)))
    network = Searched(model, chart, costs, Terms({"macs": whole}, {"macs": 0.5}, {}, 0.8, 4))
    lambdas = [0.8 / (whole / 2) * share for share in (0.01, 0.505, 1.0, 1.0)]
    for strength in lambdas:
        notes: dict[str, float] = {}
        network.masks.alpha.grad = None
        price = network.price(notes)
        price.backward()  # type: ignore[no-untyped-call]
        assert price.item() == pytest.approx(strength * whole / 2, rel=1e-5)
        assert network.masks.alpha.grad is not None
        assert network.masks.alpha.grad.tolist() == pytest.approx([strength * whole / 4] * 4, rel=1e-5)
        assert notes == {"macs_share": 1.0}
    network.masks.alpha.data[:2] = torch.tensor([0.5, -0.4])
    assert network.price({}).item() == 0.0  # at the target: two of four stay


def test_the_simple_form_and_the_continuous_cost() -> None:
    model, chart = chain()
    costs = Costs(model, chart, (8, 16))
    network = Searched(model, chart, costs, Terms({"macs": 1.0}, {}, {"macs": 1e-3}, 0.8, 4, discrete=False))
    network.masks.alpha.data = torch.tensor([-1.0, 0.5, 0.25, 0.0])
    assert network.price({}).item() == pytest.approx(1e-3 * 1.75 * 32 * 38, rel=1e-6)


def test_at_least_one_channel_of_each_group_stays_on() -> None:
    _, chart = searched(tiny_models.cnn())
    masks = Masks(chart)
    masks.alpha.data.fill_(0.1)
    best = {span.name: span.count // 2 for span in chart.spans}
    for span in chart.spans:
        masks.alpha.data[span.start + best[span.name]] = -0.2
    named = chart.named(masks.on().detach() > 0)
    assert named == {span.name: [best[span.name]] for span in chart.spans}


def test_the_gradient_of_the_task_reaches_masks_that_are_off() -> None:
    network, _ = searched(tiny_models.cnn())
    network.masks.alpha.data[::2] = 0.3
    network(torch.from_numpy(tiny_models.picture(3, SIZE))).sum().backward()
    assert network.masks.alpha.grad is not None
    assert (network.masks.alpha.grad != 0).float().mean() > 0.7


def test_useless_channels_go_and_useful_ones_stay() -> None:
    """Sixteen hidden channels: the odd ones each carry one of eight inputs, the even ones always say 0."""
    from leadline.compression.channel_map import Layer, Span

    torch.manual_seed(0)
    free, hidden = torch.full((8,), -1), torch.arange(16)
    layers = (Layer("0", free, hidden, False, 1, False), Layer("2", hidden, free, False, 1, False))
    chart = ChannelMap((Span("0", 0, 16, 1),), layers)
    first, last = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 8, 1, bias=False)
    with torch.no_grad():
        first.weight.fill_(-1.0)  # pictures are positive: nothing ever comes through the ReLU
        first.weight[1::2] = torch.eye(8)[:, :, None, None]
        last.weight[:, 1::2] = torch.eye(8)[:, :, None, None]
    costs = Costs(nn.Sequential(nn.Conv2d(3, 8, 1), first), ChannelMap((), ()), (4, 4))
    costs.inputs, costs.outputs = (_table([getattr(layer, side) for layer in layers]) for side in ("inputs", "outputs"))
    costs.window, costs.positions, costs.biased = torch.ones(2), torch.full((2,), 16), torch.zeros(2)
    costs.depthwise, costs.fixed = torch.zeros(2, dtype=torch.bool), 0.0
    whole = 16 * (8 * 16 + 16 * 8)
    assert float(costs.of("macs", torch.ones(16))) == whole
    terms = Terms({"macs": whole}, {"macs": 0.5}, {}, 0.05, 300)
    network = Searched(nn.Sequential(first, nn.ReLU(), last), chart, costs, terms)
    assert isinstance(network, Priced)
    weights = {"params": list(network.network.parameters()), "lr": 1e-4}
    optimizer = torch.optim.AdamW([weights, {"params": [network.masks.alpha], "lr": 0.01}])
    for _ in range(300):
        picture = torch.rand(8, 8, 4, 4)
        wanted = picture + 0.2 * torch.randn_like(picture)
        loss = (network(picture) - wanted).pow(2).mean() + network.price({})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert chart.named(network.masks.kept()) == {"0": list(range(1, 16, 2))}


def _table(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.bincount(torch.where(row < 0, 16, row), minlength=17).double() for row in rows])


def test_the_step_gives_a_plain_network_that_loads_again(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    lines: list[str] = []
    found = step().apply(source, place(tmp_path / "work", lines))
    assert found.architecture is not None
    assert found.config is not None
    assert count_macs(found.model, SIZE) < count_macs(source.model, SIZE)
    report = json.loads((tmp_path / "work" / "search.json").read_text())
    assert report["resources"]["macs"]["target"] == 0.6
    assert report["resources"]["macs"]["after"] == count_macs(found.model, (32, 64))
    assert any(line.startswith("macs 0.") for line in lines)
    save_checkpoint(
        tmp_path / "saved", found.model, architecture=found.architecture, config=found.config, contract=found.contract
    )
    again = load_checkpoint(tmp_path / "saved").model()
    picture = torch.from_numpy(tiny_models.picture(1, SIZE))
    with torch.no_grad():
        assert torch.allclose(again(picture), found.model(picture), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


def test_an_interrupted_search_goes_on_bit_by_bit(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    whole = step(finetune=0).apply(source, place(tmp_path / "whole"))

    class Killed(Exception):
        pass

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("3/6"):
            raise Killed

    with pytest.raises(Killed):
        step(finetune=0).apply(source, dataclasses.replace(place(tmp_path / "cut"), say=say))
    resumed = step(finetune=0).apply(source, place(tmp_path / "cut"))
    assert resumed.config == whole.config
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_widths_are_rounded_up_to_a_multiple(tmp_path: Path) -> None:
    found = step(multiple=8, finetune=0, iterations=3).apply(tiny_models.cnn(), place(tmp_path))
    report = json.loads((tmp_path / "search.json").read_text())
    assert all(kept % 8 == 0 or kept == of for kept, of in report["widths"].values())
    assert found.config is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"targets": {}}, "give `targets` or `strengths`"),
        ({"strengths": {"macs": 1e-9}}, "give `targets` or `strengths`"),
        ({"targets": {"macs": 1.5}}, "less than 1"),
        ({"targets": {"flops": 0.5}}, "'macs'"),
        ({"mask_rate": 5}, "at most 100 times"),
        ({"iteration": 5}, "iteration"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], says: str) -> None:
    values = {"step": "search-channels", "targets": {"macs": 0.5}} | changes
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(AnyStep).validate_python(values)


def test_what_cannot_be_done_is_refused_before_training(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    with pytest.raises(ConfigError, match=r"target macs 0\.001 cannot be met: one channel in each of"):
        step(targets={"macs": 0.001}).apply(source, place(tmp_path))
    with pytest.raises(ConfigError, match="no such group of channels 'conv'"):
        step(exclude=["conv"]).apply(source, place(tmp_path))
    everything = [span.name for span in channel_map(source).spans]
    with pytest.raises(ConfigError, match="nothing to search"):
        step(exclude=everything).apply(source, place(tmp_path))
    with pytest.raises(ConfigError, match="the recipe has no `train`"):
        step().apply(source, Place(tmp_path))
    with pytest.raises(ConfigError, match="does not search for its channels"):
        step().apply(source, place(tmp_path, objectives=[{"loss": "silog"}, {"loss": "cost"}]))
    assert not (tmp_path / "search.json").exists()
