"""Peak arithmetic and memory bandwidth of this machine, measured in a process of its own.

    python -m leadline.evaluation.peaks THREADS

Matrix products of several libraries and sizes; the fastest repeat of the fastest counts, since other programs and a
cold clock only ever slow one down. One multiply-accumulate is two operations. Memory: a copy (2 transfers a number)
and a triad a + s b (3 transfers) over arrays that no cache holds.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError
from leadline.evaluation.isolation import thread_environment
from leadline.evaluation.roofline import Peak, Roofline, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIDES = (512, 1024)  # of square matrices: one that stays in the second cache, one that does not
REPEATS = 30
SECONDS = 1.0  # for the repeats of one kernel, where it is slow
ARRAY = 256 * 2**20  # bytes
TIMEOUT = 300.0

Kernel = tuple[str, float, "Callable[[], object]"]  # name, operations or bytes of a call, the call


def measure(machine: str, threads: int, command: tuple[str, ...] | None = None) -> Roofline:
    """Measure in a process whose libraries have `threads` threads; 0 leaves their number to them.

    Raises:
        LeadlineError: the process failed or did not end.
    """
    command = command or (sys.executable, "-m", "leadline.evaluation.peaks")
    try:
        done = subprocess.run(
            [*command, str(threads)],
            env=thread_environment(threads),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise LeadlineError("the roofline was not measured", why=f"no end within {TIMEOUT:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise LeadlineError("the roofline was not measured", why=lines[-1][:300])
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return parsed({**json.loads(done.stdout), "machine": machine, "threads": threads, "date": date})


def measured(threads: int) -> dict[str, Any]:
    """Peaks and bandwidth by this process's own libraries, as plain values."""
    import psutil
    import torch

    if threads:
        torch.set_num_threads(threads)
    began, busy = time.perf_counter(), _busy_seconds()
    peaks: dict[str, dict[str, Any]] = {}
    for precision, name, operations, call in products(threads):
        found = rate(name, operations, call)
        if precision not in peaks or found.best > peaks[precision]["best"]:
            peaks[precision] = vars(found)
    bandwidth = max((rate(*kernel) for kernel in transfers()), key=lambda peak: peak.best)
    others = (_busy_seconds() - busy) / (time.perf_counter() - began)
    cores = psutil.cpu_count() or 1
    return {
        "peaks": peaks,
        "bandwidth": vars(bandwidth),
        "cores": cores,
        "others": round(min(max(others, 0.0), cores), 2),
    }


def rate(name: str, amount: float, call: Callable[[], object]) -> Peak:
    """10^9 units a second of repeated calls, two unmeasured ones before them."""
    import numpy as np

    call()
    call()
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < REPEATS and (len(rates) < 5 or time.perf_counter() - began < SECONDS):
        started = time.perf_counter_ns()
        call()
        rates.append(amount / (time.perf_counter_ns() - started))
    low, median, high = np.percentile(rates, [25, 50, 75]).tolist()
    return Peak(max(rates), high - low, median, len(rates), name)


def products(threads: int) -> Iterator[tuple[str, str, float, Callable[[], object]]]:
    """(precision, kernel, operations, call) of every matrix product that works here."""
    import numpy as np
    import torch

    from leadline.evaluation.machine import this_machine

    generator = np.random.default_rng(0)
    half = {"bf16": torch.bfloat16}
    if {"avx512_fp16", "asimdhp"} & set(this_machine().instruction_sets):
        half["fp16"] = torch.float16
    for side in SIDES:
        operations = 2.0 * side**3
        a = generator.normal(size=(side, side)).astype(np.float32)
        whole = torch.from_numpy(a)
        yield "fp32", f"NumPy {side}", operations, _bound(np.matmul, a, a)
        yield "fp32", f"torch {side}", operations, _bound(torch.matmul, whole, whole)
        for precision, kind in half.items():
            narrow = whole.to(kind)
            yield precision, f"torch {side}", operations, _bound(torch.matmul, narrow, narrow)
        integers = torch.from_numpy(generator.integers(-127, 127, (side, side)).astype(np.int8))
        private = getattr(torch, "_int_mm", None)  # another PyTorch may lack it, or its kernel for this processor
        with contextlib.suppress(RuntimeError):
            if private is not None and private(integers, integers) is not None:
                yield "int8", f"torch _int_mm {side}", operations, _bound(private, integers, integers)
        yield "fp32", f"onnxruntime MatMul {side}", operations, _onnx_product("MatMul", side, threads)
        yield "int8", f"onnxruntime MatMulInteger {side}", operations, _onnx_product("MatMulInteger", side, threads)


def transfers() -> Iterator[Kernel]:
    """(kernel, bytes, call) of a copy and a triad over arrays out of every cache."""
    import psutil
    import torch

    numbers = min(ARRAY, psutil.virtual_memory().available // 8) // 4
    a, b, out = (torch.ones(numbers) for _ in range(3))
    size = f"{numbers * 4 / 2**20:.0f} MiB"
    yield f"copy {size}", 8.0 * numbers, _bound(out.copy_, a)
    yield f"triad {size}", 12.0 * numbers, lambda: torch.add(a, b, alpha=2.0, out=out)


def _busy_seconds() -> float:
    """Seconds that all cores have worked for others than this process; what a host took from a guest included."""
    import psutil

    times = psutil.cpu_times()._asdict()
    whole = sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return float(whole) - time.process_time()


def _bound(call: Callable[..., object], *values: object) -> Callable[[], object]:
    return lambda: call(*values)


def _onnx_product(operator: str, side: int, threads: int) -> Callable[[], object]:
    """A product whose right side is constant, as a network's weights are."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    whole = operator == "MatMulInteger"
    left = generator.integers(0, 255, (side, side)).astype(np.uint8 if whole else np.float32)
    right = generator.integers(-127, 127, (side, side)).astype(np.int8 if whole else np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        operator,
        [helper.make_tensor_value_info("a", TensorProto.UINT8 if whole else TensorProto.FLOAT, (side, side))],
        [helper.make_tensor_value_info("c", TensorProto.INT32 if whole else TensorProto.FLOAT, (side, side))],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})


def main() -> None:
    """Measure, and print plain values as JSON; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    json.dump(measured(int(sys.argv[1])), answers)
    answers.close()


if __name__ == "__main__":
    main()
