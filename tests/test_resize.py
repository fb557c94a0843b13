"""Resizing against torch, Pillow's own rule and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from leadline.image import resize

sides = st.integers(1, 17)


def by_torch(values: np.ndarray, size: tuple[int, int], mode: str, **options: object) -> np.ndarray:
    planes = torch.from_numpy(np.atleast_3d(values).astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    out = interpolate(planes, size=size, mode=mode, **options)[0].permute(1, 2, 0).numpy()
    return out if values.ndim == 3 else out[:, :, 0]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).random(shape, np.float32)


@settings(deadline=None, max_examples=80)
@given(sides, sides, sides, sides, st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_plain_rule_is_torchs(h: int, w: int, th: int, tw: int, mode: str, align_corners: bool) -> None:
    values = noise(h, w)
    got = resize(values, (th, tw), mode, antialias=False, align_corners=align_corners)
    np.testing.assert_allclose(got, by_torch(values, (th, tw), mode, align_corners=align_corners), atol=2e-5)
    assert got.dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(sides, st.integers(2, 17), sides, st.integers(2, 17), st.sampled_from(["bilinear", "bicubic"]))
def test_antialiased_rule_is_torchs_antialias(h: int, w: int, th: int, tw: int, mode: str) -> None:
    values = noise(h, w)  # at least 2 wide: torch 2.13 is wrong for antialias at width 1 (0.2, 0.9 -> 0.2, 0.2, 0.2)
    expected = by_torch(values, (th, tw), mode, align_corners=False, antialias=True)
    np.testing.assert_allclose(resize(values, (th, tw), mode), expected, atol=2e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_pictures_are_resized_channel_by_channel(align_corners: bool) -> None:
    picture = (noise(7, 9, 3) * 255).astype(np.uint8)
    got = resize(picture, (12, 5), antialias=False, align_corners=align_corners)
    np.testing.assert_allclose(got, by_torch(picture, (12, 5), "bilinear", align_corners=align_corners), atol=1e-2)
    assert resize(picture, (12, 5)).dtype == np.uint8


@settings(deadline=None, max_examples=60)
@given(sides, sides, sides, sides)
def test_nearest_takes_the_pixel_whose_centre_is_nearest(h: int, w: int, th: int, tw: int) -> None:
    values = noise(h, w)
    expected = by_torch(values, (th, tw), "nearest-exact")
    np.testing.assert_array_equal(resize(values, (th, tw), "nearest"), expected)


def test_two_pixels_to_four_closed_form() -> None:
    row = np.array([[0.0, 1.0]], np.float32)  # centres at 0.5 and 1.5; the four new ones at 0.25, 0.75, 1.25, 1.75
    np.testing.assert_allclose(resize(row, (1, 4), antialias=False), [[0, 0.25, 0.75, 1]], atol=1e-6)
    np.testing.assert_allclose(resize(row, (1, 4)), [[0, 0.25, 0.75, 1]], atol=1e-6)
    corners = resize(row, (1, 4), antialias=False, align_corners=True)
    np.testing.assert_allclose(corners, [[0, 1 / 3, 2 / 3, 1]], atol=1e-6)


def test_halving_with_antialias_is_the_triangle_filter() -> None:
    row = np.array([[0, 0, 0, 0, 8, 0, 0, 0]], np.float32)
    # Support 2 source pixels to each side of the centres 1, 3, 5, 7; weights (0.25, 0.75, 0.75, 0.25) / 2.
    np.testing.assert_allclose(resize(row, (1, 4)), [[0, 1, 3, 0]], atol=1e-5)


def test_a_linear_ramp_stays_linear_inside() -> None:
    ramp = np.tile(np.arange(10, dtype=np.float32) + 0.5, (3, 1))  # the value is the position of the centre
    got = resize(ramp, (3, 25), antialias=False)[0]
    np.testing.assert_allclose(got[2:-2], ((np.arange(25) + 0.5) * 10 / 25)[2:-2], atol=1e-5)


def test_the_same_size_is_the_same_picture() -> None:
    values = noise(4, 5)
    np.testing.assert_array_equal(resize(values, (4, 5)), values)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (7, 5)])
def test_extreme_shapes_resize(shape: tuple[int, int]) -> None:
    small = resize(np.full(shape, 3.0, np.float32), (32, 48))
    assert small.shape == (32, 48)
    np.testing.assert_allclose(resize(small, shape), 3.0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "wanted"), [((224, 288), (480, 640)), ((7, 5), (7, 31)), ((1, 1), (4, 3)), ((3, 9), (50, 9))]
)
def test_a_map_that_only_grows_is_pillows_to_the_last_places(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    values = np.random.default_rng(1).uniform(0.1, 80.0, size).astype(np.float32)
    theirs = np.array(Image.fromarray(values).resize((wanted[1], wanted[0]), Image.Resampling.BILINEAR))
    ours = resize(values, wanted)
    assert ours.dtype == np.float32
    assert ours.flags.writeable
    np.testing.assert_allclose(ours, theirs, rtol=6e-7)  # float32 rounds weights, products and sums
