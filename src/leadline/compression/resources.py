"""What a network costs, as one number: multiply-accumulates, weights, or the latency on the user's engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from leadline.compression.graph import keep
from leadline.compression.latency_table import LatencyTable, described
from leadline.compression.piece_timing import EngineTimer
from leadline.evaluation.complexity import count_kernel_weights, count_macs

if TYPE_CHECKING:
    from contextlib import ExitStack

    from leadline.compression.base import Place
    from leadline.reference import LoadedModel

ResourceName = Literal["latency", "macs", "weights"]


class Resource(Protocol):
    """A cost that can be asked for every candidate."""

    name: str
    unit: str

    def estimate(self, network: LoadedModel) -> float:
        """The cost of a candidate, from its shapes alone: its tensors may lie on the meta device."""

    def measure(self, network: LoadedModel) -> float:
        """The cost of a network that was chosen; from here on estimates refer to it."""

    def refer(self, network: LoadedModel, measured: float) -> None:
        """Let estimates refer to a network measured before, as `measure` did."""

    def from_start(self, first: LoadedModel, network: LoadedModel, measured: float) -> float:
        """The cost of a network estimated from that of the first one alone, however many turns lie between."""


class Macs:
    """Multiply-accumulates at batch 1, counted as the published tables count them.

    Args:
        size: (height, width) of the input, pixels.
    """

    name, unit = "macs", "MACs"

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def estimate(self, network: LoadedModel) -> float:
        """Exact."""
        return float(count_macs(network.model, self._size))

    def measure(self, network: LoadedModel) -> float:
        """The same."""
        return self.estimate(network)

    def refer(self, network: LoadedModel, measured: float) -> None:
        """Nothing: counts refer to nothing."""

    def from_start(self, first: LoadedModel, network: LoadedModel, measured: float) -> float:
        """The count."""
        return self.estimate(network)


class Weights:
    """Weights of convolutions and linear layers, without biases and batch norms: what FastDepth's paper prints.

    All parameters are 1 to 3 % more in the networks here (SPEC.md 1.2 has both).
    """

    name, unit = "weights", "weights"

    def estimate(self, network: LoadedModel) -> float:
        """Exact."""
        return float(count_kernel_weights(network.model))

    def measure(self, network: LoadedModel) -> float:
        """The same."""
        return self.estimate(network)

    def refer(self, network: LoadedModel, measured: float) -> None:
        """Nothing: counts refer to nothing."""

    def from_start(self, first: LoadedModel, network: LoadedModel, measured: float) -> float:
        """The count."""
        return self.estimate(network)


class Latency:
    """Milliseconds on an engine: the table of pieces, scaled so that the last measured network comes out as measured.

    The table adds up pieces; the whole network is a little quicker or slower than its pieces. That factor changes
    slowly with the widths, so it is measured once at the start and again whenever a network is chosen, in turn with the
    first network, whose own time never changes then: predictions span one iteration only.

    Args:
        table: of the engine.
        timer: of the engine.
        size: (height, width) of the input, pixels.
    """

    name, unit = "latency", "ms"

    def __init__(self, table: LatencyTable, timer: EngineTimer, size: tuple[int, int]) -> None:
        self._table, self._timer, self._size = table, timer, size
        self._first: LoadedModel | None = None
        self._first_ms = 0.0
        self._factor = 1.0

    def estimate(self, network: LoadedModel) -> float:
        """The table's sum times the factor of the last measured network."""
        return self._factor * self._table.network(network.model, self._size)

    def measure(self, network: LoadedModel) -> float:
        """The first network's own time; of later ones their share of it, from rounds in turn with it."""
        if self._first is None:
            measured = self._timer.alone(network, self._size)
        else:
            measured = self._first_ms * self._timer.against(network, self._first, self._size)
        self.refer(network, measured)
        return measured

    def refer(self, network: LoadedModel, measured: float) -> None:
        """Take a time that was measured before."""
        if self._first is None:
            self._first, self._first_ms = network, measured
        self._factor = measured / self._table.network(network.model, self._size)

    def from_start(self, first: LoadedModel, network: LoadedModel, measured: float) -> float:
        """The first network's time and the table alone."""
        share = self._table.network(network.model, self._size) / self._table.network(first.model, self._size)
        return measured * share


def latency_on(place: Place, size: tuple[int, int], table: str | None, stack: ExitStack) -> Latency:
    """Latency on the engine of a step's target.

    Args:
        place: of the step.
        size: (height, width) of the input, pixels.
        table: file of measured pieces; in the step's folder where absent.
        stack: closes it.

    Raises:
        UnavailableError: the engine is not installed.
    """
    timer = EngineTimer(place.target.runtime, place.target.options)
    path = Path(table) if table else place.folder / "latency.sqlite"
    place.say(f"latency on {described(timer.identity)} at {size[0]}x{size[1]}, table {path}")
    return Latency(stack.enter_context(LatencyTable(path, timer)), timer, size)


def shapes_of(network: LoadedModel) -> LoadedModel:
    """The network without values: its tensors on PyTorch's meta device."""
    return replace(network, model=copy.deepcopy(network.model).to("meta"))


def narrowed(network: LoadedModel, chosen: Mapping[str, Sequence[int]]) -> LoadedModel:
    """`keep` for a network without values.

    Raises:
        ConfigError: as of `keep`.
    """
    with torch.device("meta"):
        return keep(network, chosen)
