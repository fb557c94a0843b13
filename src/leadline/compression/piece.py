"""A piece of a network as data: calls of tensor functions, the shapes of what goes in, and the widths that are free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Dim = int | str  # a number, or the name of a free width
Shape = tuple[Dim, ...]
WEIGHTED = {"conv2d", "conv_transpose2d", "linear"}
PARAMETERS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
}


@dataclass(frozen=True)
class Ref:
    """A tensor of a piece: `x` comes from outside, `c` is a constant (a weight), `t` a result; the image is `image`."""

    kind: str
    index: int = 0
    part: int = -1


@dataclass(frozen=True)
class Call:
    """A recorded call; its arguments hold `Ref`s where tensors stood."""

    function: Callable[..., Any] = field(compare=False)
    name: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Piece:
    """Some calls with the shapes of what goes in; `widths` are the channel counts now, by the names in the shapes.

    Args:
        calls: in order.
        inputs: shapes of the tensors from other pieces.
        constants: shapes of the weights.
        outputs: what other pieces take.
        image: shape of the network's input where the piece takes it.
        widths: (name, channels) of each free width; none where the piece is rigid.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Shape, ...]
    constants: tuple[Shape, ...]
    outputs: tuple[Ref, ...]
    image: tuple[int, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> str:
        """Text that is the same for pieces that differ in free widths only."""
        calls = [(call.name, call.arguments, call.options) for call in self.calls]
        return repr((calls, self.inputs, self.constants, self.outputs, self.image))

    @property
    def text(self) -> str:
        """Everything that decides how long it takes."""
        return f"{self.kind} {self.widths}"

    def at(self, channels: Sequence[int]) -> Piece:
        """The piece at other widths, in the order of `widths`."""
        names = [name for name, _ in self.widths]
        return replace(self, widths=tuple(zip(names, channels, strict=True)))

    def shape(self, dims: Shape) -> tuple[int, ...]:
        """A shape in numbers."""
        known = dict(self.widths)
        return tuple(known[dim] if isinstance(dim, str) else dim for dim in dims)

    def entrances(self) -> list[Piece]:
        """For each input the piece that only makes such a tensor: what a measurement of this one holds besides it."""
        made = []
        for dims in self.inputs:
            free = tuple((name, width) for name, width in self.widths if name in dims)
            named: dict[Dim, str] = {name: chr(ord("a") + place) for place, (name, _) in enumerate(free)}
            shape = tuple(named.get(dim, dim) for dim in dims)
            made.append(Piece((), (shape,), (), (Ref("x"),), (), tuple((named[name], width) for name, width in free)))
        return made


def refs(value: Any) -> Iterator[Ref]:
    """Every tensor in some arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from refs(each)


def mapped(value: Any, change: Callable[[Ref], Any]) -> Any:
    """Arguments with something else in the place of each tensor."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


def axis_of(shape: Shape) -> int:
    """Where the channels are: N x C x H x W, or N x tokens x C."""
    return 1 if len(shape) == 4 else len(shape) - 1
