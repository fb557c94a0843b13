"""What a run says of its network's metres: their range, their camera, and whose name they carry."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import tiny_datasets as tiny
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.cli import app
from leadline.training.config import TrainConfig
from leadline.training.run import starting_point

BRIEF = ("--iterations", "1", "--batch", "2", "--threads", "1", "--size", "96,128")
ROOM, STREET = "rendered:room,count=2,height=96,width=128", "rendered:street,count=2,height=96,width=128"


def train(run: Path, *words: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, ("train", *BRIEF, *words, "--out", run))))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in metres whose output ends at 10 m."""
    folder = tmp_path_factory.mktemp("start") / "metric"
    start = starting_point(TrainConfig.model_validate({"model": "random:leadline-xs", "sources": [{"data": ROOM}]}))
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
    train(tmp_path / "4", "--model", "random:leadline-xs", "--data", ROOM)
    assert load_checkpoint(tmp_path / "4" / "checkpoint").name == "leadline-xs"


def camera_of(run: Path) -> tuple[float, float] | None:
    camera = load_checkpoint(run / "checkpoint").contract.input.camera
    return None if camera is None else (camera.fx_over_width, camera.fy_over_height)


def test_the_camera_of_the_data_is_recorded_where_there_is_one(tmp_path: Path, metric: Path) -> None:
    """120 degrees of 4:3 pictures: 1 / (2 tan 60) of the width, 4/3 of that of the height, 104.9 degrees."""
    wide = f"{ROOM},fx=0.288675,fy=0.384900"
    said = train(tmp_path / "1", "--model", "random:leadline-xs", "--data", wide).stderr.splitlines()[0]
    assert said.endswith("; its metres are for the pictures' camera, 120 degrees wide and 105 high")
    assert camera_of(tmp_path / "1") == pytest.approx((0.288675, 0.3849))
    again = train(tmp_path / "1", "--model", "random:leadline-xs", "--data", wide, "--iterations", 2)  # goes on with it
    assert "2 iterations, done" in again.stdout
    assert camera_of(tmp_path / "1") == pytest.approx((0.288675, 0.3849))

    given = train(tmp_path / "2", "--model", metric, "--data", wide, "--set", "camera=[0.5,0.6]").stderr
    assert "its metres" not in given
    assert camera_of(tmp_path / "2") == (0.5, 0.6)
    kept = train(tmp_path / "3", "--model", tmp_path / "2" / "checkpoint", "--data", wide).stderr
    assert "its metres" not in kept
    assert camera_of(tmp_path / "3") == (0.5, 0.6)


def test_cameras_that_differ_or_are_unknown_are_said(tmp_path: Path) -> None:
    street = f"{STREET},fx=0.5,fy=0.666667"  # 90 degrees
    two = ("--data", street, "--data", f"{ROOM},fx=1.0,fy=1.333333")  # 53.1 degrees
    said = train(tmp_path / "1", "--model", "random:leadline-xs", *two).stderr.splitlines()[0]
    assert "the pictures' cameras differ, 53 to 90 degrees wide: its metres are right for no particular camera" in said
    assert camera_of(tmp_path / "1") is None
    tiny.folder(tmp_path / "pictures", 4)
    tiny.describe(tmp_path / "pictures")  # without its camera
    done = train(tmp_path / "2", "--model", "random:leadline-xs", "--data", tmp_path / "pictures")
    said = done.stderr.splitlines()[0]
    assert "4 of 4 pictures looked at name no camera: its metres are right for no particular camera" in said
    assert camera_of(tmp_path / "2") is None
