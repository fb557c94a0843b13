"""The pictures of the report: each candidate's depth on one colour scale, and where it is wrong."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from leadline.colors import display_range
from leadline.contract import Contract
from leadline.depth import Depth, Kind
from leadline.errors import LeadlineError
from leadline.evaluation.alignment import Aligned, Alignment, align, depth_of, fit_line
from leadline.evaluation.metrics import SMALLEST_DEPTH, SMALLEST_DISPARITY
from leadline.evaluation.protocols import Protocol, get_protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.data.dataset import Sample
    from leadline.studies.report.candidates import Candidate
    from leadline.studies.study import Outcome

    Values = NDArray[np.float32]

PICTURES = 3
WORST_AGAINST_TRUTH = 0.25  # share at the ends of the error scale: the limit of δ1
WORST_AGAINST_REFERENCE = 0.10
MIN_PIXELS = 10
ALIGNMENTS = {
    Alignment.NONE: "none: metres as predicted",
    Alignment.MEDIAN: "one factor per picture (medians)",
    Alignment.LSQ_DEPTH: "scale and shift per picture (least squares in depth)",
    Alignment.LSQ_DISPARITY: "scale and shift per picture (least squares in disparity)",
}


@dataclass(frozen=True)
class Map:
    """One candidate's depth of one picture.

    Args:
        candidate: whose.
        depth: on the picture's shared scale; None where no map was kept.
        error: signed share, positive where it is too far, NaN where nothing is known; None as above.
        mean: mean |error|.
    """

    candidate: Candidate
    depth: Depth | None = None
    error: Values | None = None
    mean: float | None = None


@dataclass(frozen=True)
class Scene:
    """One picture with everything that is shown of it.

    Args:
        name: of the sample.
        image: H x W x 3 uint8 RGB.
        truth: measured depth, where there is any on the same scale.
        lo: lower end of the colour scale, in the maps' values.
        hi: upper end.
        kind: of the maps shown.
        compared: what the error is counted against, and in what share.
        worst: share at which the error scale ends.
        maps: one per candidate.
    """

    name: str
    image: NDArray[np.uint8]
    truth: Depth | None
    lo: float
    hi: float
    kind: Kind
    compared: str
    worst: float
    maps: list[Map] = field(default_factory=list)


def scenes(outcome: Outcome, found: Sequence[Candidate]) -> tuple[list[Scene], str]:
    """The pictures of the panel, or none and the reason.

    Args:
        outcome: the study; `panel/<cell>.npz` of its folder holds the maps.
        found: the candidates to show.
    """
    from leadline.data.dataset import open_dataset

    kept = {candidate.number: _maps(_file(outcome, candidate)) for candidate in found}
    reference = next((candidate for candidate in found if candidate.reference), None)
    if reference is None or not kept[reference.number]:
        return [], "no depth maps of the reference were kept in the study's folder"
    try:
        kind = Contract.load(outcome.folder / reference.row.bundle / "contract.json").output.kind
        dataset = open_dataset(outcome.study.data, outcome.study.split)
        protocol = get_protocol(outcome.study.protocol).for_data(dataset.max_depth)
        places = {name: index for index, name in enumerate(dataset.names())}
        names = [name for name in kept[reference.number] if name in places][:PICTURES]
        samples = [dataset[places[name]] for name in names]
        made = [_scene(sample, kind, protocol, found, kept, reference) for sample in samples]
    except LeadlineError as error:
        return [], str(error)
    shown = [scene for scene in made if scene is not None]
    return shown, "" if shown else "the kept depth maps do not belong to the data set's pictures"


def _file(outcome: Outcome, candidate: Candidate) -> Path:
    row = candidate.row
    return outcome.folder / "panel" / f"{row.folder}.npz"


def _maps(path: Path) -> dict[str, Values]:
    """Depth maps by picture; none from a file that is missing or damaged, since the figures stand without them."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name], np.float32) for name in stored.files[:PICTURES]}
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError):
        return {}


def _scene(
    sample: Sample,
    kind: Kind,
    protocol: Protocol,
    found: Sequence[Candidate],
    kept: dict[int, dict[str, Values]],
    reference: Candidate,
) -> Scene | None:
    own = kept[reference.number][sample.name]
    if own.ndim != 2 or own.shape != sample.image.shape[:2]:
        return None
    truth = sample.depth if sample.depth is not None and sample.depth.kind is Kind.METRIC_DEPTH else None
    if truth is None or protocol.truth == "model":
        shown = truth if kind is Kind.METRIC_DEPTH else None
        return _against_reference(sample, shown, Depth(own, kind), found, kept)
    return _against_truth(sample, truth, kind, protocol, found, kept)


