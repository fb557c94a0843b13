"""Figures and text as the report prints them; everything here is safe to put into HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from leadline.studies import units

if TYPE_CHECKING:
    from leadline.studies.measurement import Figure

NONE = '<span class="none" title="no figure">–</span>'
MINUS = "−"


def text(value: object) -> str:
    """Any value as HTML text; quotes are escaped too, so that it fits an attribute."""
    return escape(str(value), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with so many digits after the point, a real minus sign, and a dash for None."""
    return NONE if value is None else _signed(f"{value:.{digits}f}")


def change(value: float, digits: int = 3) -> str:
    """A difference, always with its sign; what rounds to zero has none."""
    shown = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(shown) == 0 else _signed(shown)


def milliseconds(value: float) -> str:
    """As the command prints it: three significant digits, at most two after the point."""
    return _signed(units.milliseconds(value))


def megabytes(value: float | None) -> str:
    """As the command prints it: one digit after the point, two below 10 MB."""
    return NONE if value is None else _signed(units.megabytes(value))


def times(value: float) -> str:
    """`2.41×`, with as many digits as the command prints."""
    return f"{units.speedup(value)}×"


def interval(figure: Figure, digits: int = 3, *, signed: bool = False) -> str:
    """`[0.781, 0.835]`, or `[n/a]` from one picture."""
    if figure.n < 2:
        return "[n/a]"
    show = change if signed else number
    return f"[{show(figure.low, digits)}, {show(figure.high, digits)}]"


def count(value: int | None) -> str:
    """`1.23 M`, `456 k` or the number itself."""
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return str(value)


def plain(value: Any) -> str:
    """A value of a fingerprint or of JSON in words, escaped."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return text(f"{value:.6g}")
    if isinstance(value, dict):
        return ", ".join(f"{text(key)} {plain(item)}" for key, item in value.items()) or NONE
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or NONE
    return NONE if value is None or value == "" else text(value)


def _signed(shown: str) -> str:
    return shown.replace("-", MINUS)
