"""One update: forward and backward over the pieces of a batch, the gradients of all processes summed, one step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from leadline.training.objectives import Seen, total_loss
from leadline.training.pieces import cut, shares

if TYPE_CHECKING:
    from leadline.depth import Kind
    from leadline.training.batches import Batch
    from leadline.training.config import TrainConfig
    from leadline.training.learner import Learner
    from leadline.training.team import Team

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Update(NamedTuple):
    """What an update was: the joined batch's loss, its terms with the objectives' notes, the gradient's norm."""

    loss: float
    terms: dict[str, float]
    norm: float


def step(learner: Learner, batch: Batch, config: TrainConfig, *, kind: Kind, team: Team) -> Update:
    """Update once from this process's rows of a batch; a loss or a gradient that is not finite updates nothing.

    The pieces' and processes' terms are weighted by what they are means over (`Term.count`), and gradients are summed:
    the update is that of one process with the joined batch, to rounding. Exceptions, by nature: `joined` terms (silog,
    berhu, gradient, ssi-trimmed) are means over the pieces of gradient accumulation; batch normalisation takes the
    statistics of one piece, in the network of all processes, in the modules beside it (pose networks) of
    each process alone; random draws inside networks and losses differ between processes.

    Args:
        learner: what is trained.
        batch: this process's rows, on the CPU.
        config: the run.
        kind: the network's kind.
        team: the processes of the run.

    Returns:
        The update; notes are this process's own. Loss and norm are NaN where nothing was updated.
    """
    pieces = cut(batch, config.accumulate)
    parts = shares(config.objectives, pieces, team)
    terms: dict[str, float] = {}
    learner.optimizer.zero_grad(set_to_none=True)
    for piece, share in zip(pieces, parts, strict=True):
        seen = _look(learner, piece.to(team.device), config, kind)
        total, found = total_loss(config.objectives, seen, share, _everyone(seen, config, team))
        if team.size > 1:  # every process must run backward through all that it ran forward: norms meet there too
            total = total + 0.0 * sum(values.sum() for values in seen.outputs.maps)
        found = _of_all(found, config, team)
        for name, value in found.items():
            terms[name] = terms.get(name, 0.0) + value
        for name, value in seen.notes.items():
            terms[name] = terms.get(name, 0.0) + value / len(pieces)
        if not math.isfinite(team.total([float(total.detach())])[0]):
            learner.optimizer.zero_grad(set_to_none=True)
            return Update(math.nan, terms, math.nan)
        learner.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
    team.sum_gradients(learner.parameters())
    learner.scaler.unscale_(learner.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
    if not learner.scaler.is_enabled() and not bool(norm.isfinite()):  # with a scale, too large a one is expected
        learner.optimizer.zero_grad(set_to_none=True)
        return Update(math.nan, terms, math.nan)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    weights = [objective.weight for objective in config.objectives]
    loss = sum(weight * value for weight, value in zip(weights, terms.values(), strict=False))
    return Update(loss, terms, float(norm))


def _look(learner: Learner, piece: Batch, config: TrainConfig, kind: Kind) -> Seen:
    """Run the network, in the run's precision; what it says is float32."""
    image = piece.image if config.channels_last else piece.image.contiguous()
    reduced = PRECISIONS.get(config.precision)
    with torch.autocast(image.device.type, dtype=reduced or torch.bfloat16, enabled=reduced is not None):
        said = learner.see(image)
    return Seen(said.float(), kind, piece, learner.auxiliary, learner.model)


def _everyone(seen: Seen, config: TrainConfig, team: Team) -> Seen | None:
    """What the joined objectives see: the maps, centres, targets and kinds of all processes, and nothing else."""
    if team.size == 1 or not any(objective.joined for objective in config.objectives):
        return None
    said, batch = seen.outputs, seen.batch
    return replace(
        seen,
        outputs=replace(
            said,
            maps=tuple(team.gather(values) for values in said.maps),
            centres=None if said.centres is None else team.gather(said.centres),
            features=(),
        ),
        batch=replace(
            batch,
            image=batch.image[:0],
            target=team.gather(batch.target),
            valid=team.gather(batch.valid),
            kinds=team.gather_kinds(batch.kinds),
            names=(),
            clip=None,
        ),
    )


def _of_all(found: dict[str, float], config: TrainConfig, team: Team) -> dict[str, float]:
    """The terms of all processes' piece: parts add up, a joined term is the same everywhere."""
    if team.size == 1:
        return found
    own = [
        value / team.size if objective.joined else value
        for value, objective in zip(found.values(), config.objectives, strict=True)
    ]
    return dict(zip(found, team.total(own), strict=True))
