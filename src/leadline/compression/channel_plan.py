"""The picture of a channel plan: widths before and after, layer by layer, as in FastDepth's figure 6."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEFORE, AFTER = "#c9d4e0", "#1f5fa8"


@dataclass(frozen=True)
class Bar:
    """One group of channels.

    Args:
        name: of the group.
        before: channels.
        after: channels.
        layers: that produce them; more than one where additions tie them.
    """

    name: str
    before: int
    after: int
    layers: tuple[str, ...]


def draw_plan(bars: Sequence[Bar], path: Path, title: str) -> None:
    """Draw one pair of bars per layer; layers that are tied carry the same letter.

    Args:
        bars: groups, in the order of the network.
        path: `.svg` or `.png`; replaced.
        title: above the picture.

    Raises:
        OutputError: the place cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    rows = [(layer, bar) for bar in bars for layer in bar.layers]
    tied = [bar.name for bar in bars if len(bar.layers) > 1]
    figure = Figure(figsize=(7.0, 1.2 + 0.22 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for row, (_, bar) in enumerate(rows):
        axes.barh(row, bar.before, height=0.8, color=BEFORE, label="before" if row == 0 else None)
        axes.barh(row, bar.after, height=0.5, color=AFTER, label="after" if row == 0 else None)
        letter = f"  {_letter(tied.index(bar.name))}" if bar.name in tied else ""
        told = f" {bar.after} of {bar.before}" if bar.after < bar.before else f" {bar.before}"
        axes.text(bar.before, row, told + letter, va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [layer for layer, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max((bar.before for bar in bars), default=1))
    axes.set_xlabel("channels" + ("; equal letters: tied by additions" if tied else ""))
    axes.set_title(title, fontsize=9)
    if rows:
        axes.legend(loc="lower right", fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(
        drawn, format=path.suffix.removeprefix("."), dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None
    )
    write_atomic(path, drawn.getvalue())


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{_letter(number // 26 - 1)}{_letter(number % 26)}"
