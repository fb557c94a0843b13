"""Sensitivity analysis: change one layer or block at a time, and see what it costs in accuracy on real pictures."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

import torch

from leadline import __version__
from leadline.compression.judging import judge, needed
from leadline.compression.sensitivity import FILE, Change, Figure, Row, Sensitivity, SensitivityKind
from leadline.compression.sensitivity_trials import ACTIVATION_BITS, Bench, Trial, parts_of
from leadline.errors import ConfigError, closest
from leadline.evaluation.evaluate import Evaluation, paired
from leadline.evaluation.metrics import HIGHER_IS_BETTER
from leadline.evaluation.protocols import get_protocol
from leadline.output import output_lock
from leadline.predictor import Predictor
from leadline.runtimes.base import SessionOptions
from leadline.runtimes.torch_eager import open_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.compression.base import Place
    from leadline.evaluation.bootstrap import Interval
    from leadline.reference import LoadedModel

VALUES: dict[SensitivityKind, tuple[float, ...]] = {
    "pruning": (0.3, 0.5, 0.7, 0.9),
    "channels": (0.25, 0.5, 0.75),
    "bits": (8, 6, 4),
}


def analyse(
    source: LoadedModel,
    place: Place,
    kind: SensitivityKind,
    *,
    values: Sequence[float] | None = None,
    only: Sequence[str] = (),
    blocks: bool = True,
    metric: str | None = None,
) -> Sensitivity:
    """Measure what each change of each part costs; called again with the same folder, it goes on where it was stopped.

    Zeros: the smallest weights of each layer. Channels: the weakest of each group by joint L2 norm leave the network.
    Bits: weights rounded to 2^b - 1 symmetric levels per output channel, inputs to 256 levels over the range that
    calibration pictures showed; both simulated in float.

    Args:
        source: any PyTorch network; channels need one of the registry.
        place: folder of `sensitivity.json`; validation data; calibration pictures, else the validation's.
        kind: what is changed.
        values: shares of zeros or channels above 0 and below 1, or bits from 2 to 8; sensible ones where absent.
        only: layers, or modules with all layers in them; all where empty.
        blocks: whether layers that stand in one module are changed together too.
        metric: that decides; the protocol's own where absent.

    Raises:
        ConfigError: no validation data, wrong values, an unknown layer or metric, or a folder that holds another
            analysis.
        See `leadline.compression.judging.judge` for the rest.
    """
    wanted = _checked(kind, values)
    parts = parts_of(source, kind, only, blocks)
    trials = [Trial(part, change, value) for part in parts for change, value in _changes(kind, wanted)]
    judged = needed(place)
    with output_lock(place.folder):
        began = time.perf_counter()
        truth = _unchanged(source, place) if get_protocol(judged.protocol).truth == "model" else None
        base = judge(source.model, source.contract, place, reference=truth)
        each = (time.perf_counter() - began) / max(len(base.rows), 1)
        found = _begun(source, place, kind, _metric(base, metric), base)
        done = {row.key: row for row in found.rows}
        missing = [trial for trial in trials if trial.key not in done]
        place.say(_cost(len(missing), len(trials), len(base.rows), each))
        bench = Bench(source, place, kind, judged.data, judged.split)
        for number, trial in enumerate(missing, start=1):
            row = _row(trial, judge(bench.changed(trial), source.contract, place, reference=truth), base, found.metric)
            bench.restore()
            done[row.key] = row
            found = found.model_copy(update={"rows": _ordered(trials, done), "finished": False})
            found.save(place.folder)
            change = f"{trial.change} {trial.value:g}"
            said = f"{trial.part.name} {change}: {found.metric} {row.difference.value:+.4f}"
            place.say(f"{number}/{len(missing)} {said}")
        found = found.model_copy(update={"rows": _ordered(trials, done), "finished": True})
        found.save(place.folder)
    return found


def _unchanged(source: LoadedModel, place: Place) -> Predictor:
    """The network as it is, which counts as truth under `fidelity`."""
    return Predictor(open_model(source.model, source.contract, SessionOptions(threads=place.target.threads)))


def _checked(kind: SensitivityKind, values: Sequence[float] | None) -> list[float]:
    chosen = sorted(set(VALUES[kind] if values is None else values))
    if kind == "bits":
        good = all(value == int(value) and 2 <= value <= 8 for value in chosen)
    else:
        good = all(0 < value < 1 for value in chosen)
    if not chosen or not good:
        mend = "give whole bits from 2 to 8" if kind == "bits" else "give shares above 0 and below 1"
        raise ConfigError(f"bad values for {kind}", where=", ".join(f"{value:g}" for value in chosen), mend=mend)
    return chosen[::-1] if kind == "bits" else chosen


def _changes(kind: SensitivityKind, values: Sequence[float]) -> list[tuple[Change, float]]:
    if kind == "bits":
        return [*(("weights", value) for value in values), ("activations", float(ACTIVATION_BITS))]
    return [("zeros" if kind == "pruning" else "channels", value) for value in values]


def _metric(base: Evaluation, wanted: str | None) -> str:
    known = base.summary()
    metric = wanted or base.protocol.primary
    if metric not in known:
        raise ConfigError("no such metric", where=metric, mend=closest(metric, known))
    return metric


def _begun(source: LoadedModel, place: Place, kind: SensitivityKind, metric: str, base: Evaluation) -> Sensitivity:
    """An empty analysis, or the one that the folder holds, if it is of the same network on the same pictures."""
    judged = needed(place)
    settings = {**judged.model_dump(mode="json"), "protocol": base.label, "leadline": __version__}
    if kind == "bits":
        settings["calibration"] = place.calibration.model_dump(mode="json")
    fresh = Sensitivity(
        kind=kind,
        model=source.name,
        fingerprint=_fingerprint(source),
        settings=settings,
        metric=metric,
        higher_is_better=metric in HIGHER_IS_BETTER,
        base=_figure(base.summary()[metric]),
    )
    if not (place.folder / FILE).exists():
        return fresh
    held = Sensitivity.load(place.folder, unfinished=True)
    same = ("kind", "fingerprint", "settings", "metric")
    other = [name for name in same if getattr(held, name) != getattr(fresh, name)]
    if other:
        names = [name for name in other if name != "settings"]
        if "settings" in other:
            every = {**held.settings, **fresh.settings}
            names += [key for key in every if held.settings.get(key) != fresh.settings.get(key)]
        why = f"it holds an analysis of {held.model} with another {', '.join(names)}"
        raise ConfigError("cannot continue", where=place.folder, why=why, mend="choose another --out")
    return held


def _fingerprint(source: LoadedModel) -> str:
    digest = hashlib.sha256(json.dumps(source.contract.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(source.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cost(missing: int, planned: int, pictures: int, seconds: float) -> str:
    before = f", {planned - missing} are there already" if missing < planned else ""
    time_left = missing * pictures * seconds
    about = f"{time_left / 60:.0f} min" if time_left >= 90 else f"{time_left:.0f} s"
    runs = f"{missing} changes x {pictures} pictures = {missing * pictures} forward passes{before}"
    return f"{runs}; {seconds * 1e3:.0f} ms each, about {about}"


def _row(trial: Trial, found: Evaluation, base: Evaluation, metric: str) -> Row:
    return Row(
        part=trial.part.name,
        scope=trial.part.scope,
        layers=trial.part.layers,
        change=trial.change,
        value=trial.value,
        weights=trial.part.weights,
        figure=_figure(found.summary()[metric]),
        difference=_figure(paired(found, base, metric)),
    )


def _figure(interval: Interval) -> Figure:
    return Figure.model_validate(interval.as_dict())


def _ordered(trials: Sequence[Trial], done: dict[tuple[str, str, str, float], Row]) -> tuple[Row, ...]:
    """Rows in the order of the trials, then those of earlier calls with other values."""
    keys = [trial.key for trial in trials]
    return tuple(done[key] for key in [*keys, *(key for key in done if key not in set(keys))] if key in done)
