"""Cut or shared, a batch is one batch: gradient accumulation, and several processes against one."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from leadline.checkpoint import read_safetensors, save_checkpoint
from leadline.depth import Kind
from leadline.reference import LoadedModel
from leadline.training.batches import Batch
from leadline.training.config import TrainConfig
from leadline.training.fit import STATE
from leadline.training.learner import prepare
from leadline.training.run import run
from leadline.training.step import step
from leadline.training.synchronised import synchronise
from leadline.training.team import Team
from two_processes import batch_normalised

OBJECTIVES = [
    {"loss": "silog", "variance_focus": 0.85},
    {"loss": "l1", "weight": 0.5},
    {"loss": "berhu", "weight": 0.2},
    {"loss": "ssi"},
    {"loss": "gradient", "weight": 0.3, "scales": 2},
]


def config(**changes: Any) -> TrainConfig:
    base = {
        "model": "tiny",
        "sources": [{"data": "rendered:room,count=12,height=48,width=64"}],
        "batch": 5,
        "iterations": 4,
        "warmup": 0,
        "decay": 0,
        "threads": 1,
        "optimizer": "sgd",
        "learning_rate": 1e-2,
        "clip": 1e6,
        "ema": 0,
        "save_every": 1000,
    }
    return TrainConfig.model_validate(base | changes)


def unequal_batch(kinds: tuple[Kind, ...]) -> Batch:
    """Five pictures of which each has another number of valid pixels."""
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(5, 3, 56, 84, generator=generator)
    target = 1 + 3 * torch.rand(5, 1, 56, 84, generator=generator)
    share = torch.tensor([1.0, 0.7, 0.4, 0.1, 0.02])[:, None, None, None]
    valid = torch.rand(5, 1, 56, 84, generator=generator) < share
    return Batch(image, target, valid, kinds, tuple("abcde"))


METRIC, RELATIVE = Kind.METRIC_DEPTH, Kind.RELATIVE_DISPARITY


@pytest.mark.parametrize("pieces", [2, 3, 5])
@pytest.mark.parametrize("kinds", [(METRIC,) * 5, (RELATIVE, METRIC, METRIC, RELATIVE, METRIC)])
def test_pieces_of_a_batch_give_the_update_of_the_whole(pieces: int, kinds: tuple[Kind, ...]) -> None:
    """For means over valid pixels, and a network whose pictures do not see each other."""
    objectives = [{"loss": "l1"}, {"loss": "ssi", "weight": 0.5}]
    losses, weights = [], []
    for accumulate in (1, pieces):
        chosen = config(accumulate=accumulate, objectives=objectives)
        team = Team(torch.device("cpu"))
        learner = prepare(chosen, copy.deepcopy(tiny_models.vit().model), {}, team)
        learner.set_rates(chosen, 0)
        update = step(learner, unequal_batch(kinds), chosen, kind=METRIC, team=team)
        losses.append(update.loss)
        weights.append(learner.model.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    before = tiny_models.vit().model.state_dict()
    moved = max(float((weights[0][key] - before[key]).abs().max()) for key in before)
    assert moved > 1e-3
    for key, value in weights[0].items():
        assert torch.allclose(weights[1][key], value, rtol=1e-5, atol=moved * 1e-5), key


class Alone(Team):
    """A team of one that does not take the short cut: sums over one process are the process's own."""

    def add(self, values: torch.Tensor) -> torch.Tensor:
        return values.clone()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_normalisation_of_one_process_is_pytorchs(momentum: float | None) -> None:
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(6, momentum=momentum)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.uniform_(-1, 1)
    ours = copy.deepcopy(plain)
    synchronise(ours, Alone(torch.device("cpu")))
    for _ in range(2):
        x = 5 + 3 * torch.randn(4, 6, 7, 9)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(value) for norm, value in zip((plain, ours), inputs, strict=True)]
        assert torch.allclose(*outputs, atol=1e-5)
        for output in outputs:
            (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-4)
        assert torch.allclose(plain.weight.grad, ours.weight.grad, rtol=1e-4, atol=1e-4)
    for key, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[key].double(), value.double(), atol=1e-5), key
    plain.eval()
    ours.eval()
    assert torch.allclose(plain(x), ours(x), atol=1e-4)


def saved(loaded: LoadedModel, folder: Path) -> Path:
    assert loaded.architecture is not None
    assert loaded.config is not None
    save_checkpoint(
        folder, loaded.model, architecture=loaded.architecture, config=loaded.config, contract=loaded.contract
    )
    return folder


