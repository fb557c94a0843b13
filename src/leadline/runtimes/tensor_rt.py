"""TensorRT on NVIDIA GPUs: FP32, FP16 and INT8 from the same ONNX graph as the other engines, strongly typed.

Written against NVIDIA's documentation of TensorRT 10 and 11, and tested with a stand-in that follows it.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import ConfigError, NumericalError, UnavailableError, sides
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

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from leadline.bundle import Bundle
    from leadline.runtimes.layer_time import LayerTime

FILE = "model.onnx"
INSTALL = 'pip install "leadline[tensorrt]"'
PARTS = ("to_device", "compute", "from_device")


class TensorRt(Runtime):
    """TensorRT: the bundle holds the ONNX graph; each machine builds its own engine from it and keeps it."""

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)
    dynamic: ClassVar[bool] = True
    packages: ClassVar[str] = "tensorrt torch"

    def availability(self) -> Availability:
        """Whether TensorRT, a PyTorch with CUDA and NVIDIA's driver are here."""
        if importlib.util.find_spec("tensorrt") is None:
            return Availability(False, reason="tensorrt is not installed", install=INSTALL)
        version = importlib.metadata.version("tensorrt")
        torch = importlib.metadata.version("torch")
        if "+cpu" in torch:
            reason = f"PyTorch {torch} is built without CUDA, and it moves the pictures to the GPU"
            return Availability(False, version, reason, "pip install torch from PyTorch's CUDA index")
        if ctypes.util.find_library("nvcuda" if sys.platform == "win32" else "cuda") is None:
            return Availability(False, version, "there is no NVIDIA driver", "NVIDIA's driver for the GPU")
        return Availability(True, version=version)

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write the ONNX graph that TensorRT builds its engine from; opening the bundle builds it.

        Raises:
            UnavailableError: the network cannot be exported.
            ConfigError: static INT8 without calibration pictures, or with grids from training, which are not symmetric.
        """
        from leadline.runtimes.onnx_export import export_onnx

        refuse_precision(self, options)
        refuse_trained(source, options)
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        proto = export_onnx(source.model, contract, options.cache, batch=options.batch)
        proto, details = typed_graph(proto, options, name=source.name)
        (out / FILE).write_bytes(proto.SerializeToString(deterministic=True))
        return bundle_of(self, source, options, contract, out, {**details, "batch": options.batch})

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Take this machine's engine from the user's cache, or build it, and make a context for it.

        Raises:
            UnavailableError: TensorRT or a GPU is missing, or TensorRT lacks an operator.
            ConfigError: there is no such GPU.
        """
        return _TensorRtSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """Build the engine and run it with TensorRT and PyTorch's memory."""
        return EXAMPLE.format(file=FILE)


EXAMPLE = """
import tensorrt
import torch

logger = tensorrt.Logger(tensorrt.Logger.ERROR)
builder = tensorrt.Builder(logger)
network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = tensorrt.OnnxParser(network, logger)
assert parser.parse((HERE / "{file}").read_bytes()), parser.get_error(0).desc()
config = builder.create_builder_config()
config.clear_flag(tensorrt.BuilderFlag.TF32)
plan = builder.build_serialized_network(network, config)  # takes minutes: keep it, for this GPU and version only
engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
context = engine.create_execution_context()


def infer(values):
    tensors = [torch.from_numpy(values).cuda(), torch.empty(tuple(context.get_tensor_shape("depth")), device="cuda")]
    for name, tensor in zip(("input", "depth"), tensors):
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return tensors[1].cpu().numpy()
"""
RUNTIME = TensorRt()


def refuse_trained(source: Exportable, options: ExportOptions) -> None:
    """Refuse INT8 grids from training: TensorRT's are symmetric about zero.

    Raises:
        ConfigError: the network brings such grids.
    """
    from leadline.runtimes.onnx_trained import has_trained_grids

    if options.precision is Precision.INT8_STATIC and has_trained_grids(source):
        why = "training gave its activations zero points, and TensorRT's INT8 is symmetric about zero"
        raise ConfigError("tensorrt cannot take", where=source.name, why=why, mend="export to onnxruntime or openvino")


