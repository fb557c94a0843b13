"""The state of a run: everything that the next iteration depends on, in one safetensors file, written atomically.

No pickle and no generator states: batches and dropout are functions of the seed and the iteration, so weights,
averaged weights, optimiser moments and the iteration number are all there is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from leadline.errors import CheckpointError
from leadline.output import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def save_state(
    path: Path,
    *,
    iteration: int,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> None:
    """Write the state of a run after `iteration` iterations; an older state stays until this one is complete.

    Args:
        path: the file.
        iteration: iterations done.
        model: the network in training.
        average: its averaged twin, if one is kept.
        optimizer: its moments are stored by parameter number.
        facts: further plain JSON values.

    Raises:
        OutputError: the place is full or not writable.
    """
    from safetensors.torch import save

    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            if value is not None:
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    stored = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    meta = {"leadline": json.dumps({"iteration": iteration, **facts})}
    write_atomic(path, save(stored, metadata=meta))


def load_state(
    path: Path, *, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put a saved state back into network, average and optimiser.

    Returns:
        The facts that were saved, `iteration` included.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["leadline"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        mend = "delete it to start the run again"
        raise CheckpointError("unreadable training state", where=path, why=str(error), mend=mend) from error
    try:
        model.load_state_dict(_part(tensors, "model."))
        if average is not None:
            average.load_state_dict(_part(tensors, "average."))
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError("the training state fits another network", where=path, why=why) from error
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
