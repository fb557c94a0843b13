"""The training loop: one loop for every objective, which survives interruption, kill and bad batches."""

from __future__ import annotations

import csv
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from leadline.contract import Camera
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, NumericalError
from leadline.models.outputs import outputs
from leadline.output import output_lock, write_atomic
from leadline.training.average import twin, update
from leadline.training.batches import Batch, Mix, ahead
from leadline.training.checkpointing import load_state, save_state
from leadline.training.depthwise import speed_up
from leadline.training.objectives import Seen, total_loss
from leadline.training.schedule import rate_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel
    from torch import nn

    from leadline.contract import Contract
    from leadline.training.config import TrainConfig

STATE, LOG, CONFIG = "state.safetensors", "log.csv", "config.yaml"
ENCODERS = ("encoder", "mobilenet", "pretrained")  # names of the pretrained part in our architectures


@dataclass
class Progress:
    """What a display may show after an iteration."""

    iteration: int
    iterations: int
    loss: float
    terms: dict[str, float]
    rate: float
    seconds: float
    waiting: float  # share of the time spent waiting for data, 0 to 1
    validation: dict[str, float] = field(default_factory=dict)


@dataclass
class Start:
    """The network that a run starts from."""

    model: nn.Module
    contract: Contract
    architecture: str
    config: BaseModel
    lineage: tuple[dict[str, Any], ...] = ()


@dataclass
class Result:
    """How a run ended.

    Args:
        model: the trained network, in eval mode on the CPU.
        contract: what the network learned to take and give.
        iteration: iterations done.
        interrupted: whether it was stopped before its end.
        skipped: samples that could not be read, and why.
        unpaired: items of the data sets that were left out from the start (pictures without depth, and the reverse).
    """

    model: nn.Module
    contract: Contract
    iteration: int
    interrupted: bool
    skipped: dict[str, str]
    unpaired: dict[str, str]


