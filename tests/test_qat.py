"""Quantisation-aware training: its arithmetic, its gradients, and that engines compute what training saw."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from calm_network import SIZE, calm, place
from int8_networks import STATIC, integers_apart, said, save
from leadline.checkpoint import QUANTIZATION, load_checkpoint
from leadline.compression.folding import fold, pairs
from leadline.compression.qat import QuantisationAwareTraining
from leadline.compression.qat_start import Start, calibrated_start, finished, schedule, simulated, train
from leadline.compression.quantised_network import QuantisedNetwork, Training
from leadline.compression.quantisers import ActivationGrid, WeightGrid, learned
from leadline.compression.tracing import trace
from leadline.errors import CheckpointError, ConfigError
from leadline.models import fastdepth
from leadline.models.quantization import Activation, Channels, Quantization
from leadline.reference import LoadedModel, load_model
from leadline.runtimes.base import SessionOptions, runtime


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    return calibrated_start(calm(), place(tmp_path_factory.mktemp("start")), Training())


@pytest.fixture(scope="module")
def trained(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, QuantisedNetwork, Path]:
    """After two iterations, kept as a checkpoint and loaded again."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"iterations": 2, "learning_rate": 1e-3, "warmup": 0}
    made, network = train(calm(), start, place(folder), changes, folder / "training")
    save(made, folder / "checkpoint")
    return made, network, folder / "checkpoint"


