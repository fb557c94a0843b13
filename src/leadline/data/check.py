"""What a data set holds and what is wrong with it: sizes, units, ranges and cameras of every sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.dataset import Dataset, Problem, Sample
from leadline.data.units import FARTHEST, NEAREST, Impossible, check_intrinsics, watched
from leadline.depth import Kind
from leadline.errors import LeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MOSTLY_INSIDE = 0.2  # share of measured pixels out of range above which the unit is likelier wrong than the scene large


@dataclass
class Report:
    """What `check` saw.

    Args:
        samples: complete items of the data set.
        read: how many of them were read without a fault.
        sizes: pictures by (height, width), pixels.
        with_depth: samples with a depth map.
        with_intrinsics: samples with a camera.
        low: smallest measured value, in the data set's unit; None without depth.
        high: largest measured value.
        median: median over the samples' medians.
        measured: mean share of pixels with a measurement, 0..1.
        beyond: mean share of the measured pixels above the data set's `max_depth`, 0..1.
        infinite: share of all depth pixels whose stored value is infinite, 0..1; they count as not measured.
        negative: likewise of those below zero, where the kind has none.
        problems: everything that is wrong, layout first.
    """

    samples: int
    read: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    with_depth: int = 0
    with_intrinsics: int = 0
    low: float | None = None
    high: float | None = None
    median: float | None = None
    measured: float | None = None
    beyond: float | None = None
    infinite: float = 0.0
    negative: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def check(dataset: Dataset, limit: int | None = None, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every sample; a bad one is recorded and the rest go on.

    Args:
        dataset: any format.
        limit: read the first `limit` samples only.
        on_progress: called with (done, total) after each sample.
    """
    names = dataset.names()
    report = Report(len(dataset), problems=list(dataset.problems()))
    report.problems += [
        Problem(name, f"the name stands for {n} samples") for name, n in Counter(names).items() if n > 1
    ]
    statistics: list[tuple[str, tuple[float, ...]]] = []
    impossible: dict[str, Impossible] = {}
    total = len(names) if limit is None else min(limit, len(names))
    for index in range(total):
        try:
            with watched() as seen:
                sample = dataset[index]
            impossible[names[index]] = seen
            _check_agreement(sample, dataset)
        except LeadlineError as error:
            report.problems.append(Problem(names[index], str(error), error.mend))
        else:
            _count(report, sample, dataset, statistics)
            doubt = dataset.doubt(index, sample)
            report.problems += [doubt] if doubt is not None else []
        if on_progress is not None:
            on_progress(index + 1, total)
    if statistics:
        low, high, median, measured, beyond, outside = np.array([row for _, row in statistics]).T
        report.low, report.high, report.median = float(low.min()), float(high.max()), float(np.median(median))
        report.beyond = float(beyond.mean())
        report.measured = float(measured.sum() / report.with_depth)
        _out_of_range(report, dataset, [name for name, _ in statistics], outside)
    pixels = sum(seen.pixels for seen in impossible.values())
    report.infinite = _impossible(
        report, "infinite", {name: seen.infinite for name, seen in impossible.items()}, pixels
    )
    report.negative = _impossible(
        report, "negative", {name: seen.negative for name, seen in impossible.items()}, pixels
    )
    return report


def _impossible(report: Report, what: str, counts: dict[str, int], pixels: int) -> float:
    """The share of such pixels; where there are any, a problem that names the first item."""
    concerned = [name for name, count in counts.items() if count]
    if not concerned:
        return 0.0
    share = sum(counts.values()) / pixels
    extent = f"{what} depth: {share:.2%} of all pixels, in {len(concerned)} of {len(counts)} samples, this the first"
    mend = "they count as not measured; where that is meant, store 0 there, else check how the depth was written"
    report.problems.append(Problem(concerned[0], extent, mend, fatal=False))
    return share


def _out_of_range(report: Report, dataset: Dataset, names: list[str], shares: NDArray[np.float64]) -> None:
    """Add a problem where much of what was measured lies out of range; it names the sample with the most."""
    share = float(shares.mean())
    if share <= MOSTLY_INSIDE:
        return
    worst = int(shares.argmax())
    unit = f" {dataset.kind.unit}" if dataset.kind.unit != "none" else ""
    low = f"{NEAREST:g} to " if dataset.kind is Kind.METRIC_DEPTH else "at most "
    high = f"{dataset.max_depth or FARTHEST:g}{unit}"
    whose = ", as far as the data set says it can be trusted" if dataset.max_depth else ""
    what = f"{share:.0%} of the measured pixels out of range ({low}{high}{whose}), most here: {shares[worst]:.0%}"
    mend = f"the median is {report.median:.4g}{unit}: check the unit (depth_scale is the stored value per metre)"
    mend += " and max_depth; what lies beyond max_depth is neither learned from nor evaluated"
    report.problems.append(Problem(names[worst], what, mend, fatal=False))


def _check_agreement(sample: Sample, dataset: Dataset) -> None:
    size = sample.image.shape[0], sample.image.shape[1]
    if sample.intrinsics is not None:
        check_intrinsics(sample.intrinsics, size, sample.name)
    if sample.depth is None:
        return
    if sample.depth.kind is not dataset.kind:
        raise LeadlineError("mixed kinds", where=sample.name, why=f"{sample.depth.kind} in a set of {dataset.kind}")
    if sample.depth.shape != size:
        raise LeadlineError("picture and depth differ in size", where=sample.name, why=f"{size}, {sample.depth.shape}")


def _count(report: Report, sample: Sample, dataset: Dataset, statistics: list[tuple[str, tuple[float, ...]]]) -> None:
    report.read += 1
    report.sizes[sample.image.shape[0], sample.image.shape[1]] += 1
    report.with_intrinsics += sample.intrinsics is not None
    if sample.depth is None:
        return
    report.with_depth += 1
    values = sample.depth.values[sample.depth.valid]
    if values.size == 0:
        mend = "leave the item out, or check invalid_value and the unit"
        report.problems.append(Problem(sample.name, "no pixel of the depth was measured", mend, fatal=False))
        return
    beyond = float((values > dataset.max_depth).mean()) if dataset.max_depth else 0.0
    share = values.size / sample.depth.values.size
    outside = beyond
    if dataset.kind is Kind.METRIC_DEPTH:
        outside = float(((values < NEAREST) | (values > (dataset.max_depth or FARTHEST))).mean())
    middle = float(np.median(values))
    statistics.append((sample.name, (float(values.min()), float(values.max()), middle, share, beyond, outside)))
