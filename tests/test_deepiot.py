"""Compressor and critic: REINFORCE in closed form, the threshold's course, and what is found (SPEC.md 8, DeepIoT)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression import Place
from leadline.compression.compressor import Baseline, Compressor, log_likelihood, lowered, threshold_at
from leadline.compression.critic import DeepIoT
from leadline.errors import CheckpointError, ConfigError
from leadline.evaluation.complexity import count_parameters

DATA = "rendered:room,count=4,height=48,width=64"


def place(folder: Path, say: Any = None) -> Place:
    train = {
        "sources": [{"data": DATA}],
        "objectives": [{"loss": "silog"}],
        "size": [32, 64],
        "batch": 2,
        "warmup": 0,
        "threads": 1,
    }
    return Place(folder, train=train, say=say or (lambda line: None))


def step(**changes: Any) -> DeepIoT:
    values = {"steps": 2, "every": 2, "finetune": 0, "compressor_rate": 0.01, "target": 0.7}
    return DeepIoT.model_validate(values | changes)


def test_the_threshold_rises_in_equal_steps_and_stays() -> None:
    assert [threshold_at(k, 33, 0.825) for k in (0, 1, 20, 33, 40)] == pytest.approx([0, 0.025, 0.5, 0.825, 0.825])


def test_probabilities_below_the_threshold_are_halved() -> None:
    assert lowered(torch.tensor([0.2, 0.5, 0.8]), 0.5).tolist() == pytest.approx([0.1, 0.5, 0.8])


def test_log_likelihood_and_its_gradient_in_closed_form() -> None:
    p = torch.tensor([0.9, 0.2, 0.5], requires_grad=True)
    value = log_likelihood(p, torch.tensor([1.0, 0.0, 1.0]))
    assert value.item() == pytest.approx(math.log(0.9) + math.log(0.8) + math.log(0.5))
    (gradient,) = torch.autograd.grad(value, p)
    assert gradient.tolist() == pytest.approx([1 / 0.9, -1 / 0.8, 2.0])
    assert torch.isfinite(log_likelihood(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])))


def test_the_baseline_is_a_running_mean_and_deviation() -> None:
    baseline = Baseline()
    assert baseline.advantage(4.0) == 0.0
    assert (baseline.mean, baseline.deviation) == pytest.approx((4.0, 0.0))
    assert baseline.advantage(14.0) == pytest.approx(10.0)  # deviation 0: divided by 1
    assert baseline.mean == pytest.approx(5.0)  # 0.9 x 4 + 0.1 x 14
    assert baseline.deviation == pytest.approx(3.0)  # 0.9 x 16 + 0.1 x 196 - 25 = 9
    assert baseline.advantage(8.0) == pytest.approx(1.0)  # (8 - 5) / 3


def test_units_that_the_loss_does_not_need_lose_against_those_that_it_needs() -> None:
    """Two layers of 6; the loss is the share of the first 3 of each that are off."""
    torch.manual_seed(0)
    compressor = Compressor([(6, 4), (6, 7)], start=0.5)
    kernels = [torch.randn(6, 4), torch.randn(6, 7)]
    needed = torch.tensor([1.0, 1, 1, 0, 0, 0] * 2)
    optimizer, baseline = torch.optim.RMSprop(compressor.parameters(), lr=1e-3), Baseline()
    before = compressor(kernels).detach()
    assert before.shape == (12,)
    assert (before - 0.5).abs().max() < 0.2
    for _ in range(400):
        p = lowered(compressor(kernels), 0.3)
        on = p.detach().bernoulli()
        reward = float(((1 - on) * needed).sum() / 6)
        loss = baseline.advantage(reward) * log_likelihood(p, on)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = compressor(kernels).detach()
    assert after[needed > 0].min() > after[needed == 0].max()
    assert after[needed > 0].min() > 0.825


def test_the_step_meets_its_goal_and_no_more_and_the_result_loads_again(tmp_path: Path) -> None:
    source, lines = tiny_models.cnn(), []  # type: ignore[var-annotated]
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    found = step(finetune=1).apply(source, place(tmp_path / "work", lines.append))
    report = json.loads((tmp_path / "work" / "compressor.json").read_text())
    assert 0.66 < report["after"] / report["before"] <= 0.7
    assert count_parameters(found.model) < 0.8 * count_parameters(source.model)
    assert any(line.startswith("threshold 0.000: params 1.000") for line in lines)
    assert found.architecture is not None
    assert found.config is not None
    save_checkpoint(
        tmp_path / "saved", found.model, architecture=found.architecture, config=found.config, contract=found.contract
    )
    again, picture = load_checkpoint(tmp_path / "saved").model(), torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.allclose(again(picture), found.model(picture), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killing(line: str) -> None:
        if line.startswith("threshold 0.412"):
            raise Killed

    source = tiny_models.cnn()
    whole = step().apply(source, place(tmp_path / "whole"))
    with pytest.raises(Killed):
        step().apply(source, place(tmp_path / "cut", killing))
    lines: list[str] = []
    resumed = step().apply(source, place(tmp_path / "cut", lines.append))
    assert not any(line.startswith("threshold 0.000") for line in lines)
    assert resumed.config == whole.config
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match="begun with other options"):
        step(every=3).apply(source, place(tmp_path / "cut"))
    (tmp_path / "cut" / "compressor.safetensors").write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="unreadable state"):
        step().apply(source, place(tmp_path / "cut"))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    with pytest.raises(ConfigError, match=r"target params 0\.001 cannot be met"):
        step(target=0.001).apply(source, place(tmp_path))
    with pytest.raises(ConfigError, match="no such group of channels 'x'"):
        step(exclude=["x"]).apply(source, place(tmp_path))
    with pytest.raises(ConfigError, match="the recipe has no `train`"):
        step().apply(source, Place(tmp_path))
