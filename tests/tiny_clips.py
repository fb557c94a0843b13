"""Batches of clips as tests make them: small contracts, a mix without changes, a film that stands still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from leadline.contract import Contract
from leadline.depth import Kind
from leadline.training.batches import Mix
from leadline.training.config import TrainConfig

PLAIN = {"zoom": 1, "roll_deg": 0, "flip": 0, "shift": 0, "colour": 0, "gamma": 0, "hue": 0}
METRIC = Contract.model_validate(
    {
        "name": "metric",
        "input": {
            "height": 64,
            "width": 96,
            "multiple_of": 32,
            "camera": {"fx_over_width": 0.9, "fy_over_height": 1.3},
        },
        "output": {"kind": "metric_depth"},
    }
)
DISPARITY = METRIC.model_copy(
    update={
        "input": METRIC.input.model_copy(update={"camera": None}),
        "output": METRIC.output.model_copy(update={"kind": Kind.SCALED_DISPARITY}),
    }
)


def mix_of(
    *sources: dict[str, object],
    contract: Contract = DISPARITY,
    size: tuple[int, int] = (64, 96),
    augmentation: dict[str, object] | None = None,
    **more: object,
) -> Mix:
    says = {"model": "random:leadline-s", "sources": list(sources), "batch": 4} | more
    says["augmentation"] = augmentation or PLAIN
    return Mix(TrainConfig.model_validate(says), contract, size)


def still_frames(root: Path, count: int = 5, height: int = 48, width: int = 72) -> Path:
    """The same picture again and again."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture).save(root / f"{number}.png")
    return root
