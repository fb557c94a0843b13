"""A reader of pickles that executes nothing: an own interpreter of the opcodes that builds inert values only.

Python's unpickler calls whatever a pickle names, so a file of weights can run any program. Here no name is ever
imported and nothing is ever called: names of network classes and plain containers become records, all others are
refused. (The opcodes: `pickletools` of the standard library.)
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPCODES = 500_000  # the largest published depth networks need about 30,000
MAX_LINE = 1 << 20  # bytes of a text argument
MAX_COPIED = 500_000  # entries of lists that are copied into other containers

# Classes that may stand in a file of weights; an instance becomes a Record of name, arguments and state.
_INERT_PREFIXES = ("torch.nn.", "torchvision.models.", "models.", "imagenet.", "metrics.")
_INERT_NAMES = {
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "torch.device",
}
_STORAGES = {
    f"torch.{place}{kind}Storage"
    for place in ("", "cuda.")
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
_LISTS = {"builtins.list", "builtins.set", "builtins.frozenset", "builtins.tuple", "torch.Size"}
_TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_KNOWN = _INERT_NAMES | _STORAGES | _DICTS | _LISTS | _TENSORS | _PARAMETERS

Key = str | int | float | bytes | None


class MalformedPickleError(ValueError):
    """The bytes are no complete, well-formed pickle, or one beyond the limits."""


class RefusedPickleError(ValueError):
    """The pickle names something that is no tensor, plain container or network class."""


@dataclass(frozen=True, eq=False)
class Name:
    """A global that a pickle names, as text: `module.name`. It is never imported."""

    text: str


@dataclass(eq=False)
class Record:
    """What stands for an object: its class's name, the arguments and the state that the pickle gives it."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Key, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """A tensor as a view of a storage that may not have been read yet: offset, size and stride in elements."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_inert(stream: BinaryIO, persistent: Callable[[Any], Any]) -> Any:
    """Interpret one pickle from the stream, up to and including its STOP.

    Args:
        stream: positioned at the pickle's first byte.
        persistent: makes a value of a persistent id (a tuple of inert values).

    Returns:
        None, numbers, text, bytes, list, tuple, dict, Name, Record, TensorPlan, or what `persistent` returned.

    Raises:
        RefusedPickleError: it names anything that is not known to be harmless data.
        MalformedPickleError: it is truncated, damaged, or beyond the limits.
    """
    machine = _Machine(persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast("BinaryIO", _Bounded(stream))):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (RefusedPickleError, MalformedPickleError):
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise MalformedPickleError(str(error) or type(error).__name__) from error
    raise MalformedPickleError("no end of the pickle")


def read_inert_bytes(data: bytes, persistent: Callable[[Any], Any]) -> Any:
    """`read_inert` of bytes."""
    return read_inert(io.BytesIO(data), persistent)


class _Bounded:
    """The stream, whose reads never ask for more than is there: a forged length must not allocate memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        here = stream.tell()
        self.end = stream.seek(0, io.SEEK_END)
        stream.seek(here)

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, self.end - self.stream.tell()))

    def readline(self) -> bytes:
        return self.stream.readline(MAX_LINE)


class _Machine:
    """Stack and memo of one pickle; `step` does one opcode."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self.opcodes = self.copied = 0

    def step(self, name: str, argument: Any) -> None:
        self.opcodes += 1
        if self.opcodes > MAX_OPCODES:
            raise MalformedPickleError(f"more than {MAX_OPCODES} steps")
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                raise RefusedPickleError(f"the pickle instruction {name}")
            handler(argument)

    def _above_mark(self) -> list[Any]:
        start = self.marks.pop()
        if start > len(self.stack):
            raise MalformedPickleError("stack underflow")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _copy_budget(self, values: Any) -> Any:
        self.copied += len(values)
        if self.copied > MAX_COPIED:
            raise MalformedPickleError(f"more than {MAX_COPIED} copied entries")
        return values

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._above_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    _binget = _long_binget = _get

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._above_mark()))

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise MalformedPickleError("stack underflow")
        values = tuple(self.stack[-count:])
        self.stack[-count:] = [values]

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _list(self, _: Any) -> None:
        self.stack.append(self._above_mark())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        values = self._above_mark()
        self.stack.append({})
        self._set(values)

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise MalformedPickleError("entries appended to something that is no list")
        target.extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._above_mark())

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        if not isinstance(entries, dict) or len(flat) % 2:
            raise MalformedPickleError("entries set in something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            entries[_checked_key(key)] = value

    def _global(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(_name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedPickleError("a global whose name is not text")
        self.stack.append(_name(module, name))

    def _inst(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        arguments = tuple(self._above_mark())
        self.stack.append(self._built(_name(module, name), arguments))

    def _obj(self, _: Any) -> None:
        values = self._above_mark()
        self.stack.append(self._built(values[0], tuple(values[1:])))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self._built(called, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, arguments, called = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords:
            raise RefusedPickleError("an object made with keyword arguments")
        self.stack.append(self._built(called, arguments))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict | TensorPlan):  # attributes of a dictionary (`_metadata`) carry no weights
            raise MalformedPickleError("state for something that has none")

    def _persid(self, argument: Any) -> None:
        self.stack.append(self.persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def _built(self, called: Any, arguments: Any) -> Any:
        """What an object made of `called(*arguments)` is represented by; nothing is called."""
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise RefusedPickleError("a call of something that is no known name")
        if called.text in _DICTS:
            return self._dictionary(arguments)
        if called.text in _LISTS:
            values = arguments[0] if arguments else []
            if not isinstance(values, list | tuple):
                raise MalformedPickleError(f"{called.text} of something that is no list")
            copied = list(self._copy_budget(values))
            return tuple(copied) if called.text in ("builtins.tuple", "torch.Size") else copied
        if called.text in _TENSORS:
            return _tensor_plan(arguments)
        if called.text in _PARAMETERS:
            return arguments[0]
        return Record(called.text, arguments)

    def _dictionary(self, arguments: tuple[Any, ...]) -> dict[Key, Any]:
        pairs = arguments[-1] if arguments else []
        if isinstance(pairs, Name):  # the default factory of a defaultdict
            return {}
        if isinstance(pairs, dict):
            return dict(self._copy_budget(pairs))
        if not isinstance(pairs, list | tuple):
            raise MalformedPickleError("a dictionary of something that is no list of pairs")
        return {_checked_key(key): value for key, value in self._copy_budget(pairs)}


def _name(module: str, name: str) -> Name:
    text = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if text not in _KNOWN and not text.startswith(_INERT_PREFIXES):
        # Names come from a stranger: no control characters to the terminal, no endless lines.
        raise RefusedPickleError(text[:120].encode("ascii", "backslashreplace").decode().__repr__()[1:-1])
    return Name(text)


def _checked_key(key: Any) -> Key:
    # Only flat keys: hashing a tuple nested a million deep would overflow the interpreter's own stack.
    if key is not None and not isinstance(key, str | int | float | bytes):
        raise MalformedPickleError("a dictionary key that is neither text nor a number")
    return key


def _tensor_plan(arguments: tuple[Any, ...]) -> TensorPlan:
    storage, offset, size, stride = arguments[:4]
    for values in (size, stride):
        if not isinstance(values, tuple | list) or any(type(v) is not int or v < 0 for v in values) or len(values) > 16:
            raise MalformedPickleError("a tensor with an impossible size or stride")
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise MalformedPickleError("a tensor with an impossible offset or stride")
    return TensorPlan(storage, offset, tuple(size), tuple(stride))


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
