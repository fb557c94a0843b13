"""Pictures a second that `leadline.data.rendered` draws on one core, with exact depth.

Run: OMP_NUM_THREADS=1 python benchmarks/rendered_speed.py [--count 60]
Room and street, 192 x 640 and 224 x 288, are drawn in turn; each scene is another seed. Wall time is what a user waits
for; processor time is given too, because a busy machine stretches the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from leadline.data.rendered import SCENES, render

SIZES = ((192, 640), (224, 288))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    options = parser.parse_args()
    cases = [(scene, size) for scene in SCENES for size in SIZES]
    wall: dict[object, list[float]] = {case: [] for case in cases}
    processor: dict[object, list[float]] = {case: [] for case in cases}
    for scene, (height, width) in cases:  # draws the textures, once a process
        render(0, height=height, width=width, scene=scene)
    for seed in range(options.count):
        for scene, (height, width) in cases:
            start, start_processor = time.perf_counter(), time.process_time()
            render(seed, height=height, width=width, scene=scene)
            wall[scene, (height, width)].append(time.perf_counter() - start)
            processor[scene, (height, width)].append(time.process_time() - start_processor)
    result: dict[str, object] = {}
    for scene, size in cases:
        low, median, high = np.percentile(wall[scene, size], (25, 50, 75))
        seconds = float(np.median(processor[scene, size]))
        result[f"{scene} {size[0]}x{size[1]}"] = {
            "median_ms": round(1e3 * median, 1),
            "q1_ms": round(1e3 * low, 1),
            "q3_ms": round(1e3 * high, 1),
            "processor_ms": round(1e3 * seconds, 1),
            "frames_per_processor_second": round(1 / seconds, 1),
        }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(json.dumps({**result, "machine": f"{platform.machine()}, {platform.platform()}", "load": load}, indent=2))


if __name__ == "__main__":
    main()
