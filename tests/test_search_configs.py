"""The search over configurations: the space, the front, and trials that are drawn, judged once and kept (NSGA-II)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from leadline.compression import Judged, Place
from leadline.compression.configurations import checked_space, label, network
from leadline.compression.front import Point, choose, front, table
from leadline.compression.sampling import SearchConfigs
from leadline.errors import ConfigError, UnavailableError
from leadline.evaluation.complexity import count_macs
from leadline.models import fastdepth

DATA = "rendered:room,count=4,height=48,width=64"
SPACE = {"decoder_widths.0": [16, 24], "size": [[32, 64], [64, 96]]}


def place(folder: Path, lines: list[str] | None = None) -> Place:
    train = {
        "sources": [{"data": DATA}],
        "objectives": [{"loss": "silog"}],
        "batch": 2,
        "warmup": 0,
        "decay": 0,
        "threads": 1,
    }
    say = (lambda line: None) if lines is None else lines.append
    return Place(folder, train=train, validation=Judged(data=DATA), say=say)


def step(**changes: Any) -> SearchConfigs:
    values = {"space": SPACE, "trials": 4, "population": 2, "iterations": 1, "resource": "macs"}
    return SearchConfigs.model_validate(values | changes)


def point(accuracy: float, resource: float, name: str = "", number: int = 0) -> Point:
    return Point(name or f"{accuracy}", accuracy, accuracy - 0.1, accuracy + 0.1, resource, {}, number)


def test_the_front_its_knee_and_the_best_within_a_bound() -> None:
    points = [point(0.5, 1.0), point(0.8, 2.0), point(0.7, 2.5), point(0.9, 10.0), point(0.9, 11.0), point(0.4, 1.0)]
    best = front(points)
    assert [(p.accuracy, p.resource) for p in best] == [(0.5, 1.0), (0.8, 2.0), (0.9, 10.0)]
    assert choose(best, None, "ms").resource == 2.0  # 0.75 - 0.11 above the line between the ends
    assert choose(best, 9.0, "ms").resource == 2.0
    assert choose(best, 10.0, "ms").resource == 10.0
    assert choose(best[:1], None, "ms") is best[0]
    assert choose(best[:2], None, "ms") is best[1]
    with pytest.raises(ConfigError, match="needs 1 ms"):
        choose(best, 0.5, "ms")


def test_the_table_says_which_given_model_a_point_beats() -> None:
    points = [point(0.8, 2.0, "found"), point(0.7, 2.5, "slow", -1), point(0.9, 3.0, "good", -1)]
    rows = table(points, points[0], ("delta1", "latency, ms")).splitlines()[2:]
    assert rows[0] == "| **found** | 0.8000 [0.7000, 0.9000] | 2 | slow |"
    assert rows[1].startswith("| slow (given) |")
    assert rows[2].startswith("| good (given) |")


def test_a_network_of_the_space_takes_leading_slices_and_nothing_of_other_windows() -> None:
    source = tiny_models.cnn()
    chosen = {"decoder_widths.0": 16, "size": [32, 96]}
    made = network(source, chosen, seed=3, inherit=True, imagenet=False)
    assert isinstance(made.config, fastdepth.Config)
    assert made.config.decoder_widths == (16, 16, 16, 8, 8)
    assert (made.contract.input.height, made.contract.input.width) == (32, 96)
    theirs, ours = source.model.state_dict(), made.model.state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name][tuple(slice(size) for size in value.shape)])
    wide = network(source, {"kernel": 3}, seed=3, inherit=True, imagenet=False).model.state_dict()
    fresh = network(source, {"kernel": 3}, seed=3, inherit=False, imagenet=False).model.state_dict()
    changed = [name for name in wide if wide[name].shape != theirs[name].shape]
    assert changed
    assert all(torch.equal(wide[name], fresh[name]) for name in changed)
    assert not all(torch.equal(wide[name], fresh[name]) for name in wide)


def test_another_encoder_brings_its_published_widths() -> None:
    source = tiny_models.cnn()
    made = network(source, {"encoder": "efficientnet-lite0"}, seed=0, inherit=True, imagenet=False)
    assert isinstance(made.config, fastdepth.Config)
    assert made.config.encoder_widths[0] == 32
    assert made.contract.input.mean == pytest.approx((127 / 255,) * 3)


def test_the_default_space_is_of_valid_networks() -> None:
    source = tiny_models.cnn()
    space = checked_space(source, {})
    assert space["encoder"][0] == "mobilenet-v1"
    ends = ({key: choices[end] for key, choices in space.items()} for end in (0, -1))
    for chosen in ends:
        assert network(source, chosen, seed=0, inherit=False, imagenet=False).config is not None
    assert label({"encoder": "efficientnet-lite0", "decoder_widths.0": 8, "decoder_widths.1": 4, "size": [2, 3]}) == (
        "encoder=lite0 decoder_widths=8-4 size=2x3"
    )


def test_a_search_judges_each_configuration_once_and_goes_on(tmp_path: Path) -> None:
    source, lines = tiny_models.cnn(), []  # type: ignore[var-annotated]
    first = [{"decoder_widths.0": 24, "size": [64, 96]}]
    step(trials=2, first=first).apply(source, place(tmp_path, lines))
    assert next(line for line in lines if line.startswith("trial")).startswith(
        "trial 0: decoder_widths=24 size=64x96: "
    )
    again: list[str] = []
    found = step(trials=6, first=first).apply(source, place(tmp_path, again))
    assert not any(line.startswith(("trial 0", "trial 1")) for line in again)
    whole: list[str] = []
    step(trials=6, first=first).apply(source, place(tmp_path / "whole", whole))
    assert [line for line in whole if line.startswith("trial")] == [
        line for line in lines + again if line.startswith("trial")
    ]
    document = json.loads((tmp_path / "front.json").read_text())
    assert len({json.dumps(each["chosen"]) for each in document["points"]}) == len(document["points"]) == 4
    assert document["accuracy"] == "delta1 (plain)"
    size = found.contract.input.height, found.contract.input.width
    assert document["chosen"]["resource"] == count_macs(found.model, size)
    svg, png = (tmp_path / f"front.{ending}" for ending in ("svg", "png"))
    assert svg.read_text().startswith("<?xml")
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="it was begun with iterations = 1, now 2"):
        step(iterations=2, first=first).apply(source, place(tmp_path))


def test_latency_is_measured_on_the_target_on_one_scale(tmp_path: Path) -> None:
    """Also after a kill: the yardstick's time is kept."""
    space = {"decoder_widths.0": [24], "size": [[32, 64], [128, 192]]}
    first = [{"decoder_widths.0": 24, "size": size} for size in ([32, 64], [128, 192])]
    options = {"space": space, "first": first, "resource": "latency", "iterations": 0}
    step(trials=1, **options).apply(tiny_models.cnn(), place(tmp_path))
    kept = (tmp_path / "yardstick.json").read_text()
    step(trials=2, **options).apply(tiny_models.cnn(), place(tmp_path))
    assert (tmp_path / "yardstick.json").read_text() == kept
    small, large = json.loads((tmp_path / "front.json").read_text())["points"]
    assert 0 < small["resource"] < large["resource"]


