"""`leadline pseudo-label`: a teacher over pictures into a store; resumed, shared, without computing anything twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny_datasets as tiny
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.cli.pseudo_label import parse_shard
from leadline.data.check import check
from leadline.data.dataset import open_dataset
from leadline.data.label_store import LabelStore
from leadline.errors import ConfigError, DataError, OutputError
from leadline.labelling import Job, label
from leadline.predictor import load
from tiny_models import cnn


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    model = cnn()
    assert model.config is not None
    save_checkpoint(folder, model.model, architecture="fastdepth", config=model.config, contract=model.contract)
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, two of them equal, one file that is none."""
    root = tmp_path / "pictures"
    for seed, name in enumerate(("a", "b", "below/c", "below/d", "e")):
        tiny.picture(root / f"{name}.png", 40 + seed, 50, seed)
    tiny.picture(root / "z.png", 40, 50, 0)  # as a.png
    (root / "junk.jpg").write_bytes(b"junk")
    return root


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, teacher: str) -> list[object]:
    """One entry per run of the teacher."""
    session = type(load(teacher).session)
    seen: list[object] = []
    whole = session.run

    def counted(self, batch):
        seen.append(None)
        return whole(self, batch)

    monkeypatch.setattr(session, "run", counted)
    return seen


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["pseudo-label", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.stdout


def test_every_picture_gets_what_the_teacher_predicts_and_equal_ones_are_computed_once(
    teacher: str, pictures: Path, tmp_path: Path, runs: list[object]
) -> None:
    out = tmp_path / "store"
    report = json.loads(invoke(teacher, pictures, "--out", out, "--json", status=1))
    assert (report["items"], report["labelled"], report["repeated"]) == (7, 5, 1)
    assert [item["name"] for item in report["failed"]] == ["junk"]
    assert "junk.jpg" in report["failed"][0]["error"]
    assert len(runs) == 5
    store = LabelStore(out)
    assert store.names() == ["a", "b", "below/c", "below/d", "e", "z"]
    assert store.info.teacher == teacher
    assert (store.info.height, store.info.width) == (64, 96)
    assert store.path("a").read_bytes() == store.path("z").read_bytes()
    expected = load(teacher).predict(pictures / "below/c.png")
    found = store.get("below/c")
    assert found is not None
    assert found.kind is expected.kind
    assert np.abs(found.values - expected.values).max() < 0.001  # millimetres
    assert json.loads((out / "failed-1-of-1.json").read_text())[0]["name"] == "junk"


def test_a_second_run_does_only_what_is_missing(
    teacher: str, pictures: Path, tmp_path: Path, runs: list[object]
) -> None:
    out = tmp_path / "store"
    (pictures / "junk.jpg").unlink()
    label(Job(teacher, str(pictures)), out)
    store = LabelStore(out)
    store.path("b").unlink()
    (store.path("e").with_name(".e.png.1-2.tmp")).write_bytes(b"half")  # what a killed run leaves
    before = store.path("a").stat().st_mtime_ns
    tiny.picture(pictures / "new.png", 43, 50, 3)  # as below/d
    runs.clear()
    summary = label(Job(teacher, str(pictures)), out)
    assert len(runs) == 1
    assert (summary.before, summary.repeated, [item.name for item in summary.items]) == (5, 1, ["b", "new"])
    assert store.path("a").stat().st_mtime_ns == before
    assert store.path("new").read_bytes() == store.path("below/d").read_bytes()
    assert not (out / "failed-1-of-1.json").exists()


def test_labels_are_not_written_among_the_pictures(teacher: str, pictures: Path) -> None:
    with pytest.raises(OutputError, match="it lies inside the data"):
        label(Job(teacher, str(pictures)), pictures / "labels")
    assert not (pictures / "labels").exists()


def test_a_damaged_label_is_made_again_and_a_replaced_picture_is_found(
    teacher: str, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    (pictures / "junk.jpg").unlink()
    label(Job(teacher, str(pictures)), out)
    path = LabelStore(out).path("b")
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"?" + whole[61:])
    summary = label(Job(teacher, str(pictures)), out)
    assert [item.name for item in summary.items] == ["b"]
    assert path.read_bytes() == whole
    labelled = f"pseudo:{pictures},{out}"
    assert check(open_dataset(labelled)).problems == []
    tiny.picture(pictures / "b.png", 41, 50, 99)
    (problem,) = check(open_dataset(labelled)).problems
    assert (problem.item, problem.what, problem.fatal) == ("b", "the label was made for other pixels", False)


def test_a_label_is_no_larger_than_the_network_says(teacher: str, tmp_path: Path) -> None:
    tiny.picture(tmp_path / "pictures" / "large.png", 200, 300)
    label(Job(teacher, str(tmp_path / "pictures"), size=(32, 64)), tmp_path / "store")
    store = LabelStore(tmp_path / "store")
    small, enlarged = store.get("large", (32, 64)), store.get("large")
    expected = load(teacher, size=(32, 64)).predict(tmp_path / "pictures" / "large.png")
    assert small is not None
    assert enlarged is not None
    assert enlarged.shape == (200, 300)
    assert np.abs(enlarged.values - expected.values).max() < 0.001


def test_shards_share_a_store(teacher: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / "junk.jpg").unlink()
    out = tmp_path / "store"
    parts = [label(Job(teacher, str(pictures), shard=(number, 2)), out) for number in (1, 2)]
    assert [part.total for part in parts] == [3, 3]
    assert len(LabelStore(out).names()) == 6
    assert sum(part.repeated for part in parts) == 1  # the equal pictures lie in different shards


def test_processes_label_as_one_does(teacher: str, pictures: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    label(Job(teacher, str(pictures)), alone)
    summary = label(Job(teacher, str(pictures)), together, processes=2)
    assert [item.name for item in summary.failed] == ["junk"]
    assert summary.repeated == 1
    one, two = LabelStore(alone), LabelStore(together)
    assert one.names() == two.names()
    assert all(one.path(name).read_bytes() == two.path(name).read_bytes() for name in one.names())


def test_a_shard_is_labelled_by_one_run_at_a_time(teacher: str, pictures: Path, tmp_path: Path) -> None:
    from leadline.output import output_lock

    out = tmp_path / "store"
    label(Job(teacher, str(pictures), shard=(1, 9)), out)
    with output_lock(out / ".shards" / "1-of-1"), pytest.raises(OutputError, match=f"process {os.getpid()}"):
        label(Job(teacher, str(pictures)), out)


def test_labels_of_other_pictures_are_noticed(teacher: str, pictures: Path, tmp_path: Path) -> None:
    label(Job(teacher, str(pictures)), tmp_path / "store")
    tiny.picture(pictures / "a.png", 40, 50, seed=77)
    with pytest.raises(DataError, match="another one when it was labelled"):
        label(Job(teacher, str(pictures)), tmp_path / "store")


def test_a_nan_of_the_teacher_is_recorded(
    teacher: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = type(load(teacher).session)
    whole = session.run
    monkeypatch.setattr(session, "run", lambda self, x: whole(self, x) * (np.nan if len(seen) == 1 else 1.0))
    seen: list[object] = []
    summary = label(Job(teacher, str(pictures)), tmp_path / "store", on_item=seen.append)
    assert {item.name for item in summary.failed} == {"b", "junk"}
    assert "b" not in LabelStore(tmp_path / "store")


def test_a_killed_run_loses_nothing_that_was_finished(teacher: str, tmp_path: Path) -> None:
    root, out = tmp_path / "pictures", tmp_path / "store"
    for seed in range(100):
        tiny.picture(root / f"{seed:03d}.png", 64, 96, seed)
    command = [sys.executable, "-m", "leadline", "pseudo-label", teacher, str(root), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(out.glob("labels/*.png")):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    store = LabelStore(out)
    finished = {name: store.path(name).read_bytes() for name in store.names()}
    assert finished
    assert all(store.get(name) is not None for name in finished)
    summary = label(Job(teacher, str(root)), out)
    assert summary.before == len(finished)
    assert len(store.names()) == 100
    assert all(store.path(name).read_bytes() == data for name, data in finished.items())


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_shards_are_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="part I of N"):
        parse_shard(text)


def test_the_store_trains_a_student(teacher: str, pictures: Path, tmp_path: Path) -> None:
    from leadline.training.config import TrainConfig
    from leadline.training.run import run

    (pictures / "junk.jpg").unlink()
    label(Job(teacher, str(pictures)), tmp_path / "store")
    config = TrainConfig.model_validate(
        {
            "model": teacher,
            "sources": [{"data": f"pseudo:{pictures},{tmp_path / 'store'}"}],
            "objectives": [{"loss": "silog"}],
            "iterations": 2,
            "batch": 2,
            "threads": 1,
        }
    )
    result, folder = run(config, tmp_path / "run")
    assert result.iteration == 2
    assert (folder / "weights.safetensors").is_file()


@pytest.mark.slow
def test_ray_labels_as_one_process_does(teacher: str, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs leadline[ray]")
    alone, together = tmp_path / "alone", tmp_path / "together"
    label(Job(teacher, str(pictures)), alone)
    summary = label(Job(teacher, str(pictures)), together, processes=2, ray=True)
    assert [item.name for item in summary.failed] == ["junk"]
    one, two = LabelStore(alone), LabelStore(together)
    assert one.names() == two.names()
    assert all(one.path(name).read_bytes() == two.path(name).read_bytes() for name in one.names())


def test_without_ray_the_message_says_how_to_install_it(
    teacher: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    shutil.rmtree(pictures / "below")
    output = CliRunner().invoke(app, ["pseudo-label", teacher, str(pictures), "--out", str(tmp_path / "s"), "--ray"])
    assert output.exit_code == 2
    assert "pip install 'leadline[ray]'" in output.stderr
