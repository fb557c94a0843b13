"""Metrics against closed forms, their own laws, and the authors' published FastDepth sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadline.errors import NumericalError
from leadline.evaluation.metrics import (
    AGREEMENT_METRICS,
    DEPTH_METRICS,
    DISPARITY_METRICS,
    LABELS,
    agreement_metrics,
    depth_metrics,
    disparity_metrics,
    is_nearly_constant,
)

GT = np.array([1.0, 2.0, 4.0, 5.0])
depths = arrays(np.float64, st.integers(10, 40), elements=st.floats(0.05, 80.0))


def pairs():
    size = st.integers(10, 40)
    return size.flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=st.floats(0.05, 80.0))] * 2))


@pytest.mark.parametrize(
    ("ratio", "deltas"), [(1.0, (1, 1, 1)), (1.2, (1, 1, 1)), (0.79, (0, 1, 1)), (1.6, (0, 0, 1)), (3.0, (0, 0, 0))]
)
def test_constant_ratio(ratio, deltas):
    found = depth_metrics(ratio * GT, GT)
    off = abs(ratio - 1)
    assert tuple(found) == DEPTH_METRICS
    assert found["abs_rel"] == pytest.approx(off)
    assert found["sq_rel"] == pytest.approx(off**2 * 3.0)  # mean(gt) = 3
    assert found["rmse"] == pytest.approx(off * math.sqrt(46 / 4))
    assert found["mae"] == pytest.approx(off * 3.0)
    assert found["rmse_log"] == pytest.approx(abs(math.log(ratio)), abs=1e-12)
    assert found["log10"] == pytest.approx(abs(math.log10(ratio)), abs=1e-12)
    assert found["log_bias"] == pytest.approx(math.log(ratio), abs=1e-12)
    assert found["silog"] == pytest.approx(0.0, abs=1e-10)
    assert (found["delta1"], found["delta2"], found["delta3"]) == deltas


def test_hand_calculated():
    found = depth_metrics(np.array([2.0, 2.0, 1.0, 5.0]), GT)
    assert found["abs_rel"] == pytest.approx((1 + 0 + 0.75 + 0) / 4)
    assert found["sq_rel"] == pytest.approx((1 + 0 + 9 / 4 + 0) / 4)
    assert found["rmse"] == pytest.approx(math.sqrt(10 / 4))
    assert found["delta1"] == 0.5
    g = [math.log(2), 0.0, -math.log(4), 0.0]
    mean = sum(g) / 4
    assert found["silog"] == pytest.approx(100 * math.sqrt(sum(x * x for x in g) / 4 - mean**2))


def test_threshold_is_strict():
    assert depth_metrics(np.array([1.25, 1.0]), np.array([1.0, 1.0]))["delta1"] == 0.5


def test_nothing_to_measure_is_not_a_number():
    empty = np.zeros(0)
    assert depth_metrics(empty, empty) is None
    assert disparity_metrics(empty, empty) is None
    assert agreement_metrics(empty, empty) is None
    assert depth_metrics(np.ones(3), np.zeros(3)) is None


def test_zero_prediction_is_wrong_but_finite():
    found = depth_metrics(np.zeros(4), GT)
    assert found["abs_rel"] == 1.0
    assert found["delta3"] == 0.0
    assert all(math.isfinite(value) for value in found.values())


def test_negative_prediction_is_wrong():
    assert depth_metrics(-GT, GT)["delta3"] == 0.0


def test_or_mask_pixels_without_truth():
    """Under the OR mask they count as wrong and with their difference, and make no quotient infinite."""
    found = depth_metrics(np.array([1.0, 3.0]), np.array([1.0, 0.0]))
    assert (found["delta1"], found["abs_rel"]) == (0.5, 0.0)
    assert found["rmse"] == pytest.approx(math.sqrt(9 / 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("function", [depth_metrics, disparity_metrics, agreement_metrics])
def test_nan_is_refused(function, bad):
    with pytest.raises(NumericalError, match=r"prediction.*25\.0%"):
        function(np.array([1.0, bad, 2.0, 3.0]), GT)


@given(pairs())
def test_laws_of_depth_metrics(pair):
    p, g = pair
    found, swapped = depth_metrics(p, g), depth_metrics(g, p)
    assert 0 <= found["delta1"] <= found["delta2"] <= found["delta3"] <= 1
    for name in ("rmse", "mae", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3"):
        assert found[name] == pytest.approx(swapped[name], rel=1e-9, abs=1e-9)
    assert found["mae"] <= found["rmse"] + 1e-9
    squares = (found["silog"] / 100) ** 2 + found["log_bias"] ** 2
    assert found["rmse_log"] ** 2 == pytest.approx(squares, rel=1e-6, abs=1e-12)


@given(pairs(), st.floats(0.5, 20.0))
def test_unit_changes_only_what_has_a_unit(pair, factor):
    p, g = pair
    found, scaled = depth_metrics(p, g), depth_metrics(factor * p, factor * g)
    for name in ("abs_rel", "rmse_log", "silog", "log10"):
        assert scaled[name] == pytest.approx(found[name], rel=1e-6, abs=1e-7)
    for name in ("rmse", "mae", "sq_rel"):
        assert scaled[name] == pytest.approx(factor * found[name], rel=1e-6, abs=1e-9)


def test_disparity_metrics_closed_form():
    found = disparity_metrics(1.1 / GT, 1 / GT)
    assert tuple(found) == DISPARITY_METRICS
    assert found["disp_abs_rel"] == pytest.approx(0.1)
    assert found["disp_mae"] == pytest.approx(0.1 * (1 + 0.5 + 0.25 + 0.2) / 4)
    assert found["disp_delta1"] == 1.0


@given(depths)
def test_agreement_with_itself(values):
    spread = np.append(values, [0.01, 100.0])
    found = agreement_metrics(spread, spread)
    assert found["correlation"] == pytest.approx(1.0)
    assert (found["aligned_error"], found["agreement"]) == (0.0, 1.0)


def test_agreement_closed_forms():
    line = np.linspace(0.0, 1.0, 1001)
    constant = agreement_metrics(np.full(1001, line.mean()), line)
    assert constant["correlation"] == 0.0
    assert constant["aligned_error"] == pytest.approx(1.0)
    assert constant["agreement"] == pytest.approx(0.096, abs=0.002)  # 0.05 of 0.96 on either side
    assert agreement_metrics(-line, line)["correlation"] == pytest.approx(-1.0)
    assert agreement_metrics(np.ones(20), np.ones(20)) == {"correlation": 0.0, "aligned_error": 0.0, "agreement": 1.0}
    assert agreement_metrics(np.zeros(20), np.ones(20)) == {"correlation": 0.0, "aligned_error": 1.0, "agreement": 0.0}


@pytest.mark.parametrize(
    ("values", "flat"),
    [(np.zeros(20), True), (np.full(20, 7.0), True), (2 + 1e-4 * GT, True), (GT, False), (1e-6 * GT, False)],
)
def test_nearly_constant(values, flat):
    assert is_nearly_constant(values) is flat


def test_every_metric_has_a_label():
    assert set(LABELS) == {*DEPTH_METRICS, *DISPARITY_METRICS, *AGREEMENT_METRICS}


@pytest.mark.data
def test_official_fastdepth_sample(shared_weights):
    """The authors' prediction against their ground truth: RMSE 0.6180 m, δ1 0.7773 (SPEC.md 1.6)."""
    gt = np.load(shared_weights / "fastdepth_sample_depth.npy", allow_pickle=False)
    pred = np.load(shared_weights / "fastdepth_sample_pred.npy", allow_pickle=False)
    found = depth_metrics(pred.ravel(), gt.ravel())
    assert found["rmse"] == pytest.approx(0.6180, abs=5e-5)
    assert found["delta1"] == pytest.approx(0.7773, abs=5e-5)
