"""A network cut into pieces that an engine can be timed on: a convolution or matrix product with what engines fuse.

The network runs once without values (PyTorch's meta device), and every call of a tensor function is written down. Each
convolution or linear layer begins a piece; what follows it (batch norm, activation, upsampling, the addition of a
skip) belongs to it until the next one, since engines compute these together. Where all that a piece does is known to
be independent of the number of channels, these become free: the same piece exists at every width, and what was measured
at some widths tells others. Other pieces (attention, reshaping) are rigid: each width is a piece of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Dim = int | str  # a number, or the name of a free width
Shape = tuple[Dim, ...]
WEIGHTED = {"conv2d", "conv_transpose2d", "linear"}
PLAIN = {"batch_norm", "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "sigmoid", "gelu", "elu", "softplus", "silu"}
PLAIN |= {"tanh", "hardswish", "hardsigmoid", "leaky_relu", "dropout", "interpolate", "add", "add_", "sub", "mul"}
PLAIN |= {"div", "rmul", "radd", "rsub", "cat", "avg_pool2d", "max_pool2d", "clamp"}


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


def pieces(model: nn.Module, size: tuple[int, int]) -> list[Piece]:
    """The pieces of a network, in the order in which they run; equal ones stand as often as they run.

    Args:
        model: takes 1 x 3 x H x W float32; stays as it is.
        size: (height, width) of the input, pixels.
    """
    shapes_only = model if _is_meta(model) else copy.deepcopy(model).to("meta")
    recorder = _Recorder(torch.empty(1, 3, *size, device="meta"))
    with torch.no_grad():
        recorder.watch(shapes_only.eval())
    return [piece for number in range(len(recorder.groups)) if (piece := recorder.piece(number)) is not None]


def _is_meta(model: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())


@dataclass
class _Value:
    """A tensor seen while recording: of which piece (None: made of weights alone), at which place, in which shape."""

    owner: int | None
    place: Ref
    shape: tuple[int, ...]


@dataclass
class _Recorded:
    """A call as it ran."""

    function: Callable[..., Any]
    name: str
    arguments: Any
    options: dict[str, Any]
    results: list[int]


class _Recorder(TorchFunctionMode):
    """Writes down every call with a tensor as its result, and sorts it into a piece."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.alive: list[Any] = [image]  # an id counts only while its tensor lives
        self.values: dict[int, _Value] = {id(image): _Value(0, Ref("image"), tuple(image.shape))}
        self.groups: list[list[_Recorded]] = [[]]
        self.taken: set[int] = set()  # ids that a later piece, or the caller, takes

    def watch(self, model: nn.Module) -> None:
        with self:
            result = model(self.image)
        self.taken.add(id(result))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        before = {id(each): self._known(each) for each in _tensors([args, options])}
        result = func(*args, **options)
        made = list(_tensors(result))
        if made:
            self._record(func, args, options, result, before)
        return result

    def _known(self, tensor: Tensor) -> _Value:
        if id(tensor) not in self.values:
            self.alive.append(tensor)
            self.values[id(tensor)] = _Value(None, Ref("c"), tuple(tensor.shape))
        return self.values[id(tensor)]

    def _record(
        self, func: Callable[..., Any], args: Any, options: dict[str, Any], result: Any, before: dict[int, _Value]
    ) -> None:
        made = list(_tensors(result))
        self.alive.extend(made)
        owners = [value.owner for value in before.values() if value.owner is not None]
        if not owners:
            for tensor in made:
                self.values[id(tensor)] = _Value(None, Ref("c"), tuple(tensor.shape))
            return
        name = _name(func)
        if name in WEIGHTED:
            self.groups.append([])
            owner = len(self.groups) - 1
        else:
            owner = max(owners)
        self.taken.update(key for key, value in before.items() if value.owner not in (None, owner))
        call = _Recorded(func, name, _referred(args, before), _referred(options, before), [])
        group = self.groups[owner]
        whole = isinstance(result, Tensor)
        for part, tensor in enumerate(made):
            place = Ref("t", len(group), -1 if whole else part)
            self.values[id(tensor)] = _Value(owner, place, tuple(tensor.shape))
            call.results.append(id(tensor))
        group.append(call)

    def piece(self, number: int) -> Piece | None:
        """The piece of one group of calls; None where it computes nothing."""
        group = self.groups[number]
        if not group:
            return None
        inputs: dict[int, tuple[Ref, tuple[int, ...]]] = {}
        constants: list[tuple[int, ...]] = []
        calls = []

        def own(value: _Seen) -> Ref:
            known = value.value
            if known.place.kind == "image":
                return known.place
            if known.owner is None:
                constants.append(known.shape)
                return Ref("c", len(constants) - 1)
            if known.owner != number:
                if value.key not in inputs:
                    inputs[value.key] = (Ref("x", len(inputs)), known.shape)
                return inputs[value.key][0]
            return known.place

        for call in group:
            arguments, options = _mapped(call.arguments, own), _mapped(call.options, own)
            calls.append(Call(call.function, call.name, tuple(arguments), tuple(sorted(options.items()))))
        last = {}
        for call in group:
            for key in call.results:
                if key in self.taken and self.values[key].owner == number:
                    last[key] = self.values[key].place
        outputs = tuple(last.values()) or (Ref("t", len(group) - 1, 0 if len(group[-1].results) > 1 else -1),)
        takes_image = any(ref.kind == "image" for call in calls for ref in _refs([call.arguments, call.options]))
        image = tuple(self.image.shape) if takes_image else ()
        found = Piece(tuple(calls), tuple(shape for _, shape in inputs.values()), tuple(constants), outputs, image)
        return freed(found)


