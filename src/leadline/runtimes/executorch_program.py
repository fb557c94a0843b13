"""What an ExecuTorch program computes, read from the XNNPACK graphs inside it."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

# Of ExecuTorch's XNNPACK schema (backends/xnnpack/serialization/schema.fbs): each graph follows a header with this
# magic four bytes in; members of its unions count from 1, fields of its tables from 0.
MAGIC = b"XH00"
CONVOLUTIONS, PRODUCTS = {7, 13, 39}, {2, 37}  # plain, depthwise, transposed; fully connected, batch matrix product
INPUT_OF_CONVOLUTION, INPUT_OF_PRODUCT = 15, 0
QUANTISED_VALUE = 2
ID_OF_VALUE = 6
INT8 = {3, 4, 9, 11}  # signed, unsigned, quantised while running, the same packed
HALF = 2


def is_program(data: bytes) -> bool:
    """Whether a file starts as a program does; the engine ends the process on some that do not."""
    return len(data) > 64 and data[4:6] == b"ET" and data[6:8].isdigit()


def program_precision(data: bytes) -> str:
    """What convolutions and matrix products are computed in.

    Args:
        data: a `.pte` file whose heavy layers are XNNPACK's.

    Returns:
        `fp32`, `fp16` or `int8 (38 of 40 layers)`; `unknown` where there is no graph of XNNPACK.
    """
    ran: Counter[str] = Counter()
    at = data.find(MAGIC)
    while at >= 4:
        ran += _layers(data, at - 4)
        at = data.find(MAGIC, at + 4)
    total = sum(ran.values())
    if ran["int8"]:
        return f"int8 ({ran['int8']} of {total} layers)"
    return ran.most_common(1)[0][0] if total else "unknown"


def _layers(data: bytes, start: int) -> Counter[str]:
    """Heavy layers of one graph by their arithmetic; nothing where the bytes are no graph."""
    from flatbuffers.table import Table

    offset, size = struct.unpack_from("<II", data, start + 10)
    graph = data[start + offset : start + offset + size]
    if graph[4:6] != b"XN":
        return Counter()
    root = Table(graph, struct.unpack_from("<I", graph, 0)[0])
    types = dict(_value(union) for union in _vector(root, 2))
    ran: Counter[str] = Counter()
    for union in _vector(root, 1):
        kind = _number(union, 0, "B")
        if kind in CONVOLUTIONS or kind in PRODUCTS:
            source = _number(_table(union, 1), INPUT_OF_CONVOLUTION if kind in CONVOLUTIONS else INPUT_OF_PRODUCT, "I")
            stored = types.get(source, 1)
            ran["int8" if stored in INT8 else "fp16" if stored == HALF else "fp32"] += 1
    return ran


def _value(union: Any) -> tuple[int, int]:
    """(id, type of its numbers) of a value."""
    tensor = _table(union, 1)
    if _number(union, 0, "B") == QUANTISED_VALUE:
        tensor = _table(tensor, 0)
    return _number(tensor, ID_OF_VALUE, "I"), _number(tensor, 0, "h")


def _vector(table: Any, field: int) -> list[Any]:
    from flatbuffers.table import Table

    place = table.Offset(4 + 2 * field)
    if not place:
        return []
    first = table.Vector(place)
    return [Table(table.Bytes, table.Indirect(first + 4 * index)) for index in range(table.VectorLen(place))]


def _table(table: Any, field: int) -> Any:
    from flatbuffers.table import Table

    return Table(table.Bytes, table.Indirect(table.Pos + table.Offset(4 + 2 * field)))


def _number(table: Any, field: int, form: str) -> int:
    place = table.Offset(4 + 2 * field)
    found: int = struct.unpack_from(f"<{form}", table.Bytes, table.Pos + place)[0] if place else 0
    return found
