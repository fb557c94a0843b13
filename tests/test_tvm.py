"""TVM: data in the bundle, code in the user's own cache, and tuning within a time."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from leadline.bundle import load_bundle, write_bundle
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes import tvm_relax, tvm_tune
from leadline.runtimes.base import ExportOptions, SessionOptions, refuse_precision, runtime
from leadline.runtimes.tvm_relax import FILE, RECORDS, RUNTIME, WORKLOADS, host_target, imported
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, vit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tvm"


def halving(shape: tuple[int, int] = (4, 6)) -> bytes:
    """A network that halves the mean of the colours; it compiles in a moment."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["grey"], keepdims=1),
        helper.make_node("Mul", ["grey", "half"], ["depth"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    ]
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *shape])]
    outs = [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, *shape])]
    graph = helper.make_graph(nodes, "halving", ends, outs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def bundle_with(data: bytes, folder: Path, **more: bytes) -> object:
    """A bundle of 64 x 96 whose manifest fits whatever its files hold."""
    folder.mkdir()
    for name, content in {FILE: data, **more}.items():
        (folder / name).write_bytes(content)
    contract = exported("cnn", "tvm", "fp32").contract
    write_bundle(folder, runtime="tvm", precision="fp32", contract=contract, size=(64, 96), dynamic=False, details={})
    return load_bundle(folder)


def test_a_bundle_holds_no_code() -> None:
    assert set(exported("cnn", "tvm", "fp32").files) == {FILE, "contract.json"}


def test_the_library_is_compiled_once_and_kept_for_this_user(cache: Path, tmp_path: Path) -> None:
    bundle = bundle_with(halving((64, 96)), tmp_path / "b")
    values = picture(1, (64, 96))
    want = values.mean(axis=1, keepdims=True) / 2
    session = RUNTIME.open(bundle, SessionOptions())
    np.testing.assert_allclose(session.run(values), want, atol=1e-6)
    assert any("not tuned" in note for note in session.notes)
    (library,) = cache.glob("*.so")
    assert library.stat().st_mode & 0o077 == 0
    written = library.stat().st_mtime_ns
    np.testing.assert_allclose(RUNTIME.open(bundle, SessionOptions()).run(values), want, atol=1e-6)
    assert library.stat().st_mtime_ns == written


def test_a_library_that_others_can_write_is_not_run(cache: Path, tmp_path: Path) -> None:
    bundle = bundle_with(halving((64, 96)), tmp_path / "b")
    RUNTIME.open(bundle, SessionOptions())
    (library,) = cache.glob("*.so")
    library.write_bytes(b"not a library")
    library.chmod(0o666)
    values = picture(1, (64, 96))
    want = values.mean(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(RUNTIME.open(bundle, SessionOptions()).run(values), want, atol=1e-6)
    assert library.read_bytes()[:4] == b"\x7fELF"


def test_a_torn_library_is_compiled_again(cache: Path, tmp_path: Path) -> None:
    bundle = bundle_with(halving((64, 96)), tmp_path / "b")
    RUNTIME.open(bundle, SessionOptions())
    (library,) = cache.glob("*.so")
    library.unlink()
    library.write_bytes(b"torn")
    library.chmod(0o600)
    values = picture(2, (64, 96))
    want = values.mean(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(RUNTIME.open(bundle, SessionOptions()).run(values), want, atol=1e-6)


def test_without_a_linker_it_runs_all_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_with(halving((64, 96)), tmp_path / "b")
    monkeypatch.setenv("PATH", str(tmp_path))
    values = picture(2, (64, 96))
    want = values.mean(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(RUNTIME.open(bundle, SessionOptions()).run(values), want, atol=1e-6)


@pytest.mark.parametrize("data", [b"", b"\x00junk", halving()[: len(halving()) // 2]])
def test_a_damaged_graph_is_refused(data: bytes, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not an ONNX graph"):
        RUNTIME.open(bundle_with(data, tmp_path / "b"), SessionOptions())


def test_damaged_records_are_refused(cache: Path, tmp_path: Path) -> None:
    bundle = bundle_with(halving((64, 96)), tmp_path / "b", **{WORKLOADS: b"junk\n", RECORDS: b"[1, 2]\n"})
    with pytest.raises(BundleError, match="records of tuning"):
        RUNTIME.open(bundle, SessionOptions())


def test_an_operator_that_tvm_lacks_is_named() -> None:
    model = onnx.load_model_from_string(halving())
    model.graph.node[1].op_type, model.graph.node[1].domain = "Halve", "org.nowhere"
    model.opset_import.append(helper.make_opsetid("org.nowhere", 1))
    with pytest.raises(UnavailableError, match="Halve"):
        imported(model.SerializeToString(), "odd")


def test_the_target_is_a_cpu_that_this_machine_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_target()["kind"] == "llvm"
    monkeypatch.setattr("tvm.target.codegen.llvm_get_system_cpu", lambda: "znver4")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for flags, level in (("avx2 fma bmi2", "x86-64-v3"), ("sse2", "x86-64")):
        text = f"model\nflags\t\t: fpu {flags} xsave\nbugs\n"
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, text=text: text)
        assert host_target()["mcpu"] == level


@pytest.mark.slow
def test_a_transformer_agrees() -> None:
    session = runtime("tvm").open(exported("vit", "tvm", "fp32"), SessionOptions())
    values = picture(3, VIT_SIZE)
    np.testing.assert_allclose(session.run(values), expected(vit(), values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="time for tuning"):
        refuse_precision(RUNTIME, ExportOptions(tune_seconds=seconds))


@pytest.mark.parametrize("engine", ["onnxruntime", "ncnn"])
def test_engines_that_do_not_tune_say_so(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"{engine} cannot be tuned"):
        refuse_precision(runtime(engine), ExportOptions(tune_seconds=5))


def test_tuning_without_a_compiler_says_what_is_missing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="C\\+\\+ compiler"):
        RUNTIME.export(cnn(), ExportOptions(tune_seconds=1), tmp_path)


def test_tuning_keeps_to_its_time_and_ends_its_processes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tuner that writes a record and half of another, starts a child, and would go on for ever."""
    code = (
        "import sys, subprocess, time; from pathlib import Path; place = Path(sys.argv[1]);"
        f"(place / {WORKLOADS!r}).write_text('[1, 2]\\n');"
        f"(place / {RECORDS!r}).write_text('[0, [3]]\\n[0, [');"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "(place / 'child').write_text(str(child.pid)); time.sleep(600)"
    )
    usual = subprocess.Popen
    monkeypatch.setattr(
        tvm_tune.subprocess, "Popen", lambda command, **more: usual([sys.executable, "-c", code, command[-1]], **more)
    )
    network = tmp_path / "model.onnx"
    network.write_bytes(halving())
    found = tvm_tune.tune(network, 3, tmp_path)
    assert (found["records"], found["layers"], found["seconds"]) == (1, 1, 3)
    assert [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()] == [[0, [3]]]
    child = int(next(cache.rglob("child")).read_text())
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_tuner_that_finds_nothing_is_an_error(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_tune, "_search", lambda *rest: "boom")
    network = tmp_path / "model.onnx"
    network.write_bytes(halving())
    with pytest.raises(UnavailableError, match=r"found no schedule in its time.*boom"):
        tvm_tune.tune(network, 1, tmp_path)


def test_its_absence_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported("cnn", "tvm", "fp32")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert tvm_relax.RUNTIME.availability().install == "pip install apache-tvm"
    with pytest.raises(UnavailableError, match="pip install apache-tvm"):
        RUNTIME.open(bundle, SessionOptions())
