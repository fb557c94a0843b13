"""The list of objectives: a closed union whose faults are named, and sums that do not depend on how they are cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadline.errors import ConfigError
from leadline.training.config import TrainConfig, load_config

LEAST = "model: leadline-s\nsources: [{data: rendered}]\n"


def faulty(tmp_path: Path, objectives: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(f"{LEAST}objectives: {objectives}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ("[{loss: silog, varaince_focus: 0.5}]", "Did you mean 'variance_focus'?"),
        ("[{loss: l1}, {loss: gradient, scale: 3}]", "Did you mean 'scales'?"),
        ("[{loss: silgo}]", "Did you mean 'silog'?"),
        ("[{weight: 2.0}]", "loss"),
        ("[{loss: l1, variance_focus: 0.7}]", "unknown key 'objectives.0.l1.variance_focus'"),
        ("[{loss: l1, weight: 0}]", "greater than 0"),
        ("[]", "at least 1"),
    ],
)
def test_a_fault_in_an_objective_is_named(tmp_path: Path, objectives: str, said: str) -> None:
    assert said in faulty(tmp_path, objectives)


def test_an_unknown_key_of_a_source_proposes_a_key_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: leadline-s\nsources: [{data: rendered, frame: [-1, 1]}]\n")
    with pytest.raises(ConfigError, match="Did you mean 'frames'"):
        load_config(path, {})


def test_configurations_saved_before_objectives_had_options_of_their_own_still_load() -> None:
    saved = [
        {"loss": "silog", "weight": 1.0, "variance_focus": 0.85, "scales": 4},
        {"loss": "ssi", "weight": 0.3, "variance_focus": 0.5, "scales": 4},
        {"loss": "gradient", "weight": 0.1, "variance_focus": 0.5, "scales": 3},
    ]
    config = TrainConfig.model_validate({"model": "m", "sources": [{"data": "d"}], "objectives": saved})
    assert [each.model_dump() for each in config.objectives] == [
        {"loss": "silog", "weight": 1.0, "variance_focus": 0.85},
        {"loss": "ssi", "weight": 0.3},
        {"loss": "gradient", "weight": 0.1, "scales": 3},
    ]
