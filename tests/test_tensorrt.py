"""TensorRT against a stand-in that follows NVIDIA's documentation: nothing here ran on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import fake_tensorrt
from leadline.bundle import Bundle
from leadline.errors import ConfigError, ContractError, UnavailableError
from leadline.runtimes import tensor_rt, tensor_rt_engine
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from tiny_models import cnn, expected, exported, picture, pictures

SIZE = (64, 96)
cached = functools.cache


@cached
def bundle(precision: str, dynamic: bool = False) -> Bundle:
    return exported("cnn", "tensorrt", precision, SIZE, dynamic)


class FakeCuda:
    """The few calls of torch.cuda that a session makes, on the host's memory."""

    def __init__(self) -> None:
        self.free, self.clock = 1000, 0.0

    def device_count(self) -> int:
        return 2

    def mem_get_info(self, device: str) -> tuple[int, int]:
        self.free -= 2**21
        return self.free, 10**9

    def get_device_name(self, device: str) -> str:
        return "Orin"

    def get_device_capability(self, device: str) -> tuple[int, int]:
        return 8, 7

    def device(self, device: str) -> Any:
        return contextlib.nullcontext()

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def Stream(self, device: str) -> Any:
        return SimpleNamespace(cuda_stream=7, synchronize=lambda: None)

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=0.0)

        def record(stream: Any) -> None:
            self.clock += 1.5
            event.at = self.clock

        event.record, event.elapsed_time = record, lambda other: other.at - event.at
        return event


