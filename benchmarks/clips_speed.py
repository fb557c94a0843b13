"""Time to make a batch of 8 clips (a picture and its two neighbours) at 192 x 640, on one core.

Run: OMP_NUM_THREADS=1 python benchmarks/clips_speed.py [--kitti FOLDER] [--batches 60]
With the KITTI raw folder its pictures are read; without, JPEGs of 375 x 1242 are made. `first` is the pass in which
pictures are decoded, `later` the ones after it, whose pictures are kept shrunk. Processor time is given beside wall
time, because a busy machine stretches the second. The target is well below 1.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from leadline.contract import Contract
from leadline.training.batches import Mix
from leadline.training.config import TrainConfig

SIZE, BATCH, MADE = (192, 640), 8, 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", type=Path)
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.kitti:
            source = {"data": f"kitti-raw:{options.kitti}?truth=none", "split": "all", "frames": [-1, 1]}
        else:
            make_pictures(Path(folder))
            source = {"data": f"frames:{folder}?fov=81", "frames": [-1, 1]}
        spec = {"name": "clips", "input": {"height": SIZE[0], "width": SIZE[1]}, "output": {"kind": "scaled_disparity"}}
        says = {
            "model": "leadline-s",
            "sources": [source],
            "batch": BATCH,
            "augmentation": {"zoom": 1.2, "roll_deg": 0},
        }
        mix = Mix(TrainConfig.model_validate(says), Contract.model_validate(spec), SIZE)
        epoch = len(mix.sources[0]) // BATCH
        wall, processor = [], []
        for number in range(max(options.batches, epoch + 10)):
            start, start_processor = time.perf_counter(), time.process_time()
            mix.batch(number)
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
    result: dict[str, object] = {}
    for name, span in (("first", slice(1, epoch)), ("later", slice(epoch + 1, None))):
        low, median, high = np.percentile(wall[span], (25, 50, 75))
        result[name] = {
            "batches": len(wall[span]),
            "median_s": round(median, 3),
            "q1_s": round(low, 3),
            "q3_s": round(high, 3),
            "processor_s": round(float(np.median(processor[span])), 3),
        }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(json.dumps({**result, "machine": f"{platform.machine()}, {platform.platform()}", "load": load}, indent=2))


def make_pictures(folder: Path) -> None:
    for number in range(MADE):
        coarse = np.random.default_rng(number).integers(0, 256, (47, 155, 3), np.uint8)
        Image.fromarray(coarse).resize((1242, 375)).save(folder / f"{number}.jpg", quality=92)


if __name__ == "__main__":
    main()
