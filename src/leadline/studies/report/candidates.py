"""The measured candidates as the report sees them: numbered, compared, and marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.evaluation.metrics import HIGHER_IS_BETTER
from leadline.evaluation.scoring import DEGENERATE
from leadline.studies.measurement import Accuracy, Latency, Status
from leadline.studies.pareto import pareto_front

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.studies.measurement import Measurement
    from leadline.studies.recommend import Recommendation
    from leadline.studies.study import Outcome

CLEARLY = 1.05  # quotients of medians nearer to 1 than this are called equal


@dataclass(frozen=True)
class Candidate:
    """One measured row.

    Args:
        number: its name in plots and tables, from 1.
        row: the measurement.
        accuracy: of the row.
        latency: of the row.
        reference: it is the uncompressed model.
        recommended: it is the one to ship.
        pareto: no other is at least as good in accuracy, latency and size and better in one of them.
        remarks: what a reader would otherwise miss, in words.
    """

    number: int
    row: Measurement
    accuracy: Accuracy
    latency: Latency
    reference: bool
    recommended: bool
    pareto: bool
    remarks: tuple[str, ...]

    @property
    def score(self) -> float:
        """The primary metric."""
        return self.accuracy.metrics[self.accuracy.primary].value


def candidates(outcome: Outcome, advice: Recommendation) -> list[Candidate]:
    """The measured rows of a study, numbered in its order."""
    measured = [row for row in outcome.rows if row.status is Status.MEASURED and row.accuracy and row.latency]
    front = set(pareto_front([_costs(row) for row in measured]))
    found = []
    for index, row in enumerate(measured):
        assert row.accuracy
        assert row.latency
        found.append(
            Candidate(
                number=index + 1,
                row=row,
                accuracy=row.accuracy,
                latency=row.latency,
                reference=row.key == outcome.reference.key,
                recommended=advice.row is not None and row.key == advice.row.key,
                pareto=index in front,
                remarks=tuple(_remarks(row, measured)),
            )
        )
    return found


def loss(candidate: Candidate) -> float:
    """The primary metric turned so that smaller is better."""
    return -candidate.score if candidate.accuracy.primary in HIGHER_IS_BETTER else candidate.score


def _costs(row: Measurement) -> tuple[float, float, float]:
    assert row.accuracy
    assert row.latency
    sign = -1.0 if row.accuracy.primary in HIGHER_IS_BETTER else 1.0
    size = math.inf if row.size_mb is None else row.size_mb
    return sign * row.accuracy.metrics[row.accuracy.primary].value, row.latency.per_picture, size


def _remarks(row: Measurement, measured: Sequence[Measurement]) -> list[str]:
    found = []
    if (slow := _slower_than_fp32(row, measured)) is not None:
        found.append(slow)
    accuracy = row.accuracy
    assert accuracy
    if accuracy.degenerate:
        found.append(f"{accuracy.degenerate} of {accuracy.scored} predictions are {DEGENERATE}")
    if accuracy.failed:
        found.append(f"{accuracy.failed} pictures could not be read or predicted")
    shared = shared_notes(measured)
    return found + [note for note in row.notes if note not in shared]


def shared_notes(rows: Sequence[Measurement]) -> list[str]:
    """Notes that every measured row has: true of the study, not of a candidate."""
    notes = [row.notes for row in rows if row.status is Status.MEASURED]
    return [note for note in notes[0] if all(note in others for others in notes)] if notes else []


def _slower_than_fp32(row: Measurement, measured: Sequence[Measurement]) -> str | None:
    """Both medians are divided by the reference's of the same rounds, so that the machine's mood drops out."""
    full = [
        other
        for other in measured
        if (other.made, other.runtime, other.device, other.height, other.width, other.batch)
        == (row.made, row.runtime, row.device, row.height, row.width, row.batch)
        and other.precision == "fp32"
    ]
    if row.precision == "fp32" or not full or row.latency is None or full[0].latency is None:
        return None
    quotient = row.latency.ratio / full[0].latency.ratio
    if quotient >= CLEARLY:
        return f"slower here: {quotient:.2f}× the time of {row.runtime} fp32"
    if quotient > 1 / CLEARLY:
        return f"no faster here than {row.runtime} fp32 ({quotient:.2f}× its time)"
    return None
