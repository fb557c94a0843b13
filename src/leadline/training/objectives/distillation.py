"""Objectives that learn from a teacher: from its stored labels, or from its features while it runs beside.

Labels of a metric teacher need none of these: they are targets of `l1`, `silog` and the other supervised objectives.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from leadline.errors import ConfigError
from leadline.losses.features import feature_alignment
from leadline.losses.scale_invariant import Reading, median_centred_l1, trimmed_scale_and_shift_invariant
from leadline.models.outputs import outputs
from leadline.training.objectives.base import Term
from leadline.training.objectives.supervised import disparity_targets

if TYPE_CHECKING:
    from torch import Tensor

    from leadline.contract import Contract
    from leadline.reference import LoadedModel
    from leadline.training.batches import Batch
    from leadline.training.objectives.base import Seen


class TrimmedScaleShiftInvariant(Term):
    """`ssi` without each picture's worst places, where the teacher is likelier to be wrong; sees every target."""

    joined: ClassVar[bool] = True  # how many pixels are left is known only afterwards
    loss: Literal["ssi-trimmed"] = "ssi-trimmed"
    trim: float = Field(default=0.2, ge=0, lt=1, description="share left out (MiDaS 0.2; Depth Anything V2 0.1)")
    cell: int = Field(default=1, ge=1, le=256, description="side of the squares that are judged, pixels")

    def count(self, batch: Batch) -> float:
        """Valid pixels."""
        return float(batch.valid.sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the valid pixels that are left."""
        return trimmed_scale_and_shift_invariant(*disparity_targets(seen), self.trim, self.cell)


class MedianCentred(Term):
    """L1 after "median-centre alignment, then 0 to 1" of the teacher's disparity, in one of its three readings."""

    loss: Literal["median-centred"] = "median-centred"
    reading: Reading = Field(default="median-scale", description="median-scale, mad-minmax or minmax (SPEC.md 5.2)")
    clip: float | None = Field(default=None, gt=0, description="mad-minmax: deviations from the median, at most")
    prediction: Literal["normalised", "raw"] = Field(
        default="normalised", description="raw compares a prediction that means the teacher's 0 to 1"
    )
    mask_zero: bool = Field(default=True, description="leave out where the teacher says 0: infinitely far, or unknown")
    all_maps: bool = Field(default=False, description="every map of the network, enlarged, instead of the finest alone")

    def count(self, batch: Batch) -> float:
        """Pixels that count."""
        return float(self._valid(batch.target, batch.valid).sum())

    def term(self, seen: Seen) -> Tensor:
        """Mean over the pixels that count, and over the maps."""
        maps = seen.outputs.maps if self.all_maps else seen.outputs.maps[:1]
        total = maps[0].new_zeros(())
        for values in maps:
            enlarged = values
            if values.shape[-2:] != seen.batch.target.shape[-2:]:
                size = (seen.batch.target.shape[-2], seen.batch.target.shape[-1])
                enlarged = F.interpolate(values, size, mode="bilinear", align_corners=False)
            looked = replace(seen, outputs=replace(seen.outputs, maps=(enlarged,)))
            prediction, target, valid = disparity_targets(looked)
            valid = self._valid(target, valid)
            total = total + median_centred_l1(
                prediction,
                target,
                valid,
                self.reading,
                clip=self.clip,
                normalise_prediction=self.prediction == "normalised",
            )
        return total / len(maps)

    def _valid(self, target: Tensor, valid: Tensor) -> Tensor:
        return valid & (target != 0) if self.mask_zero else valid


class FeatureAlignment(Term):
    """The network's features point where a teacher's do, within a margin; the teacher runs beside it, frozen.

    A 1x1 convolution, trained beside the network, brings its features to the teacher's channels. The teacher sees the
    same augmented pictures, at the network's size rounded to one that the teacher allows, and its features are averaged
    over the network's coarser places.
    """

    loss: Literal["features"] = "features"
    teacher: str = Field(description="model reference: an architecture of `leadline models` that has features")
    level: int = Field(default=-1, description="which feature of the network, finest first; -1 is the coarsest")
    teacher_level: int = Field(default=-1, description="which feature of the teacher")
    margin: float = Field(default=0.85, gt=-1, le=1, description="places whose cosine is larger do not count")

    @property
    def name(self) -> str:
        """Of the projection among the run's modules."""
        short = hashlib.sha256(self.teacher.encode()).hexdigest()[:8]
        return f"features_{short}_{self.level}_{self.teacher_level}".replace("-", "m")

    def modules_for(self, model: nn.Module, contract: Contract | None) -> dict[str, nn.Module]:
        """The projection from the network's channels to the teacher's.

        Raises:
            ConfigError: the network or the teacher has no such feature.
        """
        assert contract is not None
        ours = _channels(model, contract, self.level, "the network")
        beside = frozen_teacher(self.teacher, "cpu")
        theirs = _channels(beside.model, beside.contract, self.teacher_level, self.teacher)
        return {self.name: Projection(ours, theirs, contract)}

    def term(self, seen: Seen) -> Tensor:
        """Mean of 1 - cosine over the places beyond the margin."""
        projection = seen.modules[self.name]
        assert isinstance(projection, Projection)
        beside = frozen_teacher(self.teacher, str(seen.batch.image.device))
        with torch.no_grad():
            picture = for_teacher(seen.batch.image, projection.contract, beside.contract)
            theirs = outputs(beside.model, picture).features[self.teacher_level].float()
        ours = projection(seen.outputs.features[self.level])
        theirs = F.adaptive_avg_pool2d(theirs, (ours.shape[-2], ours.shape[-1]))
        return feature_alignment(ours, theirs, self.margin)


class Projection(nn.Module):
    """A 1x1 convolution to the teacher's channels; it also knows how the network's pictures were prepared."""

    def __init__(self, inputs: int, outputs: int, contract: Contract) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 1)
        self.contract = contract

    def forward(self, features: Tensor) -> Tensor:
        """N x inputs x h x w to N x outputs x h x w."""
        projected: Tensor = self.convolution(features)
        return projected


