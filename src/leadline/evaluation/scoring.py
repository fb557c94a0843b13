"""One picture under a protocol: mask, align, clamp, measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import Depth, Kind
from leadline.errors import DataError, KindError, NumericalError
from leadline.evaluation.alignment import align, fit_line
from leadline.evaluation.metrics import (
    agreement_metrics,
    depth_metrics,
    disparity_metrics,
    is_nearly_constant,
    is_negligible,
)

if TYPE_CHECKING:
    from leadline.evaluation.protocols import Protocol

MIN_PIXELS = 10  # fewer valid pixels give no figure (SPEC.md 6.4)
DEGENERATE = "constant, or next to nothing beside the truth"


@dataclass(frozen=True)
class Score:
    """What one prediction scored.

    Args:
        metrics: figures by name; None ("n/a") where fewer than 10 pixels count.
        pixels: how many counted.
        scale: the factor that alignment found.
        shift: the offset that alignment found.
        degenerate: the prediction is (nearly) constant and says nothing about the scene, or next to nothing beside the
            truth, so that its error is the truth itself.
        inverted: alignment turned the prediction upside down: near and far are exchanged.
    """

    metrics: dict[str, float] | None
    pixels: int
    scale: float = 1.0
    shift: float = 0.0
    degenerate: bool = False
    inverted: bool = field(default=False)


def score(prediction: Depth, truth: Depth, protocol: Protocol) -> Score:
    """Score a prediction.

    Args:
        prediction: the model's output at the truth's size, in its own kind.
        truth: metric depth, H x W; under `fidelity` the reference model's output, of the prediction's kind.
        protocol: how to count.

    Raises:
        KindError: the prediction's or the truth's kind is not what the protocol compares.
        DataError: the maps differ in size.
        NumericalError: the prediction holds NaN or infinity; the message names its source.
    """
    alignment = protocol.alignment_for(prediction.kind, prediction.source or None)
    if prediction.shape != truth.shape:
        sizes = f"prediction {prediction.shape}, truth {truth.shape} (height, width)"
        raise DataError("prediction and truth differ in size", where=truth.source or None, why=sizes)
    if not np.isfinite(prediction.values).all():
        share = 1 - float(np.isfinite(prediction.values).mean())
        raise NumericalError(
            "NaN or infinity", where=f"in {prediction.source or 'prediction'}", why=f"{share:.1%} of it"
        )
    if protocol.truth == "model":
        return _agreement(prediction, truth)
    check_truth(truth.kind, protocol)
    counted = protocol.valid(truth, prediction)
    pred, gt = prediction.values[counted].astype(np.float64), truth.values[counted].astype(np.float64)
    if gt.size < MIN_PIXELS:
        return Score(None, gt.size)
    aligned = align(pred, prediction.kind, gt, alignment)
    metrics = depth_metrics(protocol.clamp(aligned.depth), gt)
    if metrics is not None and aligned.disparity is not None:
        metrics |= disparity_metrics(aligned.disparity, 1.0 / gt) or {}
    degenerate = aligned.singular or is_nearly_constant(pred) or is_negligible(aligned.depth, gt)
    return Score(metrics, gt.size, aligned.scale, aligned.shift, degenerate, aligned.scale < 0)


def check_truth(kind: Kind, protocol: Protocol) -> None:
    """Refuse ground truth that the protocol cannot use.

    Raises:
        KindError: the protocol needs metric depth and the data set has something else.
    """
    if protocol.truth == "data" and kind is not Kind.METRIC_DEPTH:
        why = f"it needs ground truth in metres, the data set has {kind.value}"
        raise KindError(f"protocol {protocol.label} cannot be used", why=why, mend="compare with a model: fidelity")


def _agreement(prediction: Depth, reference: Depth) -> Score:
    """Fidelity: metric depth as it is, scaled disparity by its median, the relative kinds by a line."""
    if prediction.kind is not reference.kind:
        why = f"{prediction.kind.value} against {reference.kind.value}"
        raise KindError("fidelity compares models of one kind", where=prediction.source or None, why=why)
    counted = reference.valid
    pred, ref = prediction.values[counted].astype(np.float64), reference.values[counted].astype(np.float64)
    if ref.size < MIN_PIXELS:
        return Score(None, ref.size)
    scale, shift, singular, further = 1.0, 0.0, False, {}
    if prediction.kind is Kind.METRIC_DEPTH:
        further = depth_metrics(pred, ref) or {}
    elif prediction.kind is Kind.SCALED_DISPARITY:
        middle = float(np.median(pred))
        singular = middle <= 0
        scale = 1.0 if singular else float(np.median(ref)) / middle
        ratios = disparity_metrics(scale * pred, ref) or {}
        further = {name: ratios[name] for name in ("disp_abs_rel", "disp_delta1")}  # the others have a unit
    else:
        scale, shift, singular = fit_line(pred, ref)
    metrics = (agreement_metrics(scale * pred + shift, ref) or {}) | further
    unscaled = prediction.kind is Kind.METRIC_DEPTH and is_negligible(pred, ref)
    return Score(metrics, ref.size, scale, shift, singular or unscaled or is_nearly_constant(pred), scale < 0)
