"""Time of each layer by OpenVINO's own counters, and its operations from the shapes of its execution graph."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

from leadline.runtimes.layer_time import LayerTime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WARMUP = 2


def layer_times(compiled: Any, values: NDArray[np.float32], runs: int) -> list[LayerTime]:
    """Medians over the runs.

    Args:
        compiled: an `openvino.CompiledModel` with `PERF_COUNT`.
        values: of each run.
        runs: that count.
    """
    request = compiled.create_infer_request()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in range(WARMUP + runs):
        request.infer([values])
        for node in request.get_profiling_info() if run >= WARMUP else ():
            kind = f"{node.node_type} {node.exec_type}"
            times[node.node_name, kind].append(1e3 * node.real_time.total_seconds())
    operations = {
        node.get_friendly_name(): _operations(node) for node in compiled.get_runtime_model().get_ordered_ops()
    }
    # the clock counts whole microseconds, and the engine calls a layer quicker than one not run, as it calls constants
    return [
        LayerTime(name, kind, median(found), operations.get(name))
        for (name, kind), found in times.items()
        if any(found) or operations.get(name)
    ]


def _operations(node: Any) -> int | None:
    facts = node.get_rt_info()
    kind = facts["layerType"].value if "layerType" in facts else ""
    shapes = [each.get_partial_shape() for each in (*node.inputs(), *node.outputs())]
    if any(shape.is_dynamic for shape in shapes) or len(shapes) < 3:
        return None
    first, weights, *_, out = ([int(str(side)) for side in shape] for shape in shapes)
    if kind == "Convolution":
        # a grouped convolution has its groups before its channels
        grouped = len(weights) > len(out)
        return 2 * math.prod(out) * math.prod(weights[2:] if grouped else weights[1:])
    if kind in ("MatMul", "FullyConnected"):
        return 2 * math.prod(out) * first[-1]
    return None
