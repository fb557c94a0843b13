"""Files of recipes: paths from their folder, wrong keys answered with what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from leadline.compression import Step, Target
from leadline.compression.finetune import FineTune
from leadline.data.places import paths, refuse_among_data
from leadline.errors import ConfigError, OutputError
from leadline.studies import recipe as recipes
from leadline.studies.recipe import load_recipe

SCENES = "rendered:room,count=3,height=72,width=96"
TRAIN = {"sources": [{"data": SCENES, "split": "train"}], "batch": 2}
FINETUNE = {"step": "finetune", "iterations": 2}


def written(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_file_becomes_a_recipe_with_paths_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    training = {"model": "leadline-s", "imagenet": True, "sources": [{"data": SCENES}], "batch": 4}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training))
    path = written(
        tmp_path,
        model="leadline-s",
        train="train.yaml",
        score={"data": "folder:held#test", "limit": 3},
        target={"runtime": "torch", "size": [64, 96]},
        steps=["finetune", FINETUNE],
    )
    found = load_recipe(path)
    assert found.train == {"sources": [{**found.train["sources"][0], "data": SCENES}], "batch": 4}
    assert found.score is not None
    assert found.score.data == f"folder:{tmp_path / 'held'}#test"
    assert found.target == Target(runtime="torch", size=(64, 96))
    assert found.steps == [FineTune(), FineTune(iterations=2)]
    assert json.loads(found.model_dump_json())["steps"][1]["iterations"] == 2  # options of the step, not of its base


def test_a_recipe_without_a_name_for_the_model_of_its_training_file(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({"sources": [{"data": SCENES}]}))
    found = load_recipe(written(tmp_path, model="leadline-s", train="train.yaml", steps=["finetune"]))
    assert [source["data"] for source in found.train["sources"]] == [SCENES]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stpes": []}, ("unknown key 'stpes'", "Did you mean 'steps'")),
        ({"steps": [{"step": "finetun"}]}, ("unknown step 'finetun'", "Did you mean 'finetune'")),
        ({"steps": [{**FINETUNE, "iteration": 1}]}, ("recipe.yaml, steps.0", "Did you mean 'iterations'")),
        ({"steps": [{**FINETUNE, "iterations": 0}]}, ("iterations", "greater than or equal to 1")),
        ({"steps": [{"iterations": 1}]}, ("not a step", "finetune")),
        ({"steps": [3]}, ("not a step", "got 3")),
        ({"steps": [{"step": "netadapt", "metric": "delta11"}]}, ("no such metric 'delta11'", "did you mean 'delta1'")),
        ({"steps": []}, ("steps", "at least 1")),
        ({"steps": "finetune"}, ("steps", "list")),
        ({"score": {"dta": SCENES}}, ("score.dta", "Did you mean 'data'")),
        ({"target": {"runtim": "torch"}}, ("target.runtim", "Did you mean 'runtime'")),
        ({"train": {"sources": [{"data": SCENES}], "bach": 2}}, ("'bach'", "Did you mean 'batch'")),
        ({"train": {**TRAIN, "model": "x"}}, ("train", "Leave 'model' out")),
        ({"train": {**TRAIN, "validation": {"data": SCENES}}}, ("Put `validation` beside `train`",)),
        ({"train": {"sources": [{"data": "folder:nowhere"}]}}, ("leads nowhere", "nowhere")),
        ({"train": "nowhere.yaml"}, ("leads nowhere", "nowhere.yaml")),
        ({"train": {}}, ("finetune", "no `train`", "--train-data")),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_meant(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    values = {"model": "leadline-s", "train": TRAIN, "steps": [FINETUNE]} | changes
    with pytest.raises(ConfigError) as refused:
        load_recipe(written(tmp_path, **values))
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_the_union_is_closed_over_what_has_a_name() -> None:
    known = recipes.known_steps()
    assert known["finetune"] is FineTune
    assert all(issubclass(step, Step) and step.model_fields["step"].default == name for name, step in known.items())


def test_models_and_tables_of_steps_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "table.sqlite").touch()
    (tmp_path / "teacher").mkdir()
    options = {"teacher": "teacher", "table": "table.sqlite"}
    steps = [{"step": "netadapt", **options}, {"step": "netadapt", "teacher": "leadline-s", "table": "new.sqlite"}]
    path = written(tmp_path, model="leadline-s", train=TRAIN, validation={"data": SCENES}, steps=steps)
    first, second = load_recipe(path).steps
    found = first.model_dump()
    assert (found["teacher"], found["table"]) == (str(tmp_path / "teacher"), str(tmp_path / "table.sqlite"))
    assert (second.model_dump()["teacher"], second.model_dump()["table"]) == ("leadline-s", "new.sqlite")


@pytest.mark.parametrize("after", ["", "?camera=3", "#train", "?camera=3#train"])
def test_options_and_split_belong_to_no_path(tmp_path: Path, after: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert paths(f"kitti-raw:{data}{after}") == [str(data)]
    with pytest.raises(OutputError, match="lies inside the data"):
        refuse_among_data([f"{data}{after}"], data / "out", "a run")


def test_a_key_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: leadline-s\nsteps: [finetune]\nmodel: leadline-xs\n")
    with pytest.raises(ConfigError, match="'model' is said twice"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": {"size": 224}}, r"target.size: .*Write a list, as in \[a, b\]"),
        ({"score": "pictures"}, r"score: .*Write a mapping, as in {key: value}"),
    ],
)
def test_a_value_of_the_wrong_form_is_answered_with_the_right_one(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(written(tmp_path, model="leadline-s", steps=["finetune"], train=TRAIN, **values))