def for_teacher(image: Tensor, ours: Contract, theirs: Contract) -> Tensor:
    """The network's input, N x 3 x H x W, as the teacher takes it, at the nearest size that it allows."""
    gain, offset = _affine(ours, image)
    picture = (image - offset) / gain  # 0..255
    if ours.input.channels != theirs.input.channels:
        picture = picture.flip(1)
    spec, n = theirs.input, theirs.input.multiple_of
    size = (spec.height, spec.width)
    if spec.dynamic:
        low, high = n * -(-spec.min_side // n), spec.max_side // n * n
        rows, columns = (min(max(n * round(side / n), low), high) for side in image.shape[-2:])
        size = rows, columns
    if size != tuple(image.shape[-2:]):
        picture = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)
    gain, offset = _affine(theirs, image)
    return picture * gain + offset


def _affine(contract: Contract, like: Tensor) -> tuple[Tensor, Tensor]:
    """(gain, offset), each 3 x 1 x 1, from 0..255 to the network's input."""
    table = torch.tensor(contract.affine, device=like.device, dtype=like.dtype)
    return table[:, 0, None, None], table[:, 1, None, None]


def _channels(model: nn.Module, contract: Contract, level: int, who: str) -> int:
    """Channels of a feature, found by one small forward pass that leaves the network as it was."""
    n = contract.input.multiple_of
    side = n * -(-max(64, contract.input.min_side) // n)
    device = next(model.parameters()).device
    was = model.training
    with torch.no_grad():
        features = outputs(model.eval(), torch.zeros(1, 3, side, side, device=device)).features
    model.train(was)
    if not -len(features) <= level < len(features):
        has = f"it has {len(features)}" if features else "it tells none"
        raise ConfigError("no such feature", where=f"{who}, level {level}", why=has, mend="choose another level")
    return int(features[level].shape[1])


@functools.lru_cache(maxsize=4)
def frozen_teacher(reference: str, device: str) -> LoadedModel:
    """The teacher, frozen, on a device; loaded once per process."""
    from leadline.reference import load_model

    loaded = load_model(reference)
    loaded.model.to(device).requires_grad_(False)
    return loaded