def typed_graph(proto: onnx.ModelProto, options: ExportOptions, *, name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph whose own types are the arithmetic, as strongly typed networks want it.

    Args:
        proto: from `export_onnx`.
        options: of the export.
        name: of the network, for messages.
    """
    from dataclasses import replace

    from leadline.runtimes.onnx_narrow import half_weights
    from leadline.runtimes.onnx_quantize import static_int8

    if options.precision is Precision.FP16:
        return half_weights(proto), {}
    if options.precision is Precision.INT8_STATIC:
        quantised, details = static_int8(proto, replace(options, symmetric=True), name=name)
        return signed(quantised), details
    return proto, {}


def signed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Q/DQ pairs as TensorRT takes them: INT8 with zero point 0 instead of UINT8 with 128, and biases in float.

    The values stay the same: q - 128 in UINT8 is q in INT8, and an INT32 bias times its scale is the float bias.

    Raises:
        ConfigError: a zero point is not in the middle.
    """
    import onnx
    from onnx import numpy_helper

    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    graph, known = kept.graph, {tensor.name: tensor for tensor in kept.graph.initializer}
    plain = []
    for node in list(graph.node):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source = known.get(node.input[0])
        if source is not None and source.data_type == onnx.TensorProto.INT32:
            scale = numpy_helper.to_array(known[node.input[1]]).astype(np.float64)
            bias = (numpy_helper.to_array(source) * scale).astype(np.float32)
            plain.append(numpy_helper.from_array(bias, node.output[0]))
            graph.node.remove(node)
            continue
        zero = known[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        if (zero is None and node.op_type == "DequantizeLinear") or (zero and zero.data_type == onnx.TensorProto.INT8):
            continue
        middle = np.zeros((), np.uint8) if zero is None else numpy_helper.to_array(zero)
        if zero is None or middle.dtype != np.uint8 or (middle != 128).any():
            why = "its INT8 is symmetric about zero"
            raise ConfigError("tensorrt cannot take the zero point of", where=node.name, why=why)
        zero.CopyFrom(numpy_helper.from_array(np.zeros(middle.shape, np.int8), zero.name))
    graph.initializer.extend(plain)
    used = {key for node in graph.node for key in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]  # types of the UINT8 tensors
    onnx.checker.check_model(kept)
    return kept


class _TensorRtSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        from leadline.runtimes.tensor_rt_engine import open_engine

        super().__init__("tensorrt", bundle.contract)
        trt, torch, self._device = _ready(options.device)
        if options.device == "cpu":
            self.notes.append(f"TensorRT runs on GPUs only: {self._device} computes")
        self._torch, before = torch, torch.cuda.mem_get_info(self._device)[0]
        batch = int(bundle.details.get("batch", 1))
        with torch.cuda.device(self._device):
            engine, notes = open_engine(trt, bundle.file(FILE), bundle.contract, batch, _gpu(torch, self._device))
            self._context = engine.create_execution_context()
        self.notes += notes
        self._trt, self._engine = trt, engine
        self._stream = torch.cuda.Stream(self._device)  # the default one would wait for everything else
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._input,), (self._output,) = inputs, [name for name in names if name not in inputs]
        self._one_by_one = next(iter(engine.get_tensor_shape(self._input))) == 1
        self._mib = (before - torch.cuda.mem_get_info(self._device)[0]) / 2**20
        self._parts: dict[str, float] | None = None

    @property
    def precision_ran(self) -> str:
        from leadline.runtimes.tensor_rt_engine import executed_precision

        return executed_precision(self._trt, self._engine)

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._one_by_one and len(values) > 1:
            outputs, parts = [], dict.fromkeys(PARTS, 0.0)
            for index in range(len(values)):
                outputs.append(self._infer(values[index : index + 1]))
                parts = {name: parts[name] + (self._parts or {})[name] for name in PARTS}
            self._parts = parts
            return np.concatenate(outputs)
        cuda, context, stream = self._torch.cuda, self._context, self._stream
        marks = [cuda.Event(enable_timing=True) for _ in range(4)]
        source = self._torch.from_numpy(np.ascontiguousarray(values)).pin_memory()
        with cuda.stream(stream):
            marks[0].record(stream)
            moved = source.to(self._device, non_blocking=True)
            if not context.set_input_shape(self._input, tuple(values.shape)):
                raise ConfigError(f"the engine was not built for an input of {sides(values.shape)}")
            shape = tuple(context.get_tensor_shape(self._output))
            result = self._torch.empty(shape, dtype=self._torch.float32, device=self._device)
            context.set_tensor_address(self._input, moved.data_ptr())
            context.set_tensor_address(self._output, result.data_ptr())
            marks[1].record(stream)
            if not context.execute_async_v3(stream.cuda_stream):
                raise NumericalError("TensorRT could not run the network", where=self._device)
            marks[2].record(stream)
            back = self._torch.empty(shape, dtype=self._torch.float32, pin_memory=True)
            back.copy_(result, non_blocking=True)
            marks[3].record(stream)
        stream.synchronize()
        self._parts = {name: marks[i].elapsed_time(marks[i + 1]) for i, name in enumerate(PARTS)}
        output: NDArray[np.float32] = back.numpy()
        return output[:, None] if output.ndim == 3 else output

    def last_parts(self) -> dict[str, float] | None:
        return self._parts

    def device_mib(self) -> float | None:
        return float(self._mib)

    def profile(self, values: NDArray[np.float32], runs: int) -> list[LayerTime]:
        from leadline.runtimes.tensor_rt_engine import layer_times

        feed = values[:1] if self._one_by_one else values
        return layer_times(self._trt, self._context, lambda: self._infer(feed), runs)

    def close(self) -> None:
        del self._context, self._engine


def _ready(device: str) -> tuple[Any, Any, str]:
    """TensorRT, PyTorch and PyTorch's name of the GPU."""
    state = RUNTIME.availability()
    if not state.available:
        why, mend = state.reason, f"run {state.install}"
        raise UnavailableError("runtime tensorrt is not available", why=why, mend=mend)
    import tensorrt
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UnavailableError("TensorRT needs an NVIDIA GPU", why="PyTorch sees none", mend="check nvidia-smi")
    known = {"cpu": 0, "cuda": 0, **{f"cuda:{index}": index for index in range(count)}}
    if device not in known:
        why = f"this machine has {', '.join(f'cuda:{index}' for index in range(count))}"
        raise ConfigError("tensorrt cannot use the device", where=device, why=why, mend="use cuda")
    return tensorrt, torch, f"cuda:{known[device]}"


def _gpu(torch: Any, device: str) -> str:
    """What an engine is tied to: the model of the GPU and its compute capability."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
