"""What is shown of a frame: colours at the picture's size, one range over time."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.colors import colorize, palette
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError
from leadline.live.display import DisplayRange
from leadline.live.view import OPACITY, draw, paint

RAMP = np.tile(np.linspace(1, 9, 64, dtype=np.float32), (48, 1))
PICTURE = np.full((48, 64, 3), (200, 100, 0), np.uint8)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_map_of_the_pictures_size_has_the_colours_of_colorize(kind: Kind) -> None:
    shown = draw(PICTURE, RAMP, kind, 2.0, 8.0, "depth")
    np.testing.assert_array_equal(shown, colorize(Depth(RAMP, kind), 2.0, 8.0))


def test_a_small_map_is_brought_to_the_pictures_size() -> None:
    small = np.array([[1, 1], [3, 3]], np.float32)
    shown = draw(np.zeros((40, 20, 3), np.uint8), small, Kind.RELATIVE_DISPARITY, 1.0, 3.0, "depth")
    assert shown.shape == (40, 20, 3)
    np.testing.assert_array_equal(shown[0, 0], palette()[1])  # far
    np.testing.assert_array_equal(shown[-1, -1], palette()[255])  # near
    lightness = shown.astype(int).sum(axis=2)[:, 10]
    assert (np.diff(lightness) >= -3).all()  # evenly from dark to bright


def test_what_is_not_valid_is_black_and_bleeds_no_colour() -> None:
    values = np.full((4, 4), 5.0, np.float32)
    values[:, 2:] = 0
    shown = paint(values, Kind.METRIC_DEPTH, 1.0, 9.0, (40, 40))
    np.testing.assert_array_equal(shown[:, 20:], 0)
    assert (shown[:, :10].sum(axis=2) > 0).all()


def test_views() -> None:
    beside = draw(PICTURE, RAMP, Kind.METRIC_DEPTH, 1.0, 9.0, "side")
    assert beside.shape == (48, 128, 3)
    np.testing.assert_array_equal(beside[:, :64], PICTURE)
    depth = draw(PICTURE, RAMP, Kind.METRIC_DEPTH, 1.0, 9.0, "depth")
    np.testing.assert_array_equal(beside[:, 64:], depth)
    below = draw(np.zeros((10, 30, 3), np.uint8), RAMP, Kind.METRIC_DEPTH, 1.0, 9.0, "side")
    assert below.shape == (20, 30, 3)
    over = draw(PICTURE, RAMP, Kind.METRIC_DEPTH, 1.0, 9.0, "overlay")
    grey = 0.299 * 200 + 0.587 * 100
    np.testing.assert_allclose(over, OPACITY * depth + (1 - OPACITY) * grey, atol=1.5)
    with pytest.raises(ValueError, match="not a valid View"):
        draw(PICTURE, RAMP, Kind.METRIC_DEPTH, 1.0, 9.0, "upside")


def test_the_range_follows_slowly_and_jumps_at_a_new_scene() -> None:
    shown = DisplayRange(follow=0.1)
    assert shown.update(np.zeros((4, 4), np.float32), Kind.METRIC_DEPTH) == (0.0, 0.0)
    lo, hi = shown.update(RAMP, Kind.METRIC_DEPTH)
    assert (lo, hi) == pytest.approx(np.percentile(RAMP, (2, 98)), rel=1e-3)
    assert shown.update(1.5 * RAMP, Kind.METRIC_DEPTH) == pytest.approx((lo + 0.05 * lo, hi + 0.05 * hi), rel=1e-6)
    for _ in range(100):
        last = shown.update(1.5 * RAMP, Kind.METRIC_DEPTH)
    assert last == pytest.approx((1.5 * lo, 1.5 * hi), rel=1e-3)
    assert shown.update(np.full_like(RAMP, np.nan), Kind.METRIC_DEPTH) == last
    assert shown.update(100 + RAMP, Kind.METRIC_DEPTH) == pytest.approx((100 + lo, 100 + hi), rel=1e-3)


def test_one_outlier_among_many_frames_hardly_shows() -> None:
    shown = DisplayRange()
    steady = shown.update(RAMP, Kind.RELATIVE_DEPTH)
    after = shown.update(1.3 * RAMP, Kind.RELATIVE_DEPTH)
    assert abs(after[1] - steady[1]) < 0.03 * steady[1]


def test_a_fixed_range_stays() -> None:
    shown = DisplayRange(fixed=(0.5, 20.0))
    assert shown.update(RAMP, Kind.METRIC_DEPTH) == (0.5, 20.0)
    with pytest.raises(ConfigError, match="upside down"):
        DisplayRange(fixed=(3.0, 3.0))
