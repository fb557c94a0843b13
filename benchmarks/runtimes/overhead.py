"""What Leadline adds to an engine: preparing and restoring a 480 x 640 picture, and starting from nothing.

    python benchmarks/runtimes/overhead.py                      # the packaged model, ONNX Runtime FP32, one thread

First table: `contract.prepare` and `contract.restore` against the inference between them, in turn, for a network input
of the contract's own size and for one of 480 x 640. The bar is 15 % of FP32 inference. Second table: a fresh Python
process that loads the bundle and predicts its first picture, interpreter and imports included. The bar is 1.5 s on an
idle machine; processor time is beside it, which a busy machine does not stretch. Medians and IQR.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.evaluation.machine import this_machine
from leadline.reference import load_model, open_session
from leadline.runtimes.base import ExportOptions
from leadline.runtimes.export import export_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PICTURE = (480, 640)
BARS = {"share": 0.15, "seconds": 1.5}
FIRST = """
import json, os, sys
import numpy as np
import leadline
with leadline.load(sys.argv[1]) as predictor:
    depth = predictor.predict(np.zeros((480, 640, 3), np.uint8))
assert depth.values.shape == (480, 640)
heavy = sorted({"torch", "onnx", "scipy", "matplotlib", "transformers", "openvino"} & set(sys.modules))
times = os.times()
print(json.dumps({"processor": times.user + times.system, "heavy": heavy}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--starts", type=int, default=12)
    options = parser.parse_args()
    loaded = load_model(options.model)
    own = (loaded.contract.input.height, loaded.contract.input.width)
    print(f"{this_machine()}, one thread, {options.model}, ONNX Runtime FP32\n")
    with tempfile.TemporaryDirectory() as place:
        folders = {size: Path(place) / f"{size[0]}x{size[1]}" for size in (own, PICTURE)}
        for size, folder in folders.items():
            export_bundle(loaded, "onnxruntime", ExportOptions(size=size), folder)
        print("| network input | n | prepare ms | inference ms | restore ms | added, wall | added, processor | bar |")
        print("|---|---|---|---|---|---|---|---|")
        for size, folder in folders.items():
            print(around(folder, size, options.runs))
        print("\n| fresh process | n | wall s | processor s | heavy imports | bar |\n|---|---|---|---|---|---|")
        print(started("Python and NumPy", ["-c", BARE], options.starts))
        print(started("first prediction", ["-c", FIRST, str(folders[own])], options.starts))


BARE = "import json, os, numpy; t = os.times(); print(json.dumps({'processor': t.user + t.system, 'heavy': []}))"


def around(folder: Path, size: tuple[int, int], runs: int) -> str:
    """One row: the three steps of one picture after the other, so that a busy machine slows all of them."""
    session = open_session(str(folder))
    contract = session.contract
    picture = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), np.uint8)
    values = contract.prepare(picture)
    output = session.run(values)
    steps: list[Callable[[], object]] = [
        lambda: contract.prepare(picture),
        lambda: session.run(values),
        lambda: contract.restore(output, PICTURE),
    ]
    wall, processor = np.zeros((runs, 3)), np.zeros((runs, 3))
    for run in range(-5, runs):
        for index, step in enumerate(steps):
            began, used = time.perf_counter(), time.thread_time()
            step()
            if run >= 0:
                wall[run, index] = 1e3 * (time.perf_counter() - began)
                processor[run, index] = 1e3 * (time.thread_time() - used)
    times = " | ".join(spread(wall[:, index], 2) for index in range(3))
    shares = [(each[:, 0] + each[:, 2]) / each[:, 1] for each in (wall, processor)]
    held = verdict(float(np.median(shares[1])), BARS["share"])
    told = " | ".join(spread(100 * share, 1, " %") for share in shares)
    return f"| {size[0]}x{size[1]} | {runs} | {times} | {told} | at most 15 %: {held} |"


def started(name: str, command: Sequence[str], starts: int) -> str:
    """One row: fresh processes, the first of which only fills the file cache."""
    wall, processor, heavy = [], [], set()
    for start in range(starts + 1):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
        if start:
            told = json.loads(done.stdout)
            wall.append(time.perf_counter() - began)
            processor.append(told["processor"])
            heavy |= set(told["heavy"])
    held = verdict(float(np.median(wall)), BARS["seconds"])
    bar = f"under 1.5 s: {held}" if "first" in name else ""
    times = f"{spread(np.array(wall), 2)} | {spread(np.array(processor), 2)}"
    return f"| {name} | {starts} | {times} | {', '.join(sorted(heavy)) or 'none'} | {bar} |"


def spread(values: np.ndarray, digits: int, unit: str = "") -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f}{unit} (IQR {high - low:.{digits}f})"


def verdict(value: float, bar: float) -> str:
    return "held" if value <= bar else "missed"


if __name__ == "__main__":
    main()
