"""How long a study still takes, by what it has done: half of a candidate is its export and accuracy, half its speed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.studies.study import Cell

SOON = 5.0  # seconds before which nothing can be said


class Progress:
    """What is finished of a study, and an estimate of the time left.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: float | None = None
        self._total = self._done = self._free = 0
        self._prepared: set[Cell] = set()

    def note(self, done: int, total: int, cell: Cell, what: str) -> None:
        """Take one line of a study's progress: rows finished, of how many, and what became of a cell."""
        before, self._done, self._total = self._done, done, total
        if what.endswith("in an earlier run") or (what == "skipped" and cell.exported not in self._prepared):
            self._free += max(0, done - before)  # finished, and cost no time
        elif self._begun is None:
            self._begun = self._clock()
        if what == "exported and scored":
            self._prepared.add(cell.exported)

    @property
    def finished(self) -> float:
        """Candidates that are finished, whatever became of them; those that wait for their speed count half."""
        return self._done + self._waiting / 2

    @property
    def _waiting(self) -> int:
        return max(0, len(self._prepared) - (self._done - self._free))

    def left(self) -> str:
        """`about 6 min left`; empty where nothing is finished yet, or everything is."""
        spent = self.finished - self._free
        rest = self._total - self.finished
        elapsed = 0.0 if self._begun is None else self._clock() - self._begun
        if elapsed < SOON or spent <= 0 or rest <= 0:
            return ""
        seconds = elapsed / spent * rest
        if seconds >= 90:
            return f"about {seconds / 60:.0f} min left"
        return f"about {max(5, 5 * round(seconds / 5))} s left"
