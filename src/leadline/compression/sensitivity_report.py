"""A sensitivity analysis for people: a table, and a picture of layers against changes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from leadline.evaluation.metrics import LABELS
from leadline.output import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from leadline.compression.sensitivity import Figure, Row, Sensitivity

TABLE, PICTURE = "sensitivity.md", "sensitivity"
WORDS = {"zeros": "zeros", "channels": "fewer channels", "weights": "bit weights", "activations": "bit inputs"}
_INK, _PAPER = "#1a1a1a", "#ffffff"


def write_report(sensitivity: Sensitivity, folder: Path) -> list[Path]:
    """Write the table (Markdown) and the picture (SVG and PNG) beside `sensitivity.json`.

    Raises:
        OutputError: the place is full or not writable.
    """
    files = {
        TABLE: markdown(sensitivity).encode(),
        f"{PICTURE}.svg": picture(sensitivity, "svg"),
        f"{PICTURE}.png": picture(sensitivity, "png"),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files]


def columns(sensitivity: Sensitivity) -> list[tuple[str, float]]:
    """(change, value) of the analysis, mildest first."""
    found = dict.fromkeys((row.change, row.value) for row in sensitivity.rows)
    bits = sensitivity.kind == "bits"
    return sorted(found, key=lambda one: (one[0] != "activations", -one[1] if bits else one[1]))


def title_of(change: str, value: float) -> str:
    """`30 % zeros`, `8 bit weights`."""
    number = f"{value:g}" if change in ("weights", "activations") else f"{value:.0%}".replace("%", " %")
    return f"{number} {WORDS[change]}"


def markdown(sensitivity: Sensitivity) -> str:
    """A line per part, blocks below layers: the change of the metric with its 95 % interval for each change."""
    heads = columns(sensitivity)
    metric = LABELS.get(sensitivity.metric, sensitivity.metric)
    better = "higher" if sensitivity.higher_is_better else "lower"
    settings = sensitivity.settings
    lines = [
        f"Sensitivity of {sensitivity.model} to {sensitivity.kind}: change of {metric} ({better} is better), "
        f"{settings.get('protocol')}, {settings.get('data')}, n = {sensitivity.base.n}, 95 % intervals of paired "
        f"differences. Unchanged: {said(sensitivity.base, '')}.",
        "",
        f"| part | weights | {' | '.join(title_of(*head) for head in heads)} |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for scope, mark in (("layer", ""), ("block", "block ")):
        for name, rows in sensitivity.of(scope).items():  # type: ignore[arg-type]
            by_change = {(row.change, row.value): row for row in rows}
            cells = [said(by_change[head].difference) if head in by_change else "" for head in heads]
            lines.append(f"| {mark}{name} | {rows[0].weights:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(figure: Figure, sign: str = "+") -> str:
    """`-0.0123 [-0.0200, -0.0051]`."""
    ends = f" [{figure.low:{sign}.4f}, {figure.high:{sign}.4f}]" if figure.low is not None else ""
    return f"{figure.value:{sign}.4f}{ends}"


def picture(sensitivity: Sensitivity, form: str) -> bytes:
    """A heat map: parts from input to output, changes from mild to strong; dark is a large loss.

    One hue from light to dark (cividis, the same to the colour-blind and in grey), the loss also written in the cell,
    in bold where its interval excludes 0.

    Args:
        sensitivity: at least one row.
        form: `svg` or `png`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure as Canvas

    heads = columns(sensitivity)
    parts: list[tuple[str, list[Row]]] = [
        *sensitivity.of("layer").items(),
        *((f"[{name}]", rows) for name, rows in sensitivity.of("block").items()),
    ]
    losses = [[_loss(sensitivity, rows, head) for head in heads] for _, rows in parts]
    top = max((value for line in losses for value in line if value is not None), default=0.0)
    longest = max(len(name) for name, _ in parts)
    size = 2.2 + 0.068 * longest + 1.0 * len(heads), 1.6 + 0.2 * len(parts)
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "sensitivity", "font.family": ["DejaVu Sans"], "font.size": 8,
        "text.parse_math": False, "text.color": _INK, "axes.labelcolor": _INK,
    }  # fmt: skip
    with mpl.rc_context(style):
        canvas = Canvas(figsize=size, dpi=120, layout="constrained", facecolor=_PAPER)
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        norm = PowerNorm(0.5, 0.0, max(top, 1e-6))  # small losses are told apart, where decisions fall
        colors = mpl.colormaps["cividis_r"]
        shown = [[max(value, 0.0) if value is not None else float("nan") for value in line] for line in losses]
        drawn = axes.imshow(shown, cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
        for y, (_, rows) in enumerate(parts):
            for x, head in enumerate(heads):
                value = losses[y][x]
                if value is not None:
                    dark = norm(max(value, 0.0)) > 0.55
                    weight = "bold" if _row_at(rows, head).difference.is_certain else "normal"
                    ink = _PAPER if dark else _INK
                    axes.text(x, y, _short(value), ha="center", va="center", color=ink, fontsize=7, weight=weight)
        axes.set_yticks(range(len(parts)), [name for name, _ in parts])
        axes.set_xticks(
            range(len(heads)),
            [title_of(*head).replace(" zeros", "\nzeros").replace(" bit ", "\nbit ") for head in heads],
        )
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        metric = LABELS.get(sensitivity.metric, sensitivity.metric)
        canvas.colorbar(drawn, ax=axes, label=f"loss of {metric}", shrink=min(1.0, 4 / size[1]))
        bold = "bold: the 95 % interval excludes 0"
        axes.set_title(f"{sensitivity.model}, n = {sensitivity.base.n}; {bold}", loc="left", fontsize=8)
        out = io.BytesIO()
        canvas.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def _short(value: float) -> str:
    return f"{0.0 if abs(value) < 5e-4 else value:.3f}"  # no -0.000


def _row_at(rows: list[Row], head: tuple[str, float]) -> Row:
    return next(row for row in rows if (row.change, row.value) == head)


def _loss(sensitivity: Sensitivity, rows: list[Row], head: tuple[str, float]) -> float | None:
    found = [row for row in rows if (row.change, row.value) == head]
    return sensitivity.loss(found[0]) if found else None
