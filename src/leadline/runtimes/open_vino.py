"""OpenVINO: FP32, FP16 or INT8 weights, BF16, INT8; the arithmetic is always asked for and read back."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes.base import (
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Session,
    SessionOptions,
    bundle_contract,
    bundle_of,
    needs_calibration,
    refuse_precision,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from numpy.typing import NDArray

    from leadline.bundle import Bundle
    from leadline.contract import Contract

FILE, ONNX_FILE = "model.xml", "model.onnx"
INSTALL = 'pip install "leadline[openvino]"'
HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
# OpenVINO takes BF16 by itself where the CPU has it, at 2 to 4 % error (RUNTIMES.md pitfall 1): always say which.
HINTS = {Precision.BF16: "bf16"}
STORED = {Precision.FP16: "fp16", Precision.INT8_WEIGHTS: "int8"}
GROUP = 32  # activations that share a scale where OpenVINO quantises them while it runs; 0 would keep them in float
NARROW = 32  # columns or rows of a product


class OpenVino:
    """OpenVINO, on the CPU by default."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = tuple(Precision)

    def availability(self) -> Availability:
        """Whether openvino is installed; static INT8 needs nncf too, which the extra brings."""
        if importlib.util.find_spec("openvino") is None:
            return Availability(False, reason="openvino is not installed", install=INSTALL)
        return Availability(True, version=importlib.metadata.version("openvino"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write OpenVINO's IR (model.xml and model.bin), or for most of INT8 an ONNX file.

        Raises:
            UnavailableError: openvino or nncf is missing, or the network cannot be exported.
            ConfigError: static INT8 without calibration pictures, dynamic INT8 of a network without matrix products, or
                options that contradict each other.
        """
        from leadline.runtimes.onnx_export import export_onnx

        refuse_precision(self, options)
        needs_calibration(options)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        openvino = _import_openvino()
        proto = export_onnx(source.model, contract, options.cache)
        if options.precision is Precision.INT8_STATIC and not _by_nncf(proto, options):
            from leadline.runtimes.onnx_quantize import static_int8

            proto, details = static_int8(proto, options, name=source.name)
            return self._as_onnx(openvino, proto, source, options, contract, out, details)
        if options.precision is Precision.INT8_WEIGHTS:
            from leadline.runtimes.onnx_narrow import int8_weights

            proto, details = int8_weights(proto, options, name=source.name)
            return self._as_onnx(openvino, proto, source, options, contract, out, details)
        network, details = _read_onnx(openvino, proto, source.name), {}
        if options.precision is Precision.INT8_STATIC:
            network, details = _nncf_static(network, options, name=source.name)
        elif options.precision is Precision.INT8_DYNAMIC:
            network, details = _nncf_weights(network, options, name=source.name)
        openvino.save_model(network, out / FILE, compress_to_fp16=options.precision is Precision.FP16)
        return bundle_of(self, source, options, contract, out, details)

    def _as_onnx(
        self,
        openvino: Any,
        proto: onnx.ModelProto,
        source: Exportable,
        options: ExportOptions,
        contract: Contract,
        out: Path,
        details: dict[str, Any],
    ) -> Bundle:
        """A bundle with the ONNX file itself: OpenVINO reads Q/DQ pairs, and as its own IR they take more room."""
        _read_onnx(openvino, proto, source.name)
        (out / ONNX_FILE).write_bytes(proto.SerializeToString(deterministic=True))
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Compile the bundle's network for the device.

        Raises:
            BundleError: OpenVINO cannot read the files.
            ConfigError: there is no such device.
        """
        return _OpenVinoSession(bundle, options)


RUNTIME = OpenVino()


class _OpenVinoSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("openvino", bundle.contract)
        openvino = _import_openvino()
        core = openvino.Core()
        device = options.device.upper()
        if device not in core.available_devices:
            why = f"it sees {', '.join(core.available_devices)}"
            raise ConfigError("openvino cannot use the device", where=options.device, why=why, mend="use cpu")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": HINTS.get(Precision(bundle.precision), "f32"),
        }
        if bundle.precision == Precision.INT8_DYNAMIC:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        path = bundle.file(ONNX_FILE if ONNX_FILE in bundle.files else FILE)
        if path.name == FILE:
            bundle.file("model.bin")
        try:
            self._compiled = core.compile_model(core.read_model(path), device, settings)
        except RuntimeError as error:
            raise BundleError("openvino cannot load", where=path, why=_reason(error)) from error
        self._request = self._compiled.create_infer_request()
        self._one_by_one = self._compiled.input(0).partial_shape[0] == 1
        self._precision = Precision(bundle.precision)

    @property
    def precision_ran(self) -> str:
        return executed_precision(self._compiled, stored=STORED.get(self._precision, ""))

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._one_by_one and len(values) > 1:
            return np.concatenate([self._infer(values[index : index + 1]) for index in range(len(values))])
        result = self._request.infer([np.ascontiguousarray(values)], share_inputs=True)
        output: NDArray[np.float32] = np.array(result[0], np.float32)
        return output[:, None] if output.ndim == 3 else output  # networks from elsewhere often return N x H x W

    def close(self) -> None:
        del self._request, self._compiled


def executed_precision(compiled: Any, *, stored: str = "") -> str:
    """What the compiled network computes convolutions and matrix products in, as its execution graph says.

    Args:
        compiled: an `openvino.CompiledModel`.
        stored: how the file holds the weights, where that is narrower than the arithmetic: `fp16` or `int8`.

    Returns:
        `fp32`, `fp32 (fp16 weights)`, `fp32 (int8 weights)`, `bf16`, `fp16`, or `int8 (38 of 40 layers)`.
    """
    dynamic = int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) > 0
    names = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
    ran: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and facts["layerType"].value in HEAVY:
            # The kernel's own name ends in its arithmetic, except where it quantises its activations by itself;
            # runtimePrecision tells how the weights are stored.
            kind = facts["primitiveType"].value.rsplit("_", 1)[-1].lower()
            weights = facts["runtimePrecision"].value
            if dynamic and facts["layerType"].value == "FullyConnected" and weights in ("i8", "u8"):
                kind = weights
            ran[names.get(kind, kind)] += 1
    total = sum(ran.values())
    if not total:
        return "unknown"
    if ran["int8"]:
        return f"int8 ({ran['int8']} of {total} layers)"
    most, count = ran.most_common(1)[0]
    label = most if count == total else f"{most} ({count} of {total} layers)"
    return f"{label} ({stored} weights)" if stored and most != stored else label


