"""What one thread of this machine can do: matrix products in FP32 and INT8, and copying memory.

    python benchmarks/machine_peak.py

A floor for any network: its multiply-accumulates over the peak, or its bytes over the bandwidth. Matrix products of
ONNX Runtime (1024 x 1024 x 1024; INT8 is unsigned by signed into int32) and of NumPy; one multiply-accumulate counts as
two operations. Copying reads and writes 256 MiB; both directions count. Time is that of the thread on the processor, so
that waiting for other programs does not count; what they take of the caches and the clock does. Median, IQR and best.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from leadline.evaluation.machine import this_machine

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 1024
COPIED = 256 * 2**20  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    runs = parser.parse_args().runs
    print(f"{this_machine()}, one thread, {runs} runs each, in turn")
    generator = np.random.default_rng(0)
    a = generator.normal(size=(SIDE, SIDE)).astype(np.float32)
    source = np.ones(COPIED // 4, np.float32)
    target = np.zeros_like(source)
    operations = 2 * SIDE**3
    measured: dict[str, tuple[str, float, Callable[[], object]]] = {
        "FP32 matrix product, ONNX Runtime": ("GFLOP/s", operations, product("MatMul", np.float32)),
        "FP32 matrix product, NumPy": ("GFLOP/s", operations, lambda: a @ a),
        "INT8 matrix product, ONNX Runtime": ("GOP/s", operations, product("MatMulInteger", np.uint8)),
        "memory, copy": ("GB/s", 2 * COPIED, lambda: np.copyto(target, source)),
    }
    rates: dict[str, list[float]] = {name: [] for name in measured}
    for run in range(runs + 3):
        for name, (_, amount, call) in measured.items():
            started = time.thread_time()
            call()
            if run >= 3:  # warm
                rates[name].append(amount / 1e9 / (time.thread_time() - started))
    for name, found in rates.items():
        low, middle, high = np.percentile(found, (25, 50, 75))
        print(f"{name:34} {middle:7.1f} {measured[name][0]} (IQR {high - low:.1f}, best {max(found):.1f})")


def product(operator: str, kind: type[np.generic]) -> Callable[[], object]:
    """One call of a matrix product whose right side is constant, as a network's weights are."""
    generator = np.random.default_rng(0)
    whole = kind is not np.float32
    left = generator.integers(0, 255, (SIDE, SIDE)).astype(kind)
    right = generator.integers(-127, 127, (SIDE, SIDE)).astype(np.int8 if whole else kind)
    stored = TensorProto.UINT8 if whole else TensorProto.FLOAT
    result = TensorProto.INT32 if whole else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        operator,
        [helper.make_tensor_value_info("a", stored, (SIDE, SIDE))],
        [helper.make_tensor_value_info("c", result, (SIDE, SIDE))],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})


if __name__ == "__main__":
    main()
