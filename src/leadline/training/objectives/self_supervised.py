"""Objectives without any target: the frames around a picture, and smoothness (SPEC.md 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

from leadline.depth import Kind
from leadline.errors import DataError, KindError
from leadline.losses.photometric import SSIM_WEIGHT, edge_aware_smoothness, enlarge, identity_error
from leadline.losses.projection import inverse_rigid, rigid_motion, rotation_from_axis_angle
from leadline.losses.reprojection import minimum_reprojection
from leadline.losses.scale_invariant import SMALLEST_DEPTH_M
from leadline.models.pose import PoseName, PoseNetwork, start_at_imagenet
from leadline.training.objectives.base import Term

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leadline.training.batches import Batch, Clip
    from leadline.training.objectives.base import Seen

POSE = "pose"  # name of the pose network among the modules of a run
UNIT_M = 5.4  # the published stereo factor (SPEC.md 4.4): networks of 0.1 to 100 units start within a picture's width


class PoseOptions(BaseModel):
    """The network that estimates the camera's motion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: PoseName = Field(default="resnet18", description="resnet18 (published), efficientnet-lite0 or small")
    imagenet: bool = Field(default=False, description="start its encoder from ImageNet (efficientnet-lite0)")


class Photometric(Term):
    """Each picture rebuilt from its neighbours by the predicted depth: minimum reprojection with auto-masking.

    Any network of one map or several may learn: a map less than asked for is the finer one averaged over 2 x 2, so that
    the coarse scales pull whole neighbourhoods where the picture itself says little.
    """

    needs_frames: ClassVar[bool] = True
    loss: Literal["photometric"] = "photometric"
    ssim: float = Field(default=SSIM_WEIGHT, ge=0, le=1, description="share of SSIM beside the absolute difference")
    automask: bool = Field(default=True, description="leave out pixels that fit best without any warp")
    scales: int = Field(default=3, ge=1, le=4, description="maps used, each half the size of the one before")
    poses: Literal["learned", "known"] = Field(
        default="learned", description="of frames along time; those of a stereo pair are always known"
    )
    pose: PoseOptions = PoseOptions()
    unit_m: float | None = Field(
        default=None,
        gt=0,
        description="metres per unit of the network's depth, for known poses; 1 for metric networks, else 5.4",
    )
    align_corners: bool = Field(default=False, description="the published code's pixel centres, at integers")

    def modules(self) -> dict[str, nn.Module]:
        """The pose network, unless all poses are known."""
        if self.poses == "known":
            return {}
        network = PoseNetwork(self.pose.network)
        if self.pose.imagenet:
            start_at_imagenet(network)
        return {POSE: network}

    def count(self, batch: Batch) -> float:
        """Pictures with frames around them."""
        return 0.0 if batch.clip is None else float(len(batch.clip.rows))

    def term(self, seen: Seen) -> Tensor:
        """Mean over pictures, scales and pixels.

        Raises:
            KindError: relative disparity, whose unknown shift leaves no geometry.
            DataError: a pose is needed that nobody knows.
        """
        clip = seen.batch.clip
        maps = disparities(seen, self.scales)
        if clip is None:
            return maps[0].sum() * 0.0
        size = clip.image.shape[-2], clip.image.shape[-1]
        full = torch.cat([enlarge(disparity[clip.rows], *size) for disparity in maps], 1)
        motion = self._motions(seen, clip)
        identity = identity_error(clip.sources, clip.image, self.ssim) if self.automask else None
        found = minimum_reprojection(
            full,
            motion,
            clip.intrinsics,
            clip.sources,
            clip.image,
            identity,
            ssim_weight=self.ssim,
            align_corners=self.align_corners,
        )
        _note(seen, full.detach(), motion.detach(), found.kept)
        return found.loss

    def _motions(self, seen: Seen, clip: Clip) -> Tensor:
        """R x S x 4 x 4 from each picture's camera to its sources', in units of the network's depth."""
        temporal = [k for k, offset in enumerate(clip.offsets) if offset != "stereo"]
        learned = temporal if self.poses == "learned" else []
        known = [k for k in range(len(clip.offsets)) if k not in learned]
        if known and not bool(clip.poses[:, known].isfinite().all()):
            names = ", ".join(str(clip.offsets[k]) for k in known)
            where = seen.batch.names[int(clip.rows[0])]
            mend = "use `poses: learned`, or data with poses (rendered, stereo with its calibration)"
            raise DataError("the camera's motion is not known", where=where, why=f"offset {names}", mend=mend)
        unit = self._unit(seen.kind)
        columns: dict[int, Tensor] = {}
        for k in known:
            pose = clip.poses[:, k]
            columns[k] = rigid_motion(pose[:, :3, :3], pose[:, :3, 3] / unit)
        if learned:
            steps = [int(clip.offsets[k]) for k in learned]
            motions = _estimated(seen.modules[POSE], clip.seen[:, [0, *(1 + k for k in learned)]], steps)
            columns |= dict(zip(learned, motions, strict=True))
        return torch.stack([columns[k] for k in range(len(clip.offsets))], 1)

    def _unit(self, kind: Kind) -> float:
        """Metres per unit of the network's depth."""
        if kind is Kind.METRIC_DEPTH:
            if self.unit_m not in (None, 1.0):
                why = f"unit_m is {self.unit_m:g}, and the network predicts metres"
                raise KindError("photometric", why=why, mend="leave unit_m out")
            return 1.0
        return self.unit_m or UNIT_M