def _against_truth(
    sample: Sample,
    truth: Depth,
    kind: Kind,
    protocol: Protocol,
    found: Sequence[Candidate],
    kept: dict[int, dict[str, Values]],
) -> Scene:
    how = protocol.alignment_for(kind)
    lo, hi = display_range(truth)
    words = "the ground truth, as a share of the true depth"
    if how is not Alignment.NONE:
        words += f". These maps have no metres of their own: each is aligned to the truth by {ALIGNMENTS[how]}"
    scene = Scene(sample.name, sample.image, truth, lo, hi, Kind.METRIC_DEPTH, words, WORST_AGAINST_TRUTH)
    for candidate in found:
        values = kept[candidate.number].get(sample.name)
        if values is None or values.shape != truth.shape:
            scene.maps.append(Map(candidate))
            continue
        pred = Depth(values, kind)
        counted = protocol.valid(truth, pred) & truth.valid & np.isfinite(values)
        if np.count_nonzero(counted) < MIN_PIXELS:
            scene.maps.append(Map(candidate))
            continue
        fitted = align(values[counted], kind, truth.values[counted], how)
        metres = protocol.clamp(_apply(np.nan_to_num(values), kind, how, fitted)).astype(np.float32)
        error = np.full(truth.shape, np.nan, np.float32)
        error[counted] = metres[counted] / truth.values[counted] - 1
        scene.maps.append(_map(candidate, Depth(metres, Kind.METRIC_DEPTH), error))
    return scene


def _apply(values: Values, kind: Kind, how: Alignment, fitted: Aligned) -> NDArray[np.float64]:
    """Metres of a whole map by the line that was fitted on its counted pixels."""
    wide = values.astype(np.float64)
    if how is Alignment.LSQ_DISPARITY:
        disparity = wide if kind.is_disparity else 1.0 / np.maximum(wide, SMALLEST_DEPTH)
        return np.asarray(1.0 / np.maximum(fitted.scale * disparity + fitted.shift, SMALLEST_DISPARITY))
    return fitted.scale * depth_of(wide.ravel(), kind).reshape(wide.shape) + fitted.shift


def _against_reference(
    sample: Sample, truth: Depth | None, own: Depth, found: Sequence[Candidate], kept: dict[int, dict[str, Values]]
) -> Scene:
    """No truth: each map is brought to the reference's scale as protocol `fidelity` does, and compared with it."""
    lo, hi = display_range(own)
    metric = own.kind is Kind.METRIC_DEPTH
    words = f"the reference's map, as a share of {'its depth' if metric else 'its range in this picture'}"
    if not metric:
        how = "one factor (medians)" if own.kind is Kind.SCALED_DISPARITY else "scale and shift (least squares)"
        words += f". These maps have no metres: each is aligned to the reference's by {how}"
    scene = Scene(sample.name, sample.image, truth, lo, hi, own.kind, words, WORST_AGAINST_REFERENCE)
    counted = own.valid
    for candidate in found:
        values = kept[candidate.number].get(sample.name)
        if values is None or values.shape != own.shape or np.count_nonzero(counted) < MIN_PIXELS:
            scene.maps.append(Map(candidate))
            continue
        scale, shift = _to_reference(np.nan_to_num(values), own)
        near = (scale * np.nan_to_num(values) + shift).astype(np.float32)
        against = own.values if metric else np.full(own.shape, (hi - lo) or 1.0, np.float32)
        error = np.full(own.shape, np.nan, np.float32)
        error[counted] = (near - own.values)[counted] / against[counted]
        scene.maps.append(_map(candidate, Depth(near, own.kind), -error if own.kind.is_disparity else error))
    return scene


def _to_reference(values: Values, own: Depth) -> tuple[float, float]:
    """(scale, shift) onto the reference: none for metres, a factor for scaled disparity, a line for the others."""
    if own.kind is Kind.METRIC_DEPTH:
        return 1.0, 0.0
    mine, other = values[own.valid].astype(np.float64), own.values[own.valid].astype(np.float64)
    if own.kind is Kind.SCALED_DISPARITY:
        middle = float(np.median(mine))
        return (float(np.median(other)) / middle if middle > 0 else 1.0), 0.0
    scale, shift, _ = fit_line(mine, other)
    return scale, shift


def _map(candidate: Candidate, depth: Depth, error: Values) -> Map:
    return Map(candidate, depth, error, float(np.nanmean(np.abs(error))))
