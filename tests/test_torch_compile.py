"""PyTorch compiled: what is asked of torch.compile; the real compiler, which takes minutes, in the slow tests."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from leadline.errors import ConfigError, UnavailableError
from leadline.runtimes import torch_compile
from leadline.runtimes.base import ExportOptions, SessionOptions, runtime
from tiny_models import cnn, expected, exported, picture

SIZE = (64, 96)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[dict[str, Any]]:
    """Arguments of torch.compile, which gives the network back as it is; a compiler that is never called."""
    calls: list[dict[str, Any]] = []

    def take(model: Any, **arguments: Any) -> Any:
        calls.append(arguments)
        return model

    monkeypatch.setattr(torch, "compile", take)
    monkeypatch.setattr(torch_compile, "compiler", lambda: "g++")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "set by the test")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def opened(precision: str = "fp32", device: str = "cpu") -> Any:
    return runtime("torch-compile").open(exported("cnn", "torch-compile", precision), SessionOptions(1, device))


def test_the_network_is_compiled_when_it_is_opened(asked: list[dict[str, Any]], tmp_path: Any) -> None:
    import os

    session = opened()
    assert asked == [{"dynamic": False, "mode": "default"}]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
    assert session.engine == "torch-compile"
    assert "compiled for 64x96 in " in session.notes[-1]
    values = picture(5, SIZE)
    np.testing.assert_allclose(session.run(values), expected(cnn(), values), atol=1e-5)


def test_bf16_stays_bf16(asked: list[dict[str, Any]]) -> None:
    assert opened("bf16").precision_ran == "bf16"


def test_a_bundle_says_its_runtime_and_holds_what_the_eager_one_does() -> None:
    mine, eager = exported("cnn", "torch-compile", "fp32"), exported("cnn", "torch", "fp32")
    assert mine.runtime == "torch-compile"
    assert mine.files == eager.files
    weights = "weights.safetensors"
    assert mine.file(weights).read_bytes() == eager.file(weights).read_bytes()


def test_an_open_size_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="torch-compile cannot leave the size open"):
        runtime("torch-compile").export(cnn(), ExportOptions(dynamic=True), tmp_path)


@pytest.mark.parametrize("device", ["quantum", "mps"])
def test_a_device_without_kernels_is_refused(device: str, asked: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=f"'{device}'.*cpu and cuda"):
        opened(device=device)
    assert not asked


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    state = runtime("torch-compile").availability()
    assert not state.available
    assert "C++ compiler" in state.reason
    with pytest.raises(UnavailableError, match=r"C\+\+ compiler.*g\+\+"):
        opened()


def test_a_compiler_that_fails_is_told_in_a_line(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*values: Any) -> Any:
        raise RuntimeError("C++ compile error\nhundreds of lines")

    monkeypatch.setattr(torch, "compile", lambda model, **arguments: fail)
    with pytest.raises(UnavailableError, match=r"torch\.compile failed on .*: C\+\+ compile error\. Use runtime torch"):
        opened()


def test_half_a_library_of_a_killed_compiler_is_compiled_again(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Seen: Inductor's cache keeps the torn file, and each later process fails on it."""
    torn = tmp_path / "leadline" / "torch-compile" / "c1.main.so"
    torn.parent.mkdir(parents=True)
    torn.touch()

    def load(model: Any) -> Any:
        def run(values: Any) -> Any:
            if torn.exists():
                raise RuntimeError(f"ImportError: {torn}: file too short")
            return model(values)

        return run

    monkeypatch.setattr(torch, "compile", lambda model, **arguments: load(model))
    values = picture(5, SIZE)
    np.testing.assert_allclose(opened().run(values), expected(cnn(), values), atol=1e-5)
    assert not torn.exists()


@pytest.mark.slow
def test_the_real_compiler_agrees() -> None:
    session, values = opened(), picture(5, SIZE)
    np.testing.assert_allclose(session.run(values), expected(cnn(), values), atol=1e-4)
