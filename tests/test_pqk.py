"""PQK: masks that follow magnitude, weights that come back, a teacher inside the network, and what is counted."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from calm_network import SIZE, calm, place
from leadline.checkpoint import save_checkpoint
from leadline.compression.finetune import FineTune
from leadline.compression.int8_size import int8_size
from leadline.compression.pqk import PQK, Pruning, choose
from leadline.compression.qat_start import Start, calibrated_start
from leadline.compression.quantised_network import QuantisedNetwork, Training
from leadline.compression.quantisers import WeightGrid
from leadline.depth import Kind
from leadline.errors import ConfigError, KindError
from leadline.models.outputs import Outputs
from leadline.training.batches import Batch
from leadline.training.objectives import Seen
from leadline.training.objectives.teacher import OwnTeacher, distance

LAYER = "decoder.conv2.0.weight"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    return calibrated_start(calm(), place(tmp_path_factory.mktemp("start")), Training())


@pytest.fixture
def network(start: Start) -> QuantisedNetwork:
    return copy.deepcopy(start.network).train()


def held(network: QuantisedNetwork, name: str = LAYER) -> tuple[WeightGrid, torch.nn.Parameter]:
    return list(network.weight_grids())[network.names.index(name)]


def zeros(network: QuantisedNetwork) -> dict[str, float]:
    found = zip(network.names, network.weight_grids(), strict=True)
    return {name: float((~grid.kept).float().mean()) for name, (grid, _) in found if grid.kept is not None}


class TestMasks:
    def test_shares_follow_the_cubic_schedule(self) -> None:
        rule = Pruning(0.8, ramp=100, every=10, scope="layer", depthwise=False)
        assert rule.share(0) == 0
        assert rule.share(50) == pytest.approx(0.8 * (1 - 0.5**3))
        assert rule.share(100) == rule.share(500) == pytest.approx(0.8)

    def test_the_whole_amount_is_reached_where_the_ramp_ends(self, network: QuantisedNetwork) -> None:
        rule = Pruning(0.5, ramp=6, every=20, scope="layer", depthwise=False)
        for number in range(1, 7):
            rule(network, number)
        assert zeros(network)[LAYER] == pytest.approx(0.5, abs=0.02)

    def test_the_smallest_of_each_layer_go_and_depthwise_ones_stay(self, network: QuantisedNetwork) -> None:
        choose(network, 0.5)
        grid, weight = held(network)
        assert grid.kept is not None
        threshold = weight.detach().abs().flatten().sort().values[weight.numel() // 2]
        assert torch.equal(grid.kept, weight.detach().abs() >= threshold)
        shares = zeros(network)
        assert shares["mobilenet.1.0.weight"] == 0  # depthwise
        assert all(share in (0.0, pytest.approx(0.5, abs=0.02)) for share in shares.values())

    def test_all_layers_together(self, network: QuantisedNetwork) -> None:
        choose(network, 0.4, "global")
        found = [(grid.kept, weight) for grid, weight in network.weight_grids() if grid.kept is not None]
        dense = [(kept, weight) for kept, weight in found if weight.shape[1] > 1]
        removed = torch.cat([weight.detach().abs()[~kept] for kept, weight in dense])
        kept = torch.cat([weight.detach().abs()[kept] for kept, weight in dense])
        assert len(removed) == round(0.4 * (len(removed) + len(kept)))
        assert removed.max() <= kept.min()

    def test_a_removed_weight_that_grows_comes_back(self, network: QuantisedNetwork) -> None:
        choose(network, 0.5)
        grid, weight = held(network)
        assert grid.kept is not None
        place_ = tuple(int(index) for index in (~grid.kept).nonzero()[0])
        assert float(grid(weight)[place_].detach()) == 0
        with torch.no_grad():
            weight[place_] = 10 * weight.abs().max()
        choose(network, 0.5)
        assert bool(grid.kept[place_])

    def test_training_passes_choose_and_evaluation_does_not(self, network: QuantisedNetwork) -> None:
        network.before_pass = Pruning(0.5, ramp=1, every=5, scope="layer", depthwise=False)
        x = torch.from_numpy(tiny_models.picture(0, SIZE))
        network.eval()(x)
        assert zeros(network)[LAYER] == 0
        network.train()(x)
        assert zeros(network)[LAYER] == pytest.approx(0.5, abs=0.02)


class TestTeacher:
    def test_it_is_the_dense_float_network_and_only_removed_weights_learn_from_it(
        self, network: QuantisedNetwork, start: Start
    ) -> None:
        choose(network, 0.5)
        x = torch.from_numpy(tiny_models.picture(2, SIZE))
        said = network.teacher(x).maps[0]
        with torch.no_grad():
            assert torch.allclose(said, start.folded(x), atol=1e-5)
        said.mean().backward()
        for grid, weight in network.weight_grids():
            assert grid.kept is not None
            assert weight.grad is not None
            assert bool((weight.grad[grid.kept] == 0).all())
        assert bool((held(network)[1].grad != 0).any())
        others = [p for name, p in network.named_parameters() if name.endswith("bias")]
        assert all(parameter.grad is None for parameter in others)

    def test_the_term_is_the_distance_and_the_teacher_s_own_loss(self, network: QuantisedNetwork) -> None:
        choose(network, 0.5)
        image = torch.from_numpy(np.concatenate([tiny_models.picture(k, SIZE) for k in range(2)]))
        target = torch.full((2, 1, *SIZE), 2.0)
        batch = Batch(image, target, target > 0, (Kind.METRIC_DEPTH,) * 2, ("a", "b"))
        said = network.outputs(image)
        seen = Seen(said, Kind.METRIC_DEPTH, batch, torch.nn.ModuleDict(), network)
        teacher = network.teacher(image).maps[0].detach()
        apart = (said.maps[0] - teacher).abs().mean().item()
        assert OwnTeacher(supervised=0).term(seen).item() == pytest.approx(apart, rel=1e-5)
        log = teacher.log() - np.log(2.0)
        silog = (log.pow(2).mean() - 0.5 * log.mean() ** 2).sqrt().item()
        assert OwnTeacher(supervised=2).term(seen).item() == pytest.approx(apart + 2 * silog, rel=1e-3)
        assert seen.notes["teacher_loss"] == pytest.approx(silog, rel=1e-3)

    def test_a_network_without_one_is_refused(self) -> None:
        image = torch.zeros(2, 3, 8, 8)
        batch = Batch(image, image[:, :1], image[:, :1] > 0, (Kind.METRIC_DEPTH,) * 2, ("a", "b"))
        seen = Seen(Outputs((image[:, :1],)), Kind.METRIC_DEPTH, batch, torch.nn.ModuleDict(), torch.nn.Identity())
        with pytest.raises(ConfigError, match="no teacher inside"):
            OwnTeacher().term(seen)

    def test_distances_by_kind(self) -> None:
        near, far = torch.rand(2, 1, 6, 6) + 1, torch.rand(2, 1, 6, 6) + 1
        metres = distance(near, Kind.METRIC_DEPTH, far, Kind.METRIC_DEPTH)
        assert float(metres) == pytest.approx(float((near - far).abs().mean()))
        scaled = distance(3 * near + 5, Kind.RELATIVE_DISPARITY, near, Kind.SCALED_DISPARITY)
        assert float(scaled) == pytest.approx(0, abs=1e-5)
        inverse = distance(1 / near, Kind.RELATIVE_DISPARITY, near, Kind.METRIC_DEPTH)
        assert float(inverse) == pytest.approx(0, abs=1e-5)
        with pytest.raises(KindError, match="teacher without metres"):
            distance(near, Kind.METRIC_DEPTH, far, Kind.RELATIVE_DISPARITY)


def test_both_phases_give_a_pruned_network_on_its_grids_and_its_size(tmp_path: Path) -> None:
    said: list[str] = []
    at = replace(place(tmp_path), say=said.append)
    step = PQK(amount=0.6, iterations=2, ramp=0.5, every=1, distil_iterations=1, learning_rate=1e-3, distil_rate=1e-3)
    made = step.apply(calm(), at)
    assert made.quantization is not None
    assert made.quantization.fits(made.model)
    weight = made.model.get_parameter(LAYER)
    assert float((weight == 0).float().mean()) >= 0.59
    assert any(line.startswith("phase 2") for line in said)
    size = int8_size(made)
    quantised = sum(made.model.get_parameter(name).numel() for name in made.quantization.weights)
    steps = sum(len(channels.steps) for channels in made.quantization.weights.values())
    rest = size.fp32 // 4 - quantised
    assert size.int8 == quantised + 4 * steps + 4 * rest
    assert size.deflated < size.int8
    assert size.xz < size.int8
    assert 0.3 < size.zeros < 0.7
    again = step.apply(calm(), place(tmp_path))  # both trainings are done: nothing but loading
    for key, value in made.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_fine_tuning_follows_the_uncompressed_network(tmp_path: Path) -> None:
    source = calm()
    assert source.architecture is not None
    assert source.config is not None
    facts = {"architecture": source.architecture, "config": source.config, "contract": source.contract}
    save_checkpoint(tmp_path / "whole", source.model, **facts)  # type: ignore[arg-type]
    moved = copy.deepcopy(source.model)
    with torch.no_grad():
        moved.get_parameter("decoder.conv6.0.bias").add_(1.0)
    at = replace(place(tmp_path / "step"), train={**place(tmp_path).train, "ema": 0.0})
    FineTune(iterations=1, teacher=str(tmp_path / "whole")).apply(replace(source, model=moved), at)
    log = (tmp_path / "step" / "training" / "log.csv").read_text()
    away = re.search(r"teacher=([0-9.]+)", log)
    assert away is not None, log
    assert 0.1 < float(away[1]) < 2.0  # softplus of one more: about a metre away
