"""What an evaluation found: rows per picture, totals with intervals, and the paired difference of two models."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from leadline.depth import Kind
from leadline.errors import ConfigError, DataError
from leadline.evaluation import metrics as names
from leadline.evaluation.bootstrap import FEW, Interval, interval, resampled_means
from leadline.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Row = dict[str, Any]
SCORED, UNMEASURED, FAILED = "scored", "n/a", "failed"
_FIXED = ("name", "status", "reason", "pixels", "scale", "shift", "degenerate", "inverted")
_FIRST = ("model", "protocol", *_FIXED)
_METRICS = (*names.DEPTH_METRICS, *names.DISPARITY_METRICS, *names.AGREEMENT_METRICS)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`.

    Args:
        model: name of the model.
        kind: of its output.
        data: name of the data set.
        protocol: how it was counted, cap filled in.
        rows: per picture a dict with name, status (`scored`, `n/a`, `failed`), reason, pixels, scale, shift,
            degenerate, inverted, and its metrics.
        notes: what else the reader of the figures must know.
    """

    model: str
    kind: Kind
    data: str
    protocol: Protocol
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The protocol's name with its variants; printed with every figure."""
        return self.protocol.label_for(self.kind)

    @property
    def scored(self) -> list[Row]:
        """The rows that have figures."""
        return [row for row in self.rows if row["status"] == SCORED]

    @property
    def failed(self) -> list[Row]:
        """The rows of pictures that could not be read or predicted, with the reason."""
        return [row for row in self.rows if row["status"] == FAILED]

    @property
    def caution(self) -> str:
        """Why not to trust the figures much; empty where nothing speaks against them."""
        n = len(self.scored)
        return f"{n} picture{'' if n == 1 else 's'} only, {FEW} or more make a verdict" if 0 < n < FEW else ""

    def count(self, flag: str) -> int:
        """How many pictures have a status (`scored`, `n/a`, `failed`) or a flag (`degenerate`, `inverted`)."""
        return sum(row["status"] == flag or row.get(flag) is True for row in self.rows)

    def summary(self, pooled: bool | None = None) -> dict[str, Interval]:
        """Each metric over the pictures that have one, with its bootstrap interval; empty where none has.

        Args:
            pooled: over all pixels instead of the mean of the pictures' figures; None as the protocol says.
        """
        rows = self.scored
        if not rows:
            return {}
        columns = [name for name in _METRICS if name in rows[0]]
        points, draws = _totals(rows, columns, self._pooled(pooled))
        return {name: interval(points[i], draws[:, i], len(rows)) for i, name in enumerate(columns)}

    def to_csv(self, path: Path) -> None:
        """One line per picture, with model and protocol on each; replaces an earlier such table, and nothing else.

        Raises:
            OutputError: the place is read-only or full, or holds another file.
        """
        from leadline.output import write_named

        check_csv(path)
        present = {key for row in self.rows for key in row}
        text = io.StringIO()
        writer = csv.DictWriter(text, [*_FIRST, *(name for name in _METRICS if name in present)])
        writer.writeheader()
        writer.writerows({"model": self.model, "protocol": self.label, **row} for row in self.rows)
        write_named(path, text.getvalue().encode())

    def to_dict(self) -> dict[str, Any]:
        """The figures and counts, without the rows that scored, ready for JSON."""
        cap = self.protocol.cap
        return {
            "model": self.model,
            "kind": self.kind.value,
            "data": self.data,
            "protocol": self.label,
            "alignment": self.protocol.alignment_for(self.kind).value,
            "cap_m": cap if math.isfinite(cap) else None,
            "averaging": self.protocol.averaging,
            "pictures": len(self.rows),
            "scored": self.count(SCORED),
            "unmeasured": self.count(UNMEASURED),
            "degenerate": self.count("degenerate"),
            "inverted": self.count("inverted"),
            "failed": [{"name": row["name"], "reason": row["reason"]} for row in self.failed],
            "metrics": {name: value.as_dict() for name, value in self.summary().items()},
            "notes": self.notes,
            "caution": self.caution,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def _pooled(self, wanted: bool | None) -> bool:
        return self.protocol.averaging == "pooled" if wanted is None else wanted


def check_csv(path: Path) -> None:
    """Pass where `Evaluation.to_csv` may write: a new file, an earlier table of it, a device.

    Raises:
        OutputError: it may not.
    """
    from leadline.output import check_named

    check_named(path, ",".join(_FIRST).encode(), "table that evaluate wrote")


def paired(a: Evaluation, b: Evaluation, metric: str) -> Interval:
    """The difference a - b of one metric over the pictures that both scored, with its paired bootstrap interval.

    Raises:
        ConfigError: the protocols differ, or the metric is not one of theirs.
        DataError: no picture was scored by both.
    """
    return paired_differences(a, b, (metric,))[metric]


def paired_differences(a: Evaluation, b: Evaluation, metrics: Sequence[str] | None = None) -> dict[str, Interval]:
    """`paired` for several metrics, None for all that both have."""
    if (a.label, a.protocol.cap) != (b.label, b.protocol.cap):
        why = f"{a.label} (cap {a.protocol.cap:g} m) and {b.label} (cap {b.protocol.cap:g} m)"
        mend = "name the alignment for both, as in kitti-eigen/median"
        raise ConfigError("figures of different protocols cannot be compared", why=why, mend=mend)
    mine, theirs = ({row["name"]: row for row in one.scored} for one in (a, b))
    common = [title for title in mine if title in theirs]
    if not common:
        raise DataError("nothing to compare", why=f"{a.model} and {b.model} have no scored picture in common")
    known = [name for name in _METRICS if name in mine[common[0]] and name in theirs[common[0]]]
    wanted = known if metrics is None else list(metrics)
    for metric in wanted:
        if metric not in known:
            raise ConfigError("no such metric", where=metric, mend=f"known: {', '.join(known)}")
    pooled = a.protocol.averaging == "pooled"
    point_a, draws_a = _totals([mine[title] for title in common], wanted, pooled)
    point_b, draws_b = _totals([theirs[title] for title in common], wanted, pooled)
    point, draws = point_a - point_b, draws_a - draws_b
    return {metric: interval(point[i], draws[:, i], len(common)) for i, metric in enumerate(wanted)}


def _totals(rows: list[Row], columns: list[str], pooled: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each column over all rows, and over each resample: means of figures, or figures of the pooled pixels."""
    if not pooled:
        values = np.array([[row[name] for name in columns] for row in rows], np.float64)
        return values.mean(axis=0), resampled_means(values)
    pixels = np.array([row["pixels"] for row in rows], np.float64)
    moments = np.array([[_moment(row, name) for name in columns] for row in rows], np.float64)
    bias = np.array([[row.get("log_bias", 0.0)] for row in rows], np.float64)
    stacked = np.hstack([moments, bias])
    point = (pixels @ stacked / pixels.sum())[None]
    return _from_moments(point, columns)[0], _from_moments(resampled_means(stacked, pixels), columns)


def _moment(row: Row, name: str) -> float:
    """The figure as a mean over pixels, which adds up over pictures."""
    if name == "silog":
        return cast("float", row["rmse_log"] ** 2)
    return cast("float", row[name] ** 2 if name in names.ROOT_OF_MEAN_SQUARE else row[name])


def _from_moments(means: NDArray[np.float64], columns: list[str]) -> NDArray[np.float64]:
    out, bias = means[:, :-1].copy(), means[:, -1]
    for i, name in enumerate(columns):
        if name == "silog":
            out[:, i] = 100 * np.sqrt(np.maximum(out[:, i] - bias**2, 0))
        elif name in names.ROOT_OF_MEAN_SQUARE:
            out[:, i] = np.sqrt(out[:, i])
    return out
