"""A network cut into pieces that an engine can be timed on: a convolution or matrix product with what engines fuse.

The network runs once without values (PyTorch's meta device), and every call of a tensor function is written down. Each
convolution or linear layer begins a piece; what follows it (batch norm, activation, upsampling, the addition of a
skip) belongs to it until the next one, since engines compute these together. Where all that a piece does is known to
be independent of the number of channels, these become free: the same piece exists at every width, and what was measured
at some widths tells others. Other pieces (attention, reshaping) are rigid: each width is a piece of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from leadline.compression.piece import WEIGHTED, Call, Piece, Ref, refs
from leadline.compression.piece_widths import freed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


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
            arguments, options = _owned(call.arguments, own), _owned(call.options, own)
            calls.append(Call(call.function, call.name, tuple(arguments), tuple(sorted(options.items()))))
        last = {}
        for call in group:
            for key in call.results:
                if key in self.taken and self.values[key].owner == number:
                    last[key] = self.values[key].place
        outputs = tuple(last.values()) or (Ref("t", len(group) - 1, 0 if len(group[-1].results) > 1 else -1),)
        takes_image = any(ref.kind == "image" for call in calls for ref in refs([call.arguments, call.options]))
        image = tuple(self.image.shape) if takes_image else ()
        found = Piece(tuple(calls), tuple(shape for _, shape in inputs.values()), tuple(constants), outputs, image)
        return freed(found)


@dataclass(frozen=True)
class _Seen:
    """A tensor in recorded arguments, with what was known about it when the call ran."""

    key: int
    value: _Value


def _name(func: Callable[..., Any]) -> str:
    resolved: Any = resolve_name  # untyped in some versions of PyTorch
    name = str(resolved(func) or getattr(func, "__name__", repr(func))).rpartition(".")[2]
    return name.strip("_") if name.startswith("__") else name


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


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


def _owned(value: Any, change: Callable[[_Seen], Ref]) -> Any:
    if isinstance(value, _Seen):
        return change(value)
    if isinstance(value, dict):
        return {key: _owned(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_owned(each, change) for each in value)
    return value
