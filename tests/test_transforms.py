"""Augmentation: picture, depth and camera change together, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.contract import Camera
from leadline.data.dataset import Sample
from leadline.data.transforms import NONE, Augmentation, jitter, shrink, view
from leadline.depth import Depth, Intrinsics, Kind

H, W = 60, 80
OWN = Intrinsics(70.0, 66.0, 41.0, 28.5)


def plane(kind: Kind = Kind.METRIC_DEPTH) -> Sample:
    """A slanted plane: depth is affine in inverse depth, so every pixel's truth is known at any position."""
    y, x = np.mgrid[:H, :W] + 0.5
    values = (1 / inverse(x, y)).astype(np.float32)
    picture = np.stack([x * 3, y * 4, np.full_like(x, 90)], -1).astype(np.uint8)
    return Sample("plane", picture, Depth(values, kind, OWN), OWN)


def inverse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.2 + 0.1 * (x - OWN.cx) / OWN.fx + 0.3 * (y - OWN.cy) / OWN.fy


def seed_of(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


def test_without_augmentation_only_the_size_changes() -> None:
    out = view(plane(), (30, 40), None, seed_of(0))
    assert out.image.shape == (30, 40, 3)
    assert out.intrinsics is not None
    expected = OWN.resized(0.5, 0.5)
    assert (out.intrinsics.fx, out.intrinsics.cy) == pytest.approx((expected.fx, expected.cy))
    # nearest neighbour of a half-size picture: source pixel centres 2k + 1.5 or 2k + 0.5
    y, x = np.mgrid[:30, :40] + 0.5
    assert out.depth is not None
    assert np.abs(1 / out.depth.values - inverse(2 * x, 2 * y)).max() < 0.004  # half a source pixel both ways


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.7, 1.4), st.floats(0.8, 1.6))
def test_depth_is_what_the_networks_camera_would_measure(seed: int, fx: float, fy: float) -> None:
    """Back-project with the new camera, undo the change of focal length: the points lie on the same plane."""
    camera = Camera(fx_over_width=fx, fy_over_height=fy)
    options = Augmentation(zoom=1.5, roll_deg=0, flip=0.5, shift=1.0)
    out = view(plane(), (48, 64), camera, seed_of(seed), options)
    assert out.intrinsics is not None
    assert out.depth is not None
    assert out.intrinsics.fx == pytest.approx(fx * 64)
    assert out.intrinsics.fy == pytest.approx(fy * 48)
    values = out.depth.values
    inside = values > 0
    assert inside.mean() > 0.97
    # The scene's inverse depth is affine in the picture; zooming by z multiplies it by z and divides slopes by z,
    # so fitted slopes per focal length must be those of the plane (mirrored or not), and the fit must be exact.
    y, x = np.mgrid[:48, :64] + 0.5
    a = np.stack(
        [
            np.ones(inside.sum()),
            (x[inside] - out.intrinsics.cx) / (fx * 64),
            (y[inside] - out.intrinsics.cy) / (fy * 48),
        ],
        1,
    )
    fit, *_ = np.linalg.lstsq(a, 1 / values[inside], rcond=None)
    assert abs(fit[1]) == pytest.approx(0.1, abs=0.01)
    assert fit[2] == pytest.approx(0.3, abs=0.01)


def test_zoom_divides_metric_depth_and_leaves_disparity() -> None:
    camera = Camera(fx_over_width=OWN.fx / W * 1.0, fy_over_height=OWN.fy / H)
    options = Augmentation(zoom=2.0, roll_deg=0, flip=0, shift=0)
    metric, relative = (
        view(plane(kind), (H, W), camera, seed_of(5), options) for kind in (Kind.METRIC_DEPTH, Kind.RELATIVE_DISPARITY)
    )
    assert metric.depth is not None
    assert relative.depth is not None
    ratio = relative.depth.values[10:-10, 10:-10] / metric.depth.values[10:-10, 10:-10]
    assert ratio.std() < 1e-4
    assert 1.0 <= ratio.mean() <= 2.0


def test_mirroring_mirrors_everything() -> None:
    plain = view(plane(), (H, W), None, seed_of(0))
    mirrored = view(plane(), (H, W), None, seed_of(0), Augmentation(zoom=1, roll_deg=0, flip=1, shift=0))
    assert np.array_equal(mirrored.image, plain.image[:, ::-1])
    assert plain.intrinsics is not None
    assert mirrored.intrinsics is not None
    assert mirrored.intrinsics.cx == pytest.approx(W - plain.intrinsics.cx)


def test_roll_turns_about_the_principal_point_and_marks_the_outside() -> None:
    out = view(plane(), (H, W), None, seed_of(1), Augmentation(zoom=1, roll_deg=45, flip=0, shift=0))
    assert out.depth is not None
    assert (out.depth.values == 0).any()
    relative = view(
        plane(Kind.RELATIVE_DISPARITY), (H, W), None, seed_of(1), Augmentation(zoom=1, roll_deg=45, flip=0, shift=0)
    )
    assert relative.depth is not None
    assert np.isnan(relative.depth.values).any()
    cy, cx = int(OWN.cy), int(OWN.cx)
    assert out.depth.values[cy, cx] == pytest.approx(5.0, rel=0.05)


def test_shrink_keeps_small_pictures_and_scales_the_camera() -> None:
    assert shrink(plane(), H).image.shape == (H, W, 3)
    small = shrink(plane(), 30)
    assert small.image.shape == (30, 40, 3)
    assert small.intrinsics is not None
    assert small.intrinsics.fx == pytest.approx(35)
    assert small.depth is not None
    assert set(np.unique(small.depth.values)) <= set(np.unique(plane().depth.values))  # type: ignore[union-attr]


def test_jitter_is_random_bounded_and_can_do_nothing() -> None:
    picture = plane().image
    assert np.array_equal(jitter(picture, seed_of(0), NONE), picture)
    options = Augmentation(noise=5, grey=0.2)
    first, same, other = (jitter(picture, seed_of(n), options) for n in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8
    grey = jitter(picture, seed_of(3), Augmentation(grey=1.0, hue=0))
    assert np.ptp(grey.astype(int), axis=-1).max() == 0


def test_keeping_the_aspect_cuts_the_widest_window_of_that_shape_from_the_middle():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255  # the middle third: a square window sees nothing else
    seen = view(Sample("wide", image, None, None), (50, 50), None, np.random.default_rng(0), keep_aspect=True)
    assert seen.image.shape == (50, 50, 3)
    assert seen.image.min() == 255
    stretched = view(Sample("wide", image, None, None), (50, 50), None, np.random.default_rng(0))
    assert stretched.image.min() == 0


def test_colours_stay_in_the_share_of_pictures_that_is_left_alone():
    image = np.full((4, 4, 3), (90, 120, 150), np.uint8)
    options = Augmentation(colour=0.4, jitter=0.25)
    changed = [(jitter(image, np.random.default_rng(seed), options) != image).any() for seed in range(400)]
    assert 0.17 < np.mean(changed) < 0.33  # 400 draws: 0.25 +- 4 standard deviations