class FakeTensor:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def pin_memory(self) -> FakeTensor:
        return self

    def to(self, device: str, *, non_blocking: bool) -> FakeTensor:
        assert device.startswith("cuda:")
        return FakeTensor(self.tensor.clone())

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def copy_(self, other: FakeTensor, *, non_blocking: bool) -> None:
        self.tensor.copy_(other.tensor)

    def numpy(self) -> np.ndarray:
        result: np.ndarray = self.tensor.numpy()
        return result


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with two GPUs and TensorRT, and an empty cache."""
    fake, cuda = fake_tensorrt.module(), FakeCuda()
    host = SimpleNamespace(
        cuda=cuda,
        float32=torch.float32,
        from_numpy=lambda values: FakeTensor(torch.from_numpy(values)),
        empty=lambda shape, **_: FakeTensor(torch.empty(shape)),
    )
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))

    def ready(device: str) -> tuple[Any, Any, str]:
        known = {"cpu": 0, "cuda": 0, "cuda:0": 0, "cuda:1": 1}
        if device not in known:
            raise ConfigError("tensorrt cannot use the device", where=device)
        return fake, host, f"cuda:{known[device]}"

    monkeypatch.setattr(tensor_rt, "_ready", ready)
    return fake


def opened(made: Bundle, device: str = "cuda") -> Any:
    return runtime("tensorrt").open(made, SessionOptions(device=device))


class TestRun:
    @pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 2e-2), ("int8-static", 0.35)])
    def test_it_computes_the_network(self, trt: Any, precision: str, limit: float) -> None:
        session, values = opened(bundle(precision)), picture(5, SIZE)
        output, reference = session.run(values), expected(cnn(), values)
        assert output.shape == (1, 1, *SIZE)
        assert np.abs(output - reference).mean() / reference.std() < limit
        ran = {"fp32": "fp32", "fp16": "fp16", "int8-static": "int8 (3 of 3 layers)"}[precision]
        assert session.precision_ran == ran

    def test_copies_and_computing_are_timed_apart(self, trt: Any) -> None:
        session = opened(bundle("fp32"))
        assert session.last_parts() is None
        session.run(picture(5, SIZE))
        assert session.last_parts() == {"to_device": 1.5, "compute": 1.5, "from_device": 1.5}
        session.run(np.concatenate(pictures(3)))
        assert session.last_parts() == {"to_device": 4.5, "compute": 4.5, "from_device": 4.5}
        assert session.device_mib() == 2.0

    def test_an_open_size_has_a_profile(self, trt: Any) -> None:
        session = opened(bundle("fp32", True))
        ((_, config),) = trt.builds
        ((low, usual, high),) = config._profiles[0]._shapes.values()
        assert usual == (1, 3, *SIZE)
        spec = cnn().contract.input
        assert low == (1, 3, 64, 64)
        assert high == (1, 3, spec.max_side // 32 * 32, spec.max_side // 32 * 32)
        for size in (SIZE, (96, 64)):
            values = picture(4, size)
            np.testing.assert_allclose(session.run(values), expected(cnn(), values), atol=1e-4)
        with pytest.raises(ContractError):
            session.run(np.zeros((1, 3, 65, 96), np.float32))

    def test_layers_have_times(self, trt: Any) -> None:
        layers = opened(bundle("fp32")).profile(picture(5, SIZE), 3)
        assert [(layer.name, layer.ms) for layer in layers] == [("conv + relu", 0.5), ("resize", 0.25)]

    def test_devices(self, trt: Any) -> None:
        assert "cuda:0 computes" in opened(bundle("fp32"), "cpu").notes[0]
        assert not any("computes" in note for note in opened(bundle("fp32"), "cuda:1").notes)
        with pytest.raises(ConfigError, match="quantum"):
            opened(bundle("fp32"), "quantum")


class TestEngine:
    def test_it_is_strongly_typed_without_tf32_and_refit(self, trt: Any) -> None:
        opened(bundle("fp32"))
        ((network, config),) = trt.builds
        assert network._flags == 1 << 1  # STRONGLY_TYPED
        assert not config.get_flag(trt.BuilderFlag.TF32)
        assert not config.get_flag(trt.BuilderFlag.REFIT)
        assert config._profiles == []

    def test_it_is_built_once_and_says_so(self, trt: Any) -> None:
        assert (
            "engine built here by TensorRT 11.0.0 for Orin, compute capability 8.7" in opened(bundle("fp32")).notes[0]
        )
        assert opened(bundle("fp32")).notes == []
        assert len(trt.builds) == 1
        opened(bundle("fp16"))
        assert len(trt.builds) == 2

    def test_another_version_builds_its_own(self, trt: Any) -> None:
        opened(bundle("fp32"))
        trt.__version__ = "11.1.0"
        assert "TensorRT 11.1.0" in opened(bundle("fp32")).notes[0]

    def test_timings_are_kept_and_others_left(self, trt: Any) -> None:
        opened(bundle("fp32"))
        timing = tensor_rt_engine.engine_folder() / "timing.cache"
        assert timing.read_bytes() == b"measured"
        timing.write_bytes(b"of another GPU")
        opened(bundle("fp16"))
        assert timing.read_bytes() == b"measured"

    def test_a_bundle_carries_no_compiled_code(self) -> None:
        assert set(bundle("fp32").files) == {"contract.json", "model.onnx"}

    @pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
    def test_an_engine_that_others_could_write_is_not_read(self, trt: Any) -> None:
        opened(bundle("fp32"))
        (plan,) = tensor_rt_engine.engine_folder().glob("*.plan")
        assert plan.stat().st_mode & 0o777 == 0o600
        plan.chmod(0o666)
        assert opened(bundle("fp32")).notes
        assert len(trt.builds) == 2
        target = plan.rename(plan.with_name("elsewhere"))
        plan.symlink_to(target)
        assert not tensor_rt_engine.is_own(plan)

    def test_a_damaged_engine_is_built_again(self, trt: Any) -> None:
        opened(bundle("fp32"))
        (plan,) = tensor_rt_engine.engine_folder().glob("*.plan")
        plan.write_bytes(b"junk")
        opened(bundle("fp32")).run(picture(5, SIZE))
        assert len(trt.builds) == 2

    def test_an_operator_that_it_lacks_is_named(self, trt: Any) -> None:
        proto = onnx.load(bundle("fp32").file("model.onnx"))
        proto.graph.node[0].op_type = "Odd"
        with pytest.raises(UnavailableError, match=r"TensorRT cannot read 'x'.*op: Odd"):
            tensor_rt_engine.build_plan(trt, proto.SerializeToString(), (), Path("none"), "x")

    def test_what_the_inspector_says_otherwise_is_unknown(self) -> None:
        for text in ("no JSON", '{"Layers": ["names", "only"]}', '{"other": 1}'):
            inspector = SimpleNamespace(get_engine_information=lambda _, text=text: text)
            engine = SimpleNamespace(create_engine_inspector=lambda inspector=inspector: inspector)
            assert tensor_rt_engine.executed_precision(fake_tensorrt.module(), engine) == "unknown"


class TestGraph:
    def test_int8_is_symmetric_and_the_same(self) -> None:
        """UINT8 about 128 and INT8 about 0 are one grid: both graphs must answer alike."""
        import onnxruntime

        from leadline.runtimes.onnx_export import export_onnx
        from leadline.runtimes.onnx_quantize import static_int8

        made = bundle("int8-static")
        options = ExportOptions(
            precision=Precision.INT8_STATIC, size=SIZE, calibration=pictures(8, SIZE), symmetric=True
        )
        unsigned, _ = static_int8(export_onnx(cnn().model, made.contract), options, name="x")
        graph = onnx.load(made.file("model.onnx")).graph
        known = {tensor.name: tensor for tensor in graph.initializer}
        pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert pairs
        assert all(len(node.input) == 3 for node in pairs if node.op_type == "QuantizeLinear")
        for node in [each for each in pairs if len(each.input) == 3]:
            assert known[node.input[2]].data_type == onnx.TensorProto.INT8
            assert not numpy_helper.to_array(known[node.input[2]]).any()
        assert onnx.TensorProto.INT32 not in {tensor.data_type for tensor in graph.initializer}
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        values = picture(5, SIZE)
        answers = [
            onnxruntime.InferenceSession(data, plain).run(None, {"input": values})[0]
            for data in (unsigned.SerializeToString(), made.file("model.onnx").read_bytes())
        ]
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)

    def test_a_zero_point_off_the_middle_is_refused(self) -> None:
        from leadline.runtimes.onnx_runtime import FILE

        proto = onnx.load(exported("cnn", "onnxruntime", "int8-static", SIZE).file(FILE))
        with pytest.raises(ConfigError, match="symmetric about zero"):
            tensor_rt.signed(proto)

    def test_fp16_has_float_ends(self) -> None:
        graph = onnx.load(bundle("fp16").file("model.onnx")).graph
        kinds = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
        assert kinds == {onnx.TensorProto.FLOAT}
        assert {t.data_type for t in graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.FLOAT16}

    def test_grids_from_training_are_refused(self, tmp_path: Path) -> None:
        trained = SimpleNamespace(fits=lambda model: True)
        source = dataclasses.replace(cnn(), quantization=trained)
        with pytest.raises(ConfigError, match="symmetric about zero"):
            runtime("tensorrt").export(source, ExportOptions(precision=Precision.INT8_STATIC), tmp_path)

    def test_static_int8_needs_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="calibration set is empty"):
            runtime("tensorrt").export(cnn(), ExportOptions(precision=Precision.INT8_STATIC), tmp_path)


class TestAvailability:
    def test_each_part_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = functools.partial(runtime("tensorrt").availability)
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
        assert state().reason == "tensorrt is not installed"
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
        versions = {"tensorrt": "11.0.0", "torch": "2.13.0+cpu"}
        monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
        assert "built without CUDA" in state().reason
        versions["torch"] = "2.13.0"
        monkeypatch.setattr(tensor_rt.ctypes.util, "find_library", lambda name: None)
        assert state().reason == "there is no NVIDIA driver"
        monkeypatch.setattr(tensor_rt.ctypes.util, "find_library", lambda name: "libcuda.so.1")
        assert state().available
        assert state().version == "11.0.0"

    def test_opening_without_it_says_what_to_do(self) -> None:
        if runtime("tensorrt").availability().available:
            pytest.skip("TensorRT is here")
        with pytest.raises(UnavailableError, match="runtime tensorrt is not available"):
            opened(bundle("fp32"))
