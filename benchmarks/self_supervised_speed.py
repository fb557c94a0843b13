"""One self-supervised training step, ours against the objective written out plainly, in turn.

    python benchmarks/self_supervised_speed.py                                   # Lite-Mono, batch 8, 192 x 640
    python benchmarks/self_supervised_speed.py --model none                      # the losses alone
    python benchmarks/self_supervised_speed.py --batch 2 --rounds 5 --threads 1

Plain is the formula as published: every scale enlarged, back-projected, projected and warped at full resolution,
average pooling in SSIM, the identity errors once per scale, automatic differentiation throughout. Networks, pictures,
noise and optimiser are the same for both. The floor is the step with the networks alone, which no formulation of the
loss can beat. Prints medians with quartiles, of wall time and of processor time (a shared machine disturbs the latter
less), the ratio of each round, the difference of the losses, and the machine. Passes no judgement by itself.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from leadline.evaluation.machine import this_machine
from leadline.losses.photometric import NOISE, at_size, edge_aware_smoothness, enlarge, identity_error
from leadline.losses.projection import inverse_rigid, rigid_motion, rotation_from_axis_angle
from leadline.losses.reprojection import minimum_reprojection
from leadline.models.outputs import outputs
from leadline.models.pose import PoseNetwork
from leadline.models.registry import architecture, variants

SMOOTHNESS = 1e-3


@dataclass
class Views:
    """Target N x 3 x H x W, sources N x S x 3 x H x W, intrinsics N x 3 x 3."""

    target: torch.Tensor
    sources: torch.Tensor
    intrinsics: torch.Tensor


def plain_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = F.pad(x, (1, 1, 1, 1), mode="reflect"), F.pad(y, (1, 1, 1, 1), mode="reflect")
    mean_x, mean_y = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
    var_x = F.avg_pool2d(x**2, 3, 1) - mean_x**2
    var_y = F.avg_pool2d(y**2, 3, 1) - mean_y**2
    cov = F.avg_pool2d(x * y, 3, 1) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 0.01**2) * (2 * cov + 0.03**2)
    below = (mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)
    return torch.clamp((1 - above / below) / 2, 0, 1)


def plain_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.85 * plain_ssim(x, y).mean(1, True) + 0.15 * (x - y).abs().mean(1, True)


def plain_warp(
    source: torch.Tensor, depth: torch.Tensor, intrinsics: torch.Tensor, pose: torch.Tensor, align_corners: bool
) -> torch.Tensor:
    n, _, height, width = source.shape
    centre = 0.0 if align_corners else 0.5
    rows, columns = torch.meshgrid(torch.arange(height) + centre, torch.arange(width) + centre, indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)]).view(1, 3, -1).to(source)
    points = depth.view(n, 1, -1) * (torch.inverse(intrinsics) @ pixels)
    points = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    there = intrinsics @ (pose[:, :3] @ points)
    x, y = (there[:, :2] / (there[:, 2:] + 1e-7)).unbind(1)
    less = 1 if align_corners else 0
    grid = torch.stack([x / (width - less), y / (height - less)], -1).view(n, height, width, 2) * 2 - 1
    return F.grid_sample(source, grid, padding_mode="border", align_corners=align_corners)


def plain_loss(
    disparities: tuple[torch.Tensor, ...],
    poses: torch.Tensor,
    views: Views,
    noise: torch.Tensor,
    *,
    align_corners: bool = False,
) -> torch.Tensor:
    """The published objective, scale by scale; `noise` is N x S x H x W."""
    size = views.target.shape[-2:]
    total = views.target.new_zeros(())
    for scale, disparity in enumerate(disparities):
        depth = 1 / F.interpolate(disparity, size, mode="bilinear", align_corners=False)
        warped_errors, identity_errors = [], []
        for s in range(views.sources.shape[1]):
            source = views.sources[:, s]
            warped = plain_warp(source, depth, views.intrinsics, poses[:, s], align_corners)
            warped_errors.append(plain_error(warped, views.target))
            identity_errors.append(plain_error(source, views.target) + NOISE * noise[:, s : s + 1])
        total = total + torch.cat(identity_errors + warped_errors, 1).min(1)[0].mean()
        d = disparity / (disparity.mean((2, 3), True) + 1e-7)
        image = at_size(views.target, *disparity.shape[-2:])
        dx, dy = (d[..., :-1] - d[..., 1:]).abs(), (d[..., :-1, :] - d[..., 1:, :]).abs()
        ix = (image[..., :-1] - image[..., 1:]).abs().mean(1, True)
        iy = (image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, True)
        smoothness = (dx * torch.exp(-ix)).mean() + (dy * torch.exp(-iy)).mean()
        total = total + SMOOTHNESS * smoothness / 2**scale
    return total / len(disparities)


def our_loss(
    disparities: tuple[torch.Tensor, ...],
    poses: torch.Tensor,
    views: Views,
    generator: torch.Generator | None,
    *,
    align_corners: bool = False,
) -> torch.Tensor:
    size = views.target.shape[-2:]
    full = torch.cat([enlarge(d, *size) for d in disparities], 1)
    identity = identity_error(views.sources, views.target, generator=generator)
    found = minimum_reprojection(
        full, poses, views.intrinsics, views.sources, views.target, identity, align_corners=align_corners
    )
    smoothness = sum(edge_aware_smoothness(d, views.target) / 2**s for s, d in enumerate(disparities))
    return found.loss + SMOOTHNESS * smoothness / len(disparities)


def poses_of(network: torch.nn.Module, views: Views) -> torch.Tensor:
    """Of the frames before and after, pairs in temporal order, one pass for both."""
    before, after = views.sources.unbind(1)
    turn, shift = network(torch.cat([torch.cat([before, views.target], 1), torch.cat([views.target, after], 1)]))
    motion = rigid_motion(rotation_from_axis_angle(turn), shift)
    n = len(views.target)
    return torch.stack([inverse_rigid(motion[:n]), motion[n:]], 1)


def scene(batch: int, height: int, width: int) -> Views:
    """Smooth random pictures, the sources shifted by some pixels: values matter little for speed."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch, 3, height // 8, width // 8 + 4, generator=generator)
    wide = F.interpolate(noise, (height, width + 32), mode="bicubic", align_corners=False).clamp(0, 1)
    target, before, after = wide[..., 16:-16], wide[..., 12:-20], wide[..., 20:-12]
    matrix = torch.tensor([[0.58 * width, 0, width / 2], [0, 1.92 * height, height / 2], [0, 0, 1]])
    sources = torch.stack([before, after], 1).contiguous()
    return Views(target.contiguous(), sources, matrix.expand(batch, 3, 3).contiguous())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite-mono", help="variant, or none for the losses alone")
    parser.add_argument("--pose", default="resnet18")
    parser.add_argument("--size", default="192,640", help="H,W")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split(","))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    views = scene(options.batch, height, width)
    views = Views(*(part.to(options.device) for part in (views.target, views.sources, views.intrinsics)))
    depth_network, pose_network, optimiser = networks(options.model, options.pose, options.device)

    def forward() -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        if depth_network is None:
            sizes = [(options.batch, 1, height >> s, width >> s) for s in range(3)]
            maps = tuple((torch.rand(shape, device=options.device) + 0.05).requires_grad_() for shape in sizes)
            motion = rigid_motion(torch.eye(3).expand(options.batch, 2, 3, 3), torch.full((options.batch, 2, 3), 0.01))
            return maps, motion.to(options.device).requires_grad_()
        image = views.target.to(memory_format=torch.channels_last)
        return outputs(depth_network, image).maps, poses_of(pose_network, views)

    def step(kind: str, seed: int) -> tuple[float, float, float]:
        torch.manual_seed(seed)
        draw = torch.Generator(options.device).manual_seed(seed)
        synchronise(options.device)
        wall, processor = time.perf_counter(), time.process_time()
        disparities, poses = forward()
        if kind == "floor":
            loss = sum(d.mean() for d in disparities) + poses.mean()
        elif kind == "ours":
            loss = our_loss(disparities, poses, views, draw)
        else:
            shape = (options.batch, 2, height, width)
            loss = plain_loss(disparities, poses, views, torch.randn(shape, generator=draw, device=options.device))
        loss.backward()
        value = loss.item()
        if optimiser is not None:
            optimiser.zero_grad(set_to_none=False)  # gradients to zero: every round sees the same weights
            optimiser.step()
        synchronise(options.device)
        return time.perf_counter() - wall, time.process_time() - processor, value

    kinds = ("plain", "ours", "floor")
    rows: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for seed in range(options.rounds + 1):
        for kind in kinds if seed % 2 else kinds[::-1]:
            seen = step(kind, seed)
            if seed:  # the first round warms up
                rows[kind].append(seen)
    print(
        f"{options.model}, pose {options.pose}, {height}x{width}, batch {options.batch}, {this_machine()}, "
        f"threads {options.threads}, {options.device}, {options.rounds} rounds in turn"
    )
    for name, column in (("wall", 0), ("processor", 1)):
        times = {kind: np.array([row[column] for row in rows[kind]]) for kind in kinds}
        for kind in kinds:
            print(f"{name:>9} {kind:>5}: {quartiles(times[kind])} s")
        print(f"{name:>9} ours / plain:  {quartiles(times['ours'] / times['plain'])}")
        print(f"{name:>9} floor / plain: {quartiles(times['floor'] / times['plain'])}")
    gap = max(abs(a[2] - b[2]) for a, b in zip(rows["ours"], rows["plain"], strict=True))
    print(f"largest difference of the losses: {gap:.2e} of {rows['plain'][0][2]:.4f}")


def networks(
    name: str, pose: str, device: str
) -> tuple[torch.nn.Module | None, torch.nn.Module, torch.optim.Optimizer | None]:
    """Both networks in training mode and their optimiser."""
    if name == "none":
        return None, torch.nn.Identity(), None
    family, config = variants()[name]
    depth = architecture(family).build(config).train().to(device, memory_format=torch.channels_last)
    motion = PoseNetwork(pose).train().to(device, memory_format=torch.channels_last)
    rate = [*depth.parameters(), *motion.parameters()]
    return depth, motion, torch.optim.AdamW(rate, lr=1e-4, weight_decay=0.0)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def quartiles(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
