"""What makes a verdict weak: few pictures, a wide interval, times that scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.evaluation.bootstrap import FEW

if TYPE_CHECKING:
    from leadline.studies.measurement import Measurement

SCATTERED = 0.15  # distance between the quartiles over the median


def caution(row: Measurement, reference: Measurement, max_drop: float) -> str:
    """One line that says why not to trust the verdict much; empty where nothing speaks against it.

    Args:
        row: what the verdict is about.
        reference: the uncompressed model.
        max_drop: the largest loss of the primary metric that is allowed.
    """
    found = []
    if row.accuracy is not None:
        n = row.accuracy.metrics[row.accuracy.primary].n
        change = row.accuracy.change.get(row.accuracy.primary)
        if n < FEW:
            found.append(f"{pictures(n)} only, {FEW} or more make a verdict")
        if change is not None and change.high - change.low > 2 * max_drop > 0:
            width = change.high - change.low
            found.append(f"the interval of the change is {width:.3f} wide, the allowed drop {max_drop:g}")
    for one in dict.fromkeys((row.key, reference.key)):
        timed = row if one == row.key else reference
        if timed.latency is not None and timed.latency.iqr > SCATTERED * timed.latency.p50:
            share = timed.latency.iqr / timed.latency.p50
            found.append(f"times of {timed.name} scatter (IQR {share:.0%} of the median), run again on an idle machine")
    return f"Caution: {'; '.join(found)}." if found else ""


def pictures(n: int) -> str:
    """`1 picture`, `4 pictures`."""
    return f"{n} picture{'' if n == 1 else 's'}"
