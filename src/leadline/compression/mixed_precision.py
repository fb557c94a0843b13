"""Automatic mixed precision: layers leave INT8, the most sensitive first, until the accuracy limit holds.

Partial quantisation of Wu et al. 2020 (SPEC.md section 8), made cheaper: layers are ranked by what quantising each of
them alone does to the network's output on calibration pictures, or by a sensitivity analysis on measured accuracy. How
many must leave is found by doubling and then halving, each time on the measured accuracy of the file that the engine
would run.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError
from leadline.evaluation.bootstrap import Interval
from leadline.output import write_atomic
from leadline.runtimes.base import bundle_contract
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_graph import session
from leadline.runtimes.onnx_points import Naming
from leadline.runtimes.onnx_quantize import calibrated, layers, prepared, with_neighbours, with_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from leadline.bundle import Bundle
    from leadline.compression.base import Place
    from leadline.reference import LoadedModel
    from leadline.runtimes.base import ExportOptions, Runtime

    Try = Callable[[int], Interval]

RANKED_ON = 8  # calibration pictures
STATE = "mixed-precision.json"


@dataclass(frozen=True)
class Mixture:
    """Which layers left INT8.

    Args:
        out: names of those layers, the most sensitive first.
        layers: how many there are.
        options: of the export, with the layers and their neighbours excluded and the ranges that were calibrated.
        change: of the primary metric against FP32, as it was measured with this choice.
    """

    out: tuple[str, ...]
    layers: int
    options: ExportOptions
    change: Interval


def mixture(
    source: LoadedModel,
    adapter: Runtime,
    options: ExportOptions,
    place: Place,
    max_drop: float,
    change: Callable[[Bundle], Interval],
    ranked: Sequence[str] = (),
) -> Mixture:
    """Keep as many layers in INT8 as the limit allows; called again after a kill, it goes on where it was.

    Args:
        source: the float network.
        adapter: the engine.
        options: of static INT8; what they exclude stays in float in any case.
        place: its folder keeps the ranking and the trials.
        max_drop: largest loss of the primary metric, by its point estimate.
        change: measures a bundle: the primary metric's change against FP32.
        ranked: module paths in the order in which layers leave, in place of a ranking; others of the network go last.

    Raises:
        ConfigError: INT8 cannot meet the limit with even one layer.
    """
    contract = bundle_contract(source.contract, options.size, options.dynamic)
    ready, _ = prepared(export_onnx(source.model, contract, options.cache), options, name=source.name)
    options = replace(options, ranges=calibrated(ready, options))
    kept = _State(place.folder / STATE)
    named = [name for name in layers(ready) if name not in options.exclude]

    @functools.cache
    def order() -> list[str]:
        if ranked:
            return _as_ranked(ready, named, source, ranked, place)
        place.say(f"ranking {len(named)} layers")
        loss = _losses(ready, named, options, kept, place)
        return sorted(named, key=lambda name: -loss[name])

    def first(count: int) -> list[str]:
        """The most sensitive layers, which are ranked only where INT8 throughout is not enough."""
        return order()[:count] if count else []

    def chosen(count: int) -> ExportOptions:
        out = {*first(count), *options.exclude}
        return replace(options, exclude=with_neighbours(ready, out) if out else ())

    def attempt(count: int) -> Interval:
        if str(count) not in kept.trials:
            with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
                found = change(adapter.export(source, chosen(count), Path(folder)))
            kept.trials[str(count)] = asdict(found)
            kept.save()
            place.say(f"{count} of {len(named)} layers in float: change {found.value:+.4f}, limit {-max_drop:+.4f}")
        return Interval(**kept.trials[str(count)])

    count, measured = _fewest(len(named), attempt, max_drop, source.name)
    return Mixture(tuple(first(count)), len(named), chosen(count), measured)


def _fewest(layers: int, attempt: Try, max_drop: float, name: str) -> tuple[int, Interval]:
    """The smallest number of layers in float that was seen to meet the limit."""
    failed, count, found = -1, 0, attempt(0) if layers else None
    while found is not None and -found.value > max_drop:
        if count == layers - 1:
            found = None
            break
        failed, count = count, min(max(1, 2 * count), layers - 1)
        found = attempt(count)
    if found is None:
        why = f"a loss of {max_drop:g} is not met by any mixture of {layers} INT8 and float layers"
        mend = "allow more with max_drop, use fp16 or bf16, or train with the step qat"
        raise ConfigError("INT8 cannot meet the limit", where=name, why=why, mend=mend)
    while count - failed > 1:
        middle = (failed + count) // 2
        measured = attempt(middle)
        if -measured.value <= max_drop:
            count, found = middle, measured
        else:
            failed = middle
    return count, found


def _as_ranked(
    ready: onnx.ModelProto, names: list[str], source: LoadedModel, ranked: Sequence[str], place: Place
) -> list[str]:
    """Layers of the graph in the order of their modules; those that it does not name stay last."""
    naming = Naming(ready, source.model)
    weights = {node.name: naming.weight(node) for node in naming.nodes if node.name in names}
    known = {name: ranked.index(path) for name in names if (path := _module(weights[name])) in ranked}
    left = f"; {len(names) - len(known)} others leave last" if len(known) < len(names) else ""
    place.say(f"{len(known)} layers leave in the order of the sensitivity file{left}")
    return sorted(names, key=lambda name: known.get(name, len(ranked)))


def _module(weight: str | None) -> str | None:
    return weight and weight.rpartition(".")[0]


def _losses(
    ready: onnx.ModelProto, names: Sequence[str], options: ExportOptions, kept: _State, place: Place
) -> Mapping[str, float]:
    """Mean |change| of the output, over its standard deviation, when one layer alone is quantised."""
    if len(kept.losses) == len(names):
        return kept.losses
    inputs = options.calibration[:RANKED_ON]
    reference = _outputs(ready, inputs)
    spread = max(float(np.std(reference)), 1e-3 * float(np.abs(reference).mean()), 1e-12)
    ranges = options.ranges or {}
    for done, name in enumerate(names, start=1):
        if name in kept.losses:
            continue
        others = with_neighbours(ready, [each for each in layers(ready) if each != name])
        alone = with_pairs(ready, ranges, replace(options, exclude=others))
        kept.losses[name] = float(np.abs(_outputs(alone, inputs) - reference).mean()) / spread
        kept.save()
        if done % max(1, len(names) // 5) == 0:
            place.say(f"{done} of {len(names)} layers ranked")
    return kept.losses


def _outputs(proto: onnx.ModelProto, inputs: Sequence[Any]) -> Any:
    opened, names = session(proto, optimise=True)
    feed = opened.get_inputs()[0].name
    return np.stack([opened.run(names[:1], {feed: values})[0] for values in inputs])


class _State:
    """What an interrupted search has found already."""

    def __init__(self, path: Path) -> None:
        values = json.loads(path.read_bytes()) if path.is_file() else {}
        self._path = path
        self.losses: dict[str, float] = values.get("losses", {})
        self.trials: dict[str, Any] = values.get("trials", {})

    def save(self) -> None:
        """Write it at once; a kill leaves the old or the new file."""
        write_atomic(self._path, json.dumps({"losses": self.losses, "trials": self.trials}).encode())
