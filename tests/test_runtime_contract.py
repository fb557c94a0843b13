"""The contract that every runtime keeps, on a tiny FastDepth."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leadline.bundle import EXAMPLE, Bundle, load_bundle
from leadline.errors import BundleError, ConfigError, ContractError, LeadlineError, UnavailableError
from leadline.predictor import Predictor
from leadline.runtimes.base import (
    RUNTIMES,
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Runtime,
    Session,
    SessionOptions,
    refuse_precision,
    required,
    runtime,
    usual_runtimes,
)
from leadline.runtimes.export import export_bundle
from tiny_models import cnn, expected, exported, picture, pictures

PRECISIONS = {
    "torch": {"fp32", "fp16", "bf16", "int8-dynamic"},
    "torch-compile": {"fp32", "bf16"},
    "onnxruntime": {"fp32", "fp16", "int8-weights", "int8-dynamic", "int8-static"},
    "openvino": {"fp32", "fp16", "bf16", "int8-weights", "int8-dynamic", "int8-static"},
    "coreml": {"fp32", "fp16", "int8-weights", "int8-static", "palettised"},
    "tensorrt": {"fp32", "fp16", "int8-static"},
    "litert": {"fp32", "fp16", "int8-weights", "int8-dynamic", "int8-static"},
    "executorch": {"fp32", "int8-dynamic", "int8-static"},
    "ncnn": {"fp32", "fp16", "int8-static"},
    "tvm": {"fp32"},
    "web": {"fp32", "fp16", "int8-weights", "int8-dynamic", "int8-static"},
}
# A CNN has no matrix products that could be quantised while running.
CASES = [(engine, p) for engine, precisions in PRECISIONS.items() for p in sorted(precisions) if p != "int8-dynamic"]
# An engine, or one of its precisions, that compiles or converts for long; its own test file has the quick checks.
SLOW = {"torch-compile", "tvm", ("executorch", "int8-static")}
# mean |difference| over the output's standard deviation: rounding of the precision through 40 layers
LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 0.15, "int8-weights": 0.1, "int8-static": 0.35, "palettised": 0.15}
RAN = {"fp32": ("fp32",), "fp16": ("fp16", "fp32 (fp16 weights)"), "bf16": ("bf16", "fp32")}
RAN |= {"int8-weights": ("fp32 (int8 weights)", "fp16 (int8 weights)"), "int8-static": ("int8 (",)}
RAN |= {"palettised": ("fp16 (6-bit weights)",)}


def marked(*values: str) -> object:
    """A case of an engine, which is slow where the engine is."""
    return pytest.param(*values, marks=[pytest.mark.slow] if {values[0], values} & SLOW else [])


@pytest.fixture(params=[marked(name) for name in RUNTIMES])
def engine(request: pytest.FixtureRequest) -> str:
    """An engine that exports and runs on this machine."""
    name: str = request.param
    state = runtime(name).availability()
    if not state.available or state.export_only:
        pytest.skip(f"{name}: {state.reason or state.export_only}")
    return name


def test_availability_names_a_version(engine: str) -> None:
    state = runtime(engine).availability()
    assert state.version[0].isdigit()
    assert not state.reason


def test_a_new_engine_says_only_what_differs() -> None:
    class Plain(Runtime):
        name, packages, precisions = "plain", "plain", (Precision.FP32,)

        def availability(self) -> Availability:
            return Availability(True)

        def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
            raise AssertionError

        def open(self, bundle: Bundle, options: SessionOptions) -> Session:
            raise AssertionError

    refuse_precision(Plain(), ExportOptions())
    for options, word in ((ExportOptions(dynamic=True), "size open"), (ExportOptions(tune_seconds=1), "be tuned")):
        with pytest.raises(ConfigError, match=f"plain cannot .*{word}"):
            refuse_precision(Plain(), options)
    assert not Plain().by_name_only


def test_precisions_are_those_promised(engine: str) -> None:
    assert {str(p) for p in runtime(engine).precisions} == PRECISIONS[engine]


@pytest.mark.parametrize(("engine", "precision"), [marked(*case) for case in CASES])
def test_exports_loads_runs_and_agrees(engine: str, precision: str) -> None:
    state = runtime(engine).availability()
    if not state.available or state.export_only:
        pytest.skip(f"{engine}: {state.reason or state.export_only}")
    bundle = load_bundle(exported("cnn", engine, precision).folder)
    assert (bundle.runtime, bundle.precision, bundle.size, bundle.dynamic) == (engine, precision, (64, 96), False)
    assert not bundle.contract.input.dynamic
    session = runtime(engine).open(bundle, SessionOptions())
    values = picture(5, (64, 96))
    output, reference = session.run(values), expected(cnn(), values)
    assert output.dtype == np.float32
    assert output.shape == reference.shape == (1, 1, 64, 96)
    assert np.abs(output - reference).mean() / reference.std() < LIMITS[precision]
    assert session.precision_ran.startswith(RAN[precision])
    session.close()


def test_a_batch_gives_what_its_pictures_give(engine: str) -> None:
    session = runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions())
    values = np.concatenate(pictures(3))
    together = session.run(values)
    assert together.shape == (3, 1, 64, 96)
    for index in range(3):
        np.testing.assert_allclose(together[index : index + 1], session.run(values[index : index + 1]), atol=1e-5)


def test_an_output_is_not_overwritten_by_the_next_run(engine: str) -> None:
    session = runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions())
    first = session.run(picture(1, (64, 96)))
    kept = first.copy()
    session.run(picture(2, (64, 96)))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 3, 64, 64), np.float32),
        np.zeros((1, 1, 64, 96), np.float32),
        np.zeros((3, 64, 96), np.float32),
        np.zeros((1, 3, 64, 96), np.float64),
        np.zeros((0, 3, 64, 96), np.float32),
    ],
    ids=["size", "channels", "rank", "dtype", "empty"],
)
def test_wrong_input_is_refused(engine: str, values: np.ndarray) -> None:
    session = runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions())
    with pytest.raises(ContractError):
        session.run(values)


def test_missing_and_damaged_files_are_refused(engine: str, tmp_path: object) -> None:
    folder = shutil.copytree(exported("cnn", engine, "fp32").folder, f"{tmp_path}/copy")
    bundle = load_bundle(exported("cnn", engine, "fp32").folder)
    heaviest = max((name for name in bundle.files), key=lambda name: bundle.file(name).stat().st_size)
    victim = type(bundle.folder)(folder) / heaviest
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(Path(folder))
    victim.unlink()
    with pytest.raises(BundleError, match="missing"):
        load_bundle(Path(folder))


def test_threads_do_not_change_the_result(engine: str) -> None:
    values = picture(9, (64, 96))
    results = [
        runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions(threads=threads)).run(values)
        for threads in (0, 1, 2)
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_an_unknown_device_is_refused_in_words(engine: str) -> None:
    with pytest.raises(ConfigError, match="quantum"):
        runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions(device="quantum"))


def test_an_open_size_really_is_open(engine: str, tmp_path: object) -> None:
    """RUNTIMES.md pitfall 2: the file must follow sizes and batches that the exporter never saw."""
    if not runtime(engine).dynamic:
        with pytest.raises(ConfigError, match=f"{engine} cannot leave the size open"):
            runtime(engine).export(cnn(), ExportOptions(dynamic=True), tmp_path)  # type: ignore[arg-type]
        return
    bundle = exported("cnn", engine, "fp32", (64, 96), True)
    assert bundle.dynamic
    assert bundle.contract.input.dynamic
    session = runtime(engine).open(bundle, SessionOptions())
    for size in ((64, 96), (96, 64), (128, 224)):
        values = np.concatenate([picture(3, size), picture(4, size)])
        np.testing.assert_allclose(session.run(values), expected(cnn(), values), atol=1e-4)
    with pytest.raises(ContractError, match="multiples of 32"):
        session.run(np.zeros((1, 3, 65, 96), np.float32))


def test_a_fixed_network_is_not_opened(engine: str, tmp_path: object) -> None:
    model = cnn()
    fixed = model.contract.model_copy(update={"input": model.contract.input.model_copy(update={"dynamic": False})})
    source = type(model)(model.model, fixed, model.name, (), model.architecture, model.config)
    why = "its input is fixed" if runtime(engine).dynamic else "cannot leave the size open"
    with pytest.raises(ConfigError, match=why):
        runtime(engine).export(source, ExportOptions(dynamic=True), tmp_path)  # type: ignore[arg-type]


def test_a_precision_that_the_engine_lacks_is_refused(engine: str, tmp_path: object) -> None:
    missing = [p for p in Precision if p not in runtime(engine).precisions]
    for precision in missing:
        with pytest.raises(ConfigError, match=f"{engine} has no precision '{precision}'"):
            runtime(engine).export(cnn(), ExportOptions(precision=precision), tmp_path)  # type: ignore[arg-type]
    assert len(missing) == len(Precision) - len(PRECISIONS[engine])


def test_dynamic_int8_of_a_cnn_is_refused_with_the_reason(engine: str, tmp_path: object) -> None:
    if not any(precision.startswith("int8") for precision in PRECISIONS[engine]):
        pytest.skip(f"{engine} has no INT8")
    options = ExportOptions(precision=Precision.INT8_DYNAMIC)
    with pytest.raises(ConfigError, match="int8-static"):
        export_bundle(cnn(), engine, options, type(exported("cnn", engine, "fp32").folder)(f"{tmp_path}/out"))


@pytest.mark.parametrize("engine", [name for name in RUNTIMES if "int8-static" in PRECISIONS[name]])
def test_static_int8_needs_pictures(engine: str, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="calibration set is empty"):
        runtime(engine).export(cnn(), ExportOptions(precision=Precision.INT8_STATIC), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_missing_engine_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    state = runtime(name).availability()
    assert not state.available
    assert "not installed" in state.reason
    with pytest.raises(UnavailableError, match="pip install"):
        required(name)


def test_an_unknown_runtime_gets_a_suggestion() -> None:
    with pytest.raises(LeadlineError, match="Did you mean 'openvino'"):
        runtime("openvno")


def test_export_bundle_writes_parity_and_lineage_at_once(engine: str, tmp_path: object) -> None:
    out = type(exported("cnn", engine, "fp32").folder)(f"{tmp_path}/bundle")
    bundle = export_bundle(cnn(), engine, ExportOptions(), out)
    assert bundle.details["precision_ran"] == "fp32"
    assert bundle.details["parity"]["pictures"] == 4
    assert bundle.details["parity"]["relative"] < 1e-4
    assert bundle.lineage[-1]["step"] == "export"
    assert sorted(path.name for path in out.parent.iterdir()) == ["bundle"]


def test_the_example_gives_our_depth_without_us(engine: str, tmp_path: Path) -> None:
    """`python example.py picture.png depth.npy` in the bundle is what `leadline predict` computes."""
    bundle = export_bundle(cnn(), engine, ExportOptions(), tmp_path / "bundle")
    if not runtime(engine).example(bundle):
        assert EXAMPLE not in bundle.files
        return
    pixels = (255 * picture(3, (120, 200))[0].transpose(1, 2, 0)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    text = bundle.file(EXAMPLE).read_text()
    assert "leadline" not in "".join(line for line in text.splitlines() if "import" in line)
    command = [sys.executable, str(bundle.file(EXAMPLE)), "picture.png", "depth.npy"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    assert (done.stdout[:11], done.stdout.count("\n")) == ("depth.npy: ", 1)
    assert [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")] == []  # LiteRT has one such
    done = subprocess.run(command[:2], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "usage: python example.py picture.jpg depth.npy\n")
    ours = Predictor(runtime(engine).open(bundle, SessionOptions())).predict(pixels).values
    np.testing.assert_allclose(np.load(tmp_path / "depth.npy"), ours, rtol=1e-4, atol=1e-4)
    load_bundle(bundle.folder)  # what the example leaves behind does not spoil the bundle


@pytest.mark.parametrize("spec", [{"antialias": False, "interpolation": "bicubic"}, {"channels": "bgr"}, {}])
@pytest.mark.parametrize("corners", [True, False])
def test_the_example_keeps_the_contract(spec: dict[str, object], corners: bool, tmp_path: Path) -> None:
    """Resizing and normalising of every contract, shrinking and enlarging, by the example's own lines."""
    model = cnn()
    spec = {**spec, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    contract = model.contract.model_copy(
        update={
            "input": model.contract.input.model_copy(update=spec),
            "output": model.contract.output.model_copy(update={"align_corners": corners}),
        }
    )
    bundle = export_bundle(
        dataclasses.replace(model, contract=contract), "onnxruntime", ExportOptions(), tmp_path / "b"
    )
    for size in ((120, 200), (40, 50)):
        pixels = (255 * picture(3, size)[0].transpose(1, 2, 0)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        command = [sys.executable, str(bundle.file(EXAMPLE)), str(tmp_path / "picture.png"), str(tmp_path / "d.npy")]
        subprocess.run(command, check=True, timeout=120)
        ours = Predictor(runtime("onnxruntime").open(bundle, SessionOptions())).predict(pixels).values
        np.testing.assert_allclose(np.load(tmp_path / "d.npy"), ours, rtol=1e-3, atol=1e-3)


def test_what_is_tried_unasked_runs_here_and_the_rest_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, said = usual_runtimes()
    assert taken[0] == "torch"
    assert not set(taken) & {"tvm", "torch-compile", "web"}
    for name in RUNTIMES:
        assert (name in taken) != (name in re.findall(r"[\w-]+", said))
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert usual_runtimes()[0] == []
