"""ONNX Runtime's providers by name: what this build has, what brings the others, and what they are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from leadline.errors import ConfigError
from leadline.runtimes import onnx_providers as providers
from leadline.runtimes.base import SessionOptions, runtime
from tiny_models import exported

CUDA, COREML, XNNPACK = (providers.PROVIDERS[name] for name in ("cuda", "coreml", "xnnpack"))


def open_on(device: str) -> Any:
    return runtime("onnxruntime").open(exported("cnn", "onnxruntime", "fp32"), SessionOptions(device=device))


def test_every_name_is_one_that_onnxruntime_knows() -> None:
    assert {each.engine for each in providers.PROVIDERS.values()} <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize("device", ["cpu", "CPU", "CPUExecutionProvider"])
def test_the_cpu_goes_by_both_names(device: str) -> None:
    session = open_on(device)
    assert session.precision_ran == "fp32"
    assert session.notes == []


@pytest.mark.parametrize(
    ("device", "brings"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("cuda:1", "onnxruntime-gpu"),
        ("tensorrt", "TensorRT"),
        ("directml", "onnxruntime-directml"),
        ("openvino", "onnxruntime-openvino"),
        ("qnn", "onnxruntime-qnn"),
        ("xnnpack", "--use_xnnpack"),
        ("DmlExecutionProvider", "onnxruntime-directml"),
        ("WebGpuExecutionProvider", "another build"),
    ],
)
def test_a_missing_provider_names_what_brings_it(device: str, brings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.CPU])
    with pytest.raises(ConfigError, match=rf"'{device}': this build has cpu\. .*{brings}.*in place of onnxruntime"):
        open_on(device)


@pytest.mark.parametrize("device", ["quantum", "cuda:x"])
def test_an_unknown_provider_names_those_of_this_build(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{device}': this build has .*cpu"):
        open_on(device)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'coreml'"):
        open_on("corelm")


def test_a_provider_that_does_not_start_is_not_taken_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself goes on without a word where CUDA's libraries are missing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA.engine, providers.CPU])
    asked = []

    def create(path: str, settings: Any, providers: Any) -> Any:
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    with pytest.raises(ConfigError, match="could not start the provider 'cuda:1'"):
        open_on("cuda:1")
    assert asked == [[(CUDA.engine, {"device_id": "1", "use_tf32": "0"}), providers.CPU]]


def test_coreml_gets_an_ml_program_and_xnnpack_its_own_threads() -> None:
    told = providers.provider_options(COREML, 0, SessionOptions())
    assert told["ModelFormat"] == "MLProgram"
    assert providers.provider_options(XNNPACK, 0, SessionOptions(threads=3)) == {"intra_op_num_threads": "3"}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 3
    providers.prepare_settings(settings, XNNPACK)
    assert settings.intra_op_num_threads == 1
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


def test_nodes_that_fall_back_are_counted() -> None:
    def part(engine: str, *kinds: str) -> Any:
        return SimpleNamespace(ep_name=engine, get_nodes=lambda: [SimpleNamespace(op_type=kind) for kind in kinds])

    parts = [part(COREML.engine, "Conv", "Relu"), part(providers.CPU, "Resize", "Resize", "Softplus")]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    assert providers.fallback_notes(session, COREML) == [
        "3 of 5 nodes run on the CPU, not in coreml: 2 Resize, 1 Softplus"
    ]
    parts.pop()
    assert providers.fallback_notes(session, COREML) == []


def test_the_record_of_this_onnxruntime_has_that_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in above against the real thing, which the CPU alone can show here."""
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = exported("cnn", "onnxruntime", "fp32").file("model.onnx")
    session = onnxruntime.InferenceSession(str(path), settings, providers=[providers.CPU])
    (note,) = providers.fallback_notes(session, COREML)
    assert "nodes run on the CPU, not in coreml: " in note
    assert "Conv" in note
