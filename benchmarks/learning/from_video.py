"""Self-supervision from video: train a configuration to its end, then score it beside the best constant map.

    python benchmarks/learning/from_video.py configs/kitti-mono.yaml --out runs/kitti-mono \
        --score "kitti-raw:../shared/data/kitti_raw#depth" --protocol kitti-eigen
    python benchmarks/learning/from_video.py configs/kitti-stereo.yaml --out runs/kitti-stereo \
        --score "kitti-raw:../shared/data/kitti_raw#depth" --protocol kitti-eigen --unit 5.4

The same command goes on where it was stopped. `--score` takes DATA#SPLIT[FIRST:LAST] and may be repeated; the constant
map is made of the very frames that are scored (constant_shape.py). `--unit` also scores the network's depth times that
many metres, without alignment: what a stereo pair of known baseline teaches about scale.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from constant_shape import best_constant
from experiment import evaluate, opened, started, table, trained

from leadline.depth import Depth, Intrinsics, Kind
from leadline.evaluation.machine import this_machine
from leadline.evaluation.protocols import get_protocol
from leadline.predictor import Predictor, load
from leadline.training.config import load_config

if TYPE_CHECKING:
    from numpy.typing import NDArray


class InMetres:
    """A network of scaled disparity whose unit is known: 1 / disparity times `unit` metres."""

    def __init__(self, predictor: Predictor, unit: float) -> None:
        self.predictor, self.unit = predictor, unit
        output = predictor.contract.output.model_copy(update={"kind": Kind.METRIC_DEPTH, "minimum": None})
        self.contract = predictor.contract.model_copy(update={"output": output.model_copy(update={"maximum": None})})

    def predict(self, image: NDArray[np.uint8], intrinsics: Intrinsics | None = None) -> Depth:
        """Metres at the picture's size."""
        found = self.predictor.predict(image, intrinsics)
        return replace(found.to_metric(1.0 / self.unit), source=self.contract.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", action="append", required=True, metavar="DATA")
    parser.add_argument("--protocol", default="kitti-eigen")
    parser.add_argument("--unit", type=float, help="metres of the network's unit")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    changes = {"threads": options.threads} | ({"iterations": options.iterations} if options.iterations else {})
    config = load_config(options.config, changes)
    checkpoint, name = trained(config, options.out), config.name or config.model
    aligned, unaligned = (get_protocol(f"{options.protocol}/{how}") for how in ("median", "none"))
    print(f"{this_machine()}; {config.iterations} iterations of {config.batch}; 95 % intervals over the pictures")
    for reference in options.score:
        dataset = opened(reference)
        with load(str(checkpoint)) as predictor:
            best, _ = best_constant(dataset, aligned.label)
            rows = [(f"constant map ({best.model})", best), (name, evaluate(predictor, dataset, aligned))]
            print(f"\n{reference}, {aligned.label}\n\n{table(rows)}")
            if options.unit:
                measured = InMetres(predictor, options.unit)
                best, _ = best_constant(dataset, unaligned.label)
                rows = [(f"constant map ({best.model})", best), (name, evaluate(measured, dataset, unaligned))]
                print(f"\n{reference}, {unaligned.label}, unit {options.unit:g} m\n\n{table(rows)}")


if __name__ == "__main__":
    started(main)
