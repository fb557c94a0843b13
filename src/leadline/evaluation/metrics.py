"""The figures of depth evaluation, over the valid pixels of one picture, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import NumericalError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH_METRICS = (
    "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3", "mae", "log_bias",
)  # fmt: skip
DISPARITY_METRICS = ("disp_abs_rel", "disp_rmse", "disp_mae", "disp_delta1")
AGREEMENT_METRICS = ("correlation", "aligned_error", "agreement")

LABELS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel (m)",
    "rmse": "RMSE (m)",
    "rmse_log": "RMSElog",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "δ1",
    "delta2": "δ2",
    "delta3": "δ3",
    "mae": "MAE (m)",
    "log_bias": "log bias",
    "disp_abs_rel": "AbsRel of disparity",
    "disp_rmse": "RMSE of disparity (1/m)",
    "disp_mae": "MAE of disparity (1/m)",
    "disp_delta1": "δ1 of disparity",
    "correlation": "correlation",
    "aligned_error": "aligned error",
    "agreement": "agreement",
}
HIGHER_IS_BETTER = frozenset({"delta1", "delta2", "delta3", "disp_delta1", "correlation", "agreement"})
ROOT_OF_MEAN_SQUARE = frozenset({"rmse", "rmse_log", "disp_rmse"})  # pooling averages their squares

SMALLEST_DEPTH = 1e-3  # metres; logarithms and ratios see at least this
SMALLEST_DISPARITY = 1e-6  # 1/m
NEGLIGIBLE = 0.05  # median of the prediction over median of the truth
NEARLY_CONSTANT = 1e-3  # standard deviation over root mean square
AGREEMENT_BAND = 0.05  # of the reference's range


def depth_metrics(pred: NDArray[np.floating], gt: NDArray[np.floating]) -> dict[str, float] | None:
    """AbsRel, SqRel, RMSE, RMSElog, log10, SILog, δ1 to δ3, MAE and the log bias of a prediction (SPEC.md 1.6, 4.4).

    With d = pred - gt and g = ln pred - ln gt, means over pixels: AbsRel = mean(|d| / gt), SqRel = mean(d² / gt),
    RMSE = sqrt(mean d²), MAE = mean |d|, RMSElog = sqrt(mean g²), log10 = mean |log10 pred - log10 gt|,
    SILog = 100 sqrt(mean g² - (mean g)²) as in the KITTI benchmark, δk = share of max(pred/gt, gt/pred) < 1.25^k,
    log bias = mean g. Ratios and logarithms use max(pred, 1e-3 m), so that a zero counts as wrong and divides nothing.

    Args:
        pred: metres, P.
        gt: metres, P. Pixels with 0 (they occur only under the OR mask of `fastdepth-224`) count as wrong in δ and
            with their difference in RMSE and MAE; the quotients and logarithms leave them out.

    Returns:
        One figure per name in DEPTH_METRICS; None ("n/a") where no pixel has ground truth.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    p, g = _finite(pred, gt)
    measured = g > 0
    if not measured.any():
        return None
    difference = p - g
    pm, gm, dm = (p, g, difference) if measured.all() else (p[measured], g[measured], difference[measured])
    positive = np.maximum(pm, SMALLEST_DEPTH)
    quotient = positive / gm
    log_ratio = np.log(quotient)
    ratio = np.maximum(quotient, 1.0 / quotient)
    share = np.abs(dm) / gm
    bias = float(np.mean(log_ratio))
    mean_square_log = float(log_ratio @ log_ratio) / log_ratio.size
    return {
        "abs_rel": float(np.mean(share)),
        "sq_rel": float(share @ np.abs(dm)) / dm.size,
        "rmse": float(np.sqrt(difference @ difference / p.size)),
        "rmse_log": float(np.sqrt(mean_square_log)),
        "log10": float(np.mean(np.abs(log_ratio)) / np.log(10.0)),
        "silog": 100.0 * float(np.linalg.norm(log_ratio - bias)) / float(np.sqrt(log_ratio.size)),
        "delta1": float(np.count_nonzero(ratio < 1.25) / p.size),
        "delta2": float(np.count_nonzero(ratio < 1.25**2) / p.size),
        "delta3": float(np.count_nonzero(ratio < 1.25**3) / p.size),
        "mae": float(np.mean(np.abs(difference))),
        "log_bias": bias,
    }