def _read_onnx(openvino: Any, proto: onnx.ModelProto, name: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            # The weights are mapped from the file; converting at once frees us to remove it.
            return openvino.convert_model(path)
        except RuntimeError as error:
            why, mend = _reason(error), "export it to onnxruntime"
            raise UnavailableError("openvino cannot convert", where=name, why=why, mend=mend) from error


def _by_nncf(proto: onnx.ModelProto, options: ExportOptions) -> bool:
    """Whether NNCF quantises it: transformers, whose products of activations it takes too (measured: 14 % faster).

    Everything else are Q/DQ pairs in ONNX: 8 % faster on leadline-s-indoor, equally accurate, and NNCF has no entropy
    and no mse rule, averages its percentiles over pictures, which clips those with a wide range (measured there: 23 %
    of the output's spread lost, 3 % so), and corrects biases in its own way only.
    """
    return options.plain and any(node.op_type in ("LayerNormalization", "Softmax") for node in proto.graph.node)


def _nncf_static(network: Any, options: ExportOptions, *, name: str) -> tuple[Any, dict[str, Any]]:
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


def _nncf_weights(network: Any, options: ExportOptions, *, name: str) -> tuple[Any, dict[str, Any]]:
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


def _import_openvino() -> Any:
    if importlib.util.find_spec("openvino") is None:
        raise UnavailableError(
            "runtime openvino is not available", why="openvino is not installed", mend=f"run {INSTALL}"
        )
    _refuse_telemetry()
    import openvino

    return openvino


def _import_nncf() -> Any:
    if importlib.util.find_spec("nncf") is None:
        raise UnavailableError("INT8 for openvino needs nncf", why="nncf is not installed", mend=f"run {INSTALL}")
    _refuse_telemetry()
    with _quiet():
        import nncf
    return nncf


def _refuse_telemetry() -> None:
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


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
