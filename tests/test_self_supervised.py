"""The self-supervised objectives: poses, kinds, options, and that depth is learned from frames alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import nn

from leadline.data.rendered import Camera, render_sequence
from leadline.depth import Kind
from leadline.errors import DataError, KindError
from leadline.losses.photometric import identity_error
from leadline.losses.projection import warp
from leadline.losses.reprojection import minimum_reprojection
from leadline.models.outputs import Outputs
from leadline.models.pose import Pose, PoseNetwork
from leadline.training.batches import Batch, Clip
from leadline.training.objectives import Objective, Seen, total_loss
from leadline.training.objectives.self_supervised import Photometric, Smoothness

H, W = 32, 48


def clip_of(**changes: Any) -> Clip:
    """Two pictures with a frame before and after each, of four in the batch."""
    r = torch.Generator().manual_seed(2)
    image, sources = torch.rand(2, 3, H, W, generator=r), torch.rand(2, 2, 3, H, W, generator=r)
    camera = torch.tensor([[30.0, 0, W / 2], [0, 30.0, H / 2], [0, 0, 1]])
    clip = Clip(
        rows=torch.tensor([0, 2]),
        image=image,
        sources=sources,
        seen=torch.cat([image[:, None], sources], 1),
        offsets=(-1, 1),
        intrinsics=camera.expand(2, 3, 3),
        poses=torch.full((2, 2, 4, 4), math.nan),
    )
    return replace(clip, **changes)


def seen_of(
    clip: Clip | None, maps: tuple[torch.Tensor, ...], kind: Kind = Kind.SCALED_DISPARITY, **modules: nn.Module
) -> Seen:
    n = len(maps[0])
    target = torch.zeros(n, 1, H, W)
    batch = Batch(torch.zeros(n, 3, H, W), target, target > 0, (Kind.METRIC_DEPTH,) * n, ("a", "b", "c", "d"), clip)
    return Seen(Outputs(maps), kind, batch, nn.ModuleDict(modules), nn.Identity())


def some_maps(scales: int = 3) -> tuple[torch.Tensor, ...]:
    r = torch.Generator().manual_seed(4)
    return tuple((0.1 + torch.rand(4, 1, H >> s, W >> s, generator=r)).requires_grad_() for s in range(scales))


class Fixed(nn.Module):
    """A pose network that tells one motion from the brightness of the first frame: 1 + brightness forward."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[torch.Tensor] = []

    def forward(self, pair: torch.Tensor) -> Pose:
        self.pairs.append(pair)
        travel = torch.zeros(len(pair), 3)
        travel[:, 2] = pair[:, 0].mean((1, 2))
        return Pose(torch.zeros(len(pair), 3) + torch.tensor([0.0, 0.1, 0.0]), travel)


def test_both_are_objectives_of_a_configuration() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Objective)
    photometric = adapter.validate_python({"loss": "photometric", "pose": {"network": "small"}, "scales": 2})
    assert isinstance(photometric, Photometric)
    assert photometric.pose.network == "small"
    smoothness = adapter.validate_python({"loss": "smoothness"})
    assert smoothness.weight == 1e-3
    with pytest.raises(ValueError, match="pose"):
        adapter.validate_python({"loss": "photometric", "pose": {"network": "resnet19"}})


def test_a_pose_network_is_trained_only_where_poses_are_learned() -> None:
    network = Photometric(pose={"network": "small"}).modules()["pose"]
    assert isinstance(network, PoseNetwork)
    assert network.network == "small"
    assert Photometric(poses="known").modules() == {}


def test_pairs_are_in_temporal_order_and_the_backward_motion_is_inverted() -> None:
    """Frame values tell the frames apart: picture 0.5, before 0.1, after 0.9."""
    image = torch.full((2, 3, H, W), 0.5)
    sources = torch.stack([torch.full_like(image, 0.1), torch.full_like(image, 0.9)], 1)
    clip = clip_of(image=image, sources=sources, seen=torch.cat([image[:, None], sources], 1))
    network = Fixed()
    seen = seen_of(clip, some_maps(), pose=network)
    before, after = Photometric()._motions(seen, clip)[0]
    means = network.pairs[0].mean((2, 3))[:, [0, 3]]
    torch.testing.assert_close(means, torch.tensor([[0.1, 0.5], [0.1, 0.5], [0.5, 0.9], [0.5, 0.9]]))
    turn = torch.tensor([[math.cos(0.1), 0, math.sin(0.1)], [0, 1, 0], [-math.sin(0.1), 0, math.cos(0.1)]])
    torch.testing.assert_close(after[:3, :3], turn)
    torch.testing.assert_close(after[:3, 3], torch.tensor([0.0, 0, 0.5]))
    torch.testing.assert_close(before[:3, :3], turn.T)
    torch.testing.assert_close(before[:3, 3], -turn.T @ torch.tensor([0.0, 0, 0.1]))


def test_known_poses_are_used_in_the_networks_unit() -> None:
    known = torch.eye(4).repeat(2, 2, 1, 1)
    known[:, :, 0, 3] = 0.54
    clip = clip_of(poses=known)
    motion = Photometric(poses="known", unit_m=5.4)._motions(seen_of(clip, some_maps()), clip)
    torch.testing.assert_close(motion[..., 0, 3], torch.full((2, 2), 0.1))


