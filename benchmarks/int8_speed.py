"""Static INT8 on OpenVINO against eager PyTorch and ONNX Runtime FP32: speed in turn, accuracy paired, one thread.

    python benchmarks/int8_speed.py                                  # speed alone
    python benchmarks/int8_speed.py --data ../shared/data/nyu        # and accuracy on its test split

Prints the median of the round ratios with their quartiles, and the machine. Passes no judgement by itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from leadline.evaluation.evaluate import evaluate, paired
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.evaluation.machine import this_machine
from leadline.reference import load_model
from leadline.runtimes.base import ExportOptions, Precision
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.export import export_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor")
    parser.add_argument("--size", default=None, help="H,W")
    parser.add_argument("--data", default=None, help="data set with ground truth, for the change in accuracy")
    parser.add_argument("--split", default="test")
    parser.add_argument("--protocol", default="nyu-eigen")
    parser.add_argument("--calibration", default=None, help="pictures; rendered ones where absent")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    size = tuple(int(side) for side in options.size.split(",")) if options.size else None
    loaded = load_model(options.model)
    inputs = calibration_inputs(options.calibration, loaded.contract, size, count=options.count)
    wanted = [
        ("torch", Precision.FP32),
        ("onnxruntime", Precision.FP32),
        ("onnxruntime", Precision.INT8_STATIC),
        ("openvino", Precision.FP32),
        ("openvino", Precision.INT8_STATIC),
    ]
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for runtime, precision in wanted:
            static = inputs if precision is Precision.INT8_STATIC else ()
            folder = Path(place) / f"{runtime}-{precision}"
            export_bundle(loaded, runtime, ExportOptions(precision, size=size, calibration=static), folder)
            folders.append(folder)
        print(f"{options.model}, {this_machine()}, one thread, batch 1, {options.runs} runs in turn")
        first, *others = compare(Job(str(folders[0])), [Job(str(f)) for f in folders[1:]], runs=options.runs)
        assert first.latency
        print(f"torch fp32: {first.latency.p50:.2f} ms (IQR {first.latency.iqr:.2f})")
        for folder, timing in zip(folders[1:], others, strict=True):
            if timing.latency is None or timing.ratio is None:
                print(f"{folder.name}: {timing.failure}")
                continue
            r = timing.ratio
            spread = f"{r.value:.3f} of eager [{r.low:.3f}, {r.high:.3f}]"
            print(f"{folder.name}: {timing.latency.p50:.2f} ms (IQR {timing.latency.iqr:.2f}), {spread}")
        ours, *_ = compare(Job(str(folders[1])), [Job(str(folders[4]))], runs=options.runs)[1:]
        if ours.ratio is not None:
            r = ours.ratio
            print(f"openvino int8-static of onnxruntime fp32: {r.value:.3f} [{r.low:.3f}, {r.high:.3f}]")
        if options.data:
            scored = [evaluate(str(f), options.data, options.protocol, split=options.split) for f in folders]
            for folder, result in zip(folders, scored, strict=True):
                delta1 = result.summary()["delta1"]
                change = paired(result, scored[0], "delta1")
                print(
                    f"{folder.name}: delta1 {delta1.value:.4f} [{delta1.low:.4f}, {delta1.high:.4f}], change "
                    f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}], n {delta1.n}, {result.label}"
                )


if __name__ == "__main__":
    main()
