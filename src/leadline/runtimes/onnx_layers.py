"""Time of each layer by ONNX Runtime's own profiler, and its operations from the shapes that it writes down."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from leadline.runtimes.layer_time import LayerTime

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIX = "_kernel_time"
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger")
WARMUP = 2


def layer_times(open_profiled: Callable[[str], Any], feed: dict[str, Any], runs: int) -> list[LayerTime]:
    """Medians over the runs.

    Args:
        open_profiled: opens a session that writes its profile under the given prefix.
        feed: of each run.
        runs: that count.
    """
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        session = open_profiled(str(Path(folder) / "profile"))
        for _ in range(WARMUP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            found[event["name"].removesuffix(SUFFIX)].append(event)
    return [_layer(name, seen[WARMUP:]) for name, seen in found.items()]


def _layer(name: str, seen: list[dict[str, Any]]) -> LayerTime:
    told = seen[0]["args"]
    inputs, outputs = (_shapes(told.get(key)) for key in ("input_type_shape", "output_type_shape"))
    traffic = sum(int(told.get(key, 0)) for key in ("parameter_size", "activation_size", "output_size"))
    ms = median(event["dur"] for event in seen) / 1e3
    return LayerTime(name, told["op_name"], ms, _operations(told["op_name"], inputs, outputs), traffic)


def _shapes(told: list[dict[str, list[int]]] | None) -> list[list[int]]:
    return [shape for each in told or () for shape in each.values()]


def _operations(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> int | None:
    """Of convolutions and products whose shapes are written down; packed INT8 weights have none."""
    if not outputs or len(inputs) < 2:
        return None
    if kind in CONVOLUTIONS:
        weights = next((shape for shape in inputs[1:] if len(shape) == len(outputs[0])), None)
        return 2 * math.prod(outputs[0]) * math.prod(weights[1:]) if weights else None
    if kind.endswith(("MatMul", "Gemm")) and not kind.startswith("Q") and inputs[0]:
        return 2 * math.prod(outputs[0]) * inputs[0][-1]
    return None
