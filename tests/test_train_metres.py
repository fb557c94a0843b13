"""What a run says of its network's metres: their range, their camera, and whose name they carry."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.cli import app
from leadline.training.config import TrainConfig
from leadline.training.run import starting_point

BRIEF = ("--iterations", "1", "--batch", "2", "--threads", "1", "--size", "96,128")
ROOM, STREET = "rendered:room,count=2,height=96,width=128", "rendered:street,count=2,height=96,width=128"


def train(run: Path, *words: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, ("train", *words, *BRIEF, "--out", run))))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in metres whose output ends at 10 m."""
    folder = tmp_path_factory.mktemp("start") / "metric"
    start = starting_point(TrainConfig.model_validate({"model": "leadline-xs", "sources": [{"data": ROOM}]}))
    assert start.contract.output.maximum == 10
    contract = start.contract.model_copy(update={"name": "named"})
    save_checkpoint(folder, start.model, architecture=start.architecture, config=start.config, contract=contract)
    return folder


def test_targets_beyond_the_networks_maximum_are_said(tmp_path: Path, metric: Path) -> None:
    said = train(tmp_path / "street", "--model", metric, "--data", STREET).stderr
    assert "doctor, iteration 1: targets beyond the network's maximum" in said
    assert "above 10 m, where named-finetuned's output ends" in said
    assert "beyond the network's maximum" not in train(tmp_path / "room", "--model", metric, "--data", ROOM).stderr


def test_what_is_trained_further_is_not_called_as_its_start(tmp_path: Path, metric: Path) -> None:
    train(tmp_path / "1", "--model", metric, "--data", ROOM)
    assert load_checkpoint(tmp_path / "1" / "checkpoint").name == "named-finetuned"
    train(tmp_path / "2", "--model", tmp_path / "1" / "checkpoint", "--data", ROOM)
    assert load_checkpoint(tmp_path / "2" / "checkpoint").name == "named-finetuned"
    train(tmp_path / "3", "--model", metric, "--data", ROOM, "--set", "name=mine")
    assert load_checkpoint(tmp_path / "3" / "checkpoint").name == "mine"
    train(tmp_path / "4", "--model", "leadline-xs", "--data", ROOM)
    assert load_checkpoint(tmp_path / "4" / "checkpoint").name == "leadline-xs"
