"""Trade-off plots as inline SVG: accuracy against latency and size, in the page's own colours."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadline.studies.pareto import pareto_front
from leadline.studies.recommend import NAMES
from leadline.studies.report.candidates import loss
from leadline.studies.report.labels import place_labels
from leadline.studies.report.numbers import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from leadline.studies.recommend import Limits
    from leadline.studies.report.candidates import Candidate

# Stand-ins that `_inline` turns into the page's CSS variables, so that one drawing serves light and dark pages.
INK, MUTED, GRID, PAPER, GOOD = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
_VARIABLES = dict(
    zip(
        (INK, MUTED, GRID, PAPER, GOOD, *SERIES),
        ("ink", "muted", "grid", "paper", "good", *(f"series-{i}" for i in range(6))),
        strict=True,
    )
)
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDE, NARROW = (5.8, 4.3), (3.75, 4.2)  # inches of 96 CSS pixels; the page shows the one that fits the screen

MANY = 12  # points; more cannot all have their names beside them


@dataclass(frozen=True)
class Axis:
    """What a plot has along x.

    Args:
        key: for ids.
        label: of the axis.
        value: of a candidate; None leaves it out.
        limit: the user's, drawn as a line.
    """

    key: str
    label: str
    value: Callable[[Candidate], float | None]
    limit: float | None


def tradeoff_plots(found: Sequence[Candidate], limits: Limits) -> list[tuple[str, str, str]]:
    """(wide SVG, narrow SVG, caption) of accuracy against latency and against size.

    Args:
        found: the measured candidates.
        limits: the user's, drawn as lines.
    """
    single = all(c.latency.batch == 1 for c in found)  # the limit is of a run, the axis of a picture
    axes = (
        Axis(
            "latency",
            "median latency per picture, ms",
            lambda c: c.latency.per_picture,
            limits.max_ms if single else None,
        ),
        Axis("size", "size on disk, MB", lambda c: c.row.size_mb, limits.max_mb),
    )
    plots = []
    for axis in axes:
        points = [(c, value) for c in found if (value := axis.value(c)) is not None]
        if points:
            drawn = [_plot(points, axis, limits, size, f"{axis.key}-{i}") for i, size in enumerate((WIDE, NARROW))]
            plots.append((drawn[0], drawn[1], _caption(points, axis)))
    return plots


def _front(points: Sequence[tuple[Candidate, float]]) -> list[tuple[Candidate, float]]:
    chosen = pareto_front([(loss(candidate), x) for candidate, x in points])
    return sorted((points[i] for i in chosen), key=lambda point: point[1])


def _caption(points: Sequence[tuple[Candidate, float]], axis: Axis) -> str:
    names = ", ".join(f"{candidate.number} {candidate.row.name}" for candidate, _ in _front(points))
    return f"On the Pareto front of accuracy and {'latency' if axis.key == 'latency' else 'size'}: {names}."


def _plot(
    points: Sequence[tuple[Candidate, float]], axis: Axis, limits: Limits, size: tuple[float, float], key: str
) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": key, "font.family": ["DejaVu Sans"], "font.size": 9,
        "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
        "text.color": INK, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        _draw_limits(axes, points, axis, limits)
        _draw_front(axes, points)
        _draw_points(axes, points)
        metric = NAMES.get(points[0][0].accuracy.primary, points[0][0].accuracy.primary)
        axes.set_xlabel(axis.label + " (left is better)")
        axes.set_ylabel(f"{_safe(metric)} with 95 % interval")
        _scale(axes, [x for _, x in points])
        figure.legend(
            loc="outside upper left", ncols=3 if size == WIDE else 2, frameon=False, fontsize=8.5, markerscale=0.75,
            labelspacing=0.7, handletextpad=0.3, columnspacing=1.2,
        )  # fmt: skip
        named = {c.number for c, _ in _front(points)}
        labels = [
            (c.number, _safe(_label(c, points, named)), x, c.score, 10.0 if c.recommended else 5.0) for c, x in points
        ]
        place_labels(figure, axes, labels, INK, MUTED)
        file = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    title = f"{metric} against {axis.label} of {len(points)} candidates; the table above holds the same figures"
    return _inline(file.getvalue(), key, title)


def _draw_limits(axes: Axes, points: Sequence[tuple[Candidate, float]], axis: Axis, limits: Limits) -> None:
    reference = next((candidate for candidate, _ in points if candidate.reference), None)
    label = "your limits"
    if reference is not None:
        bound = -(loss(reference) + limits.max_drop) if loss(reference) < 0 else loss(reference) + limits.max_drop
        axes.axhline(bound, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label=label)
        label = "_"
    if axis.limit is not None:
        axes.axvline(axis.limit, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label=label)


def _draw_front(axes: Axes, points: Sequence[tuple[Candidate, float]]) -> None:
    front = _front(points)
    axes.plot(
        [x for _, x in front], [c.score for c, _ in front], color=GOOD, linewidth=6, alpha=0.28, zorder=2,
        solid_capstyle="round", label="Pareto front",
    )  # fmt: skip


def _draw_points(axes: Axes, points: Sequence[tuple[Candidate, float]]) -> None:
    runtimes = list(dict.fromkeys(candidate.row.runtime for candidate, _ in points))
    looks = dict(zip(runtimes, itertools.cycle(zip(MARKERS, SERIES, strict=True)), strict=False))
    named = set()
    for candidate, x in points:
        marker, color = looks[candidate.row.runtime]
        figure = candidate.accuracy.metrics[candidate.accuracy.primary]
        axes.vlines(x, figure.low, figure.high, color=color, linewidth=1.1, alpha=0.65, zorder=3)
        axes.plot(
            x, candidate.score, marker, color=color, markeredgecolor=PAPER, markeredgewidth=0.8, markersize=8.5,
            zorder=4, label="_" if candidate.row.runtime in named else _safe(candidate.row.runtime),
        )  # fmt: skip
        named.add(candidate.row.runtime)
        if candidate.recommended:
            axes.plot(
                x, candidate.score, "o", markerfacecolor="none", markeredgecolor=GOOD, markeredgewidth=2.2,
                markersize=17, zorder=5, label="recommended", linestyle="none",
            )  # fmt: skip


def _scale(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if min(values) > 0 and max(values) / min(values) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.14, y=0.16)


def _label(candidate: Candidate, points: Sequence[tuple[Candidate, float]], front: set[int]) -> str:
    """Words beside a point's number; where points are many, only those that matter most have any."""
    if len(points) > MANY and not (candidate.recommended or candidate.reference or candidate.number in front):
        return ""
    sizes = {(other.row.height, other.row.width) for other, _ in points}
    batch = f" b{candidate.row.batch}" if candidate.row.batch > 1 else ""
    size = f" {candidate.row.height}x{candidate.row.width}" if len(sizes) > 1 else ""
    return f"{candidate.row.precision}{size}{batch}"


def _safe(label: str) -> str:
    """Labels in characters that the font surely has."""
    return "".join(letter if (letter.isascii() and letter.isprintable()) or letter == "δ" else "?" for letter in label)


def _inline(svg: str, key: str, title: str) -> str:
    """An SVG file as an element of a page: own ids, the page's colours and fonts, a title to be read aloud."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>plot-{key}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    return re.sub(r"^<svg ", f'<svg role="img" aria-label="{text(title)}" ', svg)
