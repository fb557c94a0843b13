"""A stand-in for NVIDIA's `tensorrt`, with the names and rules of its documentation (10 and 11) and no others.

What is not in the documentation raises AttributeError, as it would there. "Compiling" keeps the ONNX file, and
"running" computes it with ONNX Runtime on the host, where this test's pictures lie.
"""

from __future__ import annotations

import enum
import json
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

MAGIC = b"plan"


class Fake:
    """Attributes that a class does not name cannot be set either."""

    allowed: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self.allowed:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


class HostMemory(Fake):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class TimingCache(Fake):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> HostMemory:
        return HostMemory(self._data)


class Profile(Fake):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not all(1 <= low <= usual <= high for low, usual, high in zip(min, opt, max, strict=True)):
            raise ValueError("1 <= min <= opt <= max must hold")
        self._shapes[input] = min, opt, max


class Config(Fake):
    allowed = ("profiling_verbosity",)

    def __init__(self) -> None:
        self._flags, self._profiles, self._timing = {BuilderFlag.TF32}, [], None  # TF32 is on by default

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache._data and cache._data != b"measured" and not ignore_mismatch:
            return False
        self._timing = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._timing

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Tensor(Fake):
    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name


class Network(Fake):
    def __init__(self, flags: int) -> None:
        self._flags, self._data = flags, b""

    def get_input(self, index: int) -> Tensor:
        return Tensor(onnx.load_model_from_string(self._data).graph.input[index].name)


class ParserError(Fake):
    def desc(self) -> str:
        return "No importer registered for op: Odd"


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class Context(Fake):
    allowed = ("profiler",)

    def __init__(self, engine: Engine) -> None:
        self._engine, self._shape, self._addresses = engine, engine._shape, {}
        self.profiler = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fits = all(mine in (-1, theirs) for mine, theirs in zip(self._engine._shape, shape, strict=True))
        fits &= (
            all(
                low <= side <= high
                for low, side, high in zip(*(self._engine._range[0], shape, self._engine._range[2]), strict=True)
            )
            if self._engine._range
            else True
        )
        self._shape = tuple(shape) if fits else self._shape
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shape[0], 3 if name == "input" else 1, *self._shape[2:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        import ctypes

        assert stream_handle == 7  # a stream of its own
        views = {}
        for name in ("input", "depth"):
            shape = self.get_tensor_shape(name)
            pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(ctypes.c_float))
            views[name] = np.ctypeslib.as_array(pointer, shape=shape)
        views["depth"][:] = self._engine._session.run(None, {"input": views["input"]})[0]
        if self.profiler is not None:
            self.profiler.report_layer_time("conv + relu", 0.5)
            self.profiler.report_layer_time("resize", 0.25)
        return True


class Inspector(Fake):
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def get_engine_information(self, format: object) -> str:
        facts = [{"Name": "input", "Format/Datatype": f"Row major linear {self._kind} format"}]
        layers = [{"Name": f"layer {index}", "LayerType": "CaskConvolution", "Inputs": facts} for index in range(3)]
        return json.dumps({"Layers": [*layers, {"Name": "shuffle", "LayerType": "Shuffle", "Inputs": []}]})


class Engine(Fake):
    def __init__(self, plan: dict[str, Any], data: bytes) -> None:
        self._range, graph = plan["profile"], onnx.load_model_from_string(data)
        sides = graph.graph.input[0].type.tensor_type.shape.dim
        self._shape = tuple(side.dim_value or -1 for side in sides)
        self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        kinds = {tensor.data_type for tensor in graph.graph.initializer}
        half, small = onnx.TensorProto.FLOAT16 in kinds, onnx.TensorProto.INT8 in kinds
        self._kind = "INT8" if small else "FP16" if half else "FP32"

    @property
    def num_io_tensors(self) -> int:
        return 2

    def get_tensor_name(self, index: int) -> str:
        return ("input", "depth")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._kind)


class BuilderFlag(enum.IntEnum):
    TF32, REFIT = 7, 4  # of TensorRT 11's: FP16, INT8 and the like were removed


class Creation(enum.IntEnum):
    STRONGLY_TYPED = 1


class Verbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = 0, 1, 2


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = 0, 1


def module(version: str = "11.0.0") -> Any:
    """The module, with a record of what was built in `builds`."""
    fake: Any = ModuleType("tensorrt")
    fake.builds = []

    class Logger(Fake):
        VERBOSE, INFO, WARNING, ERROR = 4, 3, 2, 1

        def __init__(self, min_severity: int = 2) -> None:
            self._severity = min_severity

    class Builder(Fake):
        def __init__(self, logger: Logger) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            fake.builds.append((network, config))
            profile = next((next(iter(each._shapes.values())) for each in config._profiles), None)
            if config._timing is not None:
                config._timing._data = b"measured"
            head = json.dumps({"version": version, "profile": profile}).encode()
            return HostMemory(MAGIC + len(head).to_bytes(4, "big") + head + network._data)

    class OnnxParser(Fake):
        def __init__(self, network: Network, logger: Logger) -> None:
            self._network, self._errors = network, 0

        def parse(self, model: bytes) -> bool:
            graph = onnx.load_model_from_string(model).graph
            self._errors = sum(node.op_type == "Odd" for node in graph.node)
            for node in graph.node:
                if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and len(node.input) > 2):
                    known = {each.name: each for each in graph.initializer}
                    assert known[node.input[2]].data_type == onnx.TensorProto.INT8, "symmetric INT8 only"
                    assert not onnx.numpy_helper.to_array(known[node.input[2]]).any(), "zero points must be 0"
            self._network._data = model
            return not self._errors

        @property
        def num_errors(self) -> int:
            return self._errors

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class Runtime(Fake):
        def __init__(self, logger: Logger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if serialized_engine[:4] != MAGIC:
                return None
            size = int.from_bytes(serialized_engine[4:8], "big")
            plan = json.loads(serialized_engine[8 : 8 + size])
            return Engine(plan, serialized_engine[8 + size :]) if plan["version"] == version else None

    fake.__version__, fake.Logger, fake.Builder = version, Logger, Builder
    fake.OnnxParser, fake.Runtime, fake.IProfiler = OnnxParser, Runtime, IProfiler
    fake.NetworkDefinitionCreationFlag, fake.BuilderFlag = Creation, BuilderFlag
    fake.ProfilingVerbosity, fake.TensorIOMode = Verbosity, TensorIOMode
    fake.LayerInformationFormat = LayerInformationFormat
    return fake
