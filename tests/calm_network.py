"""A small quantisable network without chaos: a rounding flip in its first layers stays a flip at its end.

Random deep networks with ReLU amplify the smallest difference layer by layer, which trained ones do not; here biases
keep almost all units in the linear part of ReLU6.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn

import tiny_models
from leadline.compression import Pictures, Place
from leadline.models import fastdepth
from leadline.reference import LoadedModel

SIZE = (32, 64)
SCENES = "rendered:room,count=6,height=36,width=72"
TRAIN = {
    "sources": [{"data": SCENES}],
    "size": list(SIZE),
    "batch": 2,
    "threads": 1,
    "cache_mb": 5,
    "ema": 0.5,
    "save_every": 1,
}


@functools.cache
def calm() -> LoadedModel:
    config = fastdepth.Config(
        encoder_widths=(8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16),
        decoder_widths=(16, 16, 16, 8, 8),
        skip="add",
        lateral=True,
        head="softplus",
        height=SIZE[0],
        width=SIZE[1],
    )
    torch.manual_seed(0)
    model = fastdepth.build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.4)
            nn.init.constant_(module.bias, 1.5)
    tiny_models._settle(model, SIZE)
    tiny_models._spread(model, tiny_models.picture(0, SIZE))
    return LoadedModel(model, fastdepth.contract(config), "calm", (), "fastdepth", config)


def place(folder: Path) -> Place:
    return Place(folder, train=TRAIN, calibration=Pictures(data=SCENES, count=6))