@dataclass(frozen=True)
class _Seen:
    """A tensor in recorded arguments, with what was known about it when the call ran."""

    key: int
    value: _Value


def _name(func: Callable[..., Any]) -> str:
    name = (resolve_name(func) or getattr(func, "__name__", repr(func))).rpartition(".")[2]  # type: ignore[no-untyped-call]
    return str(name).strip("_") if str(name).startswith("__") else str(name)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _refs(each)


def _referred(value: Any, known: Mapping[int, _Value]) -> Any:
    if isinstance(value, Tensor):
        return _Seen(id(value), known[id(value)])
    if isinstance(value, dict):
        return {key: _referred(each, known) for key, each in value.items()}
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple):
        return type(value)(_referred(each, known) for each in value)
    return value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, _Seen | Ref):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, change) for each in value)
    return value


class _RigidError(Exception):
    """The piece does something that may depend on the number of channels."""


def freed(piece: Piece) -> Piece:
    """The piece with its channel counts free, where nothing in it depends on them; otherwise the piece as it is."""
    try:
        return _Naming(piece).named()
    except _RigidError:
        return piece


class _Naming:
    """Which dimensions of a piece are the same free width."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.parent: dict[int, int] = {}
        self.width: dict[int, int] = {}
        self.constants: dict[int, list[tuple[int, int]]] = {}  # constant -> (axis, width)
        self.of: dict[Ref, tuple[int, ...]] = {}  # widths that a tensor's channels are the sum of

    def named(self) -> Piece:
        inputs = []
        for place, shape in enumerate(self.piece.inputs):
            axis = _axis(shape)
            own = self._new(shape[axis])
            self.of[Ref("x", place)] = (own,)
            inputs.append((axis, own))
        for place, call in enumerate(self.piece.calls):
            result = self._weighted(call) if call.name in WEIGHTED else self._plain(call)
            self.of[Ref("t", place)] = result
        order: dict[int, str] = {}

        def label(width: int) -> str:
            return order.setdefault(self._root(width), chr(ord("a") + len(order)))

        free_inputs = tuple(
            tuple(label(own) if place == axis else dim for place, dim in enumerate(shape))
            for shape, (axis, own) in zip(self.piece.inputs, inputs, strict=True)
        )
        free_constants = []
        for place, dims in enumerate(self.piece.constants):
            named = dict(self.constants.get(place, []))
            free_constants.append(tuple(label(named[a]) if a in named else dim for a, dim in enumerate(dims)))
        calls = tuple(self._with_groups(call, label) for call in self.piece.calls)
        widths = tuple((name, self.width[root]) for root, name in order.items())
        return replace(self.piece, calls=calls, inputs=free_inputs, constants=tuple(free_constants), widths=widths)

    def _new(self, width: Dim) -> int:
        assert isinstance(width, int)
        self.parent[len(self.parent)] = len(self.parent)
        self.width[len(self.parent) - 1] = width
        return len(self.parent) - 1

    def _root(self, one: int) -> int:
        while self.parent[one] != one:
            one = self.parent[one]
        return one

    def _same(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if self.width[first] != self.width[second]:
            raise _RigidError
        self.parent[second] = first

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self.piece.constants[ref.index])

    def _single(self, ref: Any) -> int | None:
        """The one width of a tensor; None for the image, whose channels are given."""
        if not isinstance(ref, Ref) or ref.kind == "c" or ref.part >= 0:
            raise _RigidError
        if ref.kind == "image":
            return None
        if len(self.of[ref]) != 1:
            raise _RigidError
        return self.of[ref][0]

    def _weighted(self, call: Call) -> tuple[int, ...]:
        """A convolution: full, or each channel alone; or a linear layer."""
        given = dict(call.options)
        names = _PARAMETERS[call.name]
        given |= dict(zip(names, call.arguments, strict=False))
        inputs, weight, bias = self._single(given["input"]), given["weight"], given.get("bias")
        if not isinstance(weight, Ref) or weight.kind != "c":
            raise _RigidError
        shape, groups = self._shape(weight), int(given.get("groups", 1))
        out_axis, in_axis = (1, 0) if call.name == "conv_transpose2d" else (0, 1)
        if groups == 1:
            own = self._new(shape[out_axis])
            marks = [(out_axis, own)] + ([] if inputs is None else [(in_axis, inputs)])
        elif inputs is not None and groups == shape[0] == self.width[inputs] and shape[1] == 1:
            own, marks = inputs, [(0, inputs)]
        else:
            raise _RigidError
        self.constants[weight.index] = marks
        if bias is not None:
            self.constants[bias.index] = [(0, own)]
        return (own,)

    def _plain(self, call: Call) -> tuple[int, ...]:
        """Something that works on each channel alone."""
        if call.name not in PLAIN:
            raise _RigidError
        refs = list(_refs([call.arguments, call.options]))
        moving = [ref for ref in refs if ref.kind != "c"]
        if any(ref.kind == "image" for ref in moving):
            raise _RigidError
        if call.name == "cat":
            if dict(call.options).get("dim", (*call.arguments, 0)[1]) != 1:
                raise _RigidError
            return tuple(width for ref in moving for width in self.of[ref])
        if len({len(self.of[ref]) for ref in moving}) != 1:
            raise _RigidError
        result = self.of[moving[0]]
        for ref in moving[1:]:
            for one, other in zip(result, self.of[ref], strict=True):
                self._same(one, other)
        for ref in refs:
            if ref.kind == "c" and math.prod(self._shape(ref)) > 1:
                if len(result) != 1:
                    raise _RigidError
                axes = [axis for axis, dim in enumerate(self._shape(ref)) if dim != 1]
                if len(axes) != 1 or self._shape(ref)[axes[0]] != self.width[self._root(result[0])]:
                    raise _RigidError
                self.constants[ref.index] = [(axes[0], result[0])]
        return result

    def _with_groups(self, call: Call, label: Callable[[int], str]) -> Call:
        """A depthwise convolution's number of groups is its width."""
        if call.name not in WEIGHTED or call.name == "linear":
            return call
        given = dict(call.options) | dict(zip(_PARAMETERS[call.name], call.arguments, strict=False))
        if int(given.get("groups", 1)) == 1:
            return call
        given["groups"] = label(self._single(given["input"]) or 0)
        return replace(call, arguments=(), options=tuple(sorted(given.items())))


