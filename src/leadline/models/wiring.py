"""Which channels of a network belong together: what pruning must know, told by each architecture beside its graph.

A `Space` is a set of channels that are removed together: those of a layer's output, of every layer added to it, of the
batch norms and depthwise convolutions behind it, and of every input that reads it. `Wiring` says for each tensor of the
state dict which spaces its leading axes run over, so that a network is pruned by taking indices along axes, and which
number of the configuration counts a space, so that the result is a configuration again.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Place = tuple[str | int, ...]  # of a number in a configuration: field name, then indices


@dataclass(eq=False)
class Space:
    """Channels that live and die together.

    Args:
        units: how many can be removed on their own: channels, attention heads, ...
        bundle: channels of a unit in the output of the layers that produce it.
        places: of the numbers in the configuration.
        counts_units: whether those numbers count units (heads) or channels.
        producers: module paths of the layers whose output these are, in the order of the network.
        norms: the batch norm behind a producer, for those that have one.
    """

    units: int
    bundle: int
    places: list[Place]
    counts_units: bool = False
    producers: list[str] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Module path of the first producer."""
        return self.producers[0]

    @property
    def width(self) -> int:
        """Channels."""
        return self.units * self.bundle


@dataclass(frozen=True)
class Part:
    """A space as a stretch of an axis: `times` x units x `each` elements."""

    space: Space
    each: int = 1
    times: int = 1

    @property
    def size(self) -> int:
        """Elements of the stretch."""
        return self.times * self.space.units * self.each


Axis = tuple[Part | int, ...]  # stretches one after the other; a number stands for channels that are not free


def size(axis: Axis) -> int:
    """Elements of an axis."""
    return sum(part if isinstance(part, int) else part.size for part in axis)


class Wiring:
    """The axes of every tensor of a network, written down in the order of the network.

    Args:
        sizes: the numbers of the configuration that count channels, tuples as lists.
    """

    def __init__(self, sizes: dict[str, Any]) -> None:
        self.sizes = sizes
        self.settled: dict[str, Any] = {}  # what a pruned configuration says beside its sizes
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.readers: dict[str, Axis] = {}  # channels that enter a layer, by module path
        self.spaces: list[Space] = []

    def space(self, *place: str | int, bundle: int = 1) -> Axis:
        """The axis over a new space of as many channels as the configuration says at `place`.

        Args:
            place: field of the configuration, then indices.
            bundle: channels that can only be removed together.
        """
        return (Part(Space(self._number(place) // bundle, bundle, [place]), each=bundle),)

    def tied(self, axis: Axis, *place: str | int) -> Axis:
        """The axis over a space that another number of the configuration counts too."""
        space = _only(axis)
        assert space is not None
        assert space.width == self._number(place)
        space.places.append(place)
        return axis

    def heads(self, *place: str | int, width: int) -> Space:
        """A new space of as many attention heads as the configuration says at `place`, `width` channels each."""
        return Space(self._number(place), width, [place], counts_units=True)

    def conv(
        self,
        path: str,
        inputs: Axis,
        outputs: Axis,
        *,
        norm: str | None = None,
        bias: bool = False,
        transposed: bool = False,
    ) -> Axis:
        """A full convolution or linear layer from `inputs` to `outputs`, and the batch norm behind it.

        Args:
            path: of the module.
            inputs: axis of its input channels.
            outputs: axis of its output channels; a space that exists already ties the layer to it.
            norm: path of the batch norm.
            bias: whether the layer has one.
            transposed: its weight stores inputs first.
        """
        for part in outputs:
            if isinstance(part, Part):
                self._produce(part.space, path, norm)
        self.readers[path] = inputs
        self.axes[f"{path}.weight"] = (inputs, outputs) if transposed else (outputs, inputs)
        if bias:
            self.axes[f"{path}.bias"] = (outputs,)
        if norm is not None:
            self.norm(norm, outputs)
        return outputs

    def depthwise(self, path: str, channels: Axis, norm: str | None = None) -> Axis:
        """A depthwise convolution without bias, and the batch norm behind it."""
        self.readers[path] = channels
        self.axes[f"{path}.weight"] = (channels,)
        if norm is not None:
            self.norm(norm, channels)
        return channels

    def norm(self, path: str, channels: Axis, *, statistics: bool = True) -> None:
        """A normalisation with weight and bias, and with running statistics where it is a batch norm."""
        for part in ("weight", "bias", *(("running_mean", "running_var") if statistics else ())):
            self.axes[f"{path}.{part}"] = (channels,)

    def tensor(self, name: str, *axes: Axis) -> None:
        """Any other tensor."""
        self.axes[name] = axes

    def read(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """The configuration's numbers in a network of this wiring whose tensors have other shapes."""
        return self.sized({space.name: self._units(space, shapes) * space.bundle for space in self.spaces})

    def sized(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """The configuration's numbers in a network whose spaces have other widths, by name; the rest stays."""
        sizes = deepcopy(self.sizes)
        for space in self.spaces:
            width = widths.get(space.name, space.width)
            for *way, last in space.places:
                row: Any = sizes
                for step in way:
                    row = row[step]
                row[last] = width // space.bundle if space.counts_units else width
        return sizes

    def _units(self, space: Space, shapes: Mapping[str, Sequence[int]]) -> int:
        name = f"{space.name}.weight"
        axis = next(index for index, axis in enumerate(self.axes[name]) if _only(axis) is space)
        part = self.axes[name][axis][0]
        assert isinstance(part, Part)
        return shapes[name][axis] // (part.each * part.times)

    def _produce(self, space: Space, path: str, norm: str | None) -> None:
        if not space.producers:
            self.spaces.append(space)
        space.producers.append(path)
        if norm is not None:
            space.norms[path] = norm

    def _number(self, place: Place) -> int:
        number: Any = self.sizes
        for step in place:
            number = number[step]
        assert isinstance(number, int)
        return number


def _only(axis: Axis) -> Space | None:
    """The space of an axis that has no other part."""
    return axis[0].space if len(axis) == 1 and isinstance(axis[0], Part) else None


def shuffled(axis: Axis) -> Axis:
    """What a pixel shuffle leaves of a bundled space: one channel of each unit."""
    return tuple(part if isinstance(part, int) else replace(part, each=1) for part in axis)