class TestArithmetic:
    def test_activations_against_float64_with_ties_and_clipping(self) -> None:
        grid = ActivationGrid(0.25, 3)
        values = np.array([0.125, 0.375, -0.125, -0.375, 0.62, 100.0, -100.0, 0.0], np.float32)
        integers = np.clip(np.rint(values.astype(np.float64) / 0.25) + 3, 0, 255)  # rint: half to even
        assert integers.tolist() == [3, 5, 3, 1, 5, 255, 0, 3]
        np.testing.assert_array_equal(grid(torch.from_numpy(values)).numpy(), (integers - 3) * 0.25)

    def test_weights_per_channel_never_reach_minus_128(self) -> None:
        rng = np.random.default_rng(0)
        values, steps = rng.normal(0, 1, (5, 3, 3, 3)), np.array([0.5, 0.01, 0.002, 0.03, 0.004])
        values[1, 0, 0, 0] = -128 * 0.01
        weight = torch.from_numpy(values).float()
        found = WeightGrid(torch.from_numpy(steps), 0)(weight).numpy()
        exact = steps[:, None, None, None] * np.clip(
            np.rint(weight.numpy().astype(np.float64) / steps[:, None, None, None]), -127, 127
        )
        assert np.abs(found - exact).max() < 1e-6
        assert found[1, 0, 0, 0] == pytest.approx(-1.27)

    def test_learned_steps_round_as_fixed_ones(self) -> None:
        x = torch.linspace(-3, 9, 1001)
        fixed, free = ActivationGrid(0.03125, 20), ActivationGrid(0.03125, 20, learns=True)
        assert torch.equal(fixed(x), free(x).detach())

    def test_the_gradient_passes_inside_and_stops_beyond_the_grid(self) -> None:
        x = torch.tensor([-0.9, -0.6, 0.3, 1.0, 63.0, 64.2], requires_grad=True)  # grid from -0.75 to 63
        for grid in (ActivationGrid(0.25, 3), ActivationGrid(0.25, 3, learns=True)):
            x.grad = None
            grid(x).sum().backward()
            assert x.grad is not None
            assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]

    def test_the_step_has_lsq_s_gradient_in_closed_form(self) -> None:
        """Inside: round(x/s) - x/s; beyond an end: the end's integer (Esser et al. 2020, eq. 3)."""
        x = torch.tensor([0.3, -0.2, 70.0, -5.0])
        step = torch.tensor(0.25, requires_grad=True)
        upstream = torch.tensor([2.0, 3.0, 5.0, 7.0])
        (learned(x, step, torch.tensor(3.0), 0, 255, 0.5) * upstream).sum().backward()
        expected = 2 * (1 - 1.2) + 3 * (-1 + 0.8) + 5 * 252 + 7 * -3
        assert step.grad is not None
        assert float(step.grad) == pytest.approx(0.5 * expected, rel=1e-5)

    def test_beyond_the_ends_the_step_s_gradient_is_the_true_derivative(self) -> None:
        x, h = torch.tensor([500.0, -400.0], dtype=torch.float64), 1e-6

        def value(s: float) -> float:
            return float(learned(x, torch.tensor(s, dtype=torch.float64), torch.tensor(9.0), 0, 255).sum())

        step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        learned(x, step, torch.tensor(9.0), 0, 255).sum().backward()
        assert step.grad is not None
        assert float(step.grad) == pytest.approx((value(0.5 + h) - value(0.5 - h)) / (2 * h), rel=1e-6)

    def test_frozen_steps_have_no_gradient_and_a_limit_holds(self) -> None:
        grid = ActivationGrid(6 / 255, 0, learns=True, limit=6.0)
        assert grid.change is not None
        with torch.no_grad():
            grid.change += 1.0
        assert float(grid(torch.tensor([9.0])).detach()) == pytest.approx(6.0)
        grid.frozen = True
        x = torch.ones(3, requires_grad=True)
        grid(x).sum().backward()
        assert grid.change.grad is None

    def test_pruned_weights_are_0_and_keep_their_gradient(self) -> None:
        grid = WeightGrid(torch.tensor([0.01]), 0, shape=torch.Size([1, 4]))
        assert grid.kept is not None
        grid.kept[0, 2] = False
        weight = torch.tensor([[0.5, -0.2, 0.7, 0.1]], requires_grad=True)
        (grid(weight) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
        assert grid(weight).detach()[0].tolist() == pytest.approx([0.5, -0.2, 0.0, 0.1])
        assert weight.grad is not None
        assert weight.grad[0].tolist() == [1.0, 2.0, 3.0, 4.0]


class TestFolding:
    def test_the_folded_network_computes_the_same_under_the_same_names(self) -> None:
        source = calm().model
        traced = trace(source, SIZE)
        folded = fold(source, traced)
        x = tiny_models.picture(3, SIZE)
        before = said(source, x)
        assert np.abs(said(folded, x) - before).max() < 1e-5 * np.abs(before).max()
        assert folded.state_dict().keys() == source.state_dict().keys()
        norms = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == len(pairs(traced.graph.graph)) > 30
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
            assert torch.equal(norm.running_var + norm.eps, torch.ones_like(norm.weight))

    def test_biases_groups_transposes_and_norms_without_a_convolution(self) -> None:
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 8, 3, padding=1, groups=1, bias=True),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 1, 1),
        )
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
        net.eval()
        traced = trace(net, (8, 8))
        assert [pair.norm for pair in pairs(traced.graph.graph)] == ["2", "5"]
        x = tiny_models.picture(0, (8, 8))
        np.testing.assert_allclose(said(fold(net, traced), x), said(net, x), rtol=1e-4, atol=1e-5)