_PARAMETERS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
}


def _axis(shape: Shape) -> int:
    """Where the channels are: N x C x H x W, or N x tokens x C."""
    return 1 if len(shape) == 4 else len(shape) - 1


class PieceNetwork(nn.Module):
    """A piece as a network of its own: 1 x 3 x h x w to 1 x 1 x 1 x 1, so that every engine takes it.

    A pointwise convolution of three channels makes each input; the mean over each output keeps engines from leaving
    the piece out. Both hand over and take the tensor in the engine's own memory layout, as its neighbours would.

    Args:
        piece: at the widths that it has.
    """

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.piece = piece
        self.size = picture_size(piece)
        self.entrances = nn.ModuleList()
        for dims in piece.inputs:
            shape = piece.shape(dims)
            made: nn.Module = nn.Linear(3, shape[-1]) if len(shape) == 3 else nn.Conv2d(3, shape[_axis(shape)], 1)
            self.entrances.append(made if len(shape) in (3, 4) else nn.Identity())
        generator = torch.Generator().manual_seed(0)
        self.constants = nn.ParameterList()
        for dims in piece.constants:
            shape = piece.shape(dims)
            spread = 1 / math.sqrt(max(1, math.prod(shape[1:])))
            weight = torch.randn(shape, generator=generator) * spread if len(shape) > 1 else torch.ones(shape)
            self.constants.append(nn.Parameter(weight, requires_grad=False))

    def forward(self, image: Tensor) -> Tensor:
        """1 x 1 x 1 x 1 from 1 x 3 x h x w."""
        inputs = [
            _entered(made, image, self.piece.shape(dims))
            for made, dims in zip(self.entrances, self.piece.inputs, strict=True)
        ]
        results: list[Any] = []
        widths = dict(self.piece.widths)

        def found(ref: Ref) -> Any:
            if ref.kind == "t":
                return results[ref.index] if ref.part < 0 else results[ref.index][ref.part]
            return {"x": lambda: inputs[ref.index], "c": lambda: self.constants[ref.index], "image": lambda: image}[
                ref.kind
            ]()

        for call in self.piece.calls:
            options = {key: _mapped(value, found) for key, value in call.options}
            if isinstance(options.get("groups"), str):
                options["groups"] = widths[options["groups"]]
            results.append(call.function(*_mapped(call.arguments, found), **options))
        total = sum(_left(found(ref)) for ref in self.piece.outputs)
        assert isinstance(total, Tensor)
        return total


def picture_size(piece: Piece) -> tuple[int, int]:
    """(height, width) of the picture that a piece's network takes: that of its first input."""
    if piece.image:
        return piece.image[2], piece.image[3]
    shape = piece.shape(piece.inputs[0]) if piece.inputs else (1, 1, 1, 1)
    if len(shape) == 4:
        return shape[2], shape[3]
    return (shape[1], 1) if len(shape) == 3 else (1, 1)


def _entered(made: nn.Module, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 4:
        small = image if image.shape[2:] == shape[2:] else F.interpolate(image, size=shape[2:], mode="nearest")
        return made(small)  # type: ignore[no-any-return]
    if len(shape) == 3:
        small = image if image.shape[2:] == (shape[1], 1) else F.interpolate(image, size=(shape[1], 1), mode="nearest")
        return made(small[..., 0].transpose(1, 2))  # type: ignore[no-any-return]
    return image.mean() + torch.ones(shape)


def _left(result: Tensor) -> Tensor:
    """1 x 1 x 1 x 1 from a piece's result."""
    if result.ndim == 4:
        pooled = F.avg_pool2d(result, (result.shape[2], result.shape[3]))
        return pooled.mean(1, keepdim=True)
    return result.mean().reshape(1, 1, 1, 1)
