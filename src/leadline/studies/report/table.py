"""The table of all measured candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.evaluation.metrics import LABELS
from leadline.studies.recommend import NAMES
from leadline.studies.report.numbers import change, interval, megabytes, milliseconds, number, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.studies.report.candidates import Candidate

FURTHER = ("abs_rel", "rmse", "correlation", "aligned_error", "disp_abs_rel")  # the first two that were measured


def candidate_table(found: Sequence[Candidate]) -> str:
    """Every figure of every candidate; sortable where scripts run, complete where they do not.

    Args:
        found: the measured candidates, at least one.
    """
    primary = found[0].accuracy.primary
    further = [name for name in FURTHER if name != primary and any(name in c.accuracy.metrics for c in found)][:2]
    metric = text(NAMES.get(primary, primary))
    several = any(c.latency.batch > 1 for c in found)
    heads = "".join(
        f'<th scope="col"{" class=left" if left else ""}>{label}</th>'
        for label, left in (
            ("#", False), ("candidate", True), ("ran in", True), (f"{metric}<small>95 % interval</small>", False),
            ("change<small>paired, 95 %</small>", False),
            *((text(LABELS.get(name, name)), False) for name in further),
            ("p50", False), ("p95", False), ("p99", False), ("IQR", False),
            *([("ms per picture<small>p50 over batch</small>", False)] if several else []),
            (f"ratio<small>to reference{', per picture' if several else ''}</small>", False),
            ("before<small>/ after</small>", False), ("MB<small>on disk</small>", False),
            ("MiB<small>peak</small>", False),
        )
    )  # fmt: skip
    groups = (
        '<td colspan="3"></td>'
        f'<th scope="colgroup" colspan="{2 + len(further)}">Accuracy</th>'
        f'<th scope="colgroup" colspan="{7 if several else 6}">Time of one run, ms</th>'
        '<th scope="colgroup" colspan="2">Size, memory</th>'
    )
    rows = "".join(_row(candidate, primary, further, several=several) for candidate in found)
    return (
        '<div class="scroll" role="region" aria-label="Measured candidates" tabindex="0">'
        f'<table class="candidates" id="candidates"><caption class="hidden">Measured candidates</caption>'
        f'<thead><tr class="groups">{groups}</tr><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{_KEY}'
    )


_KEY = (
    '<p class="quiet key">★ recommended. ◆ Pareto: no other candidate is at least as good in accuracy, latency '
    "(p50 of a picture) and size and better in one of them. p50, p95, p99: time within which half, 95 % and 99 % of "
    "the runs were done, and a run takes the whole batch; IQR: distance between the quartiles. Before / after: "
    "preparing the picture, and bringing the map to its size; not part of the times to the left. Ratio to reference: "
    "quotient of the medians of rounds in which both took turns, so that a busy machine slows both; below 1 is faster. "
    "Two p50 of this table come from different rounds, and their quotient may differ; what is recommended is judged by "
    "the ratio.</p>"
)


def _row(candidate: Candidate, primary: str, further: Sequence[str], *, several: bool) -> str:
    row, latency, accuracy = candidate.row, candidate.latency, candidate.accuracy
    score, moved = accuracy.metrics[primary], accuracy.change.get(primary)
    cells = [
        _cell(candidate.number, str(candidate.number)),
        f'<th scope="row" data-value="{text(row.name)}">{_name(candidate)}</th>',
        f'<td class="left ran" data-value="{text(row.precision_ran)}">{text(row.precision_ran or "–")}</td>',
        _cell(score.value, f"{number(score.value)}<small>{interval(score)}</small>"),
        _cell(moved.value, f"{change(moved.value)}<small>{interval(moved, signed=True)}</small>")
        if moved
        else _cell(0, '<span class="quiet">reference</span>' if candidate.reference else "–"),
    ]
    for name in further:
        figure = accuracy.metrics.get(name)
        cells.append(_cell(figure.value if figure else None, number(figure.value if figure else None)))
    cells += [_cell(value, milliseconds(value)) for value in (latency.p50, latency.p95, latency.p99, latency.iqr)]
    if several:
        cells.append(_cell(latency.per_picture, milliseconds(latency.per_picture)))
    cells += [
        _cell(latency.ratio, f"{number(latency.ratio, 2)}×"),
        _cell(latency.pre + latency.post, f"{milliseconds(latency.pre)}<small>/ {milliseconds(latency.post)}</small>"),
        _cell(row.size_mb, megabytes(row.size_mb)),
        _cell(row.memory_mb, number(row.memory_mb, 0)),
    ]
    return f"<tr{' class=chosen' if candidate.recommended else ''}>{''.join(cells)}</tr>"


def _name(candidate: Candidate) -> str:
    marks = []
    if candidate.recommended:
        marks.append('<span class="badge good">★ recommended</span>')
    if candidate.pareto:
        marks.append('<span class="badge front">◆ Pareto</span>')
    if candidate.reference:
        marks.append('<span class="badge">reference</span>')
    remarks = "".join(f"<small>{text(remark)}</small>" for remark in candidate.remarks)
    return f"{text(candidate.row.name)}<div class=badges>{' '.join(marks)}</div>{remarks}"


def _cell(value: float | None, shown: str) -> str:
    return f'<td data-value="{"" if value is None else f"{value:.9g}"}">{shown}</td>'
