"""Weights out of PyTorch's own files (`.pth`, `.pt`, `.pth.tar`, `.bin`) without executing anything in them.

Reads today's zip form and the stream form of PyTorch before 1.6, state dicts and whole pickled modules alike.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from leadline.errors import CheckpointError
from leadline.inert_pickle import (
    MalformedPickleError,
    Name,
    Record,
    RefusedPickleError,
    TensorPlan,
    read_inert,
    read_inert_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

_STREAM_MAGIC, _STREAM_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {  # storage class -> (bytes per element, torch dtype)
    "Float": (4, "float32"),
    "Double": (8, "float64"),
    "Half": (2, "float16"),
    "BFloat16": (2, "bfloat16"),
    "Long": (8, "int64"),
    "Int": (4, "int32"),
    "Short": (2, "int16"),
    "Char": (1, "int8"),
    "Byte": (1, "uint8"),
    "Bool": (1, "bool"),
}
_STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
# What zipfile and torch raise on damaged bytes; MalformedPickleError is a ValueError.
_DAMAGE = (ValueError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, IndexError)
_MAX_MODULES, _MAX_DEPTH = 100_000, 64
_PLAIN = (int, float, bool, str)
_MEND = "ask for a safetensors file, or save its state_dict() where you trust it"


@dataclass(frozen=True)
class TorchWeights:
    """What a PyTorch file holds.

    Args:
        state: key to tensor, the `module.` of DataParallel removed.
        module: class name of the pickled module, as the file writes it; empty for a state dict.
        facts: whole numbers, reals, flags and texts that stand among the tensors of a state dict, by name.
    """

    state: dict[str, torch.Tensor] = field(repr=False)
    module: str = ""
    facts: dict[str, int | float | bool | str] = field(default_factory=dict)


@dataclass(eq=False)
class _Storage:
    kind: str
    numel: int
    data: bytearray | None = None


def read_torch_file(path: Path) -> TorchWeights:
    """The tensors of a PyTorch file, by name.

    Args:
        path: `.pth`, `.pt`, `.pth.tar` or `.bin`, in zip or stream form.

    Raises:
        CheckpointError: the file is empty, truncated, damaged, not of PyTorch, holds no network, or names anything
            but tensors, plain containers and network classes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(512)
            _check_head(path, head)
            stream.seek(0)
            root = _read_zip(stream, size) if head.startswith(b"PK") else _read_stream(stream, size)
        module, plans, facts = _named_plans(root)
        return TorchWeights(_tensors(plans, size), module, facts)
    except RefusedPickleError as error:
        why = f"it uses {error}, which is no tensor, plain container or network class; nothing in it was executed"
        raise CheckpointError("refused to read", where=path, why=why, mend=_MEND) from error
    except _DAMAGE as error:
        why = f"truncated or damaged: {error}" if str(error) else "truncated or damaged"
        raise CheckpointError("cannot read weights", where=path, why=why, mend="download or copy it again") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError("cannot read weights", where=path, why=why) from error


def _check_head(path: Path, head: bytes) -> None:
    what, again = "cannot read weights", "download it again"
    if not head:
        raise CheckpointError(what, where=path, why="the file is empty", mend=again)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(what, where=path, why="it is a Git LFS pointer, not the file", mend="run git lfs pull")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise CheckpointError(what, where=path, why="it is a web page, not weights", mend=again)
    if head[257:262] == b"ustar":
        why = "it is a tar archive (PyTorch's form before 0.2, or something else)"
        raise CheckpointError(what, where=path, why=why, mend="unpack it, or save it again with a newer PyTorch")
    if not head.startswith((b"PK", b"\x80")):
        why, mend = "it is neither PyTorch's zip form nor its stream form", "give a .pth, .pt or .safetensors file"
        raise CheckpointError(what, where=path, why=why, mend=mend)


