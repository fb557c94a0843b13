"""What a network says in training: its maps, finest first, and whatever else an objective may look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """All that a network returns in training.

    Args:
        maps: N x 1 x h x w each, in the network's own kind, finest first; the first is what `forward` returns.
        centres: N x K bin centres in the network's kind, for networks with bins.
        features: encoder features N x C x h x w, finest first.
    """

    maps: tuple[Tensor, ...]
    centres: Tensor | None = None
    features: tuple[Tensor, ...] = ()

    def float(self) -> Outputs:
        """The same in float32, as losses need it after a forward pass in reduced precision."""
        return replace(
            self,
            maps=tuple(values.float() for values in self.maps),
            centres=None if self.centres is None else self.centres.float(),
            features=tuple(values.float() for values in self.features),
        )


def outputs(model: nn.Module, image: Tensor) -> Outputs:
    """Everything that `model` says about a picture: its method `outputs` where it has one, else its one map.

    Args:
        model: N x 3 x H x W to N x 1 x H x W.
        image: N x 3 x H x W float32, prepared by the contract.
    """
    more = getattr(model, "outputs", None)
    found = more(image) if more is not None else Outputs((model(image),))
    assert isinstance(found, Outputs)
    return found
