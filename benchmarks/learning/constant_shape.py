"""The best map that knows the drive but not the picture: what a network must beat to have learned from pictures.

Every picture gets one and the same map, made of the data set's own ground truth (the very frames that are scored,
which favours it): the mean or the median over the frames, in depth or in disparity, where enough frames have a
measurement, and the nearest such place elsewhere. Scored by Leadline's own evaluation, so that its figures stand beside
a network's:

    python benchmarks/learning/constant_shape.py kitti-raw:../shared/data/kitti_raw --split depth
    python benchmarks/learning/constant_shape.py kitti-raw:../shared/data/kitti_raw --split depth \
        --against runs/kitti-mono/checkpoint

With `--against REF` the best of the four is compared with that model, paired over the pictures.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
from experiment import evaluate, opened, said, started, table

from leadline.contract import Contract
from leadline.data.dataset import Dataset
from leadline.depth import Depth, Intrinsics, Kind
from leadline.evaluation.evaluate import paired
from leadline.evaluation.protocols import get_protocol
from leadline.image import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.evaluation.evaluate import Evaluation

GRID = (48, 160)  # cells of the map: a projected sweep measures every pixel of it often enough
LEAST = 3  # frames with a measurement that a cell needs, where there are so many
READINGS = ("mean depth", "mean disparity", "median depth", "mean log depth")


class OneMap:
    """A predictor that ignores the picture.

    Args:
        values: h x w, metres.
        name: of the row.
    """

    def __init__(self, values: NDArray[np.float32], name: str) -> None:
        self.values = values
        spec = {"height": values.shape[0], "width": values.shape[1]}
        says = {"name": name, "input": spec, "output": {"kind": "metric_depth"}}
        self.contract = Contract.model_validate(says)

    def predict(self, image: NDArray[np.uint8], intrinsics: Intrinsics | None = None) -> Depth:
        """The map at the picture's size."""
        enlarged = resize(self.values, (image.shape[0], image.shape[1]), "bilinear")
        return Depth(np.asarray(enlarged, np.float32), Kind.METRIC_DEPTH, intrinsics, self.contract.name)


def frames_on_grid(dataset: Dataset, grid: tuple[int, int] = GRID) -> NDArray[np.float64]:
    """N x h x w: the median of each frame's measurements in each cell, metres; NaN where it has none."""
    found = np.full((len(dataset), *grid), np.nan)
    for number, sample in enumerate(dataset):
        if sample.depth is None:
            continue
        rows, columns = np.nonzero(sample.depth.valid)
        height, width = sample.depth.shape
        cells = (rows * grid[0] // height) * grid[1] + columns * grid[1] // width
        order = np.argsort(cells, kind="stable")
        places, starts = np.unique(cells[order], return_index=True)
        values = np.split(sample.depth.values[rows, columns][order], starts[1:])
        found[number].reshape(-1)[places] = [np.median(part) for part in values]
    return found


def one_map(frames: NDArray[np.float64], reading: str) -> NDArray[np.float32]:
    """One map of all frames, h x w metres; cells with too few measurements take the nearest one's value."""
    known = np.isfinite(frames).sum(axis=0) >= min(LEAST, len(frames))
    seen = frames[:, known]
    out = np.zeros(known.shape)
    if reading == "mean depth":
        out[known] = np.nanmean(seen, axis=0)
    elif reading == "mean disparity":
        out[known] = 1 / np.nanmean(1 / seen, axis=0)
    elif reading == "median depth":
        out[known] = np.nanmedian(seen, axis=0)
    else:
        out[known] = np.exp(np.nanmean(np.log(seen), axis=0))
    rows, columns = np.nonzero(known)
    for row, column in np.argwhere(~known):
        # a row apart counts more than a column apart: depth of a road scene changes with height
        nearest = np.argmin((4 * (rows - row)) ** 2 + (columns - column) ** 2)
        out[row, column] = out[rows[nearest], columns[nearest]]
    return out.astype(np.float32)


def best_constant(dataset: Dataset, protocol: str) -> tuple[Evaluation, list[tuple[str, Evaluation]]]:
    """The reading with the smallest AbsRel, and all readings."""
    frames = frames_on_grid(dataset)
    rows = []
    for reading in READINGS:
        predictor = OneMap(one_map(frames, reading), reading)
        rows.append((reading, evaluate(predictor, dataset, get_protocol(protocol), focal_correction=False)))
    return min((one for _, one in rows), key=lambda one: one.summary()["abs_rel"].value), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="DATA, DATA#SPLIT, or either with [FIRST:LAST]")
    parser.add_argument("--split")
    parser.add_argument("--protocol", default="kitti-eigen")
    parser.add_argument("--alignment", default="median", help="none for metres as they are")
    parser.add_argument("--against", help="a model to compare with the best constant map")
    options = parser.parse_args()
    dataset = opened(f"{options.data}#{options.split}" if options.split else options.data)
    protocol = f"{options.protocol}/{options.alignment}"
    best, rows = best_constant(dataset, protocol)
    print(f"{dataset.name}, {len(dataset)} pictures, {protocol}; 95 % intervals over the pictures\n")
    print(table(rows))
    print(f"\nbest constant map: {best.model}, AbsRel {said(best.summary()['abs_rel'])}")
    if options.against:
        theirs = evaluate(options.against, dataset, get_protocol(protocol))
        print(f"{theirs.model}: AbsRel {said(theirs.summary()['abs_rel'])}")
        print(f"change against the best constant map, paired: {said(paired(theirs, best, 'abs_rel'), sign='+')}")


if __name__ == "__main__":
    started(main)