def test_the_unit_is_the_published_one_unless_the_network_predicts_metres() -> None:
    known = torch.eye(4).repeat(2, 2, 1, 1)
    known[:, :, 0, 3] = 0.54
    clip, objective = clip_of(poses=known), Photometric(poses="known")
    scaled = objective._motions(seen_of(clip, some_maps()), clip)
    torch.testing.assert_close(scaled[..., 0, 3], torch.full((2, 2), 0.1))
    metric = objective._motions(seen_of(clip, some_maps(), Kind.METRIC_DEPTH), clip)
    torch.testing.assert_close(metric[..., 0, 3], torch.full((2, 2), 0.54))
    with pytest.raises(KindError, match="unit_m"):
        Photometric(poses="known", unit_m=5.4).term(seen_of(clip, some_maps(), Kind.METRIC_DEPTH))


def test_the_other_eye_is_known_and_time_is_learned() -> None:
    poses = torch.full((2, 2, 4, 4), math.nan)
    poses[:, 1] = torch.eye(4)
    clip = clip_of(offsets=(1, "stereo"), poses=poses)
    motion = Photometric()._motions(seen_of(clip, some_maps(), pose=Fixed()), clip)
    torch.testing.assert_close(motion[:, 1], torch.eye(4).expand(2, 4, 4))
    assert bool((motion[:, 0, 2, 3] > 0).all())


def test_an_unknown_pose_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="poses: learned"):
        Photometric(poses="known").term(seen_of(clip_of(), some_maps()))


@pytest.mark.parametrize("kind", [Kind.RELATIVE_DISPARITY, Kind.RELATIVE_DEPTH])
@pytest.mark.parametrize("objective", [Photometric(), Smoothness()])
def test_a_kind_without_geometry_is_refused(kind: Kind, objective: Photometric | Smoothness) -> None:
    with pytest.raises(KindError, match="lite-mono"):
        objective.term(seen_of(clip_of(), some_maps(), kind))


def test_without_frames_the_terms_are_zero_with_a_gradient() -> None:
    maps = some_maps()
    loss, terms = total_loss([Photometric(), Smoothness()], seen_of(None, maps, pose=Fixed()))
    loss.backward()
    assert terms == {"photometric": 0.0, "smoothness": 0.0}
    assert maps[0].grad is not None
    assert Photometric().count(seen_of(None, maps).batch) == 0


def test_only_rows_with_frames_count() -> None:
    maps = some_maps()
    seen = seen_of(clip_of(), maps, pose=Fixed())
    total_loss([Photometric(), Smoothness()], seen)[0].backward()
    assert maps[0].grad is not None
    assert maps[0].grad[[1, 3]].abs().max() == 0
    assert maps[0].grad[[0, 2]].abs().max() > 0
    assert Photometric().count(seen.batch) == 2


def test_metric_depth_is_inverted_and_one_map_is_averaged_down() -> None:
    disparity = some_maps(1)[0].detach()
    levels = (disparity, F.avg_pool2d(disparity, 2), F.avg_pool2d(disparity, 4))
    expected = Photometric().term(seen_of(clip_of(), levels, pose=Fixed()))
    torch.manual_seed(0)
    ours = Photometric().term(seen_of(clip_of(), (1 / disparity,), Kind.METRIC_DEPTH, pose=Fixed()))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_smoothness_halves_with_each_scale() -> None:
    maps = some_maps(2)
    seen = seen_of(clip_of(), maps)
    first, both = Smoothness(scales=1).term(seen), Smoothness(scales=2).term(seen)
    second = Smoothness(scales=1).term(seen_of(clip_of(), maps[1:]))
    torch.testing.assert_close(both, (first + second / 2) / 2)


def test_the_notes_tell_masks_disparity_and_motion() -> None:
    seen = seen_of(clip_of(), (torch.full((4, 1, H, W), 0.25),), pose=Fixed())
    Photometric(scales=1).term(seen)
    assert 0 <= seen.notes["mask_share"] <= 1
    assert seen.notes["disparity_mean"] == pytest.approx(0.25)
    assert seen.notes["disparity_spread"] == pytest.approx(0, abs=1e-6)
    assert seen.notes["pose_turn_deg"] == pytest.approx(math.degrees(0.1), rel=1e-2)
    assert seen.notes["pose_parallax"] == pytest.approx(0.25 * seen.notes["pose_travel"])


