"""A data set of pictures that hold their own index, and predictors that answer by it."""

from __future__ import annotations

import numpy as np

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.data.dataset import Dataset, Sample
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ImageReadError

SIZE = (48, 64)
CAMERA = Intrinsics(50.0, 50.0, 32.0, 24.0)


def true_depth(index):
    rows, cols = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return (1.0 + index + rows / 20 + cols / 40).astype(np.float32)


class Scenes(Dataset):
    """Pictures whose pixels hold their index, with depth unless `depths` says otherwise; `broken` ones do not read."""

    format = "scenes"
    name = "scenes"

    def __init__(self, count=5, broken=(), depths=None, kind=Kind.METRIC_DEPTH):
        self.count, self.broken, self.depths, self.kind = count, broken, depths or {}, kind
        self.max_depth, self.read = 20.0, []

    @classmethod
    def detect(cls, path):
        return False

    @classmethod
    def open(cls, path, split):
        return cls()

    def __len__(self):
        return self.count

    def names(self):
        return [f"scene{i}" for i in range(self.count)]

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.broken:
            raise ImageReadError("cannot read", where=f"scene{index}.png", why="truncated")
        values = self.depths.get(index, true_depth(index))
        depth = None if values is None else Depth(values, self.kind, CAMERA)
        return Sample(f"scene{index}", np.full((*SIZE, 3), index, np.uint8), depth, CAMERA)


class Answers:
    """A predictor that answers with a function of the picture's index."""

    def __init__(self, function, kind=Kind.METRIC_DEPTH, name="answers"):
        spec = InputSpec(height=SIZE[0], width=SIZE[1])
        self.contract = Contract(name=name, input=spec, output=OutputSpec(kind=kind))
        self.function, self.cameras = function, []

    def predict(self, image, intrinsics=None):
        self.cameras.append(intrinsics)
        values = np.asarray(self.function(int(image[0, 0, 0])), np.float32)
        return Depth(np.broadcast_to(values, SIZE).copy(), self.contract.output.kind, intrinsics)
