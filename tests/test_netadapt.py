"""The step `netadapt` on a tiny network and tiny pictures: budget, plan, resume, processes, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tiny_models
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression import netadapt, proposals
from leadline.compression.base import Judged, Place, Target
from leadline.compression.channel_plan import Bar, draw_plan
from leadline.compression.graph import groups, keep
from leadline.compression.importance import scores, strongest
from leadline.compression.measure import scored
from leadline.compression.netadapt import NetAdapt, _as_predicted
from leadline.compression.proposals import accuracy, narrow
from leadline.compression.recalibrate import pictures as recalibration
from leadline.compression.recalibrate import recalibrated
from leadline.data.rendered import render
from leadline.errors import ConfigError
from leadline.evaluation.complexity import count_kernel_weights, count_macs
from leadline.reference import LoadedModel

SIZE = (64, 96)
SOME = ("mobilenet.2.3", "mobilenet.3.3", "decoder.conv3.1.0", "mobilenet.7.3")
BRIEF: dict[str, Any] = {"resource": "macs", "groups": SOME, "ratio": 0.03, "final_iterations": 0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rendered pictures with depth in millimetres."""
    root = tmp_path_factory.mktemp("pictures")
    says = {"kind": "metric_depth", "unit": "m", "depth_scale": 1000, "max_depth": 20.0}
    (root / "dataset.json").write_text(json.dumps(says))
    for folder in ("images", "depth"):
        (root / folder).mkdir()
    for seed in range(4):
        sample = render(seed, height=SIZE[0], width=SIZE[1])
        assert sample.depth is not None
        Image.fromarray(sample.image).save(root / "images" / f"{seed}.png")
        millimetres = (1000 * sample.depth.values).clip(0, 65535).astype(np.uint16)
        Image.fromarray(millimetres).save(root / "depth" / f"{seed}.png")
    return root


def placed(folder: Path, pictures: Path, **changes: Any) -> Place:
    train = {"sources": [{"data": str(pictures)}], "batch": 2, "threads": 1, "device": "cpu"}
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, train, Judged(data=str(pictures), limit=2), **changes)


def adapted(options: dict[str, Any], place: Place) -> LoadedModel:
    return NetAdapt(**options).apply(tiny_models.cnn(), place)


def test_ends_below_the_budget_and_loads_again(tmp_path: Path, pictures: Path) -> None:
    lines: list[str] = []
    options = BRIEF | {"budget": 0.93, "iterations": 1, "shortlist": 2, "winner_iterations": 1, "final_iterations": 2}
    source = tiny_models.cnn()
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    result = adapted(options, placed(tmp_path / "step", pictures, say=lines.append))
    assert count_macs(result.model, SIZE) <= 0.93 * count_macs(source.model, SIZE)
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())
    assert all(group.width % 8 == 0 for group in groups(result) if group.name in SOME)
    assert (result.name, result.lineage) == (source.name, source.lineage)

    assert result.architecture is not None
    assert result.config is not None
    save_checkpoint(
        tmp_path / "saved",
        result.model,
        architecture=result.architecture,
        config=result.config,
        contract=result.contract,
    )
    values = torch.from_numpy(tiny_models.picture(1, SIZE))
    with torch.no_grad():
        difference = load_checkpoint(tmp_path / "saved").model()(values) - result.model(values)
    assert float(difference.abs().max()) < 1e-6

    summary = json.loads((tmp_path / "step" / "summary.json").read_text())
    assert summary["first"] == count_macs(source.model, SIZE)
    assert summary["last"] == summary["predicted_last"] == summary["predicted_from_start"]
    assert (tmp_path / "step" / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "step" / "plan.svg").read_bytes()
    assert any("long fine-tuning" in line for line in lines)
    # of the proposals only the chosen ones' networks stay
    turns = json.loads((tmp_path / "step" / "history.json").read_text())["turns"]
    left = {path.relative_to(tmp_path / "step").as_posix() for path in (tmp_path / "step").rglob("checkpoint")}
    assert left == {turn["source"] for turn in turns}


