"""The matrix of a study as HTML: heat maps of resolution x batch, the best of each, every cell, and doubts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from leadline.studies.matrix import (
    Best,
    best_per_batch,
    best_per_resolution,
    cells_of,
    engine_name,
    faster_than_fp32,
    metric_name,
    suspicions,
)
from leadline.studies.report.numbers import NONE, change, interval, megabytes, milliseconds, number, text, times

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.studies.measurement import Measurement
    from leadline.studies.recommend import Limits
    from leadline.studies.study import Outcome

LIGHT, DARK = (230, 240, 250), (8, 48, 107)  # of least and most time
MIDDLE = 0.2  # luminance on which white text and dark text have the same contrast


def matrix_section(outcome: Outcome, limits: Limits) -> str:
    """The section's body: heat maps, three tables, and doubts.

    Args:
        outcome: what one machine measured.
        limits: the user's; rows that lose more accuracy are not called best.
    """
    rows = cells_of(outcome.rows, outcome.reference)
    if not rows:
        return '<p class="quiet">No cell of the matrix could be measured; the reasons are below.</p>'
    doubts = suspicions(rows)
    told = "".join(f'<p class="caution">{text(doubt)}.</p>' for doubt in doubts)
    return (
        f"{told}{_heat_maps(rows)}"
        f"<h3>Best per resolution</h3>{_best_table('Best per resolution', best_per_resolution(rows, limits.max_drop))}"
        f"<h3>Best per batch</h3>{_best_table('Best per batch', best_per_batch(rows, limits.max_drop))}"
        f"<h3>Every cell</h3>{_all_table(rows)}{_KEY}"
    )


_KEY = (
    '<p class="quiet key">A run takes the whole batch; a picture is its share of a run. Best is the least time for a '
    "picture, by the ratio to the reference of the same rounds, among the cells that keep the allowed drop; accuracy "
    "is of one picture, is the same for every batch, and chooses none. To device, compute and from device are the "
    "engine’s own medians where it tells them apart. Of the floor: the least time that this machine’s arithmetic and "
    "memory allow, over the time that it took.</p>"
)


def _heat_maps(rows: Sequence[Measurement]) -> str:
    """One map per engine and precision, all on one scale: milliseconds of a picture, below it those of a run."""
    engines = list(dict.fromkeys(engine_name(row) for row in rows))
    sizes = list(dict.fromkeys((row.height, row.width) for row in rows))
    batches = sorted({row.batch for row in rows})
    each = [row.latency.per_picture for row in rows if row.latency]
    low, high = min(each), max(each)
    maps = "".join(_heat_map(name, rows, sizes, batches, (low, high)) for name in engines)
    ends = f"<div class=ends><span>{milliseconds(low)}</span><span>{milliseconds(high)} ms per picture</span></div>"
    ramp = f'<div class=ramp style="background:linear-gradient(to right,{_rgb(LIGHT)},{_rgb(DARK)})"></div>'
    return f'<div class="legend">{ramp}{ends}</div><div class="heats">{maps}</div>'


def _heat_map(
    name: str,
    rows: Sequence[Measurement],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    bounds: tuple[float, float],
) -> str:
    found = {(row.height, row.width, row.batch): row for row in rows if engine_name(row) == name}
    head = "".join(f'<th scope="col">batch {batch}</th>' for batch in batches)
    body = "".join(
        f'<tr><th scope="row">{size[0]}x{size[1]}</th>'
        + "".join(_heat_cell(found.get((*size, batch)), bounds) for batch in batches)
        + "</tr>"
        for size in sizes
    )
    return (
        f'<figure><table class="heat"><caption>{text(name)}: ms per picture</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></figure>"
    )


def _heat_cell(row: Measurement | None, bounds: tuple[float, float]) -> str:
    if row is None or row.latency is None:
        return '<td class="none">–</td>'
    low, high = bounds
    value = row.latency.per_picture
    share = 0.0 if high <= low else math.log(value / low) / math.log(high / low)
    color = tuple(round(a + share * (b - a)) for a, b in zip(LIGHT, DARK, strict=True))
    ink = "#ffffff" if _luminance(color) < MIDDLE else "#16202b"
    run = f"<small>run {milliseconds(row.latency.p50)}</small>" if row.batch > 1 else ""
    return f'<td style="background:{_rgb(color)};color:{ink}">{milliseconds(value)}{run}</td>'


def _luminance(color: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(color: Sequence[int]) -> str:
    return f"rgb({','.join(map(str, color))})"


def _best_table(title: str, found: Sequence[Best]) -> str:
    if not found:
        return '<p class="quiet">No cell keeps to the allowed drop.</p>'
    body = ""
    for best in found:
        row, latency, accuracy = best.row, best.row.latency, best.row.accuracy
        assert latency
        assert accuracy
        score = accuracy.metrics[accuracy.primary]
        moved = accuracy.change.get(accuracy.primary)
        drift = f"{change(moved.value)}<small>{interval(moved, signed=True)}</small>" if moved else "reference"
        noise = "yes" if best.told_apart else "no: within their intervals" if best.rows > 1 else NONE
        body += (
            f'<tr><th scope="row">{text(best.group)}</th><td class=left>{text(row.name)}</td>'
            f"<td>{milliseconds(latency.per_picture)}</td><td>{milliseconds(latency.p50)}</td>"
            f"<td>{times(1 / latency.ratio)}</td><td>{number(score.value)}</td><td>{drift}</td>"
            f"<td class=left>{noise} <small>of {best.rows}</small></td></tr>"
        )
    metric = text(metric_name(found[0].row))
    heads = ("", "cell", "ms per picture", "ms per run", "× reference", metric, "change", "do accuracies differ?")
    return _table(title, heads, (0, 1, 7), body)


def _all_table(rows: Sequence[Measurement]) -> str:
    """Every cell; columns that nobody fills are left out."""
    parts = list(dict.fromkeys(name for row in rows if row.latency for name in row.latency.parts))
    columns: list[tuple[str, Callable[[Measurement], str | None]]] = [
        ("ms per run p50", lambda row: _ms(row, "p50")),
        ("p95", lambda row: _ms(row, "p95")),
        ("p99", lambda row: _ms(row, "p99")),
        ("IQR", lambda row: _ms(row, "iqr")),
        ("ms per picture", lambda row: _ms(row, "per_picture")),
        ("pictures / s", lambda row: number(1e3 / row.latency.per_picture, 1) if row.latency else None),
        ("× FP32", lambda row: times(found) if (found := faster_than_fp32(row, rows)) is not None else None),
        *((name.replace("_", " "), _part(name)) for name in parts),
        ("of the floor", lambda row: f"{row.floor_share:.0%}" if row.floor_share is not None else None),
        ("peak MiB", lambda row: number(row.memory_mb, 0) if row.memory_mb is not None else None),
        ("on device MiB", lambda row: number(row.device_mb, 0) if row.device_mb is not None else None),
        ("MB", lambda row: megabytes(row.size_mb) if row.size_mb is not None else None),
        (metric_name(rows[0]), _score),
        ("AbsRel", lambda row: _metric(row, "abs_rel")),
        ("RMSE", lambda row: _metric(row, "rmse")),
        (_other_head(rows), _other),
    ]
    filled = [(head, shown) for head, shown in columns if any(shown(row) is not None for row in rows)]
    body = "".join(
        f'<tr><th scope="row">{text(row.name)}</th>'
        + "".join(f"<td>{NONE if (cell := shown(row)) is None else cell}</td>" for _, shown in filled)
        + "</tr>"
        for row in rows
    )
    return _table("Every cell of the matrix", ("cell", *(text(head) for head, _ in filled)), (0,), body)


def _ms(row: Measurement, name: str) -> str | None:
    return milliseconds(getattr(row.latency, name)) if row.latency else None


def _part(name: str) -> Callable[[Measurement], str | None]:
    return lambda row: milliseconds(row.latency.parts[name]) if row.latency and name in row.latency.parts else None


def _score(row: Measurement) -> str | None:
    if row.accuracy is None:
        return None
    figure = row.accuracy.metrics[row.accuracy.primary]
    return f"{number(figure.value)}<small>{interval(figure)}</small>"


def _metric(row: Measurement, name: str) -> str | None:
    figure = row.accuracy.metrics.get(name) if row.accuracy else None
    return number(figure.value) if figure else None


def _other_head(rows: Sequence[Measurement]) -> str:
    label = next((row.accuracy.other_protocol for row in rows if row.accuracy and row.accuracy.other_protocol), "")
    return f"AbsRel, {label}"


def _other(row: Measurement) -> str | None:
    figure = row.accuracy.other.get("abs_rel") if row.accuracy else None
    return number(figure.value) if figure else None


def _table(title: str, heads: Sequence[str], left: Sequence[int], body: str) -> str:
    head = "".join(f'<th scope="col"{" class=left" if i in left else ""}>{name}</th>' for i, name in enumerate(heads))
    return (
        f'<div class="scroll" role="region" aria-label="{text(title)}" tabindex="0"><table class="plain">'
        f'<caption class="hidden">{text(title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
