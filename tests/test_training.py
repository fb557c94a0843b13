"""Training: it learns, it says what is wrong, and a killed run ends exactly where an unbroken one does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tiny_datasets as tiny
from leadline.checkpoint import load_checkpoint, read_safetensors
from leadline.cli import app
from leadline.data.dataset import Dataset, Sample
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, KindError, NumericalError, OutputError
from leadline.training.batches import Mix, _split_batch
from leadline.training.config import TrainConfig, load_config
from leadline.training.fit import STATE, fit
from leadline.training.objectives import Seen, Term, total_loss
from leadline.training.run import run, starting_point
from leadline.training.schedule import rate_at

SMALL = {
    "model": "random:leadline-s",
    "sources": [{"data": "rendered:room,count=16,height=48,width=64"}],
    "size": [32, 64],
    "batch": 2,
    "iterations": 6,
    "save_every": 2,
    "warmup": 1,
    "threads": 1,
    "ema": 0.9,
}
COMMAND = [sys.executable, "-m", "leadline", "train"]


def small(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(SMALL | changes)


def train(config: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [*COMMAND, str(config), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(SMALL))  # JSON is YAML
    return path


def test_training_lowers_the_loss_and_writes_a_checkpoint(tmp_path: Path) -> None:
    seen: list[float] = []
    config = small(
        iterations=60, learning_rate=3e-3, decay=0.5, sources=[{"data": "rendered:room,count=2,height=48,width=64"}]
    )
    result, folder = run(config, tmp_path / "run", lambda step: seen.append(step.loss))
    assert result.iteration == 60
    assert not result.interrupted
    assert np.mean(seen[-5:]) < 0.8 * np.mean(seen[:5])
    checkpoint = load_checkpoint(folder)
    assert checkpoint.contract.input.height == 32
    assert checkpoint.lineage[-1]["step"] == "train"
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(rows) == 61


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    weights = [run(small(iterations=2), tmp_path / str(k))[1] / "weights.safetensors" for k in range(2)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_killed_run_ends_exactly_where_an_unbroken_one_does(tmp_path: Path, config_file: Path) -> None:
    config = small(iterations=20)  # the rate falls from iteration 14 on; the killed run, of 600, must be no further
    _, whole = run(config, tmp_path / "whole")
    broken = tmp_path / "broken"
    process = train(config_file, broken, "--iterations", "600")
    deadline = time.monotonic() + 100
    while not (broken / STATE).is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    if read_facts(broken / STATE)["iteration"] >= 14:
        pytest.fail("the machine was too fast for this test: the run was past its comparison point")
    _, resumed = run(config, broken)
    left, right = (read_safetensors(folder / "weights.safetensors") for folder in (whole, resumed))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def read_facts(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["leadline"])


def test_ctrl_c_saves_and_exits_130(tmp_path: Path, config_file: Path) -> None:
    out = tmp_path / "run"
    process = train(config_file, out, "--iterations", "5000", "--set", "save_every=100000")
    wait_for_lines(out / "log.csv", 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert read_facts(out / STATE)["iteration"] >= 2
    assert load_checkpoint(out / "checkpoint").contract.name == "leadline-s"


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not reach {count} lines")


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    from leadline.output import output_lock

    config, out = small(), tmp_path / "run"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom leadline.output import output_lock\n"
        "with output_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=str(holder.pid)):
            fit(config, starting_point(config), out)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with output_lock(out):
        pass


def test_changed_settings_cannot_continue_a_run(tmp_path: Path) -> None:
    run(small(iterations=2), tmp_path / "run")
    with pytest.raises(ConfigError, match="learning_rate"):
        run(small(iterations=4, learning_rate=0.5), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path: Path) -> None:
    config = small(max_bad_batches=2, iterations=20)
    start = starting_point(config)
    with torch.no_grad():
        next(start.model.parameters()).fill_(torch.nan)
    with pytest.raises(NumericalError, match="room-"):
        fit(config, start, tmp_path / "run")
    assert not (tmp_path / "run" / STATE).exists()


def test_a_gradient_that_is_not_finite_updates_nothing(tmp_path: Path) -> None:
    config = small(max_bad_batches=2, iterations=20)
    start = starting_point(config)
    weight = next(start.model.parameters())
    before = weight.detach().clone()
    weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    with pytest.raises(NumericalError, match="its gradient is not finite 'iteration 1'"):
        fit(config, start, tmp_path / "run")
    assert torch.equal(weight, before)
    assert not (tmp_path / "run" / STATE).exists()


def test_a_network_that_says_nothing_stops_the_run(tmp_path: Path) -> None:
    """A ReLU that gives 0 everywhere has no gradient: hours would teach it nothing."""
    config = small(max_bad_batches=2, iterations=20, objectives=[{"loss": "ssi"}])
    config = config.model_copy(update={"network": {"kind": "relative_disparity", "head": "relu"}})
    start = starting_point(config)
    with torch.no_grad():
        start.model.get_parameter("decoder.conv6.1.bias").fill_(-100.0)
    with pytest.raises(NumericalError, match="nothing is learned 'iteration 1'"):
        fit(config, start, tmp_path / "run")


class Broken(Dataset):
    """Six samples, of which two cannot be read."""

    format = "broken"
    name = "broken"

    @classmethod
    def detect(cls, path: Path) -> bool:
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Dataset:
        return cls()

    def __len__(self) -> int:
        return 6

    def names(self) -> list[str]:
        return [f"picture-{index}" for index in range(6)]

    def __getitem__(self, index: int) -> Sample:
        if index in (1, 4):
            raise DataError("truncated", where=self.names()[index])
        image = np.full((48, 64, 3), 40 * index, np.uint8)
        return Sample(self.names()[index], image, Depth(np.full((48, 64), 2.0, np.float32), Kind.METRIC_DEPTH))


def test_damaged_samples_stop_the_run_by_name_or_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadline.training.batches.open_dataset", lambda *_, **__: Broken())
    start = starting_point(small())
    strict = Mix(small(), start.contract, (32, 64))
    with pytest.raises(DataError, match=r"picture-[14]"):
        [strict.batch(iteration) for iteration in range(3)]
    lenient = Mix(small(skip_bad=True), start.contract, (32, 64))
    for iteration in range(3):
        assert lenient.batch(iteration).image.shape == (2, 3, 32, 64)
    assert set(lenient.skipped) == {"picture-1", "picture-4"}


def test_skip_bad_counts_unpaired_and_damaged_samples(tmp_path: Path) -> None:
    scenes = tiny.folder(tmp_path / "scenes", count=6)
    (scenes / "depth" / "001.png").unlink()
    words = ["train", "--model", "random:leadline-s", "--data", str(scenes), "--iterations", "3", "--batch", "2"]
    words += ["--size", "32,64", "--threads", "1", "--json", "--out"]

    refused = CliRunner().invoke(app, [*words, str(tmp_path / "refused")])
    assert refused.exit_code == 2
    assert "--skip-bad leaves them out" in refused.stderr

    unpaired = CliRunner().invoke(app, [*words, str(tmp_path / "unpaired"), "--skip-bad"])
    assert unpaired.exit_code == 0, unpaired.output
    assert json.loads(unpaired.stdout)["unpaired"] == {"001": "picture without depth"}

    damaged = scenes / "images" / "002.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    both = CliRunner().invoke(app, [*words, str(tmp_path / "both"), "--skip-bad"])
    assert both.exit_code == 1, both.output
    assert set(json.loads(both.stdout)["skipped"]) == {"002"}


@pytest.mark.parametrize(("count", "why"), [(4, "none of 4 pictures"), (20, "none of 8 looked at of 20 pictures")])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_pictures_alone_are_refused_as_a_whole(tmp_path: Path, count: int, why: str, skip_bad: bool) -> None:
    for number in range(count):
        tiny.picture(tmp_path / "pictures" / f"{number}.png", 12, 16)
    config = small(sources=[{"data": str(tmp_path / "pictures")}], skip_bad=skip_bad)
    with pytest.raises(DataError, match=f"no depth to learn from '.*pictures': {why} has any.*--teacher REF"):
        run(config, tmp_path / "run")


def test_every_sample_is_seen_once_per_epoch() -> None:
    config = small()
    mix = Mix(config, starting_point(config).contract, (32, 64))
    names = [name for iteration in range(8) for name in mix.batch(iteration).names]
    assert len(set(names)) == 16


@pytest.mark.parametrize(
    ("batch", "shares", "expected"), [(16, [10, 4, 1, 1], [10, 4, 1, 1]), (8, [1], [8]), (5, [8, 1, 1], [3, 1, 1])]
)
def test_batches_are_split_by_share(batch: int, shares: list[int], expected: list[int]) -> None:
    assert _split_batch(batch, shares) == expected


def test_schedule() -> None:
    rates = [rate_at(k, iterations=100, warmup=10, decay=0.4) for k in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert rates[70] == pytest.approx(1 - 0.5)  # a quarter of the fall: 1 - sqrt(0.25)
    assert rates == sorted(rates[:10]) + rates[10:60] + sorted(rates[60:], reverse=True)


def test_relative_targets_reach_only_the_losses_that_forgive() -> None:
    from leadline.models.outputs import Outputs
    from leadline.training.batches import Batch
    from leadline.training.objectives.supervised import L1, ScaleShiftInvariant, Silog

    def terms_of(objectives: list[Term], kind: Kind = Kind.METRIC_DEPTH) -> dict[str, float]:
        nothing = torch.nn.ModuleDict()
        return total_loss(objectives, Seen(Outputs((prediction,)), kind, batch, nothing, nothing))[1]

    target = torch.rand(2, 1, 8, 8) + 1
    batch = Batch(torch.zeros(2, 3, 8, 8), target, target > 0, (Kind.METRIC_DEPTH, Kind.RELATIVE_DISPARITY), ("a", "b"))
    prediction = target.clone()
    assert terms_of([L1()])["l1"] == 0.0
    prediction[1] = 7.0 / target[1]  # the second picture's disparity up to a factor
    terms = terms_of([L1(), ScaleShiftInvariant()])
    assert terms["l1"] == 0.0
    assert terms["ssi"] < 1e-5
    with pytest.raises(KindError, match="silog"):
        terms_of([Silog()], Kind.RELATIVE_DISPARITY)


def test_configuration_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: leadline-s\nsources: [{data: rendered}]\nlerning_rate: 0.1\n")
    with pytest.raises(ConfigError, match="Did you mean 'learning_rate'"):
        load_config(path, {})
    path.write_text("model: leadline-s\nsources: [{data: rendered}]\niterations: many\n")
    with pytest.raises(ConfigError, match="iterations"):
        load_config(path, {})
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="YAML"):
        load_config(path, {})


def test_a_misspelt_key_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: leadline-s\nsources: [{data: rendered, splitt: train}]\n")
    done = subprocess.run(
        [*COMMAND, str(path), "--out", str(tmp_path / "o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'split'?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_data_set_without_measured_depth_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    config = small(iterations=4, save_every=10)
    start = starting_point(config)
    blind = Mix(config, start.contract, (32, 64)).batch(0)
    blind.valid.zero_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leadline.training.batches.Mix.batch", lambda *_: blind)
        with pytest.raises(DataError, match="without one measured pixel"):
            fit(config, start, tmp_path / "run")
    assert not (tmp_path / "run" / STATE).exists()