def fit(
    config: TrainConfig,
    start: Start,
    out: Path,
    *,
    validate: Callable[[nn.Module, Contract], dict[str, float]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a network; run again with the same `out`, it continues exactly where the last saved state ends.

    Bit-exact at an equal number of threads: every batch and every random draw is a function of the seed and the
    iteration. The first Ctrl-C (or SIGTERM) ends the run after the current iteration with its state saved; the second
    ends it at once.

    Args:
        config: the run.
        start: network to train; its weights are overwritten by a saved state.
        out: folder of the run (state, log, configuration).
        validate: figures of the averaged network, every `config.validation.every` iterations.
        on_progress: called after each iteration.

    Raises:
        DataError: `max_bad_batches` batches in a row hold no measured pixel.
        NumericalError: the loss was not finite `max_bad_batches` times in a row; the message names the samples.
        OutputError: another run holds `out`, or it cannot be written.
        ConfigError: the configuration contradicts the network.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device = _device(config.device)
    contract = _contract(config, start.contract)
    size = contract.checked_size(config.size or (contract.input.height, contract.input.width))
    model = start.model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = twin(model) if config.ema else None
    if device.type == "cpu" and config.precision == "bf16":
        speed_up(model)
    optimizer = _optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    with output_lock(out), _Stop() as stop:
        done = _resume(out, config, model, average, optimizer)
        mix = Mix(config, contract, size)
        write_atomic(out / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
        log = _Log(out / LOG, done)
        bad = empty = 0
        for iteration, batch, waited in _timed(mix, done, config.iterations):
            begun = time.perf_counter()
            empty = 0 if bool(batch.valid.any()) else empty + 1
            if empty >= min(config.max_bad_batches, config.iterations):
                why = f"{empty} batches in a row without one measured pixel; the last held {', '.join(batch.names)}"
                raise DataError("nothing to learn from", where=out, why=why, mend="run `leadline data check` on it")
            factor = rate_at(iteration, iterations=config.iterations, warmup=config.warmup, decay=config.decay)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            torch.manual_seed((config.seed << 32) + iteration)
            loss, terms = _step(model, batch.to(device), optimizer, scaler, config, kind=contract.output.kind)
            bad = 0 if math.isfinite(loss) else bad + 1
            if bad >= config.max_bad_batches:
                names = ", ".join(batch.names)
                why = f"{bad} batches in a row; the last held {names}"
                mend = f"the last good state is {out / STATE}; lower the learning rate or check these samples"
                raise NumericalError("the loss is not finite", where=f"iteration {iteration}", why=why, mend=mend)
            if average is not None and not bad:
                update(average, model, config.ema, iteration)
            done = iteration + 1
            seconds = time.perf_counter() - begun
            step = Progress(done, config.iterations, loss, terms, factor, seconds, waited / (waited + seconds))
            if validate is not None and config.validation and _due(done, config.validation.every, config.iterations):
                step.validation = validate(average or model, contract)
                model.train()
            log.write(step)
            if on_progress is not None:
                on_progress(step)
            if not bad and (_due(done, config.save_every, config.iterations) or stop.asked):
                save_state(
                    out / STATE, iteration=done, model=model, average=average, optimizer=optimizer, facts=_facts(config)
                )
            if stop.asked:
                break
    trained = (average or model).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Result(trained, contract, done, done < config.iterations, mix.skipped, mix.unpaired)


def _step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
    *,
    kind: Kind,
) -> tuple[float, dict[str, float]]:
    """One forward, backward and update; a loss that is not finite updates nothing."""
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    with torch.autocast(batch.image.device.type, dtype=reduced or torch.bfloat16, enabled=reduced is not None):
        said = outputs(model, batch.image)
    seen = Seen(said.float(), kind, batch, torch.nn.ModuleDict(), model)
    loss, terms = total_loss(config.objectives, seen)
    terms |= seen.notes
    value = float(loss.detach())
    optimizer.zero_grad(set_to_none=True)
    if not math.isfinite(value):
        return value, terms
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    scaler.step(optimizer)
    scaler.update()
    return value, terms


def _contract(config: TrainConfig, contract: Contract) -> Contract:
    """The contract of the result: name, size and camera as the run says."""
    changes: dict[str, Any] = {}
    if config.size is not None:
        contract.checked_size(config.size)
        changes |= {"height": config.size[0], "width": config.size[1]}
    if config.camera is not None:
        if contract.output.kind is not Kind.METRIC_DEPTH:
            raise ConfigError("camera", why=f"{contract.name} predicts {contract.output.kind}", mend="leave it out")
        changes["camera"] = Camera(fx_over_width=config.camera[0], fy_over_height=config.camera[1])
    top: dict[str, Any] = {"input": contract.input.model_copy(update=changes)}
    top["name"] = config.name or contract.name
    top["training_data"] = tuple(config.training_data) or tuple(source.data for source in config.sources)
    top["provenance"] = "trained by `leadline train`"
    top["licence"] = config.licence or contract.licence
    return contract.model_copy(update=top)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Encoder and rest at their own rates; no weight decay for biases and normalisation."""
    encoder = {id(parameter) for parameter in _encoder_parameters(model)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((id(parameter) in encoder, parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "peak": config.learning_rate * (config.encoder_factor if inside else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (inside, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(described, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(described, lr=config.learning_rate, foreach=True)


def _encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    parts = [getattr(model, name, None) for name in ENCODERS]
    return [parameter for part in parts if isinstance(part, torch.nn.Module) for parameter in part.parameters()]


def _device(wanted: str) -> torch.device:
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        mend = "use --device cpu, or install a CUDA build of torch on a machine with a GPU"
        raise ConfigError("no such device here", where=wanted, why="torch finds no CUDA device", mend=mend)
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _facts(config: TrainConfig) -> dict[str, Any]:
    """What must agree for a run to be the same run; its length may change."""
    described = {"name", "half", "card", "licence", "training_data"}
    free = {"iterations", "save_every", "threads", "device", "cache_mb", "validation", *described}
    return {"config": {key: value for key, value in config.model_dump(mode="json").items() if key not in free}}


def _resume(
    out: Path, config: TrainConfig, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> int:
    path = out / STATE
    if not path.is_file():
        return 0
    facts = load_state(path, model=model, average=average, optimizer=optimizer)
    ours = _facts(config)["config"]
    known = {key: value for key, value in facts["config"].items() if key in ours}
    theirs = _facts(type(config).model_validate(known))["config"]  # what is new since then has its default
    for key, value in theirs.items():
        if ours[key] != value:
            why = f"it was started with {key} = {value}, now {ours[key]}"
            raise ConfigError("cannot continue the run", where=out, why=why, mend="choose another --out")
    return int(facts["iteration"])


def _due(done: int, every: int, iterations: int) -> bool:
    return done % every == 0 or done == iterations


def _timed(mix: Mix, start: int, stop: int) -> Iterator[tuple[int, Batch, float]]:
    """(iteration, batch, seconds waited for it)."""
    asked = time.perf_counter()
    for iteration, batch in enumerate(ahead(mix, start, stop), start=start):
        yield iteration, batch, time.perf_counter() - asked
        asked = time.perf_counter()


class _Log:
    """One CSV row per iteration; rows beyond the resumed state are dropped."""

    COLUMNS = ("iteration", "loss", "rate", "seconds", "waiting", "terms", "validation")

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= done]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(self.COLUMNS), *kept])

    def write(self, step: Progress) -> None:
        """Append one row."""

        def joined(values: dict[str, float]) -> str:
            return ";".join(f"{key}={value:.5g}" for key, value in values.items())

        row = (step.iteration, f"{step.loss:.6g}", f"{step.rate:.5g}", f"{step.seconds:.3f}", f"{step.waiting:.3f}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*row, joined(step.terms), joined(step.validation)])


class _Stop:
    """Ctrl-C or SIGTERM once: `asked` becomes True; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Stop:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
            for name in self._before:
                signal.signal(name, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for name, handler in self._before.items():
                signal.signal(name, handler)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode for the block, in its former mode after it."""
    was = model.training
    try:
        yield model.eval()
    finally:
        model.train(was)
