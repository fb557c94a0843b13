"""The authors' files of a Lite-Mono network: `encoder.pth`, `depth.pth`, and their ImageNet backbone (SPEC.md 3.5)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from leadline.models.lite_mono import build
from leadline.models.lite_mono_config import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from leadline.models.lite_mono_config import Config

ENCODER, DEPTH, POSE_ENCODER, POSE = "encoder.pth", "depth.pth", "pose_encoder.pth", "pose.pth"
PREFIXES = {ENCODER: "encoder.", DEPTH: "depth."}
_COUNTERS = ("total_ops", "total_params")  # what thop leaves in a network whose operations it counted
_CLASSIFIER = ("norm", "head")  # first parts of what only the ImageNet classifier has


def without_counters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The tensors without thop's counters, and how many counters there were."""
    kept = {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in _COUNTERS}
    return kept, len(tensors) - len(kept)


def joined(encoder: Mapping[str, Tensor], depth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the two files under the names of our network."""
    parts = ((PREFIXES[ENCODER], encoder), (PREFIXES[DEPTH], depth))
    return {f"{prefix}{key}": value for prefix, tensors in parts for key, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Which of the authors' files these tensors are: `encoder.pth`, `depth.pth`, `imagenet`, or none of them."""
    if "stem2.0.conv.weight" in tensors and "downsample_layers.0.0.conv.weight" in tensors:
        return "imagenet" if any(key.startswith(_CLASSIFIER) for key in tensors) else ENCODER
    return DEPTH if "decoder.0.conv.conv.weight" in tensors else None


def backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of the authors' ImageNet classifier, under the names of our network."""
    prefix = PREFIXES[ENCODER]
    return {f"{prefix}{key}": value for key, value in tensors.items() if not key.startswith(_CLASSIFIER)}


def nearest_variant(tensors: Mapping[str, Tensor], size: tuple[int, int] | None) -> str:
    """The variant with the most tensors of these names and shapes; of equals the one made for `size`, else the first.

    The dilations stand in no tensor: only the size of training tells the two published plans apart.

    Args:
        tensors: by the names of our network.
        size: (height, width) that the files name.
    """
    found = {key: tuple(value.shape) for key, value in tensors.items()}

    def fit(name: str) -> tuple[int, bool]:
        wanted = _shapes(VARIANTS[name])
        common = sum(wanted.get(key) == shape for key, shape in found.items())
        return common - len(wanted.keys() - found.keys()), (VARIANTS[name].height, VARIANTS[name].width) == size

    return max(VARIANTS, key=fit)


@functools.cache
def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