def _read_zip(stream: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # PyTorch stores without compression, so an honest archive never holds more than its own size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise MalformedPickleError("compressed entries, which PyTorch does not write")
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise MalformedPickleError("its entries claim more bytes than the file has")
        roots = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise MalformedPickleError("a zip archive without PyTorch's data.pkl")
        base = roots[0].removesuffix("data.pkl")
        if any(name.startswith(f"{base}code/") for name in entries):
            raise RefusedPickleError("TorchScript (program code)")
        if f"{base}byteorder" in entries and archive.read(f"{base}byteorder").strip() != b"little":
            raise MalformedPickleError("big-endian tensors")
        storages: dict[str, _Storage] = {}

        def persistent(identity: Any) -> Any:
            kind, key, numel, _ = _storage_identity(identity)
            if key not in storages:
                name = f"{base}data/{key}"
                if name not in entries:
                    raise MalformedPickleError(f"tensor data {key} is missing")
                data = bytearray(archive.read(name))
                if len(data) < numel * _TYPES[kind][0]:
                    raise MalformedPickleError(
                        f"tensor data {key} has {len(data)} bytes, {numel * _TYPES[kind][0]} are needed"
                    )
                storages[key] = _Storage(kind, numel, data)
            return _same_kind(storages[key], kind, numel)

        return read_inert_bytes(archive.read(roots[0]), persistent)


def _read_stream(stream: BinaryIO, size: int) -> Any:
    """Magic number, protocol, system, root, keys of the storages; then each storage as int64 count and raw values."""

    def no_storage(_: Any) -> Any:
        raise MalformedPickleError("a storage outside the root")

    if read_inert(stream, no_storage) != _STREAM_MAGIC:
        raise MalformedPickleError("a pickle that PyTorch did not write")
    if read_inert(stream, no_storage) != _STREAM_PROTOCOL:
        raise MalformedPickleError("an unknown version of PyTorch's stream form")
    system = read_inert(stream, no_storage)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise MalformedPickleError("big-endian tensors")
    storages: dict[str, _Storage] = {}

    def persistent(identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) >= 2 and identity[0] == "module":
            return identity[1]  # the class, then its source file and source text, which nobody needs
        kind, key, numel, view = _storage_identity(identity)
        if view is not None:
            raise MalformedPickleError("a storage that is a view of another")
        return _same_kind(storages.setdefault(key, _Storage(kind, numel)), kind, numel)

    root = read_inert(stream, persistent)
    keys = read_inert(stream, no_storage)
    if not isinstance(keys, list) or any(not isinstance(key, str) or key not in storages for key in keys):
        raise MalformedPickleError("its list of storages does not fit its tensors")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(stream.read(8), "little")
        length = storage.numel * _TYPES[storage.kind][0]
        if count != storage.numel or stream.tell() + length > size:
            raise MalformedPickleError(f"tensor data {key} is incomplete")
        storage.data = bytearray(stream.read(length))
    return root


def _storage_identity(identity: Any) -> tuple[str, str, int, Any]:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise MalformedPickleError("an unknown persistent id")
    _, kind, key, _, numel, *view = identity
    if not isinstance(kind, Name) or not kind.text.endswith("Storage") or not isinstance(key, str):
        raise MalformedPickleError("a storage without type or key")
    short = kind.text.rsplit(".", 1)[1].removesuffix("Storage")
    if short not in _TYPES or type(numel) is not int or numel < 0:
        raise MalformedPickleError("a storage of unknown type or size")
    return short, key, numel, view[0] if view else None


def _same_kind(storage: _Storage, kind: str, numel: int) -> _Storage:
    if (storage.kind, storage.numel) != (kind, numel):
        raise MalformedPickleError("a storage with two types or sizes")
    return storage


def _named_plans(root: Any) -> tuple[str, dict[str, TensorPlan], dict[str, int | float | bool | str]]:
    """Class name of the module (or nothing), its tensors by name wherever they stand, and plain values among them."""
    found, name = root, ""
    for _ in range(4):
        if isinstance(found, Record):
            name, plans = found.name, dict(_module_plans(found))
            break
        if not isinstance(found, dict):
            raise MalformedPickleError("it holds no network: neither a state dict nor a module")
        plans = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, TensorPlan)}
        inner = next((found[key] for key in _STATE_KEYS if isinstance(found.get(key), dict | Record)), None)
        if plans or inner is None:
            break
        found = inner
    if not plans:
        raise MalformedPickleError("it holds no network: no tensors were found")
    while all(key.startswith("module.") for key in plans):
        plans = {key.removeprefix("module."): plan for key, plan in plans.items()}
    among = found.items() if isinstance(found, dict) else ()
    return name, plans, {key: value for key, value in among if isinstance(key, str) and type(value) in _PLAIN}


def _module_plans(root: Record) -> Iterator[tuple[str, TensorPlan]]:
    """Parameters and persistent buffers of a pickled module, depth first, named as `state_dict` names them."""
    waiting, seen = [("", root, 0)], 0
    while waiting:
        prefix, record, depth = waiting.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_MODULES:
            raise MalformedPickleError("modules nested too deeply or too many of them")
        state = record.state if isinstance(record.state, dict) else {}
        hidden = state.get("_non_persistent_buffers_set")
        for place in ("_parameters", "_buffers"):
            for key, value in _entries(state, place):
                if isinstance(value, TensorPlan) and not (isinstance(hidden, list) and key in hidden):
                    yield f"{prefix}{key}", value
        children = [(key, child) for key, child in _entries(state, "_modules") if isinstance(child, Record)]
        waiting += [(f"{prefix}{key}.", child, depth + 1) for key, child in reversed(children)]


def _entries(state: Mapping[Any, Any], place: str) -> list[tuple[str, Any]]:
    values = state.get(place)
    return [(key, value) for key, value in values.items() if isinstance(key, str)] if isinstance(values, dict) else []


def _tensors(plans: Mapping[str, TensorPlan], file_size: int) -> dict[str, torch.Tensor]:
    import torch

    flat: dict[int, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    for key, plan in plans.items():
        storage, numel = plan.storage, math.prod(plan.size)
        if not isinstance(storage, _Storage) or storage.data is None:
            raise MalformedPickleError(f"{key} has no data")
        last = plan.offset + sum((n - 1) * step for n, step in zip(plan.size, plan.stride, strict=True))
        if numel and (last >= storage.numel or numel > storage.numel):
            raise MalformedPickleError(f"{key} reaches beyond its data")
        total += numel * _TYPES[storage.kind][0]
        if total > 4 * file_size + 1024:
            raise MalformedPickleError("its tensors overlap to many times the file's size")
        if numel == 0:
            tensors[key] = torch.empty(plan.size, dtype=getattr(torch, _TYPES[storage.kind][1]))
            continue
        if id(storage) not in flat:
            dtype = getattr(torch, _TYPES[storage.kind][1])
            flat[id(storage)] = torch.frombuffer(storage.data, dtype=dtype, count=storage.numel)
        tensors[key] = flat[id(storage)].as_strided(plan.size, plan.stride, plan.offset)
    return tensors
