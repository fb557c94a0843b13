"""INT8 and palettes for CoreML: its own passes, with ranges that are found on any platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError
from leadline.runtimes.calibration import activation_limits
from leadline.runtimes.core_ml_program import compute, operators

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from leadline.runtimes.base import ExportOptions

SMALLEST = 256  # numbers of a weight that is worth a scale of its own
PALETTE_BITS = 6  # 64 values per weight; 4 bits cost small networks several percent of their output's spread
WEIGHTED = ("conv", "linear")
# What lies between the convolutions of a CNN; a transformer's sums and norms between its products stay in float.
BETWEEN = ("add", "avg_pool", "max_pool")
PAIRS = "compression::insert_prefix_quantize_dequantize_pair"


def activation_passes(program: Any, options: ExportOptions, *, name: str) -> tuple[Any, dict[str, Any]]:
    """The passes that put quantise/dequantise pairs before layers, with ranges from calibration.

    coremltools calibrates by predicting, which macOS alone can; here the program is computed in PyTorch instead. Its
    pass that adds pairs behind layers is left out: it would part a convolution from its clipped activation.

    Args:
        program: a float `mil.Program`.
        options: calibration inputs and rule, `symmetric`.
        name: of the network, for messages.

    Returns:
        A `coremltools.PassPipeline`, and what is known for a bundle's details.

    Raises:
        ConfigError: no calibration inputs, or no layer that could be quantised.
        NumericalError: NaN or infinity in an activation.
    """
    import coremltools as ct
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig

    chosen = _quantised(program)
    weighted = [each for each in chosen if each.op_type in WEIGHTED]
    if not weighted:
        raise ConfigError("nothing to quantise", where=name, why="it has no convolution and no linear layer")
    names = {each.inputs[key].name for each in chosen for key in ("x", "y") if key in each.inputs}

    def collect(values: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        return compute(program, values, names)

    limits = activation_limits(collect, options)
    mode = "linear_symmetric" if options.symmetric else "linear"
    config = OptimizationConfig(
        op_name_configs={each.name: OpLinearQuantizerConfig(mode=mode, dtype="int8") for each in chosen}
    )
    passes = ct.PassPipeline([PAIRS], "leadline")
    passes.set_options(
        PAIRS,
        {
            "config": config,
            "activation_stats": {key: {"rmin": low, "rmax": high} for key, (low, high) in limits.items()},
        },
    )
    details: dict[str, Any] = {
        "quantised_layers": len(weighted),
        "symmetric": options.symmetric,
        "calibration": options.method,
        "calibration_pictures": len(options.calibration),
    }
    if options.method == "percentile":
        details["percentile"] = options.percentile
    return passes, details


def _quantised(program: Any) -> list[Any]:
    """Layers whose inputs become INT8: all with weights but the last (256 levels of depth would show as steps)."""
    every = operators(program)
    transformer = any(each.op_type in ("layer_norm", "softmax") for each in every)
    kinds = WEIGHTED if transformer else WEIGHTED + BETWEEN
    last = [each for each in every if each.op_type in WEIGHTED][-1:]
    chosen = [each for each in every if each.op_type in kinds and each not in last]
    return [each for each in chosen if all(_computed(each.inputs.get(key)) for key in ("x", "y"))]


def _computed(variable: Any) -> bool:
    return variable is None or variable.val is None


def int8_weights(model: Any, *, per_channel: bool) -> Any:
    """An `MLModel` whose weights are INT8, symmetric about zero, and become float when it is loaded."""
    from coremltools.optimize import coreml

    kind = "per_channel" if per_channel else "per_tensor"
    config = coreml.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity=kind, weight_threshold=SMALLEST
    )
    return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=config))


def palettised_weights(model: Any) -> Any:
    """An `MLModel` whose weights are indices into a table of 64 values each, found by k-means."""
    from coremltools.optimize import coreml

    config = coreml.OpPalettizerConfig(mode="kmeans", nbits=PALETTE_BITS, weight_threshold=SMALLEST)
    return coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=config))
