"""The form of every objective: options, what is trained beside the network, and one scalar term."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leadline.contract import Contract
    from leadline.depth import Kind
    from leadline.models.outputs import Outputs
    from leadline.training.batches import Batch


@dataclass
class Seen:
    """What an objective may look at.

    Args:
        outputs: what the network said, float32.
        kind: the network's kind.
        batch: pictures, targets with their own kinds, and the frames around them.
        modules: all objectives' modules by name.
        model: the network.
        notes: figures that an objective leaves here (mask share, pose magnitude) are logged beside the terms.
    """

    outputs: Outputs
    kind: Kind
    batch: Batch
    modules: nn.ModuleDict
    model: nn.Module
    notes: dict[str, float] = field(default_factory=dict)


class Term(BaseModel):
    """One term of the training loss; a subclass names itself with `loss: Literal["..."] = "..."`.

    A batch may be cut into parts (gradient accumulation, several processes). The whole is put together as the mean of
    the parts' terms weighted by `count`: exact for whatever is a mean over that count. A term that is none, such as a
    spread over the whole batch, sets `joined`: over several processes it sees the maps, centres, targets and kinds of
    all of them (not the features and clips). Under gradient accumulation it remains a mean over the pieces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    joined: ClassVar[bool] = False
    needs_frames: ClassVar[bool] = False  # of the pictures around each one, from sources with `frames`

    loss: str
    weight: float = Field(default=1.0, gt=0, description="factor of this term in the sum")

    def modules(self) -> dict[str, nn.Module]:
        """What is trained beside the network (a pose network, feature projections), by name.

        Objectives that name the same module share the first one's.
        """
        return {}

    def modules_for(self, model: nn.Module, contract: Contract | None) -> dict[str, nn.Module]:
        """The same, where what is trained depends on the network and its contract (channels of features)."""
        return self.modules()

    def count(self, batch: Batch) -> float:
        """Over how many items the term is a mean: pictures here; valid pixels for a masked mean, rows for a clip."""
        return float(len(batch.kinds))

    def term(self, seen: Seen) -> Tensor:
        """A scalar; 0 with a gradient where nothing applies.

        Raises:
            KindError: the network's or a target's kind cannot be used.
        """
        raise NotImplementedError(type(self).__name__)
