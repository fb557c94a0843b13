"""Disparity bins: their centres, their cost, and the objective that moves them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.evaluation.complexity import count_macs
from leadline.models import lite_mono
from leadline.models.outputs import Outputs, outputs
from leadline.training.batches import Batch
from leadline.training.config import TrainConfig
from leadline.training.objectives import Seen, total_loss
from leadline.training.objectives.bins import Chamfer

SMALL = {"widths": (8, 16, 16), "dilations": ((1,), (1,), (1, 2)), "height": 64, "width": 96}
UNCOUNTED_BY_US = 26_624_160  # batch norms and poolings that thop counts in the encoder, see test_lite_mono.py


def network(**options) -> lite_mono.LiteMono:
    torch.manual_seed(0)
    return lite_mono.build(lite_mono.Config(**SMALL, **options))


def convolutions(variant: str) -> int:
    """Multiply-accumulates of convolutions and linear layers of all three scales at 192 x 640."""
    with torch.device("meta"):
        model = lite_mono.build(lite_mono.VARIANTS[variant]).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.outputs(torch.empty(1, 3, 192, 640, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if str(op) in ("aten.convolution", "aten.addmm")) // 2


def test_fixed_bins_cost_what_the_study_printed():
    assert convolutions("lite-mono-fixed-bins") + UNCOUNTED_BY_US == 5_693_788_320  # SPEC.md 5.3


def test_adaptive_bins_cost_less_than_fixed_ones():
    base = 5_031_895_200 - 24 * 9 * 96 * 320  # SPEC.md 3.4 without the finest head
    mlp = (48 + 80 + 128) * 128 + 128 * 64
    total = convolutions("lite-mono-adaptive-bins") + UNCOUNTED_BY_US
    assert total == base + 24 * 64 * 96 * 320 + mlp
    assert total < 5_700_000_000 < 8_675_000_000


def test_what_runs_on_a_device_is_less_still():
    """`forward` leaves the coarse heads out, and normalisation folds; attention's matrix products count."""
    with torch.device("meta"):
        model = lite_mono.build(lite_mono.VARIANTS["lite-mono-adaptive-bins"])
    products = 2 * sum(c * c // 8 * n for c, n in ((48, 48 * 160), (80, 24 * 80), (128, 12 * 40)))
    coarse_heads = 9 * (40 * 48 * 160 + 64 * 24 * 80)
    assert count_macs(model, (192, 640)) == convolutions("lite-mono-adaptive-bins") - coarse_heads + products


@pytest.mark.parametrize("bins", ["fixed", "adaptive"])
def test_centres_ascend_within_the_range(bins):
    model = network(bins=bins, bin_count=16, min_depth=0.5, max_depth=50.0).eval()
    with torch.no_grad():
        found = outputs(model, torch.randn(2, 3, 64, 96))
    assert found.centres.shape == (2, 16)
    assert (found.centres.diff(dim=1) > 0).all()
    assert found.centres.min() >= 0.02 * (1 - 1e-6)
    assert found.centres.max() <= 2.0
    for disparity in found.maps[: 1 if bins == "adaptive" else 3]:  # a mixture of the centres
        low, high = found.centres.min(1).values, found.centres.max(1).values
        assert (disparity >= low[:, None, None, None] * (1 - 1e-5)).all()
        assert (disparity <= high[:, None, None, None] * (1 + 1e-5)).all()


@pytest.mark.parametrize(("spacing", "wanted"), [("ratio", [0.01, 0.1, 1.0, 10.0]), ("step", [0.01, 3.34, 6.67, 10.0])])
def test_fixed_centres_reach_both_ends(spacing, wanted):
    model = network(bins="fixed", bin_count=4, bin_spacing=spacing)
    assert model.depth.fixed_centres[0].tolist() == pytest.approx(wanted)


def test_adaptive_bins_start_out_nearly_equal_and_can_never_be_empty():
    model = network(bins="adaptive", bin_count=10).eval()
    features = model.encoder(torch.randn(1, 3, 64, 96))
    steps = model.depth.bin_centres(features).log().diff(dim=1)
    assert steps.detach().flatten().tolist() == pytest.approx([torch.tensor(1000.0).log().item() / 10] * 9, rel=0.2)
    last = model.depth.centres.layers[2]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([50.0] + [-50.0] * 9)  # all width to the first bin
    places = model.depth.centres(features)[0]
    assert places[0].item() == pytest.approx((0.9 + 0.01) / 2)
    assert places.diff()[1:].tolist() == pytest.approx([0.01] * 8, rel=1e-3)


def test_each_picture_has_its_own_adaptive_centres():
    model = network(bins="adaptive").eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        both, second = outputs(model, x).centres, outputs(model, x[1:]).centres
    assert torch.allclose(both[1:], second, rtol=1e-4)
    assert not torch.equal(both[0], both[1])


def batch(target: torch.Tensor, valid: torch.Tensor, kind: Kind = Kind.SCALED_DISPARITY) -> Batch:
    names = tuple("abcdefgh"[: len(target)])
    return Batch(torch.zeros(len(target), 3, *target.shape[2:]), target, valid, (kind,) * len(target), names)


def seen(model: torch.nn.Module, data: Batch) -> Seen:
    return Seen(outputs(model, data.image), Kind.SCALED_DISPARITY, data, torch.nn.ModuleDict(), model)


def test_the_objective_moves_the_bins_to_where_the_targets_are():
    model = network(bins="adaptive", bin_count=8).eval()
    target = torch.where(torch.rand(2, 1, 64, 96) < 0.5, 0.05, 0.4)
    data = batch(target, torch.ones_like(target, dtype=torch.bool))
    objective = Chamfer(scale="given", stride=4)
    optimizer = torch.optim.Adam(model.depth.centres.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss, terms = total_loss([objective], seen(model, data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(terms["chamfer"])
    assert losses[-1] < 0.2 * losses[0]


def test_zeros_of_a_teacher_are_left_out_and_metres_are_inverted():
    model = network(bins="adaptive").eval()
    depth = torch.rand(2, 1, 64, 96) * 10 + 1
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    as_disparity = 1 / depth
    for option in ({}, {"scale": "given"}):
        term = Chamfer(**option)
        disparity = term.term(seen(model, batch(as_disparity, everywhere)))
        metres = term.term(seen(model, batch(depth, everywhere, Kind.METRIC_DEPTH)))
        assert metres.item() == pytest.approx(disparity.item(), rel=1e-4)
        holes = as_disparity.clone()
        holes[:, :, 20:40] = 0
        masked = term.term(seen(model, batch(as_disparity, holes > 0)))
        zeros = term.term(seen(model, batch(holes, everywhere)))
        assert zeros.item() == masked.item()
        assert masked.item() != disparity.item()


def test_pictures_without_targets_cost_nothing_and_are_not_counted():
    model = network(bins="adaptive").eval()
    data = batch(torch.zeros(3, 1, 64, 96), torch.ones(3, 1, 64, 96, dtype=torch.bool))
    term = Chamfer().term(seen(model, data))
    term.backward()
    assert term.item() == 0
    assert Chamfer().count(data) == 0
    data.target[1, 0, 4, 4] = 1.0
    assert Chamfer().count(data) == 1


@pytest.mark.parametrize(("bins", "why"), [("none", "no bins"), ("fixed", "bins are fixed")])
def test_networks_without_movable_bins_are_refused(bins, why):
    model = network(bins=bins)
    data = batch(torch.ones(2, 1, 64, 96), torch.ones(2, 1, 64, 96, dtype=torch.bool))
    with pytest.raises(ConfigError, match=why) as error:
        Chamfer().term(seen(model, data))
    assert "lite-mono-adaptive-bins" in str(error.value)


def test_metric_networks_have_their_centres_inverted():
    centres, depth = torch.tensor([[2.0, 4.0]], requires_grad=True), torch.full((1, 1, 8, 8), 4.0)
    data = batch(depth, torch.ones_like(depth, dtype=torch.bool), Kind.METRIC_DEPTH)
    view = Seen(Outputs((depth,), centres), Kind.METRIC_DEPTH, data, torch.nn.ModuleDict(), torch.nn.Identity())
    assert Chamfer(scale="given").term(view).item() == pytest.approx((0.25**2 + 0) / 2)  # 1/2 is 1/4 away from 1/4


def test_the_configuration_knows_the_objective():
    config = TrainConfig.model_validate(
        {"model": "lite-mono-adaptive-bins", "sources": [{"data": "x"}], "objectives": [{"loss": "chamfer"}]}
    )
    assert config.objectives[0] == Chamfer()
    assert config.objectives[0].weight == 0.1