def test_failed_trials_are_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    good, bad = ({"lateral": False, "decoder_widths.1": width} for width in (16, 8))  # the encoder's is 16
    space = {"lateral": [False, True], "decoder_widths.1": [16, 8]}
    step(space=space, trials=2, first=[bad, good], iterations=0).apply(tiny_models.cnn(), place(tmp_path, lines))
    assert "lateral=False decoder_widths=8: failed: bad fastdepth configuration" in lines[1]
    document = json.loads((tmp_path / "front.json").read_text())
    assert list(document["failed"]) == ["lateral=False decoder_widths=8"]
    assert [each["name"] for each in document["points"]] == ["lateral=False decoder_widths=16"]
    with pytest.raises(ConfigError, match="no trial of the search could be judged"):
        step(space=space, trials=1, first=[bad]).apply(tiny_models.cnn(), place(tmp_path / "none"))


def test_a_trial_that_was_cut_off_is_tried_again(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killing(line: str) -> None:
        if line.startswith("1/1"):  # of the training
            raise Killed

    with pytest.raises(Killed):
        step(trials=1).apply(tiny_models.cnn(), replace(place(tmp_path), say=killing))
    lines: list[str] = []
    step(trials=1).apply(tiny_models.cnn(), place(tmp_path, lines))
    assert lines[-2].startswith("trial 1: ")
    assert len(json.loads((tmp_path / "front.json").read_text())["points"]) == 1


def test_without_optuna_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UnavailableError, match=r"pip install 'leadline\[search\]'"):
        step().apply(tiny_models.cnn(), place(tmp_path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": {"decoder_width": [1, 2]}}, "Did you mean 'decoder_widths'"),
        ({"space": {"decoder_widths.7": [1, 2]}}, "no such element"),
        ({"space": {"kernel": []}}, "at least one and distinct"),
        ({"space": {"kernel": [3, 3]}}, "at least one and distinct"),
        ({"space": {"encoder": ["resnet18", "resnet99"]}}, "impossible choice in the space 'encoder: resnet99'"),
        ({"space": {"decoder_widths.0": [8, -8]}}, "impossible choice in the space 'decoder_widths.0: -8'"),
        ({"space": {"size": [[64, 96], [33, 47]]}}, r"impossible choice in the space 'size: \[33, 47\]'"),
        ({"space": {"size": [224]}}, "impossible choice in the space 'size: 224'"),
        ({"first": [{"decoder_widths.0": 17}]}, "`first` has 17"),
        ({"max_resource": 1.0}, "no network within 1 MACs"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        step(trials=1, **changes).apply(tiny_models.cnn(), place(tmp_path))


def test_no_default_space_for_other_architectures() -> None:
    with pytest.raises(ConfigError, match="no default space 'depth-anything-v2'"):
        checked_space(tiny_models.vit(), {})


def test_a_size_that_the_space_does_not_choose_stays_the_recipe_s() -> None:
    source = tiny_models.cnn()
    small = replace(source, contract=source.contract.at((96, 64)))
    assert source.config is not None
    made = network(small, {"kernel": 3}, seed=0, inherit=False, imagenet=False).contract.input
    assert (made.height, made.width) == (96, 64)
    chosen = network(small, {"size": [64, 96]}, seed=0, inherit=False, imagenet=False).contract.input
    assert (chosen.height, chosen.width) == (64, 96)