def written(settings: TrainConfig, path: Path) -> Path:
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    return path


def test_two_processes_train_like_one_with_the_joined_batch(tmp_path: Path) -> None:
    """Losses over the whole batch, an odd batch, pictures of unequal worth; and in FP64 a batch-normalised network.

    Batch normalisation of few pixels multiplies float32's rounding a thousandfold, between any two ways to sum.
    """
    start = saved(tiny_models.vit(), tmp_path / "start")
    settings = config(model=str(start), objectives=OBJECTIVES, size=[56, 84], learning_rate=1e-3)
    _, whole = run(settings, tmp_path / "one")
    network, image, weight = batch_normalised()
    save_file({**network.state_dict(), "image": image, "weight": weight}, tmp_path / "network.safetensors")

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("two_processes.py")), str(tmp_path)]
    command += ["train", str(written(settings, tmp_path / "c.yaml")), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 1  # one speaks

    one, two = (read_safetensors(path / "weights.safetensors") for path in (whole, tmp_path / "two" / "checkpoint"))
    first = read_safetensors(start / "weights.safetensors")
    assert one.keys() == two.keys()
    moved = max(float((one[key] - first[key]).abs().max()) for key in one)
    assert moved > 1e-3
    for key, value in one.items():
        assert torch.allclose(two[key], value, rtol=1e-4, atol=moved * 1e-4), key
    rows = [(tmp_path / name / "log.csv").read_text().splitlines()[1:] for name in ("one", "two")]
    losses = [[float(row.split(",")[1]) for row in each] for each in rows]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    (network(image) * weight).sum().backward()
    expected = {f"gradient.{key}": value.grad for key, value in network.named_parameters()}
    expected |= {key: value for key, value in network.state_dict().items() if "running" in key}
    shared = load_file(tmp_path / "shared.safetensors")
    assert shared.keys() == expected.keys()
    for key, value in expected.items():
        assert value is not None
        assert torch.allclose(shared[key], value, rtol=1e-9, atol=1e-9), key


@contextmanager
def pair(configuration: Path, out: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The two processes of a run, without torchrun, which would end one when the other dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "leadline", "train", str(configuration), "--out", str(out)]
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | both | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for_rows(log: Path, count: int) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if log.is_file() and len(log.read_text().splitlines()) > count:
            return
        time.sleep(0.05)
    pytest.fail(f"{log} did not reach {count} rows")


@pytest.mark.slow
def test_ctrl_c_saves_once_and_a_dead_process_ends_the_other_with_a_message(tmp_path: Path) -> None:
    start, out = saved(tiny_models.cnn(), tmp_path / "start"), tmp_path / "run"
    settings = config(model=str(start), size=[64, 96], learning_rate=1e-4, batch=4, iterations=100_000)
    configuration = written(settings, tmp_path / "c.yaml")
    with pair(configuration, out) as processes:
        wait_for_rows(out / "log.csv", 3)
        for process in processes:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)  # as torchrun does: from the terminal, and handed on
        assert [process.wait(60) for process in processes] == [130, 130]
    assert (out / STATE).is_file()
    assert (out / "checkpoint" / "weights.safetensors").is_file()
    done = len((out / "log.csv").read_text().splitlines()) - 1

    with pair(configuration, out) as processes:
        wait_for_rows(out / "log.csv", done + 2)  # it goes on
        processes[1].kill()
        assert processes[0].wait(60) == 1
        assert processes[0].stderr is not None
        said = processes[0].stderr.read()
    assert "lost the other processes of this run" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_sample_that_one_process_cannot_read_ends_both(tmp_path: Path) -> None:
    import tiny_datasets as tiny

    scenes = tiny.folder(tmp_path / "scenes", count=6)
    damaged = scenes / "images" / "002.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    start = saved(tiny_models.cnn(), tmp_path / "start")
    settings = config(model=str(start), size=[64, 96], batch=2, sources=[{"data": str(scenes)}])
    with pair(written(settings, tmp_path / "c.yaml"), tmp_path / "run") as processes:
        codes = sorted(process.wait(120) for process in processes)
        said = " ".join(process.stderr.read() for process in processes if process.stderr is not None)
    assert codes == [1, 2]
    assert "002" in said
    assert "another process of this run stopped" in said
