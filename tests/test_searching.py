"""`leadline optimize --train-data`: recipes in order of promise within a budget, and their networks as candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from typer.testing import CliRunner

import tiny_models
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.compression import Judged, Place, Step, Target
from leadline.errors import ConfigError
from leadline.reference import LoadedModel
from leadline.studies import recipe, searching
from leadline.studies.recommend import Limits
from leadline.studies.searching import Training, search
from leadline.studies.study import Cell, Study, cell_key, cells

SCENES = "rendered:room,count=3,height=72,width=96"
TRAIN: dict[str, Any] = {"sources": [{"data": SCENES, "split": "train"}], "batch": 2}


class Slow(Step):
    """Say so many lines, each of which takes a minute of a clock that the test holds."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset()
    minutes_gone: ClassVar[list[int]] = [0]

    step: Literal["slow"] = "slow"
    minutes: int = 1
    fails: bool = False

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        if self.fails:
            raise ConfigError("cannot be narrowed", where="conv5")
        for number in range(self.minutes):
            self.minutes_gone[0] += 1
            place.say(f"minute {number}")
        return replace(source)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    loaded = tiny_models.cnn()
    assert loaded.config is not None
    facts = {"architecture": "fastdepth", "config": loaded.config, "contract": loaded.contract}
    save_checkpoint(folder, loaded.model, **facts)  # type: ignore[arg-type]
    return str(folder)


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of 1, 2, 0 (fails) and 4 minutes, then one more."""
    Slow.minutes_gone[0] = 0
    slow = [{"step": "slow", "minutes": minutes} for minutes in (1, 2, 9, 4, 1)]
    slow[2]["fails"] = True
    listed = [(f"recipe {number}", [step]) for number, step in enumerate(slow)]
    monkeypatch.setattr(searching, "candidates", lambda training, shares: listed)
    monkeypatch.setattr(searching.time, "monotonic", lambda: 60.0 * Slow.minutes_gone[0])
    known = recipe.known_steps() | {"slow": Slow}
    monkeypatch.setattr(recipe, "known_steps", lambda: known)


@pytest.mark.usefixtures("_clock")
def test_recipes_are_tried_in_their_order_until_the_budget_ends(model: str, tmp_path: Path) -> None:
    lines: list[str] = []
    found = search(model, Training(TRAIN, minutes=5), Target(runtime="torch"), tmp_path, lines.append)
    assert [made for made, _ in found.networks] == ["recipe 0", "recipe 1"]
    assert all((Path(folder) / "weights.safetensors").is_file() for _, folder in found.networks)
    assert [notice.partition(":")[0] for notice in found.notices] == ["recipe 2", "recipe 3", "recipe 4"]
    assert "cannot be narrowed" in found.notices[0]
    assert "not finished within 5 min" in found.notices[1]
    assert "not tried" in found.notices[2]
    Slow.minutes_gone[0] = 0
    again = search(model, Training(TRAIN, minutes=5), Target(runtime="torch"), tmp_path, lines.append)
    assert [made for made, _ in again.networks] == ["recipe 0", "recipe 1", "recipe 3", "recipe 4"]  # done ones cost 0


@pytest.mark.usefixtures("_clock")
def test_a_step_that_keeps_no_state_ends_and_is_not_done_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "trains", False)
    made = []
    for _ in range(2):
        Slow.minutes_gone[0] = 0
        found = search(model, Training(TRAIN, minutes=0.5), Target(runtime="torch"), tmp_path, lambda line: None)
        made.append(len(found.networks))
    assert made == [1, 2]


@pytest.mark.parametrize(
    ("limits", "shares"),
    [
        (Limits(), (0.5, 0.3, 0.7)),
        (Limits(max_ms=100.0, max_mb=100.0), (0.5, 0.3, 0.7)),  # already kept to
        (Limits(max_ms=12.0), (0.55, 0.5, 0.3)),  # INT8 would do; FP32 needs 0.6 less a tenth
        (Limits(max_ms=4.0), (0.35, 0.2, 0.5)),  # 0.4 in INT8 and 0.2 in FP32, less a tenth
        (Limits(max_mb=1.0), (0.35, 0.1, 0.5)),  # 1 / 2.7 and 1 / 10
        (Limits(max_ms=12.0, max_mb=1.0), (0.35, 0.1, 0.5)),  # the tighter one
        (Limits(max_ms=0.1), (0.1, 0.5, 0.3)),  # as small as it goes
    ],
)
def test_recipes_aim_at_the_limits(limits: Limits, shares: tuple[float, ...]) -> None:
    assert searching.aims(limits, ms=20.0, mb=10.0) == pytest.approx(shares)


@pytest.mark.usefixtures("_clock")
def test_a_search_goes_on_with_the_aims_that_it_began_with(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, ...]] = []
    monkeypatch.setattr(searching, "candidates", lambda training, shares: asked.append(shares) or [])
    lines: list[str] = []
    target, bounds = Target(runtime="torch", size=(64, 96)), Limits(max_mb=0.01)
    search(model, Training(TRAIN), target, tmp_path, lines.append, bounds)
    measured = json.loads((tmp_path / searching.AIMS).read_bytes())["ms"]
    assert measured > 0
    assert "by the limits, recipes aim at 55%, 15%, 50%" in lines[0]  # of 0.0585 MB
    (tmp_path / searching.AIMS).write_text(json.dumps({"ms": 100.0}))
    search(model, Training(TRAIN), target, tmp_path, lines.append, Limits(max_ms=40.0))
    assert asked == [pytest.approx((0.55, 0.15, 0.5)), pytest.approx((0.7, 0.35, 0.5))]
    assert lines[1].startswith("FP32 takes 100 ms")


def test_only_steps_that_exist_and_have_their_data_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(data=SCENES)
    both = [[step["step"] for step in steps] for _, steps in searching.candidates(Training(TRAIN, judged))]
    alone = [[step["step"] for step in steps] for _, steps in searching.candidates(Training(TRAIN))]
    assert ["finetune"] in alone
    assert not any("netadapt" in steps for steps in alone)
    assert all(steps in both for steps in alone)
    monkeypatch.setattr(searching, "known_steps", lambda: {"finetune": recipe.known_steps()["finetune"]})
    assert searching.candidates(Training(TRAIN, iterations=7)) == [
        ("fine-tuned", [{"step": "finetune", "iterations": 7}])
    ]


def test_every_candidate_recipe_is_valid_today(model: str) -> None:
    for _, steps in searching.candidates(Training(TRAIN, Judged(data=SCENES))):
        made = recipe.Recipe.model_validate(
            {"model": model, "train": TRAIN, "validation": {"data": SCENES}, "steps": steps}
        )
        assert [one.step for one in made.steps] == [one["step"] for one in steps]


def test_networks_of_recipes_are_candidates_beside_the_model() -> None:
    loaded = tiny_models.cnn()
    study = Study("m", runtimes=("torch",), precisions=("fp32",), sizes=((64, 96),))
    assert cells(study, loaded.contract) == [Cell("torch", "fp32", (64, 96))]
    more = replace(study, networks=(("pruned 50%", "folder"),))
    assert cells(more, loaded.contract) == [
        Cell("torch", "fp32", (64, 96)),
        Cell("torch", "fp32", (64, 96), "pruned 50%"),
    ]
    assert cells(more, loaded.contract)[1].folder == "pruned-50-torch-fp32-64x96"
    first = cells(study, loaded.contract)[0]
    assert cell_key(study, first, loaded, {}) == cell_key(more, first, loaded, {})  # what is measured stays measured


def test_flags_of_training_need_data() -> None:
    base = ["optimize", "random:fastdepth-pruned", "--data", SCENES, "--out", "nowhere"]
    for flags in (["--validation", SCENES], ["--batch", "2"]):
        result = CliRunner().invoke(app, [*base, *flags])
        assert result.exit_code == 2
        assert f"nothing is trained '{flags[0]}'" in result.stderr


@pytest.mark.slow
def test_optimize_measures_what_recipes_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tiny_models.fastdepth.Config.model_validate(
        tiny_models.cnn().config.model_dump()  # type: ignore[union-attr]
        | {"encoder_widths": (32,) * 12 + (64, 64), "decoder_widths": (64, 32, 32, 32, 32)}
    )
    network = tiny_models.fastdepth.build(wide).eval()
    facts = {"architecture": "fastdepth", "config": wide, "contract": tiny_models.fastdepth.contract(wide)}
    save_checkpoint(tmp_path / "wide", network, **facts)  # type: ignore[arg-type]
    every = dict(searching.candidates(Training(TRAIN, iterations=1)))
    listed = [(words, every[words]) for words in ("channels of 50% MACs", "fine-tuned")]
    monkeypatch.setattr(searching, "candidates", lambda training: listed)

    options = ["--train-data", f"{SCENES}#train", "--batch", "2", "--size", "64,96", "--runs", "6"]
    options += ["--runtime", "torch", "--precision", "fp32", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, ["optimize", str(tmp_path / "wide"), "--data", SCENES, *options])
    assert result.stdout, result.output
    answer = json.loads(result.stdout)
    made = {row["made"]: row for row in answer["rows"]}
    assert list(made) == ["", "channels of 50% MACs", "fine-tuned"], answer["notices"]
    assert all(row["status"] == "measured" for row in made.values())
    assert made["channels of 50% MACs"]["macs"] < 0.6 * made[""]["macs"]
    assert made["fine-tuned"]["parameters"] == made[""]["parameters"]
    assert "channels of 50% MACs torch fp32" in Path(answer["report"]).read_text()