class TestStart:
    def test_every_layer_but_the_head_and_every_tensor_of_the_pairs_has_a_grid(self, start: Start) -> None:
        grids = list(start.network.all_grids())
        convolutions = sum(isinstance(module, nn.Conv2d) for module in start.folded.modules())
        assert sum(isinstance(grid, WeightGrid) for grid in grids) == convolutions - 1
        names = {point.name for point in start.network.points}
        assert {"input", "Clip(mobilenet.0.0.weight)", "Resize(Relu(decoder.conv1.0.weight))"} <= names
        assert any(name.startswith("Add(Resize(") for name in names)
        assert "decoder.conv1.0.weight" not in names  # ReLU's grid takes its place

    def test_only_what_is_quantised_differs_from_float(self, start: Start) -> None:
        x = torch.from_numpy(tiny_models.picture(1, SIZE))
        with torch.no_grad(), start.network.bypassed():
            floating = start.network.eval()(x)
        assert torch.allclose(floating, start.folded(x), atol=1e-5)

    def test_a_network_that_is_not_ours_is_refused(self, tmp_path: Path) -> None:
        stranger = replace(calm(), architecture=None, config=None)
        with pytest.raises(ConfigError, match="not a network of"):
            calibrated_start(stranger, place(tmp_path), Training())

    def test_length_and_rate_follow_the_lineage(self) -> None:
        step = {"step": "train", "iterations": 3000, "config": {"learning_rate": 1e-3}}
        source = replace(calm(), lineage=(step,))
        assert schedule(source, None, None) == {"iterations": 300, "learning_rate": pytest.approx(1e-5), "warmup": 0}
        assert schedule(source, 7, 0.1)["iterations"] == 7
        assert schedule(calm(), None, None)["iterations"] == 500


class TestResult:
    def test_the_checkpoint_is_a_float_network_on_its_grids(self, trained: Any) -> None:
        made, network, folder = trained
        loaded = load_model(str(folder))
        assert loaded.quantization is not None
        assert loaded.quantization.fits(loaded.model)
        assert loaded.quantization.activations == made.quantization.activations
        weights = dict(calm().model.named_parameters())
        assert any(not torch.equal(value, weights[name]) for name, value in loaded.model.named_parameters())
        x = tiny_models.picture(4, SIZE)
        assert np.abs(said(network.eval(), x) - said(loaded.model, x)).mean() < 0.1 * said(loaded.model, x).std()
        assert str(QUANTIZATION) in (folder / "manifest.json").read_text()

    def test_the_graph_with_pairs_computes_what_training_computed(self, trained: Any) -> None:
        made, network, _ = trained
        apart = integers_apart(made, network, SIZE)
        assert len(apart) > 30
        shares = list(apart.values())
        # a sum that lies between two integers to float rounding may go to either, and what follows from it spreads
        assert max(shares[:10]) < 0.01
        assert np.mean(shares) < 0.15

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_engines_compute_what_training_computed(self, engine: str, trained: Any, tmp_path: Path) -> None:
        _, network, folder = trained
        loaded = load_model(str(folder))
        bundle = runtime(engine).export(loaded, STATIC, tmp_path)
        assert bundle.details["calibration"] == "trained"
        session = runtime(engine).open(bundle, SessionOptions())
        assert session.precision_ran.startswith("int8")
        differences, floating = [], []
        for seed in range(3):
            x = tiny_models.picture(seed, SIZE)
            ran = session.run(x)
            differences.append(np.abs(said(network.eval(), x) - ran) / ran.std())
            floating.append(np.abs(said(loaded.model, x) - ran) / ran.std())
        assert np.mean(np.stack(differences) < 0.05) > 0.97  # a step of the last grid is about 0.03 here
        assert np.mean(differences) < 0.6 * np.mean(floating)

    def test_simulated_is_the_trained_network(self, trained: Any) -> None:
        made, network, _ = trained
        x = tiny_models.picture(7, SIZE)
        again = simulated(made, SIZE)
        assert np.abs(said(again, x) - said(network.eval(), x)).max() < 1e-4

    def test_weights_that_left_their_grid_lose_it(self, trained: Any, tmp_path: Path) -> None:
        made, _, _ = trained
        moved = copy.deepcopy(made.model)
        with torch.no_grad():
            for value in moved.parameters():
                value *= 1.003
        changed = replace(made, model=moved)
        save(changed, tmp_path / "moved")
        assert load_checkpoint(tmp_path / "moved").quantization() is None
        with pytest.raises(ConfigError, match="no INT8 grids"):
            simulated(changed, SIZE)

    def test_options_that_would_change_the_grids_are_refused(self, trained: Any, tmp_path: Path) -> None:
        made, _, _ = trained
        with pytest.raises(ConfigError, match="symmetric activations is not for"):
            runtime("onnxruntime").export(made, replace(STATIC, symmetric=True), tmp_path)


