"""The calibrated start of quantisation-aware training, and a trained network's INT8 arithmetic in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadline.compression.folding import fold
from leadline.compression.quantised_network import QuantisedNetwork, Training
from leadline.compression.tracing import trace
from leadline.compression.tuning import configured, tune
from leadline.errors import ConfigError
from leadline.runtimes.base import ExportOptions, Precision, bundle_contract
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_points import layout
from leadline.runtimes.onnx_quantize import calibrated, prepared, with_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from leadline.compression.base import Place
    from leadline.reference import LoadedModel
    from leadline.runtimes.base import Calibration

SHARE, RATE = 0.1, 0.01  # of the training's iterations and of its learning rate (Wu et al. 2020)
ITERATIONS, LEARNING_RATE = 500, 1e-5  # where the lineage tells no training


@dataclass(frozen=True)
class Start:
    """What quantisation-aware training begins with.

    Args:
        folded: the float network, batch norms folded.
        network: the same with INT8 grids.
    """

    folded: nn.Module
    network: QuantisedNetwork


def size_of(source: LoadedModel, place: Place) -> tuple[int, int]:
    """(height, width) that the recipe trains at, which the network is traced at."""
    spec = source.contract.input
    return configured(source, place, {}).size or (spec.height, spec.width)


def calibrated_start(
    source: LoadedModel,
    place: Place,
    training: Training,
    *,
    method: Calibration | None = None,
    percentile: float = 99.99,
) -> Start:
    """Fold, calibrate on the recipe's pictures, and put a grid wherever the exported Q/DQ graph has one.

    Args:
        source: stays as it is; weights that are 0 stay 0 in training.
        place: names training data, calibration pictures and the size.
        training: whether steps are learned, and so on.
        method: rule of calibration; the recipe's where absent.
        percentile: of |x| that the percentile rule keeps.

    Raises:
        ConfigError: the network is not of the registry, or the recipe has no training data.
        DataError: no calibration pictures.
        UnavailableError: the network cannot be traced or exported.
    """
    if source.architecture is None or source.config is None:
        why, mend = "it is not a network of `leadline models`", "use `quantize`"
        raise ConfigError("cannot train in INT8", where=source.name, why=why, mend=mend)
    size, said = size_of(source, place), place.calibration
    place.say(f"folding batch norms, calibrating on {said.data or 'rendered scenes'}")
    inputs = calibration_inputs(said.data, source.contract, size, said.count, split=said.split)
    options = ExportOptions(
        precision=Precision.INT8_STATIC,
        size=size,
        calibration=inputs,
        method=method or said.method,
        percentile=percentile,
    )
    traced = trace(source.model, size)
    folded = fold(source.model, traced)
    proto = export_onnx(folded, bundle_contract(source.contract, size, dynamic=False))
    ready, _ = prepared(proto, options, name=source.name)
    quantised = with_pairs(ready, calibrated(ready, options), options)
    weights, points = layout(ready, quantised, folded)
    if not weights:
        raise ConfigError("nothing to quantise in", where=source.name, why="no layer but the last has weights")
    place.say(f"{len(weights)} layers and {len(points)} tensors between them are rounded to INT8")
    return Start(folded, QuantisedNetwork(folded, traced, weights, points, training))


def train(
    source: LoadedModel, start: Start, place: Place, changes: Mapping[str, Any], folder: Path
) -> tuple[LoadedModel, QuantisedNetwork]:
    """Train a quantised network in the one training loop; called again with the same folder, it goes on.

    Args:
        source: gives contract, configuration and lineage.
        start: stays as it is.
        place: the recipe's training data.
        changes: keys of the training configuration. FP32 whatever it says: BF16's 8 bits would round the grids away;
            one rate for all parts: none of them is fresh.
        folder: of the run's state.

    Returns:
        The network in the source's architecture with its grids, and the quantised network as it was trained.
    """
    exact = {"precision": "fp32", "compile": False, "encoder_factor": 1.0}
    given = replace(source, model=start.network, quantization=None)
    tuned = tune(given, place, exact | dict(changes), folder=folder)
    assert isinstance(tuned.model, QuantisedNetwork)
    return finished(tuned, start, tuned.model), tuned.model


def finished(source: LoadedModel, start: Start, network: QuantisedNetwork) -> LoadedModel:
    """A quantised network in its architecture's own form: float weights that lie on INT8 grids, and the grids."""
    import copy

    model = copy.deepcopy(start.folded)
    grids = network.result(model)
    return replace(source, model=model.eval(), quantization=grids)


def simulated(source: LoadedModel, size: tuple[int, int] | None = None) -> QuantisedNetwork:
    """The INT8 arithmetic of a trained network in PyTorch, as its training evaluated it.

    Args:
        source: has `quantization`.
        size: (height, width); the contract's where absent.

    Raises:
        ConfigError: the network has no INT8 grids, or its weights do not lie on them any more.
    """
    from leadline.runtimes.onnx_trained import has_trained_grids, trained_graphs

    if not has_trained_grids(source):
        raise ConfigError("no INT8 grids in", where=source.name, mend="train it with the step `qat`")
    spec = source.contract.input
    size = size or (spec.height, spec.width)
    traced = trace(source.model, size)
    folded = fold(source.model, traced)
    proto = export_onnx(folded, bundle_contract(source.contract, size, dynamic=False))
    ready, quantised = trained_graphs(proto, ExportOptions(precision=Precision.INT8_STATIC), source)
    weights, points = layout(ready, quantised, folded)
    return QuantisedNetwork(folded, traced, weights, points, Training(prunes=False)).eval()


def schedule(source: LoadedModel, iterations: int | None, learning_rate: float | None) -> dict[str, Any]:
    """Length and peak rate: a tenth and a hundredth of the network's last training from scratch, where not given."""
    trained = [step for step in source.lineage if step.get("step") == "train" and "config" in step]
    longest = max(trained, key=lambda step: int(step.get("iterations", 0)), default=None)
    usual = {"iterations": ITERATIONS, "learning_rate": LEARNING_RATE}
    if longest is not None:
        usual["iterations"] = max(1, round(SHARE * int(longest["iterations"])))
        usual["learning_rate"] = RATE * float(longest["config"].get("learning_rate", LEARNING_RATE / RATE))
    return {
        "iterations": iterations or usual["iterations"],
        "learning_rate": learning_rate or usual["learning_rate"],
        "warmup": 0,
    }
