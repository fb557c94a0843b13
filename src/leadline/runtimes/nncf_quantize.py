"""INT8 of an OpenVINO network by NNCF, where it is faster than Q/DQ pairs in ONNX."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError, UnavailableError
from leadline.runtimes.base import ExportOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

INSTALL = 'pip install "leadline[openvino]"'
NARROW = 32  # columns or rows of a product


def by_nncf(proto: onnx.ModelProto, options: ExportOptions) -> bool:
    """Whether NNCF quantises it: transformers, whose products of activations it takes too (measured: 14 % faster).

    Everything else are Q/DQ pairs in ONNX: 8 % faster on leadline-s-indoor, equally accurate, and NNCF has no entropy
    and no mse rule, averages its percentiles over pictures, which clips those with a wide range (measured there: 23 %
    of the output's spread lost, 3 % so), and corrects biases in its own way only.
    """
    return options.plain and any(node.op_type in ("LayerNormalization", "Softmax") for node in proto.graph.node)


def static_int8(network: Any, options: ExportOptions, *, name: str) -> tuple[Any, dict[str, Any]]:
    """Static INT8 by NNCF: U8 or symmetric S8 activations, S8 weights, bias correction."""
    nncf = _import_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    ignored = _narrow_products(network)
    with _quiet():
        quantised = nncf.quantize(
            network,
            nncf.Dataset(list(options.calibration)),
            preset=nncf.QuantizationPreset.PERFORMANCE if options.symmetric else nncf.QuantizationPreset.MIXED,
            subset_size=len(options.calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                weights_quantization_params=QuantizationParameters(per_channel=options.per_channel),
            ),
        )
    details: dict[str, Any] = {
        "quantiser": f"nncf {importlib.metadata.version('nncf')}",
        "per_channel": options.per_channel,
        "symmetric": options.symmetric,
        "calibration": options.method,
        "calibration_pictures": len(options.calibration),
        "excluded": [],
    }
    return quantised, details


def dynamic_int8(network: Any, options: ExportOptions, *, name: str) -> tuple[Any, dict[str, Any]]:
    """INT8 weights of the matrix products; OpenVINO quantises their activations while it runs, where the CPU can."""
    if not any(op.get_type_name() == "MatMul" for op in network.get_ordered_ops()):
        why = "OpenVINO quantises only matrix products while it runs, and this network has none"
        raise ConfigError("nothing to quantise dynamically in", where=name, why=why, mend="use int8-static")
    if not options.per_channel or options.exclude:
        asked = "one scale per tensor" if options.exclude == () else "excluded nodes"
        mend = "leave it out, or export to onnxruntime"
        raise ConfigError(f"openvino has no dynamic INT8 with {asked}", where=name, mend=mend)
    nncf = _import_nncf()
    convolutions = ["Convolution", "GroupConvolution", "ConvolutionBackpropData"]
    with _quiet():
        compressed = nncf.compress_weights(
            network,
            mode=nncf.CompressWeightsMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(types=convolutions, validate=False),
        )
    return compressed, {"quantiser": f"nncf {importlib.metadata.version('nncf')}"}


def _narrow_products(network: Any) -> list[str]:
    """Matrix products of two activations with a narrow result, which stay in float.

    OpenVINO 2026.4 writes out of bounds in their INT8 form and crashes (seen on results from 2 x 2 to 16 x 16, the
    attention over channels of Lite-Mono); they are a thousandth of the work.
    """
    names = []
    for op in network.get_ordered_ops():
        if op.get_type_name() != "MatMul" or any(
            op.input_value(side).get_node().get_type_name() == "Constant" for side in (0, 1)
        ):
            continue
        shape = op.get_output_partial_shape(0)
        sides = [shape[axis] for axis in range(max(0, len(shape) - 2), len(shape))] if shape.rank.is_static else []
        if any(side.is_static and side.get_length() < NARROW for side in sides):
            names.append(op.get_friendly_name())
    return names


def _import_nncf() -> Any:
    if importlib.util.find_spec("nncf") is None:
        raise UnavailableError("INT8 for openvino needs nncf", why="nncf is not installed", mend=f"run {INSTALL}")
    refuse_telemetry()
    with _quiet():
        import nncf
    return nncf


def refuse_telemetry() -> None:
    """Importing OpenVINO or NNCF reports to a web address; both keep silent where that package cannot be imported."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars on stdout and announces its versions; both would mix with the command's own output."""
    from contextlib import redirect_stdout
    from io import StringIO

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