def smooth_picture(seed: int, height: int, width: int) -> torch.Tensor:
    r = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 6, width // 6, generator=r)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def test_free_disparity_with_known_poses_converges_to_the_plane() -> None:
    """A textured wall 4 m away, seen from 0.2 m left and right of the picture; the start says 8 m."""
    camera = torch.tensor([[[50.0, 0, 32], [0, 50, 16], [0, 0, 1]]])
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([0.2, -0.2])
    target, truth = smooth_picture(0, 32, 64), torch.full((1, 1, 32, 64), 4.0)
    back = torch.linalg.inv(poses)
    sources = torch.stack([warp(target, truth, camera, back[:, k]) for k in range(2)], 1)
    disparity = torch.full((1, 1, 32, 64), 1 / 8, requires_grad=True)
    optimiser = torch.optim.Adam([disparity], lr=5e-3)
    for _ in range(120):
        optimiser.zero_grad()
        minimum_reprojection(disparity.clamp(min=0.01), poses, camera, sources, target).loss.backward()
        optimiser.step()
    inner = 1 / disparity.detach()[0, 0, 4:-4, 8:-8]
    assert float((inner / 4 - 1).abs().median()) < 0.03
    assert float((inner / 4 - 1).abs().mean()) < 0.1


class Tiny(nn.Module):
    """A few convolutions at quarter resolution to scaled disparity in 0.02 .. 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((5, 16, 2), (16, 32, 2), (32, 32, 2), (32, 32, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(32, 1, 1)
        nn.init.constant_(self.head.bias, -2.0)  # type: ignore[arg-type]  # starts at some 7 m

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        n, _, h, w = image.shape
        rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand(n, 1, h, w)
        low = self.head(self.body(torch.cat([image, rows, columns], 1)))
        sigma = torch.sigmoid(F.interpolate(low, (h, w), mode="bilinear", align_corners=False))
        return 0.02 + 0.98 * sigma


def drive(frames: int, height: int, width: int) -> tuple[Clip, torch.Tensor]:
    """A rendered street with known poses: clips of all inner frames, and their depth."""
    samples = render_sequence(5, frames=frames, height=height, width=width, camera=Camera(0.6, 1.5))
    pictures = torch.stack([torch.from_numpy(s.image.transpose(2, 0, 1).copy()).float() / 255 for s in samples])
    inner = range(1, frames - 1)
    poses = [np.stack([np.linalg.inv(samples[t + o].pose) @ samples[t].pose for o in (-1, 1)]) for t in inner]  # type: ignore[arg-type, operator]
    k = samples[0].intrinsics
    assert k is not None
    matrix = torch.tensor([[k.fx, 0, k.cx], [0, k.fy, k.cy], [0, 0, 1]])
    image = pictures[1:-1]
    sources = torch.stack([pictures[:-2], pictures[2:]], 1)
    clip = Clip(
        torch.arange(len(inner)),
        image,
        sources,
        torch.cat([image[:, None], sources], 1),
        (-1, 1),
        matrix.expand(len(inner), 3, 3),
        torch.from_numpy(np.stack(poses)).float(),
    )
    depth = torch.stack([torch.from_numpy(samples[t].depth.values) for t in inner])  # type: ignore[union-attr]
    return clip, depth


def absrel(disparity: torch.Tensor, depth: torch.Tensor) -> float:
    """Mean over pictures after median scaling, to 80 m."""
    errors = []
    for d, truth in zip(1 / disparity[:, 0], depth, strict=True):
        valid = (truth > 0) & (truth < 80)
        scaled = d[valid] * truth[valid].median() / d[valid].median()
        errors.append(float(((scaled - truth[valid]).abs() / truth[valid]).mean()))
    return float(np.mean(errors))


def test_rendered_poses_and_depth_rebuild_the_picture() -> None:
    """True depth leaves a clearly smaller error than standing still, and than depth twice or half as large."""
    clip, depth = drive(3, 64, 160)
    disparity = 1 / torch.where(depth > 0, depth, 200.0)[:, None]

    def error(factor: float) -> float:
        found = minimum_reprojection(factor * disparity, clip.poses, clip.intrinsics, clip.sources, clip.image)
        return float(found.loss)

    still = float(identity_error(clip.sources, clip.image).mean())
    assert error(1) < 0.85 * min(error(0.5), error(2), still)


@pytest.mark.slow
def test_a_tiny_network_learns_depth_from_a_rendered_drive() -> None:
    torch.manual_seed(0)
    clip, depth = drive(10, 48, 96)
    network = Tiny()
    objectives = [Photometric(poses="known", unit_m=1), Smoothness()]
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    with torch.no_grad():
        start = absrel(network.eval()(clip.image), depth)
    network.train()
    for iteration in range(200):
        rows = torch.randperm(len(clip.rows), generator=torch.Generator().manual_seed(iteration))[:4]
        part = replace(
            clip,
            rows=torch.arange(4),
            image=clip.image[rows],
            sources=clip.sources[rows],
            seen=clip.seen[rows],
            intrinsics=clip.intrinsics[rows],
            poses=clip.poses[rows],
        )
        target = torch.zeros(4, 1, *part.image.shape[-2:])
        batch = Batch(part.image, target, target > 0, (Kind.METRIC_DEPTH,) * 4, ("a",) * 4, part)
        seen = Seen(Outputs((network(part.image),)), Kind.SCALED_DISPARITY, batch, nn.ModuleDict(), network)
        loss, _ = total_loss(objectives, seen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        end = absrel(network.eval()(clip.image), depth)
    constant = absrel(torch.ones(len(depth), 1, 48, 96), depth)
    assert end < 0.5 * start
    assert end < 0.75 * constant
