"""Where an exported network spends its time: by operator and kernel, and its slowest layers, one thread.

    python benchmarks/layer_profile.py                    # the packaged model: OpenVINO INT8, ONNX Runtime FP32
    python benchmarks/layer_profile.py BUNDLE...          # folders that `leadline export` wrote

The engines' own counters: OpenVINO's profiling information, ONNX Runtime's profile. Counting slows a run a little, so
the sum here is above what `leadline benchmark` measures; the shares are what counts. Medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from leadline.bundle import Bundle, load_bundle
from leadline.evaluation.machine import this_machine
from leadline.reference import load_model
from leadline.runtimes.base import ExportOptions, Precision
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.export import export_bundle

WARMUP = 5
Times = dict[tuple[str, str], list[float]]  # (layer, operator and kernel) to milliseconds of each run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--model", default="leadline-s-indoor", help="exported where no bundle is given")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--top", type=int, default=8, help="slowest layers to name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for folder in options.bundles or exported(options.model, Path(place)):
            bundle = load_bundle(folder)
            profile = {"openvino": open_vino, "onnxruntime": onnx_runtime}.get(bundle.runtime)
            if profile is None:
                print(f"{folder}: {bundle.runtime} keeps no profile here")
                continue
            height, width = bundle.size
            title = f"{bundle.contract.name}: {bundle.runtime} {bundle.precision} {height}x{width}"
            print(f"\n{title}, one thread, {options.runs} runs, {this_machine()}")
            show(profile(bundle, options.runs), options.top)


def exported(model: str, place: Path) -> list[Path]:
    """The packaged model in the two forms that docs/benchmarks.md compares."""
    loaded, folders = load_model(model), []
    for runtime, precision in (("openvino", Precision.INT8_STATIC), ("onnxruntime", Precision.FP32)):
        static = precision is Precision.INT8_STATIC
        inputs = calibration_inputs(None, loaded.contract, None, count=8) if static else ()
        folders.append(place / f"{runtime}-{precision}")
        export_bundle(loaded, runtime, ExportOptions(precision, calibration=inputs), folders[-1])
    return folders


def open_vino(bundle: Bundle, runs: int) -> Times:
    import openvino

    settings = {
        "PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    file = "model.onnx" if "model.onnx" in bundle.files else "model.xml"
    request = openvino.Core().compile_model(bundle.file(file), "CPU", settings).create_infer_request()
    times: Times = defaultdict(list)
    for run in range(WARMUP + runs):
        request.infer([picture(bundle)])
        for node in request.get_profiling_info() if run >= WARMUP else ():
            if node.real_time:
                times[node.node_name, f"{node.node_type} {node.exec_type}"].append(1e3 * node.real_time.total_seconds())
    return times


def onnx_runtime(bundle: Bundle, runs: int) -> Times:
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling = 1, True
        options.profile_file_prefix = str(Path(place) / "profile")
        session = onnxruntime.InferenceSession(bundle.file("model.onnx"), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: picture(bundle)}
        for _ in range(WARMUP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    times: Times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"] / 1e3)
    return {layer: found[WARMUP:] for layer, found in times.items()}


def picture(bundle: Bundle) -> np.ndarray:
    """Noise at the network's size: time does not depend on the values."""
    return np.random.default_rng(0).normal(size=(1, 3, *bundle.size)).astype(np.float32)


def show(times: Times, top: int) -> None:
    medians = {layer: float(np.median(found)) for layer, found in times.items()}
    whole = sum(medians.values())
    kinds: dict[str, list[float]] = defaultdict(list)
    for (_, kind), value in medians.items():
        kinds[kind].append(value)
    print(f"{whole:7.2f} ms in {len(medians)} layers")
    for kind, found in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        if sum(found) >= 0.005 * whole:
            print(f"{sum(found):7.2f} ms {sum(found) / whole:6.1%}  {len(found):3d} x {kind}")
    print("slowest layers:")
    for (name, kind), value in sorted(medians.items(), key=lambda item: -item[1])[:top]:
        low, high = np.percentile(times[name, kind], (25, 75))
        print(f"{value:7.2f} ms (IQR {high - low:.2f})  {kind}  {name}")


if __name__ == "__main__":
    main()
