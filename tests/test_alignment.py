"""Alignments: what they recover, what leaves them unchanged, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadline.depth import Kind
from leadline.errors import KindError
from leadline.evaluation.alignment import Alignment, align, fit_line

GT = np.array([0.5, 1.0, 2.0, 2.5, 4.0, 5.0, 8.0])
vectors = st.integers(5, 40).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, n, elements=st.floats(0.1, 50.0), unique=True)] * 2)
)


@given(vectors, st.floats(1e-3, 1e3))
def test_median_alignment_forgets_scale(pair, factor):
    pred, gt = pair
    once = align(pred, Kind.METRIC_DEPTH, gt, Alignment.MEDIAN)
    scaled = align(factor * pred, Kind.METRIC_DEPTH, gt, Alignment.MEDIAN)
    np.testing.assert_allclose(scaled.depth, once.depth, rtol=1e-9)
    assert np.median(once.depth) == pytest.approx(np.median(gt))
    assert scaled.scale * factor == pytest.approx(once.scale)


@given(vectors, st.floats(0.01, 100.0), st.floats(-10.0, 10.0))
def test_disparity_alignment_forgets_scale_and_shift(pair, factor, shift):
    pred, gt = pair
    once = align(pred, Kind.RELATIVE_DISPARITY, gt, Alignment.LSQ_DISPARITY)
    moved = align(factor * pred + shift, Kind.RELATIVE_DISPARITY, gt, Alignment.LSQ_DISPARITY)
    np.testing.assert_allclose(moved.disparity, once.disparity, rtol=1e-4, atol=1e-6)


@given(vectors)
def test_line_is_the_least_squares_line(pair):
    x, y = pair
    scale, shift, singular = fit_line(x, y)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones_like(x)]), y, rcond=None)[0]
    assert not singular
    np.testing.assert_allclose(scale * x + shift, expected[0] * x + expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.02, 0.7), (250.0, -3.0)])
def test_perfect_disparity_is_recovered(scale, shift):
    found = align(scale / GT + shift, Kind.RELATIVE_DISPARITY, GT, Alignment.LSQ_DISPARITY)
    np.testing.assert_allclose(found.depth, GT, rtol=1e-9)
    assert found.scale == pytest.approx(1 / scale)
    assert found.shift == pytest.approx(-shift / scale, abs=1e-9)


def test_perfect_relative_depth_is_recovered_in_depth():
    found = align(3 * GT - 1, Kind.RELATIVE_DEPTH, GT, Alignment.LSQ_DEPTH)
    np.testing.assert_allclose(found.depth, GT, rtol=1e-12)


def test_metric_depth_aligned_in_disparity_is_inverted_first():
    found = align(GT, Kind.METRIC_DEPTH, GT, Alignment.LSQ_DISPARITY)
    assert (found.scale, found.shift) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_scaled_disparity_is_inverted_before_the_median():
    found = align(7 / GT, Kind.SCALED_DISPARITY, GT, Alignment.MEDIAN)
    np.testing.assert_allclose(found.depth, GT, rtol=1e-12)
    assert found.scale == pytest.approx(7.0)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize(("kind", "how"), [(kind, how) for how in Alignment for kind in sorted(how.kinds)])
def test_constant_prediction_divides_by_nothing(value, kind, how):
    with np.errstate(all="raise"):
        found = align(np.full(7, value), kind, GT, how)
    assert np.isfinite(found.depth).all()
    if how in (Alignment.LSQ_DEPTH, Alignment.LSQ_DISPARITY):
        mean = GT.mean() if how is Alignment.LSQ_DEPTH else (1 / GT).mean()
        assert (found.scale, found.shift, found.singular) == (0.0, pytest.approx(mean), True)


def test_dead_output_under_median_is_flagged():
    found = align(np.zeros(7), Kind.METRIC_DEPTH, GT, Alignment.MEDIAN)
    assert found.singular


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Kind.RELATIVE_DISPARITY, Alignment.NONE),
        (Kind.RELATIVE_DISPARITY, Alignment.MEDIAN),
        (Kind.RELATIVE_DISPARITY, Alignment.LSQ_DEPTH),
        (Kind.RELATIVE_DEPTH, Alignment.NONE),
        (Kind.RELATIVE_DEPTH, Alignment.MEDIAN),
        (Kind.RELATIVE_DEPTH, Alignment.LSQ_DISPARITY),
        (Kind.SCALED_DISPARITY, Alignment.NONE),
    ],
)
def test_wrong_space_is_refused(kind, how):
    with pytest.raises(KindError, match=kind.value):
        align(1 / GT, kind, GT, how)
