"""Projective geometry of view synthesis: rotations, rigid motions, and one picture seen from another camera.

Pixel centres lie at integers + 0.5, so a picture of width W spans 0 to W and is sampled with `align_corners=False`.
The published code counts centres at integers and samples with `align_corners=True`, which puts the principal point of
equal intrinsics half a pixel elsewhere; `align_corners=True` reproduces it. Source: SPEC.md 4.1 and 4.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEAREST = 1e-3  # smallest depth after the motion, relative to that before: nothing is projected through the camera
SMALL_ANGLE = 1e-2  # radians: below it, Taylor series replace the quotients of Rodrigues' formula


class Motion(NamedTuple):
    """How pixels move with disparity: q ~ `infinite` p + disparity * `epipole` (plane plus parallax).

    Args:
        infinite: ... x 3 x 3, K_s R inverse(K_t): where a pixel of infinite depth goes.
        epipole: ... x 3, K_s t.
    """

    infinite: Tensor
    epipole: Tensor


def rotation_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """Rodrigues' rotation, smooth at angle zero.

    Args:
        axis_angle: ... x 3, the axis times the angle in radians.

    Returns:
        ... x 3 x 3.
    """
    square = axis_angle.square().sum(-1)[..., None, None]
    small = square < SMALL_ANGLE**2
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - square / 6 + square.square() / 120, angle.sin() / angle)
    versine = torch.where(small, 0.5 - square / 24 + square.square() / 720, (1 - angle.cos()) / safe)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*x.shape, 3, 3)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    rotation: Tensor = identity + sine * cross + versine * (cross @ cross)
    return rotation


def rigid_motion(rotation: Tensor, translation: Tensor) -> Tensor:
    """The 4 x 4 matrix that rotates, then translates.

    Args:
        rotation: ... x 3 x 3.
        translation: ... x 3.
    """
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=rotation.dtype, device=rotation.device)
    upper = torch.cat([rotation, translation[..., None]], -1)
    return torch.cat([upper, last.expand(*upper.shape[:-2], 1, 4)], -2)


def inverse_rigid(motion: Tensor) -> Tensor:
    """The inverse of a rotation and translation, ... x 4 x 4."""
    rotation, translation = motion[..., :3, :3], motion[..., :3, 3]
    back = rotation.transpose(-1, -2)
    return rigid_motion(back, -(back @ translation[..., None])[..., 0])


def pixel_grid(height: int, width: int, like: Tensor, *, align_corners: bool = False) -> Tensor:
    """Homogeneous coordinates of all pixel centres, 3 x (height * width), in the type and on the device of `like`."""
    centre = 0.0 if align_corners else 0.5
    y = torch.arange(height, dtype=like.dtype, device=like.device) + centre
    x = torch.arange(width, dtype=like.dtype, device=like.device) + centre
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)


def backproject(depth: Tensor, intrinsics: Tensor, *, align_corners: bool = False) -> Tensor:
    """Points in space, in the camera's frame (x right, y down, z forward).

    Args:
        depth: N x 1 x H x W, z-depth in any unit.
        intrinsics: N x 3 x 3, pixels.
        align_corners: see the module.

    Returns:
        N x 3 x H x W, in the unit of `depth`.
    """
    height, width = depth.shape[-2:]
    rays: Tensor = torch.linalg.inv(intrinsics) @ pixel_grid(height, width, depth, align_corners=align_corners)
    return rays.view(-1, 3, height, width) * depth


def project(points: Tensor, intrinsics: Tensor, motion: Tensor) -> Tensor:
    """Pixel coordinates, in another camera, of points in the first camera's frame.

    Args:
        points: N x 3 x H x W.
        intrinsics: N x 3 x 3 of the other camera, pixels.
        motion: N x 4 x 4, from the first camera's frame to the other's.

    Returns:
        N x H x W x 2, (x, y) in pixels; points behind the camera end far outside.
    """
    there = motion[..., :3, :3] @ points.flatten(2) + motion[..., :3, 3:]
    q = intrinsics @ there
    nearest = NEAREST * points.flatten(2)[:, 2:].abs().clamp(min=torch.finfo(points.dtype).tiny)
    pixels = (q[:, :2] / torch.maximum(q[:, 2:], nearest)).transpose(1, 2)
    return pixels.reshape(len(points), *points.shape[-2:], 2)


def sampling_grid(pixels: Tensor, height: int, width: int, *, align_corners: bool = False) -> Tensor:
    """Pixel coordinates (... x 2, x before y) in the -1 to 1 of `grid_sample` for a picture of height x width."""
    span = torch.tensor([width, height], dtype=pixels.dtype, device=pixels.device)
    return pixels * (2 / (span - 1 if align_corners else span)) - 1


def warp(source: Tensor, depth: Tensor, intrinsics: Tensor, motion: Tensor, *, align_corners: bool = False) -> Tensor:
    """The source picture as the first camera would see it (view synthesis; SPEC.md 4.1).

    Args:
        source: N x C x H x W.
        depth: N x 1 x H x W of the first camera, in the unit of the motion's translation.
        intrinsics: N x 3 x 3 of both, pixels.
        motion: N x 4 x 4, from the first camera's frame to the source's.
        align_corners: see the module.

    Returns:
        N x C x H x W; bilinear, border pixels repeated outside.
    """
    pixels = project(backproject(depth, intrinsics, align_corners=align_corners), intrinsics, motion)
    grid = sampling_grid(pixels, *source.shape[-2:], align_corners=align_corners)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=align_corners)


def parallax(intrinsics: Tensor, motion: Tensor) -> Motion:
    """The motion of pixels between two pictures of one camera, ready for many depth maps.

    Args:
        intrinsics: ... x 3 x 3, pixels.
        motion: ... x 4 x 4, from the first camera's frame to the second's.
    """
    rotation, translation = motion[..., :3, :3], motion[..., :3, 3:]
    infinite = intrinsics @ rotation @ torch.linalg.inv(intrinsics)
    return Motion(infinite, (intrinsics @ translation)[..., 0])
