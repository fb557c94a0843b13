"""View synthesis geometry against closed forms and scipy's rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from leadline.losses.projection import (
    backproject,
    inverse_rigid,
    parallax,
    pixel_grid,
    project,
    rigid_motion,
    rotation_from_axis_angle,
    sampling_grid,
    warp,
)

H, W = 24, 40
CAMERA = torch.tensor([[[30.0, 0, 19.0], [0, 28.0, 12.5], [0, 0, 1]]], dtype=torch.float64)


def picture(channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(1, channels, H, W, generator=generator, dtype=torch.float64)


def motion(axis_angle: tuple[float, float, float], translation: tuple[float, float, float]) -> torch.Tensor:
    rotation = rotation_from_axis_angle(torch.tensor([axis_angle], dtype=torch.float64))
    return rigid_motion(rotation, torch.tensor([translation], dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3.0, 3.0, allow_subnormal=False), min_size=3, max_size=3))
def test_the_rotation_is_that_of_scipy(vector: list[float]) -> None:
    ours = rotation_from_axis_angle(torch.tensor(vector, dtype=torch.float64))
    np.testing.assert_allclose(ours.numpy(), Rotation.from_rotvec(vector).as_matrix(), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-4, 0.00999, 0.01001])
def test_the_rotation_and_its_gradient_are_smooth_at_zero(angle: float) -> None:
    vector = torch.tensor([angle, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    rotation = rotation_from_axis_angle(vector)
    expected = [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    np.testing.assert_allclose(rotation.detach().numpy(), expected, atol=1e-12)
    rotation[2, 1].backward()  # sin(angle): its derivative is cos(angle)
    assert vector.grad is not None
    np.testing.assert_allclose(vector.grad.numpy(), [math.cos(angle), 0, 0], atol=1e-9)


def test_an_inverse_undoes_a_motion() -> None:
    there = motion((0.3, -0.2, 0.9), (1.0, 2.0, -3.0))
    np.testing.assert_allclose((inverse_rigid(there) @ there)[0].numpy(), np.eye(4), atol=1e-12)


def test_a_motion_rotates_before_it_translates() -> None:
    quarter = motion((0, 0, math.pi / 2), (5, 0, 0))
    moved = quarter @ torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    np.testing.assert_allclose(moved[0], [5, 1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_standing_still_gives_the_picture_back(align_corners: bool) -> None:
    depth = 1 + picture(1)
    seen = warp(picture(), depth, CAMERA, motion((0, 0, 0), (0, 0, 0)), align_corners=align_corners)
    torch.testing.assert_close(seen, picture(), atol=1e-9, rtol=0)


def test_pixel_centres_lie_at_a_half() -> None:
    grid = pixel_grid(2, 3, CAMERA)
    assert grid.tolist() == [[0.5, 1.5, 2.5] * 2, [0.5] * 3 + [1.5] * 3, [1.0] * 6]
    assert pixel_grid(2, 3, CAMERA, align_corners=True)[0].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_plane_moved_sideways_shifts_by_focal_length_times_baseline_over_depth() -> None:
    # fx * t / z = 30 * 0.6 / 6 = 3 pixels: the source's camera stands 0.6 to the right, so its pixels lie 3 to the left
    seen = warp(picture(), torch.full((1, 1, H, W), 6.0, dtype=torch.float64), CAMERA, motion((0, 0, 0), (-0.6, 0, 0)))
    torch.testing.assert_close(seen[..., 3:], picture()[..., :-3], atol=1e-9, rtol=0)
    torch.testing.assert_close(seen[..., :3], picture()[..., :1].expand(-1, -1, -1, 3), atol=1e-9, rtol=0)  # border


def test_a_point_projects_where_the_pinhole_says() -> None:
    point = torch.tensor([0.4, -0.2, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    pixel = project(point, CAMERA, motion((0, 0, 0), (0.1, 0, 0.5)))
    np.testing.assert_allclose(pixel[0, 0, 0], [30 * 0.5 / 2.5 + 19, 28 * -0.2 / 2.5 + 12.5], atol=1e-12)


def test_a_point_behind_the_camera_stays_finite_and_outside() -> None:
    point = torch.tensor([0.4, -0.2, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    pixel = project(point, CAMERA, motion((0, 0, 0), (0, 0, -5)))
    assert pixel.isfinite().all()
    assert abs(pixel[0, 0, 0, 0]) > 1000


def test_a_pure_rotation_does_not_depend_on_depth() -> None:
    turn = motion((0.02, 0.05, -0.03), (0, 0, 0))
    near, far = (warp(picture(), torch.full((1, 1, H, W), z, dtype=torch.float64), CAMERA, turn) for z in (0.5, 50.0))
    torch.testing.assert_close(near, far, atol=1e-9, rtol=0)
    homography = CAMERA[0] @ turn[0, :3, :3] @ torch.linalg.inv(CAMERA[0])
    torch.testing.assert_close(parallax(CAMERA, turn).infinite[0], homography)


def test_back_projection_and_projection_are_inverse() -> None:
    depth = 1 + picture(1)
    pixels = project(backproject(depth, CAMERA), CAMERA, motion((0, 0, 0), (0, 0, 0)))
    expected = pixel_grid(H, W, depth)[:2].T.view(1, H, W, 2)
    torch.testing.assert_close(pixels, expected, atol=1e-9, rtol=0)


def test_parallax_is_projection_of_back_projection() -> None:
    depth, moved = 1 + 5 * picture(1), motion((0.02, -0.04, 0.01), (0.3, -0.1, 0.2))
    pixels = project(backproject(depth, CAMERA), CAMERA, moved)
    infinite, epipole = parallax(CAMERA, moved)
    q = (infinite @ pixel_grid(H, W, depth)).view(1, 3, H, W) + epipole.view(1, 3, 1, 1) / depth
    torch.testing.assert_close(pixels, (q[:, :2] / q[:, 2:]).permute(0, 2, 3, 1))


def test_the_grid_spans_the_picture() -> None:
    corners = torch.tensor([[0.0, 0.0], [W, H]])
    assert sampling_grid(corners, H, W).tolist() == [[-1, -1], [1, 1]]
    centres = torch.tensor([[0.0, 0.0], [W - 1, H - 1]])
    assert sampling_grid(centres, H, W, align_corners=True).tolist() == [[-1, -1], [1, 1]]


def test_both_conventions_agree_once_the_principal_point_moves_half_a_pixel() -> None:
    depth, moved = 1 + picture(1), motion((0.01, 0.02, 0.0), (0.05, 0.02, 0.1))
    shifted = CAMERA.clone()
    shifted[:, :2, 2] -= 0.5
    ours = warp(picture(), depth, CAMERA, moved)
    theirs = warp(picture(), depth, shifted, moved, align_corners=True)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
