"""What a run trains: the network, the modules beside it, their average, optimiser and schedule of rates."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leadline.errors import CheckpointError, one_line
from leadline.models.outputs import Outputs, outputs
from leadline.reference import fresh_variant
from leadline.training.average import twin
from leadline.training.config import FEW
from leadline.training.depthwise import speed_up
from leadline.training.schedule import rates
from leadline.training.synchronised import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from leadline.contract import Contract
    from leadline.training.config import TrainConfig
    from leadline.training.team import Team

ENCODERS = ("encoder", "mobilenet", "pretrained")  # names of the pretrained part in our architectures
AUXILIARY_SEED = 1  # beside the run's own, so that these modules do not repeat the network's draws


@dataclass
class Learner:
    """The network in training and everything that changes with it.

    Args:
        model: the network.
        auxiliary: what objectives train beside it, by name.
        average: the network's averaged twin, if one is kept.
        optimizer: over both; each group knows its `peak` rate and whether it is `auxiliary`.
        scaler: of the loss, for FP16.
        see: the network's outputs for N x 3 x H x W, compiled where the run says so.
        keeps_statistics: batch norms go on with the statistics of the start.
    """

    model: nn.Module
    auxiliary: nn.ModuleDict
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    see: Callable[[Tensor], Outputs]
    keeps_statistics: bool = False

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the network, then of the modules beside it."""
        yield from self.model.parameters()
        yield from self.auxiliary.parameters()

    def set_rates(self, config: TrainConfig, iteration: int) -> float:
        """Give each group its learning rate for an iteration; returns the network's factor of the peak."""
        network, auxiliary = rates(config, iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (auxiliary if group["auxiliary"] else network)
        return network

    def trained(self) -> nn.Module:
        """The result: the average where one is kept; on the CPU, in eval mode, without what served training alone."""
        for module in self.model.modules():
            module.__dict__.pop("forward", None)
        best = self.average or self.model
        return best.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def prepare(
    config: TrainConfig,
    model: nn.Module,
    weights: Mapping[str, Any],
    team: Team,
    contract: Contract | None = None,
) -> Learner:
    """Put everything in place for the first iteration.

    Args:
        config: the run.
        model: the network that it starts from.
        weights: tensors of auxiliary modules by name, from the checkpoint that the run starts at.
        team: the processes of the run.
        contract: of the network, for objectives that look at its pictures or features.

    Raises:
        CheckpointError: auxiliary weights that do not fit the module of that name.
    """
    auxiliary = _auxiliary(config, model, contract, weights)
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(team.device, memory_format=form)  # type: ignore[call-overload]
    keeps = _keeps_statistics(config)
    to_training(model, keeps)
    auxiliary = auxiliary.to(team.device, memory_format=form).train()  # type: ignore[call-overload]
    average = twin(model) if config.ema else None
    if team.device.type == "cpu" and config.precision == "bf16":
        speed_up(model)
    if team.size > 1:
        synchronise(model, team)
    see = functools.partial(outputs, model)
    return Learner(
        model,
        auxiliary,
        average,
        _optimizer(model, auxiliary, config),
        torch.amp.GradScaler(team.device.type, enabled=config.precision == "fp16"),
        torch.compile(see) if config.compile else see,
        keeps,
    )


def to_training(model: nn.Module, keeps_statistics: bool) -> None:
    """Put a network into training mode, all but its batch norms where these keep what they know."""
    model.train()
    if keeps_statistics:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _keeps_statistics(config: TrainConfig) -> bool:
    """Whether batch norms go on with the statistics that the start was trained with."""
    if config.norm_statistics != "auto":
        return config.norm_statistics == "keep"
    return fresh_variant(config.model) is None and config.batch // config.accumulate < FEW


def _auxiliary(
    config: TrainConfig, model: nn.Module, contract: Contract | None, weights: Mapping[str, Any]
) -> nn.ModuleDict:
    found = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((config.seed << 32) + AUXILIARY_SEED)
        for objective in config.objectives:
            for name, module in objective.modules_for(model, contract).items():
                if name not in found:
                    found[name] = module
    for name, module in found.items():
        if name in weights:
            try:
                module.load_state_dict(weights[name])
            except RuntimeError as error:
                why = one_line(error, -1)
                mend = "set the objective's options as they were, or start at another checkpoint"
                what = f"weights beside the network do not fit the module {name!r}"
                raise CheckpointError(what, where=config.model, why=why, mend=mend) from error
    return found


def _optimizer(model: nn.Module, auxiliary: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Encoder, rest and auxiliary modules at their own rates; no weight decay for biases and normalisation."""
    encoder = {id(parameter) for parameter in _encoder_parameters(model)}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((int(id(parameter) in encoder), parameter.ndim > 1), []).append(parameter)
    for parameter in auxiliary.parameters():
        groups.setdefault((2, parameter.ndim > 1), []).append(parameter)
    share = (1.0, config.encoder_factor, config.auxiliary_rate)
    described = [
        {
            "params": parameters,
            "peak": config.learning_rate * share[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "auxiliary": part == 2,
        }
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(described, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(described, lr=config.learning_rate, foreach=True)


def _encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    parts = [getattr(model, name, None) for name in ENCODERS]
    return [parameter for part in parts if isinstance(part, nn.Module) for parameter in part.parameters()]
