"""What a run tells while it goes on: a row per iteration, for the display and in a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Progress:
    """What a display may show after an iteration.

    Args:
        iteration: iterations done.
        iterations: length of the run.
        loss: of the joined batch.
        terms: each objective's part before its weight, and what objectives noted.
        rate: factor of the peak learning rate.
        seconds: for the update.
        waiting: share of the time spent waiting for data, 0 to 1.
        validation: figures of the averaged network, where it was validated.
        findings: what the doctor of self-supervision newly found (training/doctor.py).
    """

    iteration: int
    iterations: int
    loss: float
    terms: dict[str, float]
    rate: float
    seconds: float
    waiting: float
    validation: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


class Log:
    """One CSV row per iteration; rows beyond the resumed state are dropped."""

    COLUMNS = ("iteration", "loss", "rate_factor", "seconds", "waiting", "terms", "validation", "findings")

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= done]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(self.COLUMNS), *kept])

    def write(self, step: Progress) -> None:
        """Append one row."""

        def joined(values: dict[str, float]) -> str:
            return ";".join(f"{key}={value:.5g}" for key, value in values.items())

        row = (step.iteration, f"{step.loss:.6g}", f"{step.rate:.5g}", f"{step.seconds:.3f}", f"{step.waiting:.3f}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*row, joined(step.terms), joined(step.validation), "; ".join(step.findings)])
