"""Labels beside points of a plot, laid out so that they do not cover each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    Point = tuple[int, str, float, float, float]
    Box = tuple[float, float, float, float]

TOUCHING = 7.0  # points of the drawing; nearer markers share a label
_GAPS = (2.0, 8.0, 16.0, 27.0, 41.0)
_DIRECTIONS = (0.0, 180.0, 45.0, 315.0, 135.0, 225.0, 90.0, 270.0)  # degrees; beside the point before above it


def place_labels(figure: Figure, axes: Axes, points: Sequence[Point], ink: str, line: str) -> None:
    """Write one label per point, or per heap of points that touch, with a line to it where it must stand apart.

    Args:
        figure: drawn with an Agg canvas at 72 dpi, so that pixels are points.
        axes: of the figure, finished but for the labels.
        points: (number, words, x, y, radius of the marker) each; a heap is written as `1, 4 fp32`.
        ink: colour of the text.
        line: colour of the lines.
    """
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    spots = [_pixel(axes, x, y) for _, _, x, y, _ in points]
    taken: list[Box] = [_around(x, y, point[4]) for (x, y), point in zip(spots, points, strict=True)]
    for heap in _heaps(spots):
        label = _words([points[i] for i in heap])
        x, y = spots[heap[0]]
        width, height = _extent(figure, label)
        dx, dy = _best_offset((x, y), max(points[i][4] for i in heap), (width, height), inside, taken)
        taken.append((x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2))
        far = math.hypot(max(abs(dx) - width / 2, 0), max(abs(dy) - height / 2, 0)) > 13
        arrow = {"arrowstyle": "-", "color": line, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            label, (points[heap[0]][2], points[heap[0]][3]), (dx, dy), textcoords="offset points", ha="center",
            va="center", fontsize=8, color=ink, zorder=6, linespacing=1.15,
            arrowprops=arrow if far else None,
        )  # fmt: skip


def _heaps(spots: Sequence[tuple[float, float]]) -> list[list[int]]:
    heaps: list[list[int]] = []
    for i, spot in enumerate(spots):
        home = next((heap for heap in heaps if math.dist(spots[heap[0]], spot) < TOUCHING), None)
        if home is None:
            heaps.append([i])
        else:
            home.append(i)
    return heaps


def _words(points: Sequence[Point]) -> str:
    """Numbers of the same words share a line."""
    lines: dict[str, list[str]] = {}
    for number, words, *_ in points:
        lines.setdefault(words, []).append(str(number))
    return "\n".join(f"{', '.join(numbers)} {words}".strip() for words, numbers in lines.items())


def _extent(figure: Figure, label: str) -> tuple[float, float]:
    drawn = figure.text(0, 0, label, fontsize=8, linespacing=1.15)
    box = drawn.get_window_extent()
    drawn.remove()
    return box.width, box.height


def _best_offset(
    spot: tuple[float, float], radius: float, extent: tuple[float, float], inside: Bbox, taken: Sequence[Box]
) -> tuple[float, float]:
    """The nearest free place around a point; the least covered one where none is free."""
    (x, y), (width, height) = spot, extent
    best, least = (0.0, 0.0), math.inf
    for reach in (radius + gap for gap in _GAPS):
        for rank, degrees in enumerate(_DIRECTIONS):
            along, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            dx, dy = along * (reach + width / 2), up * (reach + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            covered = sum(_overlap(box, other) for other in taken)
            outside = width * height - _overlap(box, (inside.x0, inside.y0, inside.x1, inside.y1))
            cost = covered + 3 * outside + 0.3 * reach + 0.1 * rank
            if cost < least:
                best, least = (dx, dy), cost
    return best


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
