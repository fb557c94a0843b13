"""Whether a candidate of one store became slower in another: by its share of the reference's time, or by its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from leadline.studies.measurement import Latency, Measurement

By = Literal["ratio", "ms"]
MAX_SLOWER = 1.1
HARDWARE = ("cpu", "physical_cores", "cores", "instruction_sets", "memory_gib")


@dataclass(frozen=True)
class Spread:
    """A quotient of two medians, and of the ends of their middle halves: the least and the most that it could be."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What the times of two rows say about each other.

    Args:
        slower: time of a run of the second over the first's.
        relative: the same of the times as multiples of each store's own reference, which took turns with it; None where
            a row is the reference itself.
        by: which of the two was judged; None where neither was.
        worse: what became slower than allowed, in words; empty where nothing did.
        doubt: what passes the threshold and was not judged, or only within its spread.
    """

    slower: Spread
    relative: Spread | None
    by: By | None
    worse: str = ""
    doubt: str = ""


def judge(a: Measurement, b: Measurement, limit: float | None, wanted: By | None, *, one_reference: bool) -> Verdict:
    """Compare the times of two measured rows; slower counts where the middle halves do not overlap.

    On one machine the ratio to the reference of the same rounds is judged, since a busy machine slows both; across two
    machines the time of a run, where a limit is given.

    Args:
        a: the first's row.
        b: the second's row.
        limit: allowed quotient; None takes 1.1 on one machine and judges nothing across two.
        wanted: judge by this instead, where both rows have it.
        one_reference: both stores hold their rows against the same reference.
    """
    assert a.latency
    assert b.latency
    slower = _quotient(_own(a.latency), _own(b.latency))
    relative = None
    if not (is_reference(a) or is_reference(b)) and one_reference:
        relative = _quotient(_share(a.latency), _share(b.latency))
    alike = same_hardware(a, b)
    if limit is None and not alike:
        return Verdict(slower, relative, None)
    limit = MAX_SLOWER if limit is None else limit
    times = f"{a.latency.p50:.2f} to {b.latency.p50:.2f} ms{' per run' if b.latency.batch > 1 else ''}"
    by: By = wanted or ("ratio" if alike else "ms")
    if by == "ratio" and relative is None and one_reference:
        doubt = ""
        if slower.value > limit:
            doubt = (
                f"the reference itself takes {slower.value:.2f} times the time, {times}: the machine was busier or the "
                "network became slower, and ratios do not tell which; --by ms judges it"
            )
        return Verdict(slower, None, None, doubt=doubt)
    if by == "ratio" and relative is not None:
        judged = relative
        what = "times the time against the reference in turn"
        times = f"ratio {a.latency.ratio:.3f} to {b.latency.ratio:.3f} ({times})"
    else:
        by, judged, what = "ms", slower, "times the time"
    if judged.value <= limit:
        return Verdict(slower, relative, by)
    text = f"{judged.value:.2f} {what} [{judged.low:.2f}, {judged.high:.2f}], {times} (allowed {limit:g})"
    if judged.low > 1:
        return Verdict(slower, relative, by, worse=text)
    overlap = "but the times scatter and overlap: measure again on an idle machine"
    return Verdict(slower, relative, by, doubt=f"{text}, {overlap}")


def is_reference(row: Measurement) -> bool:
    """Whether the others of its store took turns with this row; its own ratio is 1 and says nothing."""
    return row.latency is not None and row.batch == 1 and row.latency.reference_p50 == row.latency.p50


def same_hardware(a: Measurement, b: Measurement) -> bool:
    """Whether two rows were measured on machines with the same processor and memory."""
    return all(a.machine.get(key) == b.machine.get(key) for key in HARDWARE)


def _own(latency: Latency) -> Spread:
    half = latency.iqr / 2
    return Spread(latency.p50, max(latency.p50 - half, 1e-9), latency.p50 + half)


def _share(latency: Latency) -> Spread:
    """The time over the reference's, with its quartiles over the rounds; older stores know the time's own only."""
    if latency.ratio_quartiles is not None:
        low, high = latency.ratio_quartiles
        return Spread(latency.ratio, latency.ratio * low, latency.ratio * high)
    own, whole = _own(latency), latency.reference_p50 * latency.batch
    return Spread(own.value / whole, own.low / whole, own.high / whole)


def _quotient(a: Spread, b: Spread) -> Spread:
    return Spread(b.value / a.value, b.low / a.high, b.high / a.low)
