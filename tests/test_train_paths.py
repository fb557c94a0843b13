"""Where a run's paths lead, and what its last line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny_datasets as tiny
from leadline.cli import app
from leadline.errors import ConfigError, OutputError
from leadline.training.config import TrainConfig, load_config
from leadline.training.paths import refuse_data_folder
from tiny_models import exported

WORDS = ["train", "--model", "random:leadline-s", "--data", "rendered:room,count=4,height=48,width=64", "--batch", "2"]
WORDS += ["--size", "32,64", "--threads", "1"]


def written(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "c.yaml"
    path.write_text(json.dumps({"model": "random:leadline-s", "sources": [{"data": "rendered"}], **values}))
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data beside its configs, and a current folder elsewhere."""
    (tmp_path / "project" / "scenes").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_paths_of_a_file_count_from_here_then_from_the_file_then_from_above_it(project: Path) -> None:
    sources = [
        {"data": "scenes", "labels": "scenes"},
        {"data": "kitti-raw:scenes?camera=3"},
        {"data": "pseudo:scenes,scenes"},
        {"data": "pseudo:frames:scenes?fov=60,scenes,scenes"},
        {"data": "pseudo:rendered:room?count=4,scenes"},
        {"data": "rendered:room"},
    ]
    path = written(project / "configs", sources=sources, card="card.md", validation={"data": "scenes"})
    (project / "configs" / "card.md").write_text("a card")
    found = load_config(path, {})
    scenes = str(project / "scenes")
    assert [source.data for source in found.sources] == [
        scenes,
        f"kitti-raw:{scenes}?camera=3",
        f"pseudo:{scenes},{scenes}",
        f"pseudo:frames:{scenes}?fov=60,{scenes},{scenes}",
        f"pseudo:rendered:room?count=4,{scenes}",
        "rendered:room",
    ]
    assert found.sources[0].labels == scenes
    assert found.card == project / "configs" / "card.md"
    assert found.validation is not None
    assert found.validation.data == scenes

    Path("scenes").mkdir()  # in the current folder: nearer
    assert load_config(path, {}).sources[0].data == "scenes"


def test_a_path_that_leads_nowhere_names_every_place(project: Path) -> None:
    path = written(project / "configs", card="cards/none.md")
    with pytest.raises(ConfigError, match=r"cards/none\.md") as caught:
        load_config(path, {})
    for place in (Path.cwd(), project / "configs", project):
        assert str(place / "cards" / "none.md") in str(caught.value)


def test_what_flags_say_counts_from_here_alone(project: Path) -> None:
    path = written(project / "configs", sources=[{"data": "nowhere"}])
    flags = {"sources": [{"data": "scenes"}]}
    assert load_config(path, flags).sources[0].data == "scenes"


@pytest.mark.parametrize("inside", ["", "images", "runs/1"])
@pytest.mark.parametrize(
    "reference", ["{}", "folder:{}", "pseudo:{},{}", "pseudo:frames:{}?fov=60,none", "kitti-raw:{}?camera=3"]
)
def test_a_run_is_not_written_into_its_data(tmp_path: Path, reference: str, inside: str) -> None:
    scenes = tmp_path / "scenes"
    (scenes / "images").mkdir(parents=True)
    config = TrainConfig.model_validate({"model": "m", "sources": [{"data": reference.format(scenes, scenes)}]})
    with pytest.raises(OutputError, match="data"):
        refuse_data_folder(config, scenes / inside)
    refuse_data_folder(config, tmp_path / "scenes-run")
    refuse_data_folder(config, tmp_path)


def test_a_run_is_not_written_into_an_export() -> None:
    bundle = exported("cnn", "onnxruntime", "fp32").folder
    config = TrainConfig.model_validate({"model": "m", "sources": [{"data": "rendered"}]})
    with pytest.raises(OutputError, match="it is a bundle"):
        refuse_data_folder(config, bundle)


def test_the_command_refuses_its_data_folder_before_anything_is_written(tmp_path: Path) -> None:
    scenes = tiny.folder(tmp_path / "scenes", count=4)
    before = sorted(scenes.rglob("*"))
    words = ["train", "--model", "random:leadline-s", "--data", str(scenes), "--out", str(scenes), "--batch", "2"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "will not write a run into" in refused.stderr
    assert sorted(scenes.rglob("*")) == before


def test_the_last_line_says_what_was_done(tmp_path: Path) -> None:
    def said(*more: str) -> str:
        done = CliRunner().invoke(app, [*WORDS, "--out", str(tmp_path / "run"), *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    first = said("--iterations", "3")
    assert first.startswith("3 iterations, done, ")
    assert "% of the time waiting for data" in first
    assert said("--iterations", "2").startswith("3 iterations were done before, 2 are asked for: nothing was trained.")
    assert said("--iterations", "3").startswith("3 iterations were done before, 3 are asked for: nothing was trained.")


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadline.training import fit
    from leadline.training.interruption import Stop

    class Asked(Stop):
        def __enter__(self) -> Stop:
            super().__enter__()
            self.asked = True
            return self

    monkeypatch.setattr(fit, "Stop", Asked)
    monkeypatch.setattr("sys.argv", ["leadline", *WORDS, "--out", "a run"])
    done = CliRunner().invoke(app, [*WORDS, "--out", str(tmp_path / "run"), "--iterations", "9"])
    assert done.exit_code == 130
    assert done.stdout.startswith("1 iterations, interrupted")
    assert "To go on to 9, run the same command again: leadline train --model random:leadline-s" in done.stdout
    assert "--out 'a run'" in done.stdout
