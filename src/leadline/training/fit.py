"""The training loop: one loop for every objective, which survives interruption, kill and bad batches."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from leadline.contract import Camera
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, NumericalError
from leadline.output import output_lock, write_atomic
from leadline.training.average import update
from leadline.training.batches import Batch, Mix, ahead
from leadline.training.checkpointing import resume, save_state
from leadline.training.doctor import Attendance, unanchored
from leadline.training.interruption import Stop
from leadline.training.learner import prepare, to_training
from leadline.training.log import Log, Progress
from leadline.training.metres import beyond_maximum
from leadline.training.step import step
from leadline.training.team import Team, launched, own_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel
    from torch import nn

    from leadline.contract import Contract
    from leadline.training.config import TrainConfig

STATE, LOG, CONFIG = "state.safetensors", "log.csv", "config.yaml"


@dataclass
class Start:
    """The network that a run starts from; `auxiliary` holds tensors of the modules beside it, by name."""

    model: nn.Module
    contract: Contract
    architecture: str
    config: BaseModel
    lineage: tuple[dict[str, Any], ...] = ()
    auxiliary: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Result:
    """How a run ended.

    Args:
        model: the trained network, in eval mode on the CPU.
        contract: what the network learned to take and give.
        iteration: iterations done.
        interrupted: whether it was stopped before its end.
        asked: whether a stop was asked for, perhaps when nothing was left to stop.
        skipped: samples that could not be read, and why.
        unpaired: items of the data sets that were left out from the start (pictures without depth, and the reverse).
        auxiliary: the modules that were trained beside the network, on the CPU.
        begun: iterations that were done before.
        waiting: share of this call's time spent waiting for data, 0 to 1.
        leads: whether this process is the one that writes and speaks.
        notices: what the data sets had to say, and the doctor of self-supervision.
    """

    model: nn.Module
    contract: Contract
    iteration: int
    interrupted: bool
    skipped: dict[str, str]
    unpaired: dict[str, str]
    auxiliary: dict[str, nn.Module] = field(default_factory=dict)
    asked: bool = False
    begun: int = 0
    waiting: float = 0.0
    leads: bool = True
    notices: list[str] = field(default_factory=list)


def fit(
    config: TrainConfig,
    start: Start,
    out: Path,
    *,
    validate: Callable[[nn.Module, Contract], dict[str, float]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a network; run again with the same `out`, it continues exactly where the last saved state ends.

    Bit-exact at an equal number of threads and processes: every batch and every random draw is a function of the seed
    and the iteration. The first Ctrl-C (or SIGTERM) ends the run after the current iteration with its state saved; the
    second ends it at once. Under torchrun each process takes its contiguous rows of every batch, and the weights
    become those of one process, to rounding (`step` names the exceptions); one of them writes.

    Args:
        config: the run.
        start: network to train; its weights are overwritten by a saved state.
        out: folder of the run (state, log, configuration).
        validate: figures of the averaged network, every `config.validation.every` iterations.
        on_progress: called after each iteration.

    Raises:
        DataError: `max_bad_batches` batches in a row hold nothing to learn from.
        NumericalError: loss or gradient was not finite, or there was no gradient at all, `max_bad_batches` times in a
            row; the message names the samples.
        OutputError: another run holds `out`, or it cannot be written.
        ConfigError: the configuration contradicts the network, or the run that `out` holds.
        ProcessError: another process of the run ended.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    contract = _contract(config, start.contract)
    size = contract.checked_size(config.size or (contract.input.height, contract.input.width))
    team = Team(own_device(config.device))
    _check_batch(config, team)
    lock = output_lock(out) if team.leads else nullcontext()
    with team, lock, Stop(patient=launched(), quiet=not team.leads) as stop:
        learner = prepare(config, start.model, start.auxiliary, team, contract)
        begun = done = resume(out / STATE, config, learner)
        mix = Mix(config, contract, size, rows=team.rows(config.batch))
        _check_frames(config, mix)
        if team.leads:
            drift = unanchored(config.objectives, mix.offsets, contract.output.kind)
            doctor = Attendance(mix.sources if not done else (), known=drift)
            write_atomic(out / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
            log = Log(out / LOG, done)
        bad = empty = idle = 0
        spent = lost = 0.0
        for iteration, batch, waited in _timed(mix, done, config.iterations, team):
            began = time.perf_counter()
            empty = 0 if team.total([bool(batch.valid.any()) or batch.clip is not None])[0] else empty + 1
            if empty >= min(config.max_bad_batches, config.iterations):
                why = f"{empty} batches in a row without one measured pixel; the last held {', '.join(batch.names)}"
                raise DataError("nothing to learn from", where=out, why=why, mend="run `leadline data check` on it")
            rate = learner.set_rates(config, iteration)
            torch.manual_seed((config.seed << 32) + iteration + (team.rank << 24))
            loss, terms, norm = step(learner, batch, config, kind=contract.output.kind, team=team)
            bad = 0 if math.isfinite(loss) else bad + 1
            if bad >= config.max_bad_batches:
                why = f"{bad} batches in a row; the last held {', '.join(batch.names)}"
                mend = f"the last good state is {out / STATE}; lower the learning rate or check these samples"
                what = "the loss or its gradient is not finite"
                raise NumericalError(what, where=f"iteration {iteration}", why=why, mend=mend)
            idle = idle + 1 if norm == 0 else 0
            if idle >= config.max_bad_batches:
                why = f"{idle} updates in a row had no gradient: the network says the same whatever its weights, or"
                why += " nothing in the data asks for a change"
                mend = "start at trained weights or another `seed`, choose a head that cannot die (softplus), and run"
                mend += " `leadline data check`"
                raise NumericalError("nothing is learned", where=f"iteration {iteration}", why=why, mend=mend)
            if learner.average is not None and not bad:
                update(learner.average, learner.model, config.ema, iteration)
            done = iteration + 1
            seconds = time.perf_counter() - began
            spent, lost = spent + seconds + waited, lost + waited
            stopping = bool(team.total([stop.asked])[0])
            if team.leads:
                news = Progress(done, config.iterations, loss, terms, rate, seconds, waited / (waited + seconds))
                if iteration == begun:
                    doctor.note(beyond_maximum(batch, contract))
                news.findings = [str(finding) for finding in doctor.look(done, terms)]
                if validate is not None and config.validation and _due(done, config.validation.every, config):
                    news.validation = validate(learner.average or learner.model, contract)
                    to_training(learner.model, learner.keeps_statistics)
                log.write(news)
                if on_progress is not None:
                    on_progress(news)
                if not bad and (_due(done, config.save_every, config) or stopping):
                    save_state(out / STATE, iteration=done, learner=learner, config=config)
            if stopping:
                break
        skipped = team.merged(mix.skipped)
    return Result(
        model=learner.trained(),
        contract=contract,
        iteration=done,
        interrupted=done < config.iterations,
        skipped=skipped,
        unpaired=mix.unpaired,
        auxiliary=dict(learner.auxiliary.cpu().items()),
        asked=stop.asked,
        begun=begun,
        waiting=lost / spent if spent else 0.0,
        leads=team.leads,
        notices=mix.notices + ([str(finding) for finding in doctor.findings.values()] if team.leads else []),
    )


def _check_batch(config: TrainConfig, team: Team) -> None:
    if config.batch < config.accumulate * team.size:
        pieces = f"{config.accumulate} pieces" + (f" in each of {team.size} processes" if team.size > 1 else "")
        raise ConfigError("batch too small", where=f"batch {config.batch}", why=f"it is to be cut into {pieces}")


def _check_frames(config: TrainConfig, mix: Mix) -> None:
    if not mix.offsets and any(objective.needs_frames for objective in config.objectives):
        mend = "give a source its neighbours, as in `frames: [-1, 1]`"
        raise ConfigError("self-supervision without frames", where="sources", why="none has `frames`", mend=mend)


def _contract(config: TrainConfig, contract: Contract) -> Contract:
    """The contract of the result: name, size and camera as the run says."""
    changes: dict[str, Any] = {}
    if config.size is not None:
        contract.checked_size(config.size)
        changes |= {"height": config.size[0], "width": config.size[1]}
    if config.resize is not None:
        changes["resize"] = config.resize
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


def _due(done: int, every: int, config: TrainConfig) -> bool:
    return done % every == 0 or done == config.iterations


def _timed(mix: Mix, start: int, stop: int, team: Team) -> Iterator[tuple[int, Batch, float]]:
    """(iteration, batch, seconds waited for it); where one process has no batch, all of them end."""
    batches = ahead(mix, start, stop)
    for iteration in range(start, stop):
        asked = time.perf_counter()
        try:
            batch = next(batches)
        except Exception:
            team.check(well=False)
            raise
        waited = time.perf_counter() - asked
        team.check()
        yield iteration, batch, waited


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode for the block, in its former mode after it."""
    was = model.training
    try:
        yield model.eval()
    finally:
        model.train(was)
