"""The recommendation: the fastest candidate within the user's limits, and the sentence that says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.evaluation.bootstrap import FEW
from leadline.evaluation.scoring import DEGENERATE
from leadline.studies.caution import caution, pictures
from leadline.studies.measurement import Status
from leadline.studies.units import megabytes, milliseconds, run_and_picture, speedup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.studies.measurement import Figure, Measurement

NAMES = {"delta1": "δ1", "abs_rel": "AbsRel", "rmse": "RMSE", "agreement": "agreement"}


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to.

    Args:
        max_drop: largest loss of the primary metric against the reference (0.01 = one point of δ1).
        max_ms: largest median latency of a run, milliseconds; a run takes the whole batch.
        max_mb: largest size on disk, MB.
    """

    max_drop: float = 0.01
    max_ms: float | None = None
    max_mb: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """What to ship.

    Args:
        row: the chosen one; None where nothing keeps to the limits.
        sentence: the reason in words.
        caution: why not to trust it much; empty where nothing speaks against it.
    """

    row: Measurement | None
    sentence: str
    caution: str = ""


def recommend(rows: Sequence[Measurement], reference: Measurement, limits: Limits) -> Recommendation:
    """Choose the fastest candidate that keeps to the limits; the reference itself is a candidate.

    A drop is judged by its point estimate; the sentence says so where its interval reaches beyond the limit. Fastest is
    the lowest ratio to the reference of the same rounds: on a busy machine medians of different rounds do not compare.

    Args:
        rows: the study.
        reference: the uncompressed model.
        limits: the user's.
    """
    measured = [row for row in rows if row.status is Status.MEASURED and row.accuracy and row.latency]
    faults = {row.key: _faults(row, limits) for row in measured}
    others = [row for row in rows if row.key != reference.key]
    if others and measured == [reference]:
        why = f"{len(others)} of {len(others)} candidates were skipped or failed, and their rows say why"
        return Recommendation(None, f"Nothing but the reference was measured: {why}.")
    fitting = [row for row in measured if not faults[row.key]]
    if not fitting:
        nearest = min(measured, key=lambda row: (len(faults[row.key]), _ratio(row)), default=None)
        if nearest is None:
            return Recommendation(None, "Nothing could be measured; the rows below say why.")
        sentence = f"Nothing keeps to the limits. Nearest is {nearest.name}: {'; '.join(faults[nearest.key])}."
        return Recommendation(None, sentence, caution(nearest, reference, limits.max_drop))
    best = min(fitting, key=_ratio)
    sentence = _sentence(best, reference, limits, faults, measured) + _fewer(best, fitting)
    return Recommendation(best, sentence, caution(best, reference, limits.max_drop))


def drop(row: Measurement) -> float:
    """Loss of the primary metric against the reference, positive where the candidate is worse; 0 for the reference."""
    if row.accuracy is None or row.accuracy.primary not in row.accuracy.change:
        return 0.0
    return -row.accuracy.change[row.accuracy.primary].value


def ends(change: Figure) -> str:
    """The interval of a change, ` [-0.009, -0.001]`; empty where one picture gives none."""
    return f" [{change.low:+.3f}, {change.high:+.3f}]" if change.n > 1 else ""


def _faults(row: Measurement, limits: Limits) -> list[str]:
    found = []
    assert row.latency
    assert row.accuracy
    if drop(row) > limits.max_drop:
        found.append(f"{NAMES.get(row.accuracy.primary, row.accuracy.primary)} drops by {drop(row):.3f}")
    if row.accuracy.degenerate:
        found.append(f"{row.accuracy.degenerate} predictions are {DEGENERATE}")
    if limits.max_ms is not None and row.latency.p50 > limits.max_ms:
        per_run = " per run" if row.batch > 1 else ""
        found.append(f"{milliseconds(row.latency.p50)} ms{per_run} is over {limits.max_ms:g} ms")
    if limits.max_mb is not None and row.size_mb is not None and row.size_mb > limits.max_mb:
        found.append(f"{megabytes(row.size_mb)} MB is over {limits.max_mb:g} MB")
    return found


def _sentence(
    best: Measurement,
    reference: Measurement,
    limits: Limits,
    faults: dict[str, list[str]],
    measured: Sequence[Measurement],
) -> str:
    assert best.latency
    assert best.accuracy
    metric = NAMES.get(best.accuracy.primary, best.accuracy.primary)
    value = best.accuracy.metrics[best.accuracy.primary]
    if best.key == reference.key:
        start = f"Keep {best.name}: no other candidate within the limits is faster"
    else:
        start = (
            f"Ship {best.name}: the fastest within the limits, {speedup(1 / best.latency.ratio)} times as fast "
            f"{'per picture ' if best.batch > 1 else ''}as {reference.name} in the same rounds; "
            f"{run_and_picture(best.latency)}"
        )
    only = " only" if value.n < FEW else ""
    change = best.accuracy.change.get(best.accuracy.primary)
    lost = f", {change.value:+.3f}{ends(change)} against the reference" if change else ""
    parts = [
        start,
        f"{metric} {value.value:.3f}{lost} on {pictures(value.n)}{only} ({best.accuracy.protocol})",
        f"{megabytes(best.size_mb)} MB" if best.size_mb is not None else "",
    ]
    text = "; ".join(part for part in parts if part) + "."
    if change is not None and change.n > 1 and -change.low > limits.max_drop:
        text += f" The interval reaches beyond the allowed drop of {limits.max_drop:g}: measure on more pictures."
    faster = [row for row in measured if faults[row.key] and _ratio(row) < best.latency.ratio]
    if faster:
        loser = min(faster, key=_ratio)
        text += f" {loser.name} would be faster ({_ms(loser)}) but {'; '.join(faults[loser.key])}."
    return text


def _fewer(best: Measurement, fitting: Sequence[Measurement]) -> str:
    """A sentence where another row shows fewer milliseconds for a picture, which the table would leave unexplained."""
    assert best.latency
    quickest = min(fitting, key=lambda row: row.latency.per_picture if row.latency else float("inf"))
    assert quickest.latency
    shown = [milliseconds(row.latency.per_picture) for row in (quickest, best) if row.latency]
    if quickest.key == best.key or quickest.latency.per_picture >= best.latency.per_picture or shown[0] == shown[1]:
        return ""
    return (
        f" {quickest.name} shows fewer milliseconds per picture ({shown[0]}), while the reference beside it was "
        "faster, too: the quotient of the two decides."
    )


def _ratio(row: Measurement) -> float:
    return row.latency.ratio if row.latency else float("inf")


def _ms(row: Measurement) -> str:
    return run_and_picture(row.latency) if row.latency else "n/a"
