"""The trade-off that a search found: its front, the point that is chosen, a table and a picture."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError
from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PAPER, INK, MUTED, FOUND, GIVEN = "#ffffff", "#1f2328", "#8b949e", "#0969da", "#bc4c00"


@dataclass(frozen=True)
class Point:
    """A network that was judged.

    Args:
        name: short.
        accuracy: larger is better.
        low: of its 95 % interval over the pictures.
        high: likewise.
        resource: smaller is better.
        chosen: values by key of the space; empty for a model that was given.
        number: of the trial; -1 for a model that was given.
    """

    name: str
    accuracy: float
    low: float
    high: float
    resource: float
    chosen: Mapping[str, Any]
    number: int = -1

    @property
    def given(self) -> bool:
        """Whether it was given to compare with."""
        return self.number < 0

    def beats(self, other: Point) -> bool:
        """At least as good in both, better in one."""
        as_good = self.accuracy >= other.accuracy and self.resource <= other.resource
        return as_good and (self.accuracy, self.resource) != (other.accuracy, other.resource)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that none beats, cheapest first; of equal ones the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.resource, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def choose(points: Sequence[Point], most: float | None, unit: str) -> Point:
    """The most accurate point of a front within a bound, or its knee: farthest above the line between its ends.

    Args:
        points: a front, cheapest first.
        most: bound of the resource.
        unit: of it, for the message.

    Raises:
        ConfigError: no point is within the bound.
    """
    if most is not None:
        within = [point for point in points if point.resource <= most]
        if not within:
            why = f"the cheapest network of the search needs {points[0].resource:.4g} {unit}"
            raise ConfigError(
                f"no network within {most:g} {unit}", why=why, mend="raise max_resource, or widen `space`"
            )
        return within[-1]
    first, last = points[0], points[-1]
    wide, high = last.resource - first.resource, last.accuracy - first.accuracy
    if not wide or not high:
        return last

    def above(point: Point) -> float:
        return (point.accuracy - first.accuracy) / high - (point.resource - first.resource) / wide

    best = max(points, key=above)
    return best if above(best) > 0 else last


def write(
    folder: Path, points: Sequence[Point], chosen: Point, axes: tuple[str, str], failed: Mapping[str, str]
) -> None:
    """`front.json`, `front.md`, `front.svg` and `front.png`.

    Args:
        folder: where.
        points: all that were judged.
        chosen: of them.
        axes: what accuracy and resource are, with unit.
        failed: why, by name, of those that could not be judged.
    """
    best = front([point for point in points if not point.given])
    document = {
        "accuracy": axes[0],
        "resource": axes[1],
        "chosen": asdict(chosen),
        "front": [asdict(point) for point in best],
        "points": [asdict(point) for point in points],
        "failed": dict(failed),
    }
    write_atomic(folder / "front.json", json.dumps(document, indent=1).encode())
    write_atomic(folder / "front.md", (table(points, chosen, axes) + "\n").encode())
    for ending, data in picture(points, chosen, axes).items():
        write_atomic(folder / f"front.{ending}", data)


def table(points: Sequence[Point], chosen: Point, axes: tuple[str, str]) -> str:
    """Markdown: the front and the given models, cheapest first, and which of the given each point beats."""
    best = front([point for point in points if not point.given])
    given = [point for point in points if point.given]
    lines = [f"| network | {axes[0]} | {axes[1]} | beats |", "|---|---|---|---|"]
    for point in sorted([*best, *given], key=lambda point: point.resource):
        beaten = ", ".join(other.name for other in given if point.beats(other))
        name = f"**{point.name}**" if point is chosen else f"{point.name} (given)" if point.given else point.name
        figure = f"{point.accuracy:.4f} [{point.low:.4f}, {point.high:.4f}]"
        lines.append(f"| {name} | {figure} | {point.resource:.4g} | {beaten} |")
    return "\n".join(lines)


def picture(points: Sequence[Point], chosen: Point, axes: tuple[str, str]) -> dict[str, bytes]:
    """The front drawn, by file ending (svg, png)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "front", "font.family": ["DejaVu Sans"], "font.size": 9,
        "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "figure.facecolor": PAPER,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        plot = figure.add_subplot()
        plot.grid(color="#eaeef2", linewidth=0.7)
        plot.set_axisbelow(True)
        found = [point for point in points if not point.given]
        given = [point for point in points if point.given]
        best = front(found)
        plot.plot([p.resource for p in found], [p.accuracy for p in found], "o", color=MUTED, ms=4, label="tried")
        plot.plot([p.resource for p in best], [p.accuracy for p in best], "o-", color=FOUND, ms=6, label="front")
        for point in (*best, *given):
            plot.vlines(point.resource, point.low, point.high, color=GIVEN if point.given else FOUND, lw=1, alpha=0.5)
        if given:
            plot.plot([p.resource for p in given], [p.accuracy for p in given], "D", color=GIVEN, ms=6, label="given")
        for point in given:
            place = (point.resource, point.accuracy)
            plot.annotate(point.name[-40:], place, xytext=(6, -10), textcoords="offset points", color=GIVEN, fontsize=8)
        plot.plot([chosen.resource], [chosen.accuracy], "o", mfc="none", mec=INK, mew=1.6, ms=13, label="chosen")
        plot.set_xlabel(f"{axes[1]} (left is better)")
        plot.set_ylabel(f"{axes[0]} with 95 % interval")
        plot.legend(frameon=False, loc="lower right")
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        files = {"svg": io.BytesIO(), "png": io.BytesIO()}
        figure.savefig(files["svg"], format="svg", metadata=nothing)
        figure.savefig(files["png"], format="png", metadata={"Software": None})
    return {ending: file.getvalue() for ending, file in files.items()}
