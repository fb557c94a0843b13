"""INT8 and FP16 forms of a LiteRT file, by Google's quantiser (ai-edge-quantizer): weights per channel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError
from leadline.runtimes.options import Precision
from leadline.runtimes.quiet import quiet_engine

if TYPE_CHECKING:
    from leadline.runtimes.options import ExportOptions

# The quantiser's own names; a file says TRANSPOSE_CONV for the last.
LINEAR = ("FULLY_CONNECTED", "CONV_2D")
HEAVY = (*LINEAR, "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE")
# What lies between convolutions and has INT8 kernels: a chain of them stays INT8 without a detour through float.
RESIZING = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "MAX_POOL_2D", "AVERAGE_POOL_2D")
BETWEEN = (*RESIZING, "ADD", "PAD", "MIRROR_PAD", "CONCATENATION", "RELU", "HARD_SWISH")
IN_FILE = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV"}
ATTENTION = {"FULLY_CONNECTED", "BATCH_MATMUL"}


def quantised(float_file: bytes, options: ExportOptions, *, name: str) -> tuple[bytes, dict[str, Any]]:
    """The file in a narrower precision; its input and output stay float32.

    Static INT8 leaves the last convolution and what follows it in float: 256 levels of depth show as steps. In networks
    with attention only convolutions and linear layers become INT8; what lies between them (norms, residual sums) has
    outliers that one scale per tensor does not hold.

    Args:
        float_file: the network in FP32.
        options: `precision`, `calibration`, and `exclude`: parts of layers' names.
        name: of the network, for messages.

    Returns:
        The file, and details for its bundle.

    Raises:
        ConfigError: dynamic INT8 of a network without linear layers, or an excluded layer that does not exist.
    """
    layers = _layers(float_file)
    kinds = {kind for kind, _ in layers}
    attention = bool(kinds & ATTENTION)
    if options.precision is Precision.INT8_DYNAMIC and not attention:
        why = "LiteRT computes convolutions slower so than in FP32, and this network has no linear layers"
        raise ConfigError("nothing to quantise dynamically", where=name, why=why, mend="use int8-static")
    in_float = _excluded(layers, options.exclude, name)
    if options.precision is Precision.INT8_STATIC:
        last = max(index for index, (kind, _) in enumerate(layers) if kind in IN_FILE)
        in_float += [output for _, output in layers[last:]]
    recipe = _recipe(options.precision, attention, in_float)
    data = _run(float_file, recipe, options)
    details: dict[str, Any] = {"excluded": list(options.exclude)} if options.precision.startswith("int8") else {}
    if options.precision is Precision.INT8_STATIC:
        details |= {"per_channel": True, "symmetric": False, "calibration": "minmax, moving average"}
    return data, details


def _layers(file: bytes) -> list[tuple[str, str]]:
    """(kind, name of the first output) of each operator, in order."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet_engine():
        network = Interpreter(model_content=file)
    names = {each["index"]: each["name"] for each in network.get_tensor_details()}
    return [(op["op_name"], names[op["outputs"][0]]) for op in network._get_ops_details() if len(op["outputs"])]


def _excluded(layers: list[tuple[str, str]], wanted: tuple[str, ...], name: str) -> list[str]:
    found: list[str] = []
    for part in wanted:
        matches = [output for kind, output in layers if part in output and kind in IN_FILE]
        if not matches:
            last = next(output for kind, output in reversed(layers) if kind in IN_FILE)
            why = f"LiteRT names layers by modules, such as {last.rsplit('/', 1)[-1]!r}"
            raise ConfigError(f"no layer of {name} to exclude", where=part, why=why, mend="give a part of such a name")
        found += matches
    return found


def _recipe(precision: Precision, attention: bool, in_float: list[str]) -> list[dict[str, Any]]:
    """The quantiser's list of rules, of which the last that fits a layer counts."""
    from ai_edge_quantizer.qtyping import TFLOperationName as Kind
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    rules = RecipeManager()
    if precision is Precision.FP16:
        rules.add_weight_only_config(".*", Kind.ALL_SUPPORTED, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    elif precision is Precision.INT8_WEIGHTS:
        rules.add_weight_only_config(".*", Kind.ALL_SUPPORTED, 8)
    elif precision is Precision.INT8_DYNAMIC:
        for kind in LINEAR:
            rules.add_dynamic_config(".*", Kind(kind), 8)
    else:
        for kind in HEAVY if attention else (*HEAVY, *BETWEEN):
            rules.add_static_config(".*", Kind(kind), activation_num_bits=8, weight_num_bits=8)
    for output in in_float:
        rule = f"^{re.escape(output)};?$"
        rules.add_quantization_config(rule, Kind.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    recipe: list[dict[str, Any]] = rules.get_quantization_recipe()
    return recipe


def _run(file: bytes, recipe: list[dict[str, Any]], options: ExportOptions) -> bytes:
    import torch
    from ai_edge_quantizer.quantizer import Quantizer

    with quiet_engine():  # progress bars, and a remark that calibration keeps all tensors in memory
        quantiser = Quantizer(file, recipe)
        seen = None
        if quantiser.need_calibration:
            pictures = [{"args_0": np.ascontiguousarray(values)} for values in options.calibration]
            seen = quantiser.calibrate({"serving_default": pictures}, num_threads=torch.get_num_threads())
        made = quantiser.quantize(seen, enable_progress_bar=False, enable_progress_report=False)
    return bytes(made.quantized_model)
