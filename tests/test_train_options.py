"""Options that change how a run computes, not what it learns; and states of earlier versions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_models
from leadline.errors import ConfigError
from leadline.models import fastdepth
from leadline.training.config import TrainConfig
from leadline.training.fit import STATE, Start, fit
from leadline.training.learner import prepare
from leadline.training.team import Team

OLD = [{"loss": "silog", "variance_focus": 0.85}, {"loss": "ssi", "weight": 0.3}]


def config(**changes: Any) -> TrainConfig:
    base = {
        "model": "tiny",
        "sources": [{"data": "rendered:room,count=8,height=48,width=64"}],
        "objectives": OLD,
        "size": [32, 64],
        "batch": 4,
        "iterations": 4,
        "warmup": 1,
        "decay": 0,
        "threads": 1,
        "ema": 0.9,
        "save_every": 2,
    }
    return TrainConfig.model_validate(base | changes)


def beginning() -> Start:
    tiny = tiny_models.cnn()
    assert isinstance(tiny.config, fastdepth.Config)
    torch.manual_seed(0)
    return Start(fastdepth.build(tiny.config), tiny.contract, "fastdepth", tiny.config)


def test_a_state_written_before_the_newer_options_existed_goes_on_bit_by_bit(tmp_path: Path) -> None:
    fit(config(), beginning(), tmp_path / "whole")
    fit(config(iterations=2), beginning(), tmp_path / "old")
    path = tmp_path / "old" / STATE
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["leadline"])
    del facts["scaler"]
    for newer in ("auxiliary_rate", "schedule", "accumulate"):
        del facts["config"][newer]
    for source in facts["config"]["sources"]:
        del source["frames"], source["labels"]
    del facts["config"]["augmentation"]["jitter_per_frame"]
    for objective in facts["config"]["objectives"]:  # each once had the options of all
        objective.update({"variance_focus": objective.get("variance_focus", 0.5), "scales": 4})
    save_file(load_file(path), path, metadata={"leadline": json.dumps(facts)})

    result = fit(config(), beginning(), tmp_path / "old")
    assert result.begun == 2
    whole, old = (load_file(tmp_path / name / STATE) for name in ("whole", "old"))
    assert all(torch.equal(whole[key], old[key]) for key in whole)

    with pytest.raises(ConfigError, match="accumulate = 1, now 2"):
        fit(config(accumulate=2), beginning(), tmp_path / "old")


def test_a_batch_must_be_large_enough_for_its_pieces(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 pieces"):
        fit(config(accumulate=5), beginning(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_order_of_memory_changes_nothing_but_rounding() -> None:
    image = torch.rand(2, 3, 32, 64)
    found = []
    for channels_last in (True, False):
        learner = prepare(config(channels_last=channels_last), beginning().model, {}, Team(torch.device("cpu")))
        weight = next(value for value in learner.model.parameters() if value.ndim == 4 and value.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        found.append(learner.model.eval()(image))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_learns_the_same_and_is_stored_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is captured as always, but run without generating C++, which takes minutes."""
    asked: list[object] = []
    compile_for_real = torch.compile

    def without_code(function: Any) -> Any:
        asked.append(function)
        return compile_for_real(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", without_code)
    losses: dict[bool, list[float]] = {True: [], False: []}
    for compiled, seen in losses.items():
        start = beginning()
        names = set(copy.deepcopy(start.model).state_dict())
        out = tmp_path / str(compiled)
        result = fit(config(compile=compiled, iterations=2), start, out, on_progress=lambda p, s=seen: s.append(p.loss))
        assert set(result.model.state_dict()) == names
    assert len(asked) == 1
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "batch", "asked", "kept"),
    [
        ("tiny", 4, "auto", True),
        ("tiny", 8, "auto", False),
        ("random:leadline-s", 4, "auto", False),
        ("tiny", 4, "learn", False),
        ("tiny", 8, "keep", True),
    ],
)
def test_few_pictures_leave_the_statistics_of_a_trained_start_alone(
    model: str, batch: int, asked: str, kept: bool, tmp_path: Path
) -> None:
    start = beginning()
    before = {key: value.clone() for key, value in start.model.state_dict().items()}
    plan = config(model=model, batch=batch, norm_statistics=asked, ema=0, iterations=2)
    after = fit(plan, start, tmp_path).model.state_dict()
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 10
    assert all(torch.equal(before[key], after[key]) for key in statistics) is kept
    weights = [key for key in before if key.endswith(".weight")]
    assert not any(torch.equal(before[key], after[key]) for key in weights)
