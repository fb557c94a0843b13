"""ONNX Runtime: FP32, FP16 or INT8 weights, dynamic INT8 and static INT8 (QuantizeLinear/DequantizeLinear)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ContractError, UnavailableError, one_line, sides
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
from leadline.runtimes.onnx_providers import (
    CPU,
    check_started,
    fallback_notes,
    named_provider,
    prepare_settings,
    provider_options,
)

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from leadline.bundle import Bundle
    from leadline.contract import Contract
    from leadline.runtimes.layer_time import LayerTime

FILE = "model.onnx"
WIDENED = "fp32 (int8 weights)"
KNOWN = {Precision.FP32: "fp32", Precision.INT8_WEIGHTS: WIDENED}  # what a bundle of a precision computes in


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, or on another of its execution providers by name."""

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = (
        Precision.FP32,
        Precision.FP16,
        Precision.INT8_WEIGHTS,
        Precision.INT8_DYNAMIC,
        Precision.INT8_STATIC,
    )
    dynamic: ClassVar[bool] = True
    packages: ClassVar[str] = "onnxruntime"

    def availability(self) -> Availability:
        """Whether onnxruntime (and onnx, for exporting) is installed."""
        for package in ("onnxruntime", "onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                return Availability(False, reason=f"{package} is not installed", install=f"pip install {package}")
        return Availability(True, version=_version())

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Export to ONNX and bring it to the precision.

        Raises:
            UnavailableError: the network cannot be exported.
            ConfigError: static INT8 without calibration pictures, dynamic INT8 of a network without matrix products, or
                options that contradict each other.
        """
        refuse_precision(self, options)
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        details = write_onnx(source, options, contract, out / FILE)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load the bundle's ONNX file."""
        known = KNOWN.get(Precision(bundle.precision), "")
        return open_file(bundle.file(FILE), bundle.contract, options, precision=known)

    def example(self, bundle: Bundle) -> str:
        """A session of ONNX Runtime, set up as ours is."""
        widen = 'settings.add_session_config_entry("session.disable_quant_qdq", "1")  # widened once\n'
        return EXAMPLE.format(file=FILE, widen=widen if bundle.precision == Precision.INT8_WEIGHTS else "")


EXAMPLE = """
import onnxruntime

settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
{widen}session = onnxruntime.InferenceSession(HERE / "{file}", settings)


def infer(values):
    return session.run(None, {{session.get_inputs()[0].name: values}})[0]
"""
RUNTIME = OnnxRuntime()


def write_onnx(source: Exportable, options: ExportOptions, contract: Contract, path: Path) -> dict[str, Any]:
    """Write a network as the one ONNX file of a precision; ONNX Runtime runs it on every platform, browsers too.

    Args:
        source: the network.
        options: of the export, checked by `refuse_precision` and `needs_calibration`.
        contract: of the file, as `bundle_contract` gives it.
        path: of the file.

    Returns:
        What is known of the precision, for a bundle's details.

    Raises:
        UnavailableError: the network cannot be exported.
        ConfigError: nothing in the network can be brought to the precision.
    """
    from leadline.runtimes.onnx_export import export_onnx
    from leadline.runtimes.onnx_trained import has_trained_grids, trained_int8

    proto = export_onnx(source.model, contract, options.cache, batch=options.batch)
    if options.precision is Precision.INT8_STATIC and has_trained_grids(source):
        proto, details = trained_int8(proto, options, source)
    else:
        proto, details = narrowed(proto, options, name=source.name)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return details


def narrowed(proto: onnx.ModelProto, options: ExportOptions, *, name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A float graph in the arithmetic of `options.precision`, and what a bundle's details say of it.

    Args:
        proto: any network of one picture.
        options: checked by `check_options`; static INT8 needs `calibration`.
        name: of the network, for messages.

    Raises:
        ConfigError: nothing in the network can be brought to the precision, or no calibration inputs.
        NumericalError: NaN or infinity during calibration, or a weight that FP16 cannot hold.
    """
    from leadline.runtimes import onnx_narrow, onnx_quantize

    if options.precision is Precision.FP16:
        return onnx_narrow.half_weights(proto), {}
    if options.precision is Precision.INT8_WEIGHTS:
        return onnx_narrow.int8_weights(proto, options, name=name)
    if options.precision is Precision.INT8_DYNAMIC:
        return onnx_narrow.dynamic_int8(proto, options, name=name)
    if options.precision is Precision.INT8_STATIC:
        return onnx_quantize.static_int8(proto, options, name=name)
    return proto, {}


def open_file(path: Path, contract: Contract, options: SessionOptions | None = None, *, precision: str = "") -> Session:
    """A session on any ONNX file with one picture input and a depth map as its first output.

    Args:
        path: the file; external data must lie beside it.
        contract: what it expects and returns.
        options: threads and device (`cpu`, `cuda`, `cuda:1`, `coreml`, ...: see `leadline.runtimes.onnx_providers`).
        precision: what it computes in, where that is known; otherwise it is found from the optimised graph when asked.

    Raises:
        BundleError: the file is missing, damaged, or no network of one picture.
        ContractError: the file's fixed size is not the contract's.
        UnavailableError: an operator that this ONNX Runtime does not know.
        ConfigError: the execution provider is not in this build, or cannot start.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UnavailableError("runtime onnxruntime is not available", mend="run pip install onnxruntime")
    if not path.is_file():
        raise BundleError("no such ONNX file", where=path)
    options = options or SessionOptions()
    return _OnnxSession(path, contract, options, precision)


class _OnnxSession(Session):
    def __init__(self, path: Path, contract: Contract, options: SessionOptions, precision: str) -> None:
        super().__init__("onnxruntime", contract)
        self._path, self._precision, self._options = path, precision, options
        self._session = _create(path, options, widen=precision == WIDENED)
        self._provider, _ = named_provider(options.device)
        self.notes += fallback_notes(self._session, self._provider)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            why = f"it has the inputs {', '.join(f'{each.name} {sides(each.shape)}' for each in inputs)}"
            raise BundleError("not a network of one picture", where=path, why=why, mend="one input N x 3 x H x W")
        self._input, self._output = inputs[0].name, self._session.get_outputs()[0].name
        self._half = inputs[0].type == "tensor(float16)"
        self._one_by_one = inputs[0].shape[0] == 1
        fixed = tuple(side for side in inputs[0].shape[2:])
        spec = contract.input
        if all(isinstance(side, int) for side in fixed) and (spec.dynamic or fixed != (spec.height, spec.width)):
            why = f"the file takes {fixed[0]}x{fixed[1]}, its contract says {spec.height}x{spec.width}"
            why += " and dynamic" if spec.dynamic else ""
            raise ContractError("the contract does not fit the ONNX file", where=path, why=why)

    @property
    def precision_ran(self) -> str:
        if self._provider.compiles:  # it may narrow what it takes, and leaves no graph to read
            return "unknown"
        if not self._precision:
            self._precision = executed_precision(self._path, self._options)
        return self._precision

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._one_by_one and len(values) > 1:
            return np.concatenate([self._infer(values[index : index + 1]) for index in range(len(values))])
        feed = values.astype(np.float16) if self._half else np.ascontiguousarray(values)
        output: NDArray[np.float32] = self._session.run([self._output], {self._input: feed})[0]
        if output.ndim == 3:  # networks from elsewhere often return N x H x W
            output = output[:, None]
        return output.astype(np.float32, copy=False)

    def profile(self, values: NDArray[np.float32], runs: int) -> list[LayerTime]:
        from leadline.runtimes.onnx_layers import layer_times

        feed = values[:1] if self._one_by_one else values
        profiled = partial(_create, self._path, self._options, widen=self._precision == WIDENED)
        typed = feed.astype(np.float16) if self._half else feed
        return layer_times(lambda prefix: profiled(profile=prefix), {self._input: typed}, runs)

    def close(self) -> None:
        del self._session


def _create(
    path: Path,
    options: SessionOptions,
    *,
    widen: bool = False,
    save_optimised: Path | None = None,
    profile: str | None = None,
) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    provider, number = named_provider(options.device)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    if widen:  # INT8 weights become float once, not in each run
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if save_optimised is not None:
        settings.optimized_model_filepath = str(save_optimised)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    prepare_settings(settings, provider)
    chain: list[Any] = [(provider.engine, provider_options(provider, number, options))]
    chain += [] if provider.engine == CPU else [CPU]
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=chain)
    except state.NotImplemented as error:
        why = one_line(error)
        mend = "update onnxruntime or export to another runtime"
        raise UnavailableError("onnxruntime lacks an operator of", where=path, why=why, mend=mend) from error
    except (
        state.Fail,
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NoSuchFile,
        state.RuntimeException,
    ) as error:
        raise BundleError("onnxruntime cannot load", where=path, why=one_line(error)) from error
    check_started(session, provider, options.device)
    return session


INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
INTEGER |= {"DynamicQuantizeMatMul", "QAttention", "MatMulNBits"}
FLOAT = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}


