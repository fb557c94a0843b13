"""Objectives that follow a teacher which runs beside the network on the same pictures: another network, or itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from leadline.depth import Kind
from leadline.errors import ConfigError, KindError
from leadline.losses.regression import masked_l1
from leadline.losses.scale_invariant import scale_and_shift_invariant
from leadline.models.outputs import outputs
from leadline.training.objectives.base import Term
from leadline.training.objectives.distillation import for_teacher, frozen_teacher
from leadline.training.objectives.supervised import ScaleShiftInvariant, Silog, inverted

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.contract import Contract
    from leadline.models.outputs import Outputs
    from leadline.training.objectives.base import Seen


@runtime_checkable
class HasTeacher(Protocol):
    """A network that holds its own teacher, as a pruned one does whose removed weights are kept aside."""

    def teacher(self, image: Tensor) -> Outputs:
        """What the teacher says."""


class FollowTeacher(Term):
    """Every pixel as a frozen teacher says it: L1 in metres, or scale- and shift-invariant in disparity.

    The teacher sees the same augmented pictures, at the network's size rounded to one that it allows.
    """

    loss: Literal["teacher"] = "teacher"
    teacher: str = Field(description="model reference, as the network was before it was made small")

    @property
    def name(self) -> str:
        """Of what stands among the run's modules."""
        return f"teacher_{hashlib.sha256(self.teacher.encode()).hexdigest()[:8]}"

    def modules_for(self, model: nn.Module, contract: Contract | None) -> dict[str, nn.Module]:
        """How the network's pictures were prepared; nothing is trained beside it."""
        assert contract is not None
        return {self.name: Prepared(contract)}

    def term(self, seen: Seen) -> Tensor:
        """Mean over all pixels.

        Raises:
            KindError: either says relative depth, or the teacher does not know the metres that the network predicts.
        """
        prepared = seen.modules[self.name]
        assert isinstance(prepared, Prepared)
        beside = frozen_teacher(self.teacher, str(seen.batch.image.device))
        kind = beside.contract.output.kind
        with torch.no_grad():
            picture = for_teacher(seen.batch.image, prepared.contract, beside.contract)
            said = outputs(beside.model, picture).maps[0].float()
        return distance(seen.outputs.maps[0], seen.kind, said, kind)


class Prepared(nn.Module):
    """Knows a network's contract; has no weights."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.contract = contract


class OwnTeacher(Term):
    """As the network's own teacher says it (PQK's second phase): the pruned network with its removed weights.

    The teacher learns too: `supervised` times silog of its map where targets are in metres, ssi otherwise.
    """

    loss: Literal["own-teacher"] = "own-teacher"
    supervised: float = Field(default=1.0, ge=0, description="factor of the teacher's own loss on the targets")

    def term(self, seen: Seen) -> Tensor:
        """Mean over all pixels, and the teacher's own loss.

        Raises:
            ConfigError: the network has no teacher of its own.
        """
        if not isinstance(seen.model, HasTeacher):
            raise ConfigError("no teacher inside the network", where=self.loss, mend="use `loss: teacher`")
        said = seen.model.teacher(seen.batch.image).float()
        own = distance(seen.outputs.maps[0], seen.kind, said.maps[0].detach(), seen.kind)
        if not self.supervised:
            return own
        metric = seen.kind is Kind.METRIC_DEPTH and Kind.METRIC_DEPTH in seen.batch.kinds
        supervised: Term = Silog() if metric else ScaleShiftInvariant()
        learned = supervised.term(replace(seen, outputs=said))
        seen.notes["teacher_loss"] = float(learned.detach())
        return own + self.supervised * learned


def distance(map_: Tensor, kind: Kind, said: Tensor, said_kind: Kind) -> Tensor:
    """How far a map is from a teacher's.

    Args:
        map_: N x 1 x H x W of the network.
        kind: of it.
        said: N x 1 x h x w of the teacher; enlarged or shrunk to H x W.
        said_kind: of it.

    Raises:
        KindError: either is relative depth, or only the network's are metres.
    """
    if Kind.RELATIVE_DEPTH in (kind, said_kind):
        raise KindError("relative depth cannot be followed", why="its unknown shift forbids a disparity")
    if said.shape[-2:] != map_.shape[-2:]:
        said = F.interpolate(said, (map_.shape[-2], map_.shape[-1]), mode="bilinear", align_corners=False)
    everywhere = torch.ones_like(said, dtype=torch.bool)
    if kind is Kind.METRIC_DEPTH and said_kind is not kind:
        why = f"the network predicts metres, the teacher {said_kind}, and its metres would drift"
        raise KindError("a teacher without metres", why=why, mend="name a metric teacher")
    if kind is Kind.METRIC_DEPTH:
        return masked_l1(map_, said, everywhere)
    target = inverted(said) if said_kind is Kind.METRIC_DEPTH else said
    return scale_and_shift_invariant(map_, target, everywhere)
