"""`leadline compress` and `leadline run` as a user types them: one runner, measured before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import tiny_models
from leadline.bundle import load_bundle
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.cli import app
from leadline.cli.compress import _step as parsed

SCENES = "rendered:room,count=3,height=72,width=96"
FINETUNE = "finetune:iterations=2,learning_rate=1e-4"


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, and what one fine-tuning step made of it, measured."""
    root = tmp_path_factory.mktemp("compress")
    loaded = tiny_models.cnn()
    assert loaded.config is not None
    facts = {"architecture": "fastdepth", "config": loaded.config, "contract": loaded.contract}
    save_checkpoint(root / "tiny", loaded.model, **facts)  # type: ignore[arg-type]
    done = invoke("compress", root / "tiny", *OPTIONS, "--out", root / "out", "--json")
    (root / "answer.json").write_text(done.stdout)
    return root


OPTIONS = ("--step", FINETUNE, "--train-data", f"{SCENES}#train", "--batch", 2, "--data", SCENES, "--limit", 2)
OPTIONS += ("--runtime", "torch", "--runs", 6)


def answer(place: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((place / "answer.json").read_text())
    return facts


def test_source_and_result_are_measured_in_pairs(place: Path) -> None:
    before, after = answer(place)["rows"]
    assert (before["step"], after["step"]) == ("source", "finetune")
    assert after["options"].items() >= {"iterations": 2, "learning_rate": 1e-4, "keep_zeros": True}.items()
    count = sum(parameter.numel() for parameter in tiny_models.cnn().model.parameters())
    for row in (before, after):
        assert row["status"] == "measured"
        assert row["parameters"] == count
        assert row["macs"] > count
        assert 4e-6 * count < row["size_mb"] < 4e-6 * count + 0.03  # float32; batch norms' statistics, names
        assert 0.3 * row["size_mb"] < row["packed_mb"] < row["size_mb"]
        assert row["accuracy"]["protocol"].startswith("plain")
        assert row["accuracy"]["scored"] == 2
        assert (row["latency"]["runs"], row["latency"]["threads"]) == (6, 1)
        assert row["latency"]["p50"] > 0
        assert row["memory_mb"] > 50
        assert (row["runtime"], row["precision"], row["height"], row["width"]) == ("torch", "fp32", 64, 96)
    assert before["accuracy"]["change"] == {}
    change = after["accuracy"]["change"]["delta1"]
    values = [row["accuracy"]["metrics"]["delta1"]["value"] for row in (before, after)]
    assert change["value"] == pytest.approx(values[1] - values[0], abs=1e-9)
    assert change["low"] <= change["value"] <= change["high"]


def test_the_figures_lie_beside_the_result(place: Path) -> None:
    row = answer(place)["rows"][1]
    saved = load_checkpoint(Path(row["ref"]))
    assert saved.measurements()["latency"] == row["latency"]
    assert saved.measurements()["accuracy"] == row["accuracy"]
    assert saved.lineage[-1]["step"] == "finetune"
    assert saved.lineage[-1]["given"]["train"]["sources"][0]["split"] == "train"
    assert load_bundle(place / "out" / row["bundle"]).runtime == "torch"
    assert answer(place)["result"] == row["ref"]


def test_the_same_line_again_repeats_nothing_and_prints_the_table(place: Path) -> None:
    done = invoke("compress", place / "tiny", *OPTIONS, "--out", place / "out")
    rows = answer(place)["rows"]
    table = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith((" 0 ", " 1 ", "0 ", "1 "))}
    for row in rows:
        assert f"{row['latency']['p50']:.2f}" in table[row["step"]]
        assert f"{row['size_mb']:.2f}" in table[row["step"]]
        assert f"{row['packed_mb']:.2f}" in table[row["step"]]
    assert "before" in table["source"]
    assert "Caution: 2 pictures only" in done.stdout
    assert f"Result: {rows[1]['ref']}" in done.stdout
    assert "done in an earlier run" in done.stderr


def test_run_takes_the_same_way(place: Path) -> None:
    recipe = {
        "model": "tiny",
        "train": {"sources": [{"data": SCENES, "split": "train"}], "batch": 2},
        "score": {"data": SCENES, "limit": 2},
        "target": {"runtime": "torch"},
        "steps": [{"step": "finetune", "iterations": 2, "learning_rate": 1e-4}],
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = invoke("run", place / "recipe.yaml", "--out", place / "out", "--runs", 6, "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["reused"] for row in rows] == [True, True]
    assert [row["key"] for row in rows] == [row["key"] for row in answer(place)["rows"]]


def test_ctrl_c_is_130_and_says_that_the_same_command_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leadline.compression.finetune.FineTune.apply", interrupted)
    other = ("--step", "finetune:iterations=3", *OPTIONS[2:])
    done = invoke("compress", place / "tiny", *other, "--out", place / "out", status=130)
    assert "the same command goes on there" in done.stderr


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("finetune", {}),
        ("finetune:iterations=3", {"iterations": 3}),
        ("a:x=[1, 2],y={k: [3, 4]},z=1.5", {"x": [1, 2], "y": {"k": [3, 4]}, "z": 1.5}),
        ("a:x='one, two',y=true,z=null", {"x": "one, two", "y": True, "z": None}),
        ("a:x=folder:p=q", {"x": "folder:p=q"}),
    ],
)
def test_values_of_a_step_are_yaml(text: str, values: dict[str, Any]) -> None:
    assert parsed(text) == {"step": text.partition(":")[0], **values}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "finetun"], "did you mean 'finetune'"),
        (["--step", "finetune:iteration=3", "--train-data", SCENES], "did you mean 'iterations'"),
        (["--step", "finetune:iterations"], "not an option of a step 'iterations'"),
        (["--step", "finetune:iterations=[", "--train-data", SCENES], "not a value"),
        (["--step", "finetune"], "no `train`"),
        (["--step", "finetune", "--train-data", "nowhere"], "no such file"),
        (["--step", "finetune", "--train-data", SCENES, "--limit", "3"], "it belongs to --data"),
        (["--step", "finetune", "--batch", "4"], "nothing to train on"),
        (["--step", "finetune", "--train-config", "nowhere.yaml"], "cannot read the configuration"),
        (["--step", "finetune", "--train-data", SCENES, "--size", "63,96"], "63"),
    ],
)
def test_a_fault_is_one_line_and_nothing_is_made(place: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = invoke("compress", place / "tiny", *arguments, "--out", tmp_path / "out", status=2)
    assert done.stderr.count("\n") == 1
    assert words.lower() in done.stderr.lower()
    assert not list((tmp_path / "out").glob("0*"))


def test_a_recipe_with_a_wrong_key_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: leadline-s\nstepz: [finetune]\n")
    assert "did you mean 'steps'" in invoke("run", path, "--out", tmp_path / "out", status=2).stderr.lower()
    path.write_text("- finetune\n")
    assert "must be a mapping" in invoke("run", path, "--out", tmp_path / "out", status=2).stderr


def test_all_steps_are_listed_with_their_options() -> None:
    from leadline.studies.recipe import known_steps

    text = invoke("compress", "--steps").stdout
    lines = text.splitlines()
    for name, step in known_steps().items():
        assert any(line.startswith(f"{name}: ") for line in lines)
        assert all(f"    {key} (" in text for key in step.model_fields if key != "step")
    assert "    iterations (integer, default 500)" in lines