def executed_precision(path: Path, options: SessionOptions | None = None) -> str:
    """What ONNX Runtime computes convolutions and matrix products in, read from the graph that it runs after fusing.

    Args:
        path: an ONNX file.
        options: the device counts, which must not be one that compiles parts of the graph.

    Returns:
        `fp32`, `fp16`, `fp32 (fp16 weights)` where the CPU has no FP16 kernels, or `int8 (38 of 40 layers)`.
    """
    import tempfile
    from pathlib import Path

    import onnx

    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        saved = Path(folder) / "optimised.onnx"
        _create(path, options or SessionOptions(), save_optimised=saved)
        graph = onnx.load(saved).graph
    kinds = [node.op_type for node in graph.node]
    integer, real = sum(kind in INTEGER for kind in kinds), sum(kind in FLOAT for kind in kinds)
    if integer:
        return f"int8 ({integer} of {integer + real} layers)"
    half = _half_tensors(graph)
    if not half:
        return "fp32"
    heavy = [node for node in graph.node if node.op_type in FLOAT]
    in_half = sum(any(name in half for name in node.input) for node in heavy)
    return "fp16" if in_half == len(heavy) else "fp32 (fp16 weights)" if not in_half else "fp16, fp32"


def _half_tensors(graph: Any) -> set[str]:
    """Names of the FP16 tensors as far as the graph says: initialisers, casts and declared values."""
    import onnx

    half = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16}
    for node in graph.node:
        if node.op_type == "Cast" and any(a.name == "to" and a.i == onnx.TensorProto.FLOAT16 for a in node.attribute):
            half.update(node.output)
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            half.add(value.name)
    return half


def _version() -> str:
    for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
