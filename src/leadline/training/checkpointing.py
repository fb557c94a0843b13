"""The state of a run: everything that the next iteration depends on, in one safetensors file, written atomically.

No pickle and no generator states: batches and dropout are functions of the seed and the iteration, so the weights of
the network, its average and the modules beside it, optimiser moments, the scale of an FP16 loss and the iteration
number are all there is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from leadline.errors import CheckpointError, ConfigError
from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from leadline.training.config import TrainConfig
    from leadline.training.learner import Learner

# What may change while a run goes on: its length, how it is watched and stored, and where and how fast it computes.
FREE = {"iterations", "save_every", "validation", "threads", "device", "cache_mb", "channels_last", "compile"}
FREE |= {"name", "half", "card", "licence", "training_data"}


def save_state(path: Path, *, iteration: int, learner: Learner, config: TrainConfig) -> None:
    """Write the state of a run after `iteration` iterations; an older state stays until this one is complete.

    Args:
        path: the file.
        iteration: iterations done.
        learner: network, average, auxiliary modules and optimiser (its moments are stored by parameter number).
        config: the run; what must not change while it goes on is stored with it.

    Raises:
        OutputError: the place is full or not writable.
    """
    from safetensors.torch import save

    tensors = {
        f"{prefix}.{key}": value for prefix, module in _parts(learner) for key, value in module.state_dict().items()
    }
    for number, moments in learner.optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            if value is not None:
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    stored = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    facts = {"iteration": iteration, "config": _fixed(config), "scaler": learner.scaler.state_dict()}
    write_atomic(path, save(stored, metadata={"leadline": json.dumps(facts)}))


def resume(path: Path, config: TrainConfig, learner: Learner) -> int:
    """Put a saved state, if there is one, back into network, average, auxiliary modules and optimiser.

    Returns:
        Iterations done; 0 where there is no state.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
        ConfigError: the run was started with other settings.
    """
    if not path.is_file():
        return 0
    facts, tensors = _read(path)
    _check_same(facts["config"], config, path)
    try:
        for prefix, module in _parts(learner):
            module.load_state_dict(_part(tensors, f"{prefix}."))
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError("the training state fits another network", where=path, why=why) from error
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = value
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if facts.get("scaler"):
        learner.scaler.load_state_dict(facts["scaler"])
    return int(facts["iteration"])


def _parts(learner: Learner) -> Iterator[tuple[str, nn.Module]]:
    yield "model", learner.model
    if learner.average is not None:
        yield "average", learner.average
    yield "auxiliary", learner.auxiliary


def _fixed(config: TrainConfig) -> dict[str, Any]:
    """What must agree for a run to be the same run."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in FREE}


def _check_same(stored: dict[str, Any], config: TrainConfig, path: Path) -> None:
    ours = _fixed(config)
    known = {key: value for key, value in stored.items() if key in ours}
    theirs = _fixed(type(config).model_validate(known))  # an option that is newer than the state has its default
    for key, value in theirs.items():
        if ours[key] != value:
            why = f"it was started with {key} = {value}, now {ours[key]}"
            raise ConfigError("cannot continue the run", where=path.parent, why=why, mend="choose another --out")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["leadline"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        mend = "delete it to start the run again"
        raise CheckpointError("unreadable training state", where=path, why=str(error), mend=mend) from error
    return facts, tensors


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
