"""The matrix of a study: resolution x batch per engine and precision, its best rows, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from leadline.evaluation.scoring import DEGENERATE
from leadline.studies.caution import SCATTERED
from leadline.studies.measurement import Status
from leadline.studies.recommend import NAMES, drop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.studies.measurement import Measurement

FOLLOWS = 0.25  # share of the added work that must show in the time, at least
STEADY = 0.5  # share of an earlier picture's added time that a later one must cost, at least
OFF = 2.0  # factor between the errors with and without alignment from which on metres are called wrong
LARGE = 0.3  # AbsRel from which on such a factor matters


@dataclass(frozen=True)
class Best:
    """The best row of a group.

    Args:
        group: what its rows have in common, in words.
        row: the one that takes least time for a picture among those that keep the allowed drop.
        rows: how many there were.
        told_apart: False where the accuracy of none differs from another's by more than its interval.
    """

    group: str
    row: Measurement
    rows: int
    told_apart: bool


def is_matrix(rows: Sequence[Measurement]) -> bool:
    """Whether a study varies the batch, and so has more to show than a list."""
    return len({row.batch for row in rows}) > 1


def cells_of(rows: Sequence[Measurement], reference: Measurement) -> list[Measurement]:
    """The measured rows of the matrix, the reference (another size) left out unless it is one of its cells."""
    measured = [row for row in rows if row.status is Status.MEASURED and row.accuracy and row.latency]
    sizes = {(row.height, row.width) for row in measured if row.key != reference.key}
    engines = {(row.runtime, row.device) for row in measured if row.key != reference.key}
    return [
        row
        for row in measured
        if row.key != reference.key
        or ((row.height, row.width) in sizes and (row.runtime, row.device) in engines and len(measured) > 1)
    ]


def engine_name(row: Measurement) -> str:
    """`torch on cuda fp16`, with what was done to the model before it."""
    return f"{row.made} {row.runtime}{f' on {row.device}' if row.device else ''} {row.precision}".strip()


def best_per_resolution(rows: Sequence[Measurement], max_drop: float) -> list[Best]:
    """For each resolution the engine, precision and batch with the least time for a picture."""
    return _best(rows, max_drop, lambda row: f"{row.height}x{row.width}")


def best_per_batch(rows: Sequence[Measurement], max_drop: float) -> list[Best]:
    """For each batch the engine, precision and resolution with the least time for a picture."""
    return _best(rows, max_drop, lambda row: f"batch {row.batch}")


def _best(rows: Sequence[Measurement], max_drop: float, key: Callable[[Measurement], str]) -> list[Best]:
    """Accuracy bounds the choice and time makes it: accuracy is of one picture and cannot choose a batch."""
    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    found = []
    for name, members in groups.items():
        sound = [row for row in members if row.accuracy and not row.accuracy.degenerate and drop(row) <= max_drop]
        if sound:
            found.append(Best(name, min(sound, key=_relative), len(members), told_apart(members)))
    return found


def told_apart(rows: Sequence[Measurement]) -> bool:
    """Whether any two rows differ in accuracy by more than their paired intervals against the reference reach."""
    spans = []
    for row in rows:
        change = row.accuracy.change.get(row.accuracy.primary) if row.accuracy else None
        spans.append((change.low, change.high) if change else (0.0, 0.0))
    return bool(spans) and max(low for low, _ in spans) > min(high for _, high in spans)


def suspicions(rows: Sequence[Measurement]) -> list[str]:
    """What makes the figures of a matrix doubtful, in words: the mistakes that SPEC.md 7.3 lists.

    Args:
        rows: of one machine.
    """
    measured = [row for row in rows if row.status is Status.MEASURED and row.accuracy and row.latency]
    steady = [row for row in measured if row.latency and row.latency.iqr <= SCATTERED * row.latency.p50]
    return [
        *_constant(measured),
        *_wrong_metres(measured),
        *_scattered(len(measured) - len(steady), len(measured)),
        *_too_flat(steady),
        *_too_cheap(steady),
    ]


def _scattered(count: int, total: int) -> list[str]:
    """Times that say nothing about small differences, and are left out of the further tests."""
    if not count:
        return []
    what = f"times of {count} of {total} cells scatter by more than {SCATTERED:.0%} (IQR over median)"
    return [f"{what}: run again on an idle machine"]


def _constant(rows: Sequence[Measurement]) -> list[str]:
    found = []
    for row in _once(rows):
        assert row.accuracy
        for count, what in (
            (row.accuracy.degenerate, f"are {DEGENERATE}"),
            (row.accuracy.inverted, "have near and far exchanged"),
        ):
            if count:
                found.append(f"{count} of {row.accuracy.scored} predictions of {row.name} {what}")
    return found


def _wrong_metres(rows: Sequence[Measurement]) -> list[str]:
    """Metres that only alignment makes right: a choice between such rows is noise (flaw 2)."""
    for row in _once(rows):
        assert row.accuracy
        one, other = row.accuracy.metrics.get("abs_rel"), row.accuracy.other.get("abs_rel")
        if one is None or other is None:
            continue
        worse, better = max(one.value, other.value), min(one.value, other.value)
        if worse > LARGE and worse > OFF * better:
            labels = f"{row.accuracy.protocol} {one.value:.3f}, {row.accuracy.other_protocol} {other.value:.3f}"
            why = "the model's metres do not fit this data set, and unaligned figures compare scales, not networks"
            return [f"AbsRel of {row.name}: {labels}: {why}"]
    return []


def _too_flat(rows: Sequence[Measurement]) -> list[str]:
    """More work at nearly the same time: something that does not grow with the picture is timed too (flaw 3)."""
    found = []
    for small in rows:
        for large in rows:
            same = (small.made, small.runtime, small.device, small.precision, small.batch) == (
                large.made, large.runtime, large.device, large.precision, large.batch,
            )  # fmt: skip
            if not same or not small.macs or not large.macs or large.macs < 1.2 * small.macs:
                continue
            work, time = large.macs / small.macs - 1, _ms(large) / _ms(small) - 1
            if time < FOLLOWS * work:
                why = "host work or copies may be in it, or the device is not busy"
                more = f"{work:.0%} more work than {small.name} costs {time:+.0%} time"
                found.append(f"{large.name}: {more}; {why}")
    return found


def _too_cheap(rows: Sequence[Measurement]) -> list[str]:
    """Pictures that cost much in a small batch and next to nothing in a larger one: a mixture (flaw 3)."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for row in rows:
        group = (row.made, row.runtime, row.device, row.precision, row.height, row.width)
        groups.setdefault(group, []).append(row)
    found = []
    for members in groups.values():
        members = sorted(members, key=lambda row: row.batch)
        steps = list(pairwise(members))
        added = [(_ms(b) - _ms(a)) / (b.batch - a.batch) for a, b in steps]
        for (earlier, later), (a, b) in zip(pairwise(added), steps[1:], strict=True):
            if earlier > 0 and later < STEADY * earlier:
                one = _ms(members[0]) / members[0].batch
                what = f"from {a.batch} to {b.batch} a further picture costs {later / one:.0%} of the first"
                what += f", before {earlier / one:.0%}"
                found.append(f"{b.name}: {what}; a batch and a picture may be mixed up, or the machine was busy")
    return found