def test_a_folder_named_from_the_current_one(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapted(BRIEF | {"budget": 0.97, "iterations": 0, "groups": SOME[:1]}, placed(Path("runs/step"), pictures))
    assert (tmp_path / "runs" / "step" / "plan.png").is_file()


def test_the_long_fine_tuning_follows_a_teacher_at_a_rate_of_its_own(tmp_path: Path, pictures: Path) -> None:
    options = BRIEF | {"budget": 0.97, "iterations": 0, "groups": SOME[:1], "final_iterations": 1}
    adapted(options | {"final_rate": 2e-3, "teacher": "leadline-xs-indoor"}, placed(tmp_path / "step", pictures))
    kept = yaml.safe_load((tmp_path / "step" / "final" / "config.yaml").read_text())
    assert kept["learning_rate"] == 2e-3
    assert kept["objectives"][-1]["teacher"] == "leadline-xs-indoor"
    lines = (tmp_path / "step" / "final" / "log.csv").read_text()
    assert "teacher=" in lines


@pytest.mark.parametrize("importance", ["taylor", "bn-scale"])
def test_channels_stay_by_the_importance_asked_for(importance: Any, tmp_path: Path, pictures: Path) -> None:
    options = BRIEF | {"budget": 0.97, "iterations": 0, "groups": SOME[:1], "importance": importance, "batches": 1}
    place = placed(tmp_path / "step", pictures)
    result = adapted(options, place)
    source = tiny_models.cnn()
    (group,) = [each for each in groups(source) if each.name == SOME[0]]
    width = next(each.width for each in groups(result) if each.name == SOME[0])
    values = scored(source, [group], place, importance, fallback="l2", batches=1)[SOME[0]]
    expected = keep(source, {SOME[0]: strongest(group, values, width)})
    state = result.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.model.state_dict().items())
    by_norm = narrow(source, SOME[0], width).model.state_dict()
    assert any(not torch.equal(value, state[name]) for name, value in by_norm.items())


def test_narrowed_networks_take_new_statistics(tmp_path: Path, pictures: Path) -> None:
    options = BRIEF | {"budget": 0.97, "iterations": 0, "groups": SOME[:1], "recalibrate": 2}
    place = placed(tmp_path / "step", pictures)
    result = adapted(options, place)
    source = tiny_models.cnn()
    width = next(each.width for each in groups(result) if each.name == SOME[0])
    expected = recalibrated(narrow(source, SOME[0], width), recalibration(source, place, 2)).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in result.model.state_dict().items())
    with pytest.raises(ConfigError, match="no batch norm"):
        NetAdapt(**options | {"groups": ()}).apply(tiny_models.vit(), placed(tmp_path / "vit", pictures))


