"""Optimise: measure the candidates, recommend one within the limits, and write the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.output import check_writable, output_lock
from leadline.studies.recommend import Limits, Recommendation, recommend
from leadline.studies.running import run_study
from leadline.studies.study import Outcome, Study

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.studies.study import Cell


@dataclass(frozen=True)
class Optimized:
    """What `optimize` found.

    Args:
        outcome: the rows.
        advice: the recommended row, and why.
        report: the HTML file.
    """

    outcome: Outcome
    advice: Recommendation
    report: Path

    @property
    def bundle(self) -> Path | None:
        """The recommended bundle's folder; None where nothing keeps to the limits."""
        return self.outcome.folder / self.advice.row.bundle if self.advice.row else None


def optimize(
    model: str,
    data: str,
    *,
    out: Path | str = "runs/optimize",
    limits: Limits | None = None,
    on_cell: Callable[[int, int, Cell, str], None] | None = None,
    **options: Any,
) -> Optimized:
    """Export a model to every runtime, precision and size, measure each, and recommend one.

    Args:
        model: reference.
        data: data set reference.
        out: folder of the study; run again with the same, it continues there.
        limits: the user's; the default allows a loss of 0.01 of the primary metric.
        on_cell: called with (number, of how many, cell, what is done now).
        options: further fields of `leadline.studies.study.Study`.

    Raises:
        OutputError: `out` cannot be written, or another study runs there.
        LeadlineError: the uncompressed model itself cannot be measured.
    """
    from leadline.studies.report import write_report

    folder, bounds = Path(out), limits or Limits()
    check_writable(folder)
    with output_lock(folder):
        outcome = run_study(Study(model=model, data=data, **options), folder, on_cell)
        advice = recommend(outcome.rows, outcome.reference, bounds)
        return Optimized(outcome, advice, write_report(outcome, advice, bounds))