class Smoothness(Term):
    """Disparity without edges where the picture has none: each scale weighs half of the one before."""

    needs_frames: ClassVar[bool] = True
    loss: Literal["smoothness"] = "smoothness"
    weight: float = Field(default=1e-3, gt=0, description="factor of this term in the sum")
    scales: int = Field(default=3, ge=1, le=4, description="maps used, as in photometric")

    def count(self, batch: Batch) -> float:
        """Pictures with frames around them."""
        return 0.0 if batch.clip is None else float(len(batch.clip.rows))

    def term(self, seen: Seen) -> Tensor:
        """Mean over the scales, of the pictures that have frames.

        Raises:
            KindError: relative disparity.
        """
        clip = seen.batch.clip
        maps = disparities(seen, self.scales)
        if clip is None:
            return maps[0].sum() * 0.0
        total = maps[0].new_zeros(())
        for scale, disparity in enumerate(maps):
            total = total + edge_aware_smoothness(disparity[clip.rows], clip.image) / 2**scale
        return total / len(maps)


def disparities(seen: Seen, scales: int) -> list[Tensor]:
    """The network's maps as 1 / depth, N x 1 x h x w each, finest first.

    Raises:
        KindError: a kind whose geometry is unknown.
    """
    if seen.kind not in (Kind.SCALED_DISPARITY, Kind.METRIC_DEPTH):
        why = f"the network predicts {seen.kind}, whose unknown shift leaves no geometry to warp with"
        mend = "train a network of scaled disparity (lite-mono) or of metric depth"
        raise KindError("self-supervision", why=why, mend=mend)
    maps = list(seen.outputs.maps[:scales])
    if seen.kind is Kind.METRIC_DEPTH:
        maps = [1.0 / depth.clamp(min=SMALLEST_DEPTH_M) for depth in maps]
    while len(maps) < scales:
        maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True, count_include_pad=False))
    return maps


def _estimated(network: nn.Module, frames: Tensor, steps: list[int]) -> list[Tensor]:
    """What the pose network says of each step: pairs in temporal order, the backward ones inverted (SPEC.md 4.2).

    Args:
        network: see models/pose.py.
        frames: R x (1 + S) x 3 x H x W, 0..1, the picture first.
        steps: S offsets.

    Returns:
        S motions R x 4 x 4, from the picture's camera to the neighbour's.
    """
    picture = frames[:, 0]
    pairs = [
        torch.cat([frames[:, k], picture] if step < 0 else [picture, frames[:, k]], 1)
        for k, step in enumerate(steps, start=1)
    ]
    axis_angle, translation = network(torch.cat(pairs))
    motions = rigid_motion(rotation_from_axis_angle(axis_angle), translation).chunk(len(steps))
    return [inverse_rigid(motion) if step < 0 else motion for motion, step in zip(motions, steps, strict=True)]


def _note(seen: Seen, disparity: Tensor, motion: Tensor, kept: Tensor) -> None:
    """Leave what the doctor reads (training/doctor.py)."""
    finest = disparity[:, 0].flatten(1)
    mean = finest.mean(1)
    travel = motion[..., :3, 3].norm(dim=-1).mean()
    cosine = (motion[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    figures = {
        "mask_share": 1 - kept.mean(),
        "disparity_mean": mean.mean(),
        "disparity_spread": (finest.std(1) / mean.clamp(min=1e-9)).mean(),
        "pose_travel": travel,
        "pose_parallax": travel * mean.mean(),
        "pose_turn_deg": cosine.clamp(-1, 1).acos().rad2deg().mean(),
    }
    values = torch.stack(list(figures.values())).tolist()
    seen.notes.update(zip(figures, values, strict=True))
