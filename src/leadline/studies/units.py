"""Times and sizes in words, the same in tables, sentences and reports; a run takes a batch of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leadline.studies.measurement import Latency


def milliseconds(value: float) -> str:
    """Three significant digits, at most two after the point."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def speedup(value: float) -> str:
    """How many times as fast: three significant digits, at most two after the point."""
    return milliseconds(value)


def megabytes(value: float) -> str:
    """One digit after the point, two below 10 MB."""
    return f"{value:.{1 if value >= 10 else 2}f}"


def run_and_picture(latency: Latency) -> str:
    """`20.0 ms per run of 4 pictures, 5.00 ms per picture`; of single pictures, which are runs, `5.00 ms`."""
    if latency.batch == 1:
        return f"{milliseconds(latency.p50)} ms"
    run = f"{milliseconds(latency.p50)} ms per run of {latency.batch} pictures"
    return f"{run}, {milliseconds(latency.per_picture)} ms per picture"
