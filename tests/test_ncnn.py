"""ncnn: what its files hold, INT8 written into them, and damage that would crash the engine."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

from leadline.bundle import Bundle, write_bundle
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.models.quantization import Quantization
from leadline.runtimes import ncnn_engine
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.ncnn_engine import PARAM, RUNTIME
from leadline.runtimes.ncnn_file import arrays_of, read_layers, split_weights, write_layers
from leadline.runtimes.ncnn_network import WEIGHTS, load_network
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, pictures, vit

CONV = "7767517\n2 2\nInput in0 0 1 in0\nConvolution c 1 1 in0 out0 0=1 1=1 5=1 6=3\n"
WORDS = struct.pack("<I3f", 0, 1.0, 2.0, 3.0) + struct.pack("<f", 0.5)


def one_by_one(text: str, data: bytes) -> np.ndarray:
    import ncnn

    network = load_network(text, data, half=False)
    extractor = network.create_extractor()
    extractor.input("in0", ncnn.Mat(np.ones((3, 2, 2), np.float32)))
    return np.array(extractor.extract("out0")[1])


def test_files_are_read_as_ncnn_reads_them() -> None:
    """1 + 2 + 3 and the bias 0.5, written by hand."""
    np.testing.assert_allclose(one_by_one(CONV, WORDS), np.full((1, 2, 2), 6.5), atol=1e-6)
    layers = read_layers(CONV)
    assert write_layers(layers).split() == CONV.split()
    assert split_weights(layers, WORDS) == [[], [WORDS[:16], WORDS[16:]]]


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (CONV.replace("7767517", "7767518"), WORDS, "not an ncnn network"),
        (CONV.replace("2 2\n", "3 2\n"), WORDS, "not an ncnn network"),
        (CONV.replace("2 2\n", "2 9\n"), WORDS, "counts 9 blobs"),
        (CONV.replace("1 1 in0", "1 1 in7"), WORDS, "nothing makes its input in7"),
        (CONV.replace("out0", "in0"), WORDS, "made twice"),
        (CONV.replace("c 1 1", "c 9 1"), WORDS, "fewer blobs"),
        (CONV.replace("6=3", "6=x"), WORDS, "not an ncnn network"),
        (CONV.replace("6=3", "6=inf"), WORDS, "parameter 6=inf"),
        (CONV.replace("6=3", "6=3 -23310=9,0.0"), WORDS, "miscounts"),
        (CONV.replace("6=3", "6=300000"), WORDS, "end too early"),
        (CONV.replace("6=3", "6=-3"), WORDS, "end too early"),
        (CONV.replace(" out0", " other"), WORDS, "no out0"),
        (CONV, WORDS[:-1], "end too early"),
        (CONV, WORDS + b"more", "needs? 20 bytes"),
        (CONV, b"", "end too early"),
        (CONV, b"\x01" + WORDS[1:], "unknown storage"),
        ("", WORDS, "not an ncnn network"),
    ],
)
def test_wrong_files_are_refused_before_ncnn_sees_them(text: str, data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_network(text, data, half=False)


def test_an_operator_that_ncnn_lacks_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"Tensor\.reshape"):
        load_network(CONV.replace("Convolution", "Tensor.reshape"), b"", half=False)


def broken(folder: Path, param: bytes | None = None, weights: bytes | None = None) -> Bundle:
    """A bundle that is whole by its manifest and wrong inside."""
    made = exported("cnn", "ncnn", "fp32")
    (folder / PARAM).write_bytes(made.file(PARAM).read_bytes() if param is None else param)
    (folder / WEIGHTS).write_bytes(made.file(WEIGHTS).read_bytes() if weights is None else weights)
    facts = {"runtime": "ncnn", "precision": "fp32", "contract": made.contract, "size": made.size}
    return write_bundle(folder, **facts, dynamic=False)


@pytest.mark.parametrize("param", [b"\xff\xfe\x00", b"7767517\n", b"PK\x03\x04"])
def test_a_bundle_with_another_text_is_refused(param: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not an ncnn network"):
        RUNTIME.open(broken(tmp_path, param=param), SessionOptions())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    data = exported("cnn", "ncnn", "fp32").file(WEIGHTS).read_bytes()
    with pytest.raises(BundleError, match="end too early"):
        RUNTIME.open(broken(tmp_path, weights=data[: len(data) // 2]), SessionOptions())


def test_fp16_halves_the_file() -> None:
    sizes = {p: exported("cnn", "ncnn", p).file(WEIGHTS).stat().st_size for p in ("fp32", "fp16", "int8-static")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8-static"] < 0.5 * sizes["fp32"]


def test_int8_of_one_convolution_is_what_paper_and_pencil_give(tmp_path: Path) -> None:
    """Weights 1, 2, 3 at scale 127/3 become 42, 85, 127; inputs of 1 at 127/1 become 127."""
    from leadline.runtimes.ncnn_quantize import static_int8

    values = np.ones((1, 3, 2, 2), np.float32)
    text, data, details = static_int8(CONV, WORDS, ExportOptions(precision=Precision.INT8_STATIC, calibration=[values]))
    layer = read_layers(text)[1]
    assert layer.get(8) == 2
    assert [array.count for array in arrays_of(layer)] == [3, 1, 1, 1]
    assert data[4:7] == bytes([42, 85, 127])
    np.testing.assert_allclose(np.frombuffer(data[12:], np.float32), [42.33333, 127.0], rtol=1e-6)
    assert details == {"symmetric": True, "calibration": "minmax", "calibration_pictures": 1}
    np.testing.assert_allclose(one_by_one(text, data), (42 + 85 + 127) * 3 / 127 + 0.5, rtol=1e-5)


def test_int8_keeps_named_layers_and_one_scale_per_tensor() -> None:
    from leadline.runtimes.ncnn_quantize import static_int8

    made = exported("cnn", "ncnn", "fp32")
    text, data = made.file(PARAM).read_text(), made.file(WEIGHTS).read_bytes()
    first = read_layers(text)[1].name
    options = ExportOptions(precision=Precision.INT8_STATIC, calibration=pictures(2), exclude=(first,))
    quantised = read_layers(static_int8(text, data, options)[0])
    assert quantised[1].get(8) == 0
    assert {layer.get(8) % 100 for layer in quantised if layer.kind == "ConvolutionDepthWise"} == {1}
    assert any(layer.get(8) > 100 for layer in quantised)  # some hand INT8 on
    with pytest.raises(ConfigError, match="no such convolution"):
        static_int8(text, data, dataclasses.replace(options, exclude=("conv_999",)))
    coarse = dataclasses.replace(options, exclude=(), per_channel=False)
    layers = read_layers(static_int8(text, data, coarse)[0])
    assert layers[1].get(8)
    scales = split_weights(layers, static_int8(text, data, coarse)[1])[1][2]
    assert len(set(np.frombuffer(scales, np.float32))) == 1


@pytest.mark.parametrize(
    "option",
    [{"method": "entropy"}, {"equalise": True}, {"bias_correction": True}, {"smooth": 0.5}, {"ranges": {"a": (0, 1)}}],
)
def test_what_only_other_quantisers_have_is_refused(option: dict[str, object], tmp_path: Path) -> None:
    options = ExportOptions(precision=Precision.INT8_STATIC, calibration=pictures(1), **option)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ncnn does not have"):
        RUNTIME.export(cnn(), options, tmp_path)


def test_trained_grids_are_refused(tmp_path: Path) -> None:
    source = dataclasses.replace(cnn(), quantization=Quantization())
    with pytest.raises(ConfigError, match="cannot take trained INT8"):
        RUNTIME.export(source, ExportOptions(precision=Precision.INT8_STATIC), tmp_path)


@pytest.mark.parametrize(("precision", "ran", "limit"), [("fp32", "fp32", 1e-4), ("int8-static", "int8 (31 of", 0.2)])
def test_a_transformer_agrees(precision: str, ran: str, limit: float) -> None:
    session = runtime("ncnn").open(exported("vit", "ncnn", precision), SessionOptions())
    values = picture(3, VIT_SIZE)
    reference = expected(vit(), values)
    assert np.abs(session.run(values) - reference).mean() / reference.std() < limit
    assert session.precision_ran.startswith(ran)


@pytest.mark.parametrize(("device", "why"), [("vulkan:x", "it has cpu and vulkan"), ("vulkan:64", "it sees")])
def test_devices_are_checked(device: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RUNTIME.open(exported("cnn", "ncnn", "fp32"), SessionOptions(device=device))


def test_a_converter_that_crashes_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "pnnx"
    crash.write_text("#!/bin/sh\necho boom >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("pnnx.EXEC_PATH", str(crash))
    with pytest.raises(UnavailableError, match="boom"):
        RUNTIME.export(cnn(), ExportOptions(), tmp_path)
    monkeypatch.setattr("pnnx.EXEC_PATH", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match="FileNotFoundError"):
        RUNTIME.export(cnn(), ExportOptions(), tmp_path)


def test_the_engine_is_silent_and_its_absence_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported("cnn", "ncnn", "fp32").folder
    code = (
        "import sys; from pathlib import Path; from leadline.bundle import load_bundle;"
        "from leadline.runtimes.base import SessionOptions, runtime; import numpy as np;"
        "session = runtime('ncnn').open(load_bundle(Path(sys.argv[1])), SessionOptions());"
        "session.run(np.zeros((1, 3, 64, 96), np.float32)); session.close()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    monkeypatch.setattr(ncnn_engine.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UnavailableError, match="pip install ncnn"):
        RUNTIME.open(exported("cnn", "ncnn", "fp32"), SessionOptions())
