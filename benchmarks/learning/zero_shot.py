"""Relative networks side by side: the same pictures, aligned in disparity, with paired differences to the first.

    python benchmarks/learning/tcmonodepth.py ../shared/weights/tcmonodepth_small.pt.tar --out runs/tcmonodepth.onnx
    leadline convert ../shared/weights/fastdepth_pruned_fp32_bnfolded.safetensors --out runs/fastdepth-official
    python benchmarks/learning/zero_shot.py leadline-s runs/fastdepth-official runs/tcmonodepth.onnx

`--data` takes DATA#SPLIT[FIRST:LAST] and may be repeated; without it, the research data beside the checkout, of each
recording that served training only the frames that did not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiment import opened, started, table

from leadline.evaluation.evaluate import evaluate
from leadline.evaluation.machine import this_machine

SHARED = "../shared/data"
DATA = (
    f"{SHARED}/nyu#test",
    f"kitti-raw:{SHARED}/kitti_raw#configs/kitti-0005-late.txt",
    f"{SHARED}/ddad",
    f"{SHARED}/rgbd/hololens[5:]",
    f"{SHARED}/rgbd/sevenscenes[5:]",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="REF")
    parser.add_argument("--data", action="append", metavar="DATA")
    parser.add_argument("--protocol", default="zero-shot-disparity")
    options = parser.parse_args()
    print(f"{this_machine()}; {options.protocol}; 95 % intervals over the pictures")
    for reference in options.data or DATA:
        dataset = opened(reference)
        rows = [(Path(name).stem, evaluate(name, dataset, options.protocol)) for name in options.models]
        print(f"\n{reference}\n\n{table(rows, ('abs_rel', 'delta1', 'disp_abs_rel'))}", flush=True)


if __name__ == "__main__":
    started(main)
