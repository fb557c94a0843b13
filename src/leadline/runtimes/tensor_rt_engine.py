"""TensorRT engines: built from an ONNX graph on the machine that runs them, and kept in the user's own cache.

An engine file is compiled code, valid for one GPU and one version: reading a stranger's is running a stranger's
program. So bundles carry the graph, and only engines that this user built are ever read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import UnavailableError
from leadline.output import cache_folder, write_atomic
from leadline.runtimes.layer_time import LayerTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.contract import Contract


def open_engine(trt: Any, path: Path, contract: Contract, batch: int, gpu: str) -> tuple[Any, list[str]]:
    """An `ICudaEngine` for a graph on this GPU, and what the user should know about it.

    Args:
        trt: the module `tensorrt`.
        path: the ONNX file.
        contract: of the file: a dynamic one gives an optimisation profile over its range of sizes.
        batch: pictures that one run may take.
        gpu: what the engine is tied to.

    Raises:
        UnavailableError: TensorRT lacks an operator, or cannot build an engine.
    """
    data = path.read_bytes()
    shapes = profile_shapes(contract, batch)
    tied = f"{trt.__version__}|{gpu}|{shapes}|{hashlib.sha256(data).hexdigest()}"
    kept = engine_folder() / f"{hashlib.sha256(tied.encode()).hexdigest()[:32]}.plan"
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if is_own(kept):
        engine = runtime.deserialize_cuda_engine(kept.read_bytes())
        if engine is not None:
            return engine, []
    plan = build_plan(trt, data, shapes, engine_folder() / "timing.cache", str(path))
    write_atomic(kept, plan)
    kept.chmod(0o600)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UnavailableError("TensorRT cannot load the engine that it built", where=path, mend="update TensorRT")
    return engine, [f"engine built here by TensorRT {trt.__version__} for {gpu}; it is kept for the next time"]


def engine_folder() -> Path:
    """The user's cache of engines, readable by nobody else."""
    root = cache_folder() / "tensorrt"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def is_own(path: Path) -> bool:
    """Whether a file is this user's and nobody else could have written it."""
    if not path.is_file() or path.is_symlink():
        return False
    if not hasattr(os, "getuid"):  # Windows: the profile's folder belongs to the user
        return True
    facts = [path.stat(), path.parent.stat()]
    shared = stat.S_IWGRP | stat.S_IWOTH
    return all(each.st_uid == os.getuid() and not each.st_mode & shared for each in facts)


Shapes = tuple[tuple[int, int, int, int], ...]


def profile_shapes(contract: Contract, batch: int) -> Shapes:
    """(smallest, usual, largest) input of an open graph; empty for a fixed one.

    Args:
        contract: of the graph; the usual size is its own.
        batch: the largest number of pictures, and the usual one.
    """
    spec = contract.input
    usual = (batch, 3, spec.height, spec.width)
    if not spec.dynamic:
        return ((1, *usual[1:]), usual, usual) if batch > 1 else ()
    step = spec.multiple_of
    low, high = max(2, math.ceil(spec.min_side / step)) * step, spec.max_side // step * step
    return (1, 3, min(low, spec.height), min(low, spec.width)), usual, (batch, 3, high, high)


def build_plan(trt: Any, data: bytes, shapes: Shapes, timing: Path, name: str) -> bytes:
    """Compile an ONNX graph: its own types are the arithmetic, TF32 and refitting stay off.

    Args:
        trt: the module `tensorrt`.
        data: the ONNX file.
        shapes: from `profile_shapes`.
        timing: file with TensorRT's measurements of earlier builds; brought up to date.
        name: of the graph, for messages.

    Raises:
        UnavailableError: TensorRT lacks an operator, or cannot build an engine.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        why = parser.get_error(0).desc() if parser.num_errors else "its parser gives no reason"
        raise UnavailableError("TensorRT cannot read", where=name, why=why, mend="update it, or use onnxruntime")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the arithmetic can be read back
    cache = config.create_timing_cache(timing.read_bytes() if is_own(timing) else b"")
    if not config.set_timing_cache(cache, False):  # measured on another GPU or by another version
        config.set_timing_cache(config.create_timing_cache(b""), False)
    if shapes:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        mend = "export a fixed size, or use onnxruntime"
        raise UnavailableError("TensorRT cannot build an engine of", where=name, why="see its log above", mend=mend)
    write_atomic(timing, bytes(config.get_timing_cache().serialize()))
    timing.chmod(0o600)
    return bytes(plan)


KINDS = (("INT8", "int8"), ("FP16", "fp16"), ("HALF", "fp16"), ("BF16", "bf16"), ("FP32", "fp32"), ("FLOAT", "fp32"))
HEAVY = ("conv", "gemm", "matmul", "matrixmultiply", "deconv", "mha")


def executed_precision(trt: Any, engine: Any) -> str:
    """What the engine's convolutions and matrix products take, as its inspector says.

    Returns:
        `fp32`, `fp16`, `int8 (38 of 40 layers)`, or `unknown` where the inspector's words are not understood.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return "unknown"
    ran: Counter[str] = Counter()
    for layer in layers:
        if not isinstance(layer, dict) or not any(word in str(layer.get("LayerType", "")).lower() for word in HEAVY):
            continue
        facts = str((layer.get("Inputs") or [""])[0]).upper()
        ran[next((kind for word, kind in KINDS if word in facts), "unknown")] += 1
    total = sum(ran.values())
    if not total or ran["unknown"]:
        return "unknown"
    if ran["int8"]:
        return f"int8 ({ran['int8']} of {total} layers)"
    most, count = ran.most_common(1)[0]
    return most if count == total else f"{most} ({count} of {total} layers)"


def layer_times(trt: Any, context: Any, run: Callable[[], Any], runs: int) -> list[LayerTime]:
    """Median time of each layer by TensorRT's profiler.

    Args:
        trt: the module `tensorrt`.
        context: of the engine.
        run: runs it once.
        runs: that count; one before them warms up.
    """
    times: dict[str, list[float]] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    run()
    context.profiler = Profiler()
    for _ in range(runs):
        run()
    return [LayerTime(name, "", float(np.median(values))) for name, values in times.items()]