def _once(rows: Sequence[Measurement]) -> list[Measurement]:
    """One row of those that share their accuracy."""
    seen: dict[tuple[object, ...], Measurement] = {}
    for row in rows:
        seen.setdefault((row.made, row.runtime, row.device, row.precision, row.height, row.width), row)
    return list(seen.values())


def faster_than_fp32(row: Measurement, rows: Sequence[Measurement]) -> float | None:
    """How many times as fast as FP32 of the same engine, size and batch; by the reference's rounds of each."""
    same = [
        other
        for other in rows
        if (other.made, other.runtime, other.device, other.height, other.width, other.batch)
        == (row.made, row.runtime, row.device, row.height, row.width, row.batch)
        and other.precision == "fp32"
    ]
    if not same or row.latency is None or same[0].latency is None or same[0] is row:
        return None
    return same[0].latency.ratio / row.latency.ratio


def metric_name(row: Measurement) -> str:
    """What the primary metric is called."""
    return NAMES.get(row.accuracy.primary, row.accuracy.primary) if row.accuracy else ""


def _relative(row: Measurement) -> float:
    return row.latency.ratio if row.latency else float("inf")


def _ms(row: Measurement) -> float:
    """Milliseconds of a run as if the machine had been as busy as while the reference took its turns with it."""
    assert row.latency
    return row.latency.p50 / row.latency.reference_p50
