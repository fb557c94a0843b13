"""What an engine's own profiler tells about one layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerTime:
    """One step of the network as the engine runs it, which may be several layers of the network fused.

    Args:
        name: the engine's own.
        kind: operator, and the kernel where the engine says it.
        ms: median over the profiled runs, milliseconds.
        operations: multiplications and additions (twice the multiply-accumulates) where they can be told from the
            shapes; None where they cannot.
        bytes: weights, inputs and outputs in the width that the engine holds them in; None where unknown.
    """

    name: str
    kind: str
    ms: float
    operations: int | None = None
    bytes: int | None = None
