"""The objective of a network that searches for its own channels: what it costs (compression/search.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from leadline.errors import ConfigError
from leadline.training.objectives.base import Term

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leadline.contract import Contract
    from leadline.training.objectives.base import Seen


@runtime_checkable
class Priced(Protocol):
    """A network that says what it costs."""

    def beside(self) -> dict[str, nn.Module]:
        """What is trained beside the weights, by name: the masks."""

    def price(self, notes: dict[str, float]) -> Tensor:
        """The term of the loss, a scalar, in the unit of the other terms; figures for the log go into `notes`."""


class Cost(Term):
    """What the network asks for its masks to cost: MACs, weights or latency beyond a target."""

    loss: Literal["cost"] = "cost"

    def modules_for(self, model: nn.Module, contract: Contract | None) -> dict[str, nn.Module]:
        """The masks."""
        return _priced(model).beside()

    def term(self, seen: Seen) -> Tensor:
        """The network's price.

        Raises:
            ConfigError: the network has none.
        """
        return _priced(seen.model).price(seen.notes)


def _priced(model: nn.Module) -> Priced:
    if not isinstance(model, Priced):
        mend = "leave it out of the training configuration: the step `search-channels` adds it"
        raise ConfigError("the loss 'cost'", why="the network does not search for its channels", mend=mend)
    return model
