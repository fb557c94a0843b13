"""Recipes: checked before any work, each step done once, gone on with, and known by what it was made from."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

import tiny_models
from leadline.bundle import Bundle, load_bundle, write_bundle
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression import Judged, Pictures, Place, Step, Target
from leadline.compression.finetune import FineTune
from leadline.errors import ConfigError, LeadlineError, OutputError
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.output import output_lock
from leadline.reference import LoadedModel, load_model
from leadline.runtimes.base import SessionOptions
from leadline.studies import before_after
from leadline.studies.before_after import packed_mb
from leadline.studies.recipe import Recipe
from leadline.studies.recipe_run import run_recipe, run_steps, step_key
from leadline.studies.recipe_start import begin
from leadline.studies.results import Result

SCENES = "rendered:room,count=3,height=72,width=96"
TRAIN = {"sources": [{"data": SCENES, "split": "train"}], "batch": 2, "save_every": 1, "threads": 1, "cache_mb": 1}


class Scaled(Step):
    """Multiply the first weight."""

    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})
    calls: ClassVar[list[float]] = []

    step: Literal["scaled"] = "scaled"
    factor: float = 0.5

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        self.calls.append(self.factor)
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            next(model.parameters()).mul_(self.factor)
        return replace(source, model=model)


class Halting(Step):
    """Count in a file, and be interrupted before the third number."""

    step: Literal["halting"] = "halting"

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        state = place.folder / "count"
        done = int(state.read_text()) if state.exists() else 0
        for number in range(done + 1, 4):
            state.write_text(str(number))
            if number == 2:
                raise KeyboardInterrupt
        place.say(f"from {done}")
        return source


class Boxed(Step):
    """Put the weights into a bundle."""

    bundles: ClassVar[bool] = True

    step: Literal["boxed"] = "boxed"

    def apply(self, source: LoadedModel, place: Place) -> Bundle:
        folder = place.folder / "bundle"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"weights")
        made = {"runtime": "torch", "precision": "fp32", "contract": source.contract, "size": (64, 96)}
        return write_bundle(folder, **made, dynamic=False, lineage=source.lineage, details={"kept": 1})  # type: ignore[arg-type]


class SecretlyBoxed(Boxed):
    bundles: ClassVar[bool] = False

    step: Literal["secretly-boxed"] = "secretly-boxed"  # type: ignore[assignment]


class Strange(Step):
    """Give a network that no architecture describes."""

    step: Literal["strange"] = "strange"

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        return replace(source, architecture=None, config=None)


class Deciding(Step):
    """Decide by accuracy."""

    judges: ClassVar[bool] = True

    step: Literal["deciding"] = "deciding"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    loaded = tiny_models.cnn()
    assert loaded.config is not None
    facts = {"architecture": "fastdepth", "config": loaded.config, "contract": loaded.contract}
    save_checkpoint(folder, loaded.model, **facts, lineage=[{"step": "train"}])  # type: ignore[arg-type]
    return str(folder)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Scaled.calls.clear()


def ran(recipe: Recipe, out: Path, lines: list[str] | None = None) -> list[Result]:
    said: list[str] = [] if lines is None else lines
    return run_steps(recipe, begin(recipe, out), out, said.append)


def weights(result: Result) -> dict[str, torch.Tensor]:
    return load_model(result.ref).model.state_dict()


def test_a_step_that_decides_needs_validation(model: str) -> None:
    with pytest.raises(ConfigError, match=r"decides by accuracy 'deciding'.*--validation"):
        Recipe(model=model, steps=[Deciding()])


def test_nothing_follows_a_bundle(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no step can follow 'boxed': it gives a bundle.*scaled stands behind"):
        Recipe(model=model, steps=[Boxed(), Scaled()])
    with pytest.raises(ConfigError, match=r"no step can follow 'secretly-boxed'.*Put secretly-boxed last"):
        ran(Recipe(model=model, steps=[SecretlyBoxed(), Scaled()]), tmp_path)


def test_results_lie_where_their_inputs_say_with_their_lineage(model: str, tmp_path: Path) -> None:
    source, first, second = ran(Recipe(model=model, steps=[Scaled(), Scaled(factor=4)]), tmp_path)
    assert [one.folder.name[:10] for one in (source, first, second)] == ["00-source-", "01-scaled-", "02-scaled-"]
    before = weights(source)
    key = next(iter(before))
    for result, factor in ((first, 0.5), (second, 2.0)):
        assert torch.equal(weights(result)[key], factor * before[key])
    lineage = load_checkpoint(Path(second.ref)).lineage
    assert [entry["step"] for entry in lineage] == ["train", "scaled", "scaled"]
    assert [entry["options"] for entry in lineage[1:]] == [{"factor": 0.5}, {"factor": 4.0}]
    assert lineage[1]["leadline"] == lineage[2]["leadline"]
    assert lineage[1]["from"] != lineage[2]["from"]
    assert lineage[1]["given"] == {"calibration": Pictures().model_dump(mode="json")}


def test_a_finished_step_is_never_done_again_nor_a_beginning_that_recipes_share(model: str, tmp_path: Path) -> None:
    first = ran(Recipe(model=model, steps=[Scaled(), Scaled(factor=2)]), tmp_path)
    assert Scaled.calls == [0.5, 2]
    again = ran(Recipe(model=model, steps=[Scaled(), Scaled(factor=2)]), tmp_path)
    other = ran(Recipe(model=model, steps=[Scaled(), Scaled(factor=3)]), tmp_path)
    assert Scaled.calls == [0.5, 2, 3]
    assert [one.reused for one in again] == [True, True, True]
    assert [one.reused for one in other] == [True, True, False]
    assert [one.ref for one in again] == [one.ref for one in first]
    assert other[1].ref == first[1].ref
    assert other[2].ref != first[2].ref


def test_a_step_is_done_again_for_what_it_reads_and_not_for_the_rest(model: str, tmp_path: Path) -> None:
    base: dict[str, Any] = {"model": model, "steps": [Scaled()]}
    keys = [
        ran(Recipe(**base, **changes), tmp_path)[1].key
        for changes in (
            {},
            {"target": Target(threads=2)},
            {"score": Judged(data=SCENES)},
            {"validation": Judged(data=SCENES)},
            {"calibration": Pictures(count=7)},
        )
    ]
    assert keys[0] == keys[1] == keys[2] == keys[3] != keys[4]


def test_a_result_that_was_damaged_is_refused_not_used(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, steps=[Scaled()])
    path = Path(ran(recipe, tmp_path)[1].ref) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(LeadlineError, match=r"a finished step is damaged.*SHA-256.*Remove this folder"):
        ran(recipe, tmp_path)


def test_an_interrupted_step_goes_on_in_its_own_folder(model: str, tmp_path: Path) -> None:
    recipe, lines = Recipe(model=model, steps=[Scaled(), Halting()]), list[str]()
    with pytest.raises(KeyboardInterrupt):
        ran(recipe, tmp_path, lines)
    ran(recipe, tmp_path, lines)
    assert Scaled.calls == [0.5]
    assert "[2/2] halting: from 2" in lines
    assert sum("goes on in" in line for line in lines) == 1


def test_fine_tuning_killed_between_iterations_ends_as_if_it_had_not_been(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, train=TRAIN, steps=[FineTune(iterations=3)])
    straight = ran(recipe, tmp_path / "straight")[1]

    def stop(line: str) -> None:
        if "2/3 loss" in line:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run_steps(recipe, begin(recipe, out), out, stop)
    lines: list[str] = []
    stopped = ran(recipe, out, lines)[1]
    assert not any("1/3 loss" in line for line in lines)
    assert stopped.key == straight.key
    mine, theirs, before = weights(stopped), weights(straight), weights(ran(recipe, out)[0])
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert any(not torch.equal(mine[key], before[key]) for key in before)
    given = load_checkpoint(Path(stopped.ref)).lineage[-1]["given"]["train"]
    assert [term["loss"] for term in given["objectives"]] == ["silog", "gradient"]  # chosen by the data
    assert "threads" not in given


def test_a_stop_that_comes_with_the_last_iteration_stops_the_recipe(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, train=TRAIN, steps=[FineTune(iterations=1), Scaled()])

    def stop(line: str) -> None:
        if "1/1 loss" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_steps(recipe, begin(recipe, tmp_path), tmp_path, stop)
    assert Scaled.calls == []
    lines: list[str] = []
    ran(recipe, tmp_path, lines)
    assert not any("1/1 loss" in line for line in lines)  # the finished training is not done again


def test_a_bundle_keeps_what_it_holds_and_gets_its_lineage(model: str, tmp_path: Path) -> None:
    result = ran(Recipe(model=model, steps=[Scaled(), Boxed()]), tmp_path)[2]
    assert result.bundle
    bundle = load_bundle(Path(result.ref))
    assert [entry["step"] for entry in bundle.lineage] == ["train", "scaled", "boxed"]
    assert (bundle.details, bundle.size, bundle.runtime) == ({"kept": 1}, (64, 96), "torch")
    assert ran(Recipe(model=model, steps=[Scaled(), Boxed()]), tmp_path)[2].reused


def test_a_network_that_nothing_could_load_again_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot keep the result of a step.*quantize"):
        ran(Recipe(model=model, steps=[Strange()]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": Target(runtime="openvin")}, "openvino"),
        ({"target": Target(size=(63, 96))}, "63"),
        ({"target": Target(device="mars")}, "onnxruntime cannot use the device 'mars'"),
        ({"score": Judged(data="nowhere")}, "no such file"),
        ({"score": Judged(data=SCENES, protocol="plian")}, "plain"),
        ({"score": Judged(data=SCENES, first=3)}, "empty part"),
        ({"validation": Judged(data="nowhere")}, "no such file"),
        ({"train": {"sources": [{"data": "nowhere"}]}, "steps": [FineTune()]}, "no such file"),
        ({"calibration": Pictures(data="rendered:room,count=0")}, "count"),
        ({"calibration": Pictures(data="nowhere")}, "no such file"),
        ({"model": "nowhere"}, "neither a zoo name"),
        ({"train": TRAIN, "steps": [Scaled(), FineTune(teacher="nowhere")]}, "neither a zoo name"),
        ({"steps": [Scaled(), {"step": "prune-channels", "plan": {"conv5.3": 8}}]}, "no such group of channels"),
        ({"steps": [Scaled(), {"step": "quantize", "runtime": "openvin"}]}, "openvino"),
        ({"steps": [Scaled(), {"step": "quantize", "precision": "palettised"}]}, "palettised"),
        ({"steps": [Scaled(), {"step": "prune-channels", "ratio": 0.2, "sensitivity": "no.json"}]}, "no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    model: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    recipe = Recipe(**{"model": model, "steps": [Scaled()], **changes})
    with pytest.raises(LeadlineError, match=words):
        run_recipe(recipe, tmp_path / "out")
    assert Scaled.calls == []
    assert not list((tmp_path / "out").glob("0*"))


def test_the_target_s_size_is_the_network_s_in_every_step(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, train=TRAIN, target=Target(size=(96, 64)), steps=[FineTune(iterations=1)])
    start = begin(recipe, tmp_path)
    assert start.train["size"] == [96, 64]
    made = load_model(run_steps(recipe, start, tmp_path, lambda line: None)[-1].ref)
    assert (made.contract.input.height, made.contract.input.width) == (96, 64)


def test_time_is_that_of_the_device_that_is_named(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def seen(first: Job, others: Any, **options: Any) -> Any:
        asked.extend(job.device for job in (first, *others))
        return compare(first, others, **options)

    monkeypatch.setattr(before_after, "compare", seen)
    target = Target(runtime="torch", device="cpu:0", size=(64, 96))
    outcome = run_recipe(Recipe(model=model, steps=[Scaled()], target=target), tmp_path / "out", runs=2)
    assert asked == ["cpu:0", "cpu:0"]
    assert all(row.latency is not None for row in outcome.rows)


def test_a_training_size_that_is_said_counts(model: str, tmp_path: Path) -> None:
    train = {**TRAIN, "size": [64, 96]}
    recipe = Recipe(model=model, train=train, target=Target(size=(96, 64)), steps=[FineTune(iterations=1)])
    assert begin(recipe, tmp_path).train["size"] == [64, 96]


def test_another_teacher_behind_the_same_name_does_a_step_again(model: str, tmp_path: Path) -> None:
    step = FineTune(iterations=1, teacher=str(tmp_path / "teacher"))
    keys = []
    for change in (0.0, 1.0):
        loaded = tiny_models.cnn()
        assert loaded.config is not None
        changed = copy.deepcopy(loaded.model)  # other tests share the first
        with torch.no_grad():
            next(changed.parameters()).add_(change)
        place = tmp_path / "teacher"
        save_checkpoint(place, changed, architecture="fastdepth", config=loaded.config, contract=loaded.contract)
        keys.append(step_key(load_model(model), step, {}))
    assert keys[0] != keys[1]


def test_a_folder_in_use_or_full_of_data_is_refused(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, steps=[Scaled()])
    with output_lock(tmp_path), pytest.raises(OutputError, match="in use"):
        run_recipe(recipe, tmp_path)
    with pytest.raises(OutputError, match="refused to write into"):
        run_recipe(recipe, Path(model) / "out")


def test_deciding_on_the_pictures_of_the_figures_is_said(model: str, tmp_path: Path) -> None:
    parts = [Judged(data=SCENES, last=2), Judged(data=SCENES, first=1), Judged(data=SCENES, first=2)]
    deciding, other = [{"step": "quantize", "max_drop": 0.01}], [Scaled()]
    notices = [
        begin(Recipe(model=model, steps=steps, validation=parts[0], score=score), tmp_path).notices
        for score, steps in ((parts[1], deciding), (parts[2], deciding), (parts[1], other))
    ]
    assert [any("flatter" in notice for notice in each) for each in notices] == [True, False, False]


def test_without_score_the_figures_are_fidelity_and_say_so(model: str, tmp_path: Path) -> None:
    start = begin(Recipe(model=model, steps=[Scaled()]), tmp_path)
    assert (start.score.protocol, start.score.data.partition(":")[0]) == ("fidelity", "rendered")
    assert any("fidelity" in notice and "rendered" in notice for notice in start.notices)


def test_an_empty_training_set_is_refused(model: str, tmp_path: Path) -> None:
    train = {"sources": [{"data": SCENES, "first": 900_000}]}
    with pytest.raises(ConfigError, match="no samples"):
        ran(Recipe(model=model, train=train, steps=[FineTune(iterations=1)]), tmp_path)


def test_zeros_are_worth_something_only_when_compressed(tmp_path: Path) -> None:
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    dense.write_bytes(values.numpy().tobytes())
    sparse.write_bytes((values * (values > 0.9)).numpy().tobytes())
    assert packed_mb([dense]) == pytest.approx(0.4, rel=0.15)  # random mantissas do not compress
    assert packed_mb([sparse]) < 0.1
    assert packed_mb([dense, sparse]) == pytest.approx(packed_mb([dense]) + packed_mb([sparse]))


def test_a_step_that_is_refused_at_once_leaves_no_folder(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model=model, steps=[{"step": "prune-channels", "ratio": 0.01, "multiple": 1000}])
    with pytest.raises(ConfigError, match="nothing to remove"):
        ran(recipe, tmp_path)
    assert not list(tmp_path.glob("01-*"))


def test_an_engine_beside_the_target_s_computes_on_the_cpu() -> None:
    target = Target(runtime="onnxruntime", device="cuda", threads=2)
    assert target.options == SessionOptions(threads=2, device="cuda")
    assert target.options_of("openvino") == SessionOptions(threads=2, device="cpu")
