"""PQK as a step: pruning and quantisation-aware training, then distillation from what pruning removed.

Kim, Chang and Kwak 2021 (arXiv 2106.14681; SPEC.md 8). Phase 1 prunes by magnitude while training in INT8 arithmetic;
phase 2 distils into the pruned network from a teacher that needs no training of its own before: the pruned network and
the removed weights, in one network with it. What the paper leaves open is chosen so:

- The share of zeros rises along 1 - (1 - t)^3 (Zhu and Gupta 2017) and then stays. Removed weights are kept aside with
  the gradients that they would have in place, so they may outgrow others and come back until phase 1 ends.
- Ranking by |w| within each layer or over all; depthwise convolutions and the float output layer stay dense.
- The teacher computes in float. Its own loss on the targets trains the removed weights alone; the weights that both
  share belong to the student, whose loss is the recipe's objectives plus the distance to the teacher's map: L1 in
  metres, scale- and shift-invariant in disparity.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from leadline.compression.base import Place, Step
from leadline.compression.finetune import with_term
from leadline.compression.int8_size import int8_size
from leadline.compression.qat_start import Start, calibrated_start, train
from leadline.compression.quantised_network import Training
from leadline.compression.tuning import configured
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.compression.quantised_network import QuantisedNetwork
    from leadline.reference import LoadedModel


class PQK(Step):
    """Prune and quantise in training, then distil from the pruned network and its removed weights."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train", "calibration"})

    step: Literal["pqk"] = "pqk"
    amount: float = Field(default=0.6, gt=0, lt=1, description="share of zeros in the layers that are pruned")
    scope: Literal["layer", "global"] = Field(default="layer", description="rank weights in each layer, or over all")
    depthwise: bool = Field(default=False, description="prune depthwise convolutions too")
    iterations: Annotated[int, Field(ge=1)] = Field(default=1000, description="of phase 1, pruning and INT8 training")
    ramp: float = Field(default=0.7, gt=0, le=1, description="share of phase 1 in which the share of zeros rises")
    every: Annotated[int, Field(ge=1)] = Field(default=20, description="iterations between two choices of what is 0")
    learning_rate: float = Field(default=1e-4, gt=0, lt=10, description="peak of phase 1")
    distil_iterations: Annotated[int, Field(ge=0)] = Field(default=500, description="of phase 2; 0 leaves it out")
    distil_rate: float = Field(default=5e-5, gt=0, lt=10, description="peak of phase 2")
    distil_weight: float = Field(default=1.0, gt=0, description="factor of the distance to the teacher")
    teacher_weight: float = Field(default=1.0, ge=0, description="factor of the teacher's own loss, relative to that")
    ranges: Literal["fixed", "learned"] = Field(default="fixed", description="as in `qat`")

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The pruned INT8 network: float weights on their grids, zeros among them, and the grids.

        Raises:
            ConfigError: the network is not of the registry, nothing of it can be pruned, or no training data.
            DataError: no calibration pictures.
            UnavailableError: the network cannot be traced or exported.
            See `leadline.training.fit.fit` for the rest.
        """
        pruning = {"iterations": self.iterations, "learning_rate": self.learning_rate, "warmup": 0}
        pieces = configured(source, place, pruning).accumulate
        training = Training(learns=self.ranges == "learned")
        start = calibrated_start(source, place, training)
        start.network.before_pass = Pruning(
            self.amount,
            max(1, round(self.ramp * self.iterations)) * pieces,
            self.every * pieces,
            self.scope,
            self.depthwise,
        )
        if not any(_prunable(grid.kept, self.depthwise) for grid, _ in start.network.weight_grids()):
            raise ConfigError("nothing to prune in", where=source.name, why="all its layers are depthwise")
        place.say("phase 1: pruning and INT8 training")
        made, network = train(source, start, place, pruning, place.folder / "phase-1")
        place.say(int8_size(made).said)
        if self.distil_iterations:
            place.say("phase 2: distillation from the pruned network and its removed weights")
            begun = Start(start.folded, _restarted(network))
            term = {"loss": "own-teacher", "weight": self.distil_weight, "supervised": self.teacher_weight}
            distilling = {"iterations": self.distil_iterations, "learning_rate": self.distil_rate, "warmup": 0}
            changes = distilling | with_term(source, place, term)
            made, _ = train(made, begun, place, changes, place.folder / "phase-2")
            place.say(int8_size(made).said)
        return made


@dataclass(frozen=True)
class Pruning:
    """Chooses which weights are 0, pass after pass of training.

    Args:
        amount: final share of zeros.
        ramp: passes in which it is reached.
        every: passes between two choices.
        scope: `layer` or `global`.
        depthwise: whether depthwise convolutions are pruned.
    """

    amount: float
    ramp: int
    every: int
    scope: str
    depthwise: bool

    def __call__(self, network: QuantisedNetwork, number: int) -> None:
        """Before training pass `number`, counted from 1."""
        if number % self.every == 0 or number in (1, self.ramp):
            choose(network, self.share(number), self.scope, depthwise=self.depthwise)

    def share(self, number: int) -> float:
        """Share of zeros in pass `number`: amount * (1 - (1 - number / ramp)^3), then amount."""
        return self.amount * (1 - (1 - min(1.0, number / self.ramp)) ** 3)


@torch.no_grad()
def choose(network: QuantisedNetwork, share: float, scope: str = "layer", *, depthwise: bool = False) -> None:
    """Shut the masks of the smallest weights, removed ones included, and open the others.

    Args:
        network: its masks are changed.
        share: of zeros among the weights that may be pruned.
        scope: `layer` ranks each layer by itself, `global` all of them together.
        depthwise: whether depthwise convolutions are pruned.
    """
    found = [(grid.kept, weight.abs()) for grid, weight in network.weight_grids() if _prunable(grid.kept, depthwise)]
    if scope == "global":
        together = torch.cat([size.flatten() for _, size in found])
        parts = torch.split(_largest(together, share), [size.numel() for _, size in found])
    else:
        parts = tuple(_largest(size.flatten(), share) for _, size in found)
    for (kept, _), part in zip(found, parts, strict=True):
        assert kept is not None
        kept.copy_(part.view_as(kept))


def _largest(sizes: Tensor, share: float) -> Tensor:
    """True for all but round(share * N) of the smallest, the first ones among equals."""
    kept = torch.ones(sizes.numel(), dtype=torch.bool, device=sizes.device)
    kept[sizes.argsort(stable=True)[: round(share * sizes.numel())]] = False
    return kept


def _prunable(kept: Tensor | None, depthwise: bool) -> bool:
    """Whether a layer's weights are pruned: depthwise ones read one channel each."""
    return kept is not None and (depthwise or kept.ndim < 4 or kept.shape[1] > 1)


def _restarted(network: QuantisedNetwork) -> QuantisedNetwork:
    """The network of phase 1 for another training: masks stay as they are."""
    begun = copy.deepcopy(network).requires_grad_(True)
    begun.before_pass = None
    return begun
