"""OpenVINO: FP32, FP16 or INT8 weights, BF16, INT8; the arithmetic is always asked for and read back."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError, one_line
from leadline.runtimes import nncf_quantize
from leadline.runtimes.base import (
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Runtime,
    Session,
    SessionOptions,
    bundle_contract,
    bundle_of,
    needs_calibration,
    refuse_precision,
)
from leadline.runtimes.nncf_quantize import INSTALL, refuse_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    from numpy.typing import NDArray

    from leadline.bundle import Bundle
    from leadline.contract import Contract
    from leadline.runtimes.layer_time import LayerTime

FILE, ONNX_FILE = "model.xml", "model.onnx"
HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
# OpenVINO takes BF16 by itself where the CPU has it, at 2 to 4 % error (RUNTIMES.md pitfall 1): always say which.
HINTS = {Precision.BF16: "bf16"}
STORED = {Precision.FP16: "fp16", Precision.INT8_WEIGHTS: "int8"}
GROUP = 32  # activations that share a scale where OpenVINO quantises them while it runs; 0 would keep them in float


class OpenVino(Runtime):
    """OpenVINO, on the CPU by default."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = (
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8_WEIGHTS,
        Precision.INT8_DYNAMIC,
        Precision.INT8_STATIC,
    )
    dynamic: ClassVar[bool] = True
    packages: ClassVar[str] = "openvino"

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
        from leadline.runtimes.onnx_trained import has_trained_grids, trained_int8

        refuse_precision(self, options)
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        openvino = _import_openvino()
        proto = export_onnx(source.model, contract, options.cache, batch=options.batch)
        if options.precision is Precision.INT8_STATIC and has_trained_grids(source):
            proto, details = trained_int8(proto, options, source)
            return self._as_onnx(openvino, proto, source, options, contract, out, details)
        if options.precision is Precision.INT8_STATIC and not nncf_quantize.by_nncf(proto, options):
            from leadline.runtimes.onnx_quantize import static_int8

            proto, details = static_int8(proto, options, name=source.name)
            return self._as_onnx(openvino, proto, source, options, contract, out, details)
        if options.precision is Precision.INT8_WEIGHTS:
            from leadline.runtimes.onnx_narrow import int8_weights

            proto, details = int8_weights(proto, options, name=source.name)
            return self._as_onnx(openvino, proto, source, options, contract, out, details)
        network, details = _read_onnx(openvino, proto, source.name), {}
        if options.precision is Precision.INT8_STATIC:
            network, details = nncf_quantize.static_int8(network, options, name=source.name)
        elif options.precision is Precision.INT8_DYNAMIC:
            network, details = nncf_quantize.dynamic_int8(network, options, name=source.name)
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

    def example(self, bundle: Bundle) -> str:
        """A compiled model of OpenVINO, with the arithmetic that the bundle was made for."""
        precision = Precision(bundle.precision)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")}
        if precision is Precision.INT8_DYNAMIC:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(GROUP)
        return EXAMPLE.format(file=ONNX_FILE if ONNX_FILE in bundle.files else FILE, settings=settings)


EXAMPLE = """
import openvino

SETTINGS = {settings}
network = openvino.Core().compile_model(HERE / "{file}", "CPU", SETTINGS)


def infer(values):
    return network([values])[0]
"""
RUNTIME = OpenVino()


def known_device(available: Sequence[str], wanted: str) -> str:
    """OpenVINO's name of a device: `cpu`, `npu`, `gpu` (the first one), `gpu.1`.

    Raises:
        ConfigError: OpenVINO does not see it.
    """
    name = wanted.upper()
    first = [each for each in available if each == name or each.startswith(f"{name}.")]
    if not first:
        why = f"it sees {', '.join(available)}"
        mend = "install its driver, or use cpu" if name.split(".")[0] in ("GPU", "NPU") else "use cpu"
        raise ConfigError("openvino cannot use the device", where=wanted, why=why, mend=mend)
    return first[0]


def device_settings(device: str, precision: Precision, threads: int) -> tuple[dict[str, Any], list[str]]:
    """What OpenVINO is told for a device, and what the user should know of it.

    Args:
        device: from `known_device`.
        precision: of the bundle. Left alone, the CPU would take BF16 and a GPU FP16; an NPU has nothing wider.
        threads: of the CPU; 0 leaves them to OpenVINO.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")}
    kind = device.partition(".")[0]
    if kind == "CPU":
        settings["NUM_STREAMS"] = 1
        if precision is Precision.INT8_DYNAMIC:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        return settings, []
    notes = []
    if kind == "NPU" or precision is Precision.FP16:
        settings["INFERENCE_PRECISION_HINT"] = "f16"
    if kind == "NPU" and precision in (Precision.FP32, Precision.BF16):
        notes.append("an NPU computes in FP16 and INT8: this bundle is narrowed to FP16")
    return settings, notes


class _OpenVinoSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("openvino", bundle.contract)
        openvino = _import_openvino()
        core = openvino.Core()
        device = known_device(core.available_devices, options.device)
        settings, notes = device_settings(device, Precision(bundle.precision), options.threads)
        self.notes += notes
        path = bundle.file(ONNX_FILE if ONNX_FILE in bundle.files else FILE)
        if path.name == FILE:
            bundle.file("model.bin")
        self._compile: Callable[[dict[str, Any]], Any] = lambda more: core.compile_model(
            core.read_model(path), device, {**settings, **more}
        )
        try:
            self._compiled = self._compile({})
        except RuntimeError as error:
            raise BundleError("openvino cannot load", where=path, why=one_line(error, -1)) from error
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

    def profile(self, values: NDArray[np.float32], runs: int) -> list[LayerTime]:
        from leadline.runtimes.open_vino_layers import layer_times

        return layer_times(self._compile({"PERF_COUNT": True}), values[:1] if self._one_by_one else values, runs)

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
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    group = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    dynamic = group in known and int(compiled.get_property(group)) > 0
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
            why, mend = one_line(error, -1), "export it to onnxruntime"
            raise UnavailableError("openvino cannot convert", where=name, why=why, mend=mend) from error


def _import_openvino() -> Any:
    if importlib.util.find_spec("openvino") is None:
        raise UnavailableError(
            "runtime openvino is not available", why="openvino is not installed", mend=f"run {INSTALL}"
        )
    refuse_telemetry()
    import openvino

    return openvino
