"""What a sensitivity analysis found, and what follows from it: shares of zeros per layer, the order of mixed precision.

`sensitivity_analysis` makes it, `sensitivity_report` shows it. The file is its own store: it is rewritten, whole, after
every row, so that an analysis goes on where it was stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leadline.errors import ConfigError, DataError
from leadline.output import write_atomic

SensitivityKind = Literal["pruning", "channels", "bits"]
SENSITIVITY_KINDS: tuple[SensitivityKind, ...] = get_args(SensitivityKind)
Change = Literal["zeros", "channels", "weights", "activations"]
FILE = "sensitivity.json"
_STEPS = 60  # of bisection: far below one weight


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Typed):
    """A figure with its 95 % bootstrap interval over `n` pictures; one picture has no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_certain(self) -> bool:
        """True where a difference has one sign over its whole interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Row(_Typed):
    """One change of one part, everything else as it was.

    Args:
        part: module path of the layer or block, or name of the group of channels.
        scope: whether one layer was changed, or all layers of a block at once.
        layers: module paths that were changed.
        change: weights put to 0, channels removed, or weights or inputs rounded.
        value: share of zeros or channels, or bits.
        weights: weights in the part.
        figure: the metric with the change.
        difference: that minus the whole network's, paired over the pictures.
    """

    part: str
    scope: Literal["layer", "block"]
    layers: tuple[str, ...]
    change: Change
    value: float
    weights: int
    figure: Figure
    difference: Figure

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What sets the row apart from the others of its analysis."""
        return self.scope, self.part, self.change, self.value


class Sensitivity(_Typed):
    """An analysis.

    Args:
        kind: what was changed.
        model: name of the network.
        fingerprint: of its weights and contract.
        settings: what the figures depend on besides: data, split, protocol, ...
        metric: by which it is decided.
        higher_is_better: of the metric.
        base: the metric of the unchanged network.
        finished: whether every planned row is there.
        rows: in the order of the network.
    """

    kind: SensitivityKind
    model: str
    fingerprint: str
    settings: dict[str, Any]
    metric: str
    higher_is_better: bool
    base: Figure
    finished: bool = False
    rows: tuple[Row, ...] = Field(default=())

    @classmethod
    def load(cls, path: Path, *, unfinished: bool = False) -> Sensitivity:
        """Read an analysis.

        Args:
            path: the file, or the folder that `leadline sensitivity --out` named.
            unfinished: whether one that was stopped will do.

        Raises:
            DataError: there is none, it is damaged, or it was stopped before its end.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            found = cls.model_validate_json(file.read_bytes())
        except OSError as error:
            mend = "make it: leadline sensitivity REF --data D --kind pruning --out DIR"
            raise DataError("no sensitivity file", where=file, why=error.strerror or str(error), mend=mend) from error
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else str(first["msg"])
            raise DataError("not a sensitivity file", where=file, why=why, mend="make it again") from error
        if not found.finished and not unfinished:
            why = f"the analysis was stopped after {len(found.rows)} rows"
            raise DataError("unfinished sensitivity file", where=file, why=why, mend="run the same command to its end")
        return found

    def save(self, folder: Path) -> None:
        """Write `sensitivity.json`, completely or not at all.

        Raises:
            OutputError: the place is full or not writable.
        """
        write_atomic(folder / FILE, self.model_dump_json(indent=1).encode() + b"\n")

    def loss(self, row: Row) -> float:
        """How much worse a change makes the metric; negative where it is better."""
        return -row.difference.value if self.higher_is_better else row.difference.value

    def of(self, scope: Literal["layer", "block"]) -> dict[str, list[Row]]:
        """Rows by part, in the order of the network."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.scope == scope:
                found.setdefault(row.part, []).append(row)
        return found


def order(sensitivity: Sensitivity, kind: SensitivityKind = "bits", *, bits: int = 8) -> list[str]:
    """Layers, the most sensitive first.

    Under `bits` a layer's loss is that of rounding its weights to `bits` plus that of rounding its inputs: what the
    layer costs in INT8, to the first order. Otherwise, and among equals, it is the sum over all measured values.

    Args:
        sensitivity: a finished analysis.
        kind: what it must be of.
        bits: width that is decided about.

    Raises:
        ConfigError: the analysis is of another kind.
    """
    _check_kind(sensitivity, kind)

    def losses(rows: list[Row]) -> tuple[float, float]:
        near = [sensitivity.loss(row) for row in rows if kind == "bits" and row.value == bits]
        return -sum(near), -sum(map(sensitivity.loss, rows))

    layers = sensitivity.of("layer")
    return sorted(layers, key=lambda name: losses(layers[name]))