def disparity_metrics(pred: NDArray[np.floating], gt: NDArray[np.floating]) -> dict[str, float] | None:
    """AbsRel, RMSE, MAE and δ1 in disparity, without converting back (SPEC.md 6.5).

    Args:
        pred: aligned disparity, 1/m, P.
        gt: true disparity, 1/m, P, greater than 0.

    Returns:
        One figure per name in DISPARITY_METRICS; None where there is no pixel.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    p, g = _finite(pred, gt)
    if p.size == 0:
        return None
    positive = np.maximum(p, SMALLEST_DISPARITY)
    difference = p - g
    ratio = np.maximum(positive / g, g / positive)
    return {
        "disp_abs_rel": float(np.mean(np.abs(difference) / g)),
        "disp_rmse": float(np.sqrt(np.mean(difference * difference))),
        "disp_mae": float(np.mean(np.abs(difference))),
        "disp_delta1": float(np.count_nonzero(ratio < 1.25) / p.size),
    }


def agreement_metrics(aligned: NDArray[np.floating], reference: NDArray[np.floating]) -> dict[str, float] | None:
    """How far two maps of one picture agree, whatever their unit; the figures of `fidelity`.

    correlation = Pearson's r (0 where either is constant); aligned error = mean |a - r| / mean |r - mean r|, so that
    0 is equal and 1 is as bad as a constant; agreement = share of pixels with |a - r| at most 5 % of the reference's
    range between its 2nd and 98th percentile.

    Args:
        aligned: the candidate after alignment to the reference, P.
        reference: the uncompressed model's values, P.

    Returns:
        One figure per name in AGREEMENT_METRICS; None where there is no pixel.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    a, r = _finite(aligned, reference)
    if a.size == 0:
        return None
    da, dr = a - a.mean(), r - r.mean()
    norm = float(np.sqrt((da @ da) * (dr @ dr)))
    error = np.abs(a - r)
    deviation = float(np.mean(np.abs(dr)))
    low, high = np.percentile(r, (2, 98))
    mean_error = float(np.mean(error))
    return {
        "correlation": float(da @ dr) / norm if norm > 0 else 0.0,
        "aligned_error": mean_error / deviation if deviation > 0 else float(mean_error > 0),
        "agreement": float(np.mean(error <= AGREEMENT_BAND * (high - low))),
    }


def is_nearly_constant(pred: NDArray[np.floating]) -> bool:
    """True where the values say nothing about the scene: their deviation is at most 0.1 % of their size, or none."""
    values = np.asarray(pred, np.float64)
    if values.size == 0:
        return True
    return bool(values.std() <= NEARLY_CONSTANT * np.sqrt(np.mean(values * values)))


def is_negligible(pred: NDArray[np.floating], gt: NDArray[np.floating]) -> bool:
    """True where the prediction, as it is scored, is next to nothing beside the truth.

    Its error is then the truth itself, whatever the network knows: the published error of a student that was trained
    up to scale and scored without alignment was 5.8877 where the truth's mean was 5.8907 (SPEC.md 7.3, 1).
    """
    return bool(np.median(np.abs(pred)) < NEGLIGIBLE * np.median(np.abs(gt))) if pred.size else True


def _finite(pred: NDArray[np.floating], gt: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, g = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if p.shape != g.shape or p.ndim != 1:
        raise ValueError(f"prediction and truth must be vectors of one length, got {p.shape} and {g.shape}")
    for name, values in (("prediction", p), ("ground truth", g)):
        if not np.isfinite(values).all():
            raise NumericalError(f"NaN or infinity in the {name}", why=f"{1 - np.isfinite(values).mean():.1%} of it")
    return p, g