def test_goes_on_after_a_kill_without_doing_again(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first proposal, within the first turn, and within the second."""
    options = BRIEF | {"budget": 0.91, "iterations": 0, "groups": SOME[:3]}
    done: list[str] = []

    def recording(kill_after: int | None) -> Callable[..., Iterator[proposals.Outcome]]:
        def run(tasks: list[proposals.Task], processes: int) -> Iterator[proposals.Outcome]:
            for task in tasks:
                if kill_after is not None and len(done) >= kill_after:
                    raise KeyboardInterrupt
                if not (task.folder / "result.json").is_file():
                    done.append(str(task.folder))
                yield proposals.work(task)

        return run

    monkeypatch.setattr(netadapt, "in_this_process", recording(None))
    whole = adapted(options, placed(tmp_path / "whole", pictures))
    once = len(done)
    assert once == 5  # three groups, then the two that are left
    done.clear()
    for kill_after in (0, 2, 4):
        monkeypatch.setattr(netadapt, "in_this_process", recording(kill_after))
        with pytest.raises(KeyboardInterrupt):
            adapted(options, placed(tmp_path / "killed", pictures))
        assert len(done) == kill_after
    monkeypatch.setattr(netadapt, "in_this_process", recording(None))
    again = adapted(options, placed(tmp_path / "killed", pictures))
    assert len(done) == len(set(done)) == once
    assert again.config == whole.config
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    assert (tmp_path / "killed" / "history.json").read_text() == (tmp_path / "whole" / "history.json").read_text()


def test_weights_are_a_resource_too(tmp_path: Path, pictures: Path) -> None:
    options = BRIEF | {"resource": "weights", "budget": 0.9, "iterations": 0, "ratio": 0.03}
    result = adapted(options, placed(tmp_path, pictures))
    assert count_kernel_weights(result.model) <= 0.9 * count_kernel_weights(tiny_models.cnn().model)


def test_impossible_budget(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget out of reach '1.0%'.*% of the start is left"):
        adapted(BRIEF | {"budget": 0.01, "iterations": 0}, placed(tmp_path, pictures))
    assert not list(tmp_path.glob("iteration-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ("mobilenet.13.4",)}, "no such group of channels 'mobilenet.13.4'. Did you mean"),
        ({"metric": "agreement"}, "no such metric 'agreement'"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str, tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted(BRIEF | {"budget": 0.9, "iterations": 0} | changes, placed(tmp_path, pictures))


def test_recipes_without_data_are_refused(tmp_path: Path, pictures: Path) -> None:
    place = placed(tmp_path, pictures)
    with pytest.raises(ConfigError, match="decides by accuracy"):
        adapted(BRIEF | {"iterations": 0}, replace(place, validation=None))
    with pytest.raises(ConfigError, match="the recipe has no `train`"):
        adapted(BRIEF | {"iterations": 1}, replace(place, train={}))
    foreign = replace(tiny_models.cnn(), architecture=None, config=None)
    with pytest.raises(ConfigError, match="cannot adapt"):
        NetAdapt().apply(foreign, place)


def test_keeps_the_filters_of_the_largest_joint_norm() -> None:
    config = tiny_models.fastdepth.Config(
        encoder_widths=(8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32),
        decoder_widths=(24, 16, 16, 8, 8),
        depthwise=True,
        skip="add",
    )
    torch.manual_seed(3)
    model = tiny_models.fastdepth.build(config).eval()
    source = replace(tiny_models.cnn(), model=model, config=config)
    (tied,) = [group for group in groups(source) if "conv3.3" in group.producers]
    assert len(tied.producers) == 2  # with the decoder's stage that is added to it
    one, other = (model.get_submodule(path).weight for path in tied.producers)
    joint = (one.detach() ** 2).flatten(1).sum(1) + (other.detach() ** 2).flatten(1).sum(1)
    stay = joint.argsort(descending=True)[:8].sort().values
    assert torch.allclose(scores(source, tied) ** 2, joint.double(), rtol=1e-5)
    result = narrow(source, tied.name, 8)
    for path in tied.producers:
        before, after = model.get_submodule(path).weight, result.model.get_submodule(path).weight
        kept = before[stay] if after.shape[1] == before.shape[1] else None
        assert kept is not None
        assert torch.equal(after, kept)


def test_larger_is_better_for_every_metric() -> None:
    class Scored:
        label, data, failed = "plain", "toy", ()

        def summary(self) -> dict[str, Any]:
            return {name: replace_value(value) for name, value in {"abs_rel": 0.2, "delta1": 0.7}.items()}

    def replace_value(value: float) -> Any:
        return type("Figure", (), {"value": value})()

    assert accuracy(Scored(), None) == 0.7  # type: ignore[arg-type]
    assert accuracy(Scored(), "abs_rel") == -0.2  # type: ignore[arg-type]


def test_plan_marks_tied_layers(tmp_path: Path) -> None:
    bars = [Bar("a", 64, 24, ("a",)), Bar("b", 32, 32, ("b", "c")), Bar("d", 16, 8, ("d", "e"))]
    draw_plan(bars, tmp_path / "plan.svg", "a title")
    text = (tmp_path / "plan.svg").read_text()
    for said in ("24 of 64", "32  A", "8 of 16  B", "a title", "tied by additions"):
        assert said in text


@pytest.mark.slow
def test_processes_find_the_same(tmp_path: Path, pictures: Path) -> None:
    options = BRIEF | {"budget": 0.92, "iterations": 1}
    alone = adapted(options, placed(tmp_path / "alone", pictures))
    several = adapted(options, placed(tmp_path / "several", pictures, processes=2))
    assert several.config == alone.config
    assert (tmp_path / "several" / "history.json").read_text() == (tmp_path / "alone" / "history.json").read_text()


@pytest.mark.slow
def test_a_ray_cluster_finds_the_same(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the data's path is relative to the folder that the command was started in."""
    pytest.importorskip("ray", reason="needs leadline[ray]")
    options = BRIEF | {"budget": 0.95, "iterations": 1}
    monkeypatch.chdir(pictures.parent)
    nearby = Path(pictures.name)
    alone = adapted(options, placed(tmp_path / "alone", nearby))
    several = adapted(options | {"ray": True}, placed(tmp_path / "several", nearby))
    assert several.config == alone.config
    assert (tmp_path / "several" / "history.json").read_text() == (tmp_path / "alone" / "history.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_latency_on_an_engine(engine: str, tmp_path: Path, pictures: Path) -> None:
    size = (128, 160)  # wide and large enough for channels to cost time
    config = tiny_models.fastdepth.Config(kernel=3, decoder_widths=(128, 96, 64, 48, 32), height=size[0], width=size[1])
    torch.manual_seed(0)
    model = tiny_models.fastdepth.build(config).eval()
    source = replace(tiny_models.cnn(), model=model, config=config, contract=tiny_models.fastdepth.contract(config))
    wide = [group.name for group in groups(source) if group.name.startswith("decoder") or group.width >= 512]
    options = {"groups": tuple(wide), "budget": 0.85, "ratio": 0.1, "iterations": 0, "final_iterations": 0}
    place = placed(tmp_path, pictures, target=Target(runtime=engine, threads=1, size=size))
    result = NetAdapt(**options).apply(source, place)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["resource"], summary["unit"]) == ("latency", "ms")
    assert 0 < summary["last"] <= 0.85 * summary["first"]
    assert count_macs(result.model, size) < count_macs(model, size)
    assert (tmp_path / "latency.sqlite").is_file()


@pytest.mark.parametrize(
    ("corrected", "alone", "words"),
    [
        (9.5, 9.0, "predicted 9.5 ms, -5.0% of what was measured (by the table alone -10.0%)"),
        (
            11.5,
            12.0,
            "predicted 11.5 ms, +15.0% of what was measured (by the table alone +20.0%); beyond 10% the table ",
        ),
    ],
)
def test_it_says_how_near_the_prediction_was(corrected: float, alone: float, words: str) -> None:
    assert _as_predicted(corrected, alone, 10.0).startswith(words)
    assert ("misleads" in _as_predicted(corrected, alone, 10.0)) == (corrected > 11)