class TestStep:
    def test_an_interrupted_run_ends_bit_for_bit_where_an_unbroken_one_does(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"learning_rate": 1e-3, "ranges": "learned", "freeze_after": 1}
        train_ = {**place(tmp_path).train, "decay": 0.0}  # the rate does not depend on the length
        broken, whole = (replace(place(tmp_path / name), train=train_) for name in ("broken", "whole"))
        QuantisationAwareTraining(iterations=1, **options).apply(calm(), broken)
        first = QuantisationAwareTraining(iterations=2, **options).apply(calm(), broken)
        second = QuantisationAwareTraining(iterations=2, **options).apply(calm(), whole)
        rows = (tmp_path / "broken" / "training" / "log.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
        assert first.quantization is not None
        assert second.quantization is not None
        assert first.quantization.activations == second.quantization.activations
        for key, value in first.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[key]), key

    @pytest.mark.slow
    def test_zeros_stay_and_a_dead_channel_keeps_its_bias(self, tmp_path: Path) -> None:
        model = copy.deepcopy(calm().model)
        layer = model.get_submodule("decoder.conv2.0")
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            layer.weight[:, ::2] = 0
            layer.weight[3] = 0
        step = QuantisationAwareTraining(iterations=1, learning_rate=1e-2)
        made = step.apply(replace(calm(), model=model), place(tmp_path))
        weight = made.model.get_parameter("decoder.conv2.0.weight")
        assert bool((weight[:, ::2] == 0).all())
        assert bool((weight[3] == 0).all())
        assert bool((weight[0, 1::2] != 0).any())
        assert made.quantization is not None
        steps = made.quantization.weights["decoder.conv2.0.weight"].steps
        assert float(steps[3]) == pytest.approx(float(steps.max()))  # not 1: its bias is rounded to step x input step

    @pytest.mark.slow
    def test_one_channel_layers_and_constant_activations(self, tmp_path: Path) -> None:
        config = fastdepth.Config(
            encoder_widths=(1, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
            decoder_widths=(4, 4, 4, 4, 1),
            skip="add",
            lateral=True,
            head="softplus",
            height=SIZE[0],
            width=SIZE[1],
        )
        torch.manual_seed(2)
        model = fastdepth.build(config).eval()
        with torch.no_grad():
            model.get_parameter("decoder.conv1.0.weight").zero_()
        source = LoadedModel(model, fastdepth.contract(config), "thin", (), "fastdepth", config)
        begun = calibrated_start(source, place(tmp_path), Training())
        x = tiny_models.picture(0, SIZE)
        assert np.isfinite(said(begun.network.eval(), x)).all()
        made = finished(source, begun, begun.network)
        bundle = runtime("onnxruntime").export(made, replace(STATIC, size=SIZE), tmp_path)
        ran = runtime("onnxruntime").open(bundle, SessionOptions()).run(x)
        assert np.abs(said(begun.network, x) - ran).max() < 0.05 * max(float(ran.std()), 1e-3) + 1e-3


def test_grids_as_tensors_and_back() -> None:
    grids = Quantization({"a.weight": Channels(torch.tensor([0.5, 0.1]), 1)}, {"Relu(a.weight)": Activation(0.25, 7)})
    again = Quantization.of(grids.tensors())
    assert again.activations == grids.activations
    assert again.weights["a.weight"].axis == 1
    assert torch.equal(again.weights["a.weight"].steps, grids.weights["a.weight"].steps)
    with pytest.raises(CheckpointError, match="not above 0"):
        Quantization.of(grids.tensors() | {"step/Relu(a.weight)": torch.tensor(0.0)})
    with pytest.raises(CheckpointError, match="unknown entry"):
        Quantization.of({"junk": torch.tensor(1.0)})
