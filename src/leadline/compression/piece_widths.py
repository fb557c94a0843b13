"""Which channel counts of a piece are free: the piece does the same at every width, and only its size changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leadline.compression.piece import PARAMETERS, WEIGHTED, Call, Dim, Piece, Ref, axis_of, refs

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = {"batch_norm", "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "sigmoid", "gelu", "elu", "softplus", "silu"}
PLAIN |= {"tanh", "hardswish", "hardsigmoid", "leaky_relu", "dropout", "interpolate", "add", "add_", "sub", "mul"}
PLAIN |= {"div", "rmul", "radd", "rsub", "cat", "avg_pool2d", "max_pool2d", "clamp"}


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
            axis = axis_of(shape)
            own = self._new(shape[axis])
            self.of[Ref("x", place)] = (own,)
            inputs.append((axis, own))
        for place, call in enumerate(self.piece.calls):
            result = self._weighted(call) if call.name in WEIGHTED else self._plain(call)
            self.of[Ref("t", place)] = result
        order: dict[int, str] = {}

        def label(width: int) -> Dim:
            root = self._root(width)
            if self.width[root] == 1:  # a single number may also be what all channels share: never another width
                return 1
            return order.setdefault(root, chr(ord("a") + len(order)))

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
        names = PARAMETERS[call.name]
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
        tensors = list(refs([call.arguments, call.options]))
        moving = [ref for ref in tensors if ref.kind != "c"]
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
        for ref in tensors:
            if ref.kind == "c" and math.prod(self._shape(ref)) > 1:
                if len(result) != 1:
                    raise _RigidError
                axes = [axis for axis, dim in enumerate(self._shape(ref)) if dim != 1]
                if len(axes) != 1 or self._shape(ref)[axes[0]] != self.width[self._root(result[0])]:
                    raise _RigidError
                self.constants[ref.index] = [(axes[0], result[0])]
        return result

    def _with_groups(self, call: Call, label: Callable[[int], Dim]) -> Call:
        """A depthwise convolution's number of groups is its width."""
        if call.name not in WEIGHTED or call.name == "linear":
            return call
        given = dict(call.options) | dict(zip(PARAMETERS[call.name], call.arguments, strict=False))
        if int(given.get("groups", 1)) == 1:
            return call
        given["groups"] = label(self._single(given["input"]) or 0)
        return replace(call, arguments=(), options=tuple(sorted(given.items())))