def per_layer_amounts(
    sensitivity: Sensitivity, target: float, *, kind: Literal["pruning", "channels"] = "pruning"
) -> dict[str, float]:
    """Shares of zeros per layer, or of channels to remove per group, that make `target` with one loss for all.

    Each layer's loss is taken as its measured curve: through (0, 0), linear between the measured shares, never falling,
    and not continued beyond the largest. Every layer gets the largest share whose loss is at most the common one, and
    the common loss is the one at which the zeros of all layers make the target (found by bisection).

    Args:
        sensitivity: a finished analysis.
        target: share of zeros, or of what goes with the channels, over all weights of the analysed layers.
        kind: what the analysis must be of.

    Returns:
        Share of zeros by layer; weighted by their weights they make `target` exactly.

    Raises:
        ConfigError: the analysis is of another kind, or the target is beyond what it measured.
    """
    _check_kind(sensitivity, kind)
    layers = sensitivity.of("layer")
    curves = {name: _curve([(row.value, sensitivity.loss(row)) for row in rows]) for name, rows in layers.items()}
    weights = {name: rows[0].weights for name, rows in layers.items()}
    total = sum(weights.values())
    most = sum(curve[-1][0] * weights[name] for name, curve in curves.items()) / max(total, 1)
    if not 0 < target <= most:
        mend = "measure larger shares with --values, or ask for less"
        raise ConfigError("cannot prune so much by this analysis", where=target, why=f"most is {most:.3g}", mend=mend)

    def shares(loss: float) -> dict[str, float]:
        return {name: _largest(curve, loss) for name, curve in curves.items()}

    def made(found: dict[str, float]) -> float:
        return sum(share * weights[name] for name, share in found.items()) / total

    low, high = -1.0, max(curve[-1][1] for curve in curves.values())  # below 0 nothing may be pruned
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if made(shares(middle)) >= target else (middle, high)
    below, above = shares(low), shares(high)
    # Flat stretches of the curves let the shares jump there: all take the same part of the jump.
    gap = made(above) - made(below)
    part = (target - made(below)) / gap if gap > 0 else 1.0
    return {name: below[name] + part * (above[name] - below[name]) for name in curves}


def amounts_of_file(
    path: Path,
    target: float,
    network: str,
    say: Callable[[str], None],
    kind: Literal["pruning", "channels"] = "pruning",
) -> dict[str, float]:
    """`per_layer_amounts` of a file; `say` is told where it was made on a network of another name.

    Raises:
        DataError: the file cannot be used; see `per_layer_amounts` for the rest.
    """
    return per_layer_amounts(_of_file(path, network, say), target, kind=kind)


def order_of_file(path: Path, network: str, say: Callable[[str], None]) -> list[str]:
    """`order` of a file of bits; `say` is told where it was made on a network of another name.

    Raises:
        DataError: the file cannot be used.
        ConfigError: it is of another kind.
    """
    found = order(_of_file(path, network, say))
    if not found:
        raise DataError("an empty sensitivity file", where=path, why="it has no layer", mend="make it again")
    return found


def _of_file(path: Path, network: str, say: Callable[[str], None]) -> Sensitivity:
    measured = Sensitivity.load(path)
    if measured.model != network:
        say(f"the sensitivity file is of {measured.model}, the network is {network}")
    return measured


def _check_kind(sensitivity: Sensitivity, kind: SensitivityKind) -> None:
    if sensitivity.kind != kind:
        mend = f"make one with --kind {kind}"
        raise ConfigError(f"a sensitivity file of {sensitivity.kind}", why=f"{kind} is needed", mend=mend)


def _curve(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(share, loss) from (0, 0) on, by share, the loss never falling: what improves by chance counts as no loss."""
    curve = [(0.0, 0.0)]
    for share, loss in sorted(points):
        curve.append((share, max(loss, curve[-1][1])))
    return curve


def _largest(curve: list[tuple[float, float]], loss: float) -> float:
    """The largest share whose loss is at most `loss`; 0 where none is."""
    best = 0.0
    for (share, cost), (further, dearer) in itertools.pairwise(curve):
        if cost > loss:
            break
        best = further if dearer <= loss else share + (further - share) * (loss - cost) / (dearer - cost)
    return best
