"""LiteRT: what runs in INT8, the float interface, what it refuses, damaged files, silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leadline.bundle import Bundle
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.models.quantization import Channels, Quantization
from leadline.runtimes import lite_rt
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, pictures, vit

pytestmark = pytest.mark.skipif(
    not runtime("litert").availability().available, reason="litert is not installed: pip install leadline[litert]"
)
STATIC = ExportOptions(precision=Precision.INT8_STATIC, calibration=pictures(2))


def opened(name: str, precision: str) -> Any:
    return runtime("litert").open(exported(name, "litert", precision), SessionOptions())


def error(name: str, precision: str) -> float:
    """Mean |difference| over the spread of the output."""
    model, size = (cnn(), (64, 96)) if name == "cnn" else (vit(), VIT_SIZE)
    values = picture(7, size)
    reference = expected(model, values)
    return float(np.abs(opened(name, precision).run(values) - reference).mean() / reference.std())


def with_file(good: Bundle, folder: Path, data: bytes) -> Bundle:
    (folder / lite_rt.FILE).write_bytes(data)
    return dataclasses.replace(good, folder=folder)


def test_static_int8_covers_the_network_but_the_head() -> None:
    """256 levels of depth would show as steps; RUNTIMES.md pitfall 7: the interface stays float all the same."""
    session = opened("cnn", "int8-static")
    assert session.precision_ran == "int8 (40 of 41 layers)"
    ends = [*session._network.get_input_details(), *session._network.get_output_details()]
    assert [each["dtype"] for each in ends] == [np.float32, np.float32]
    assert error("cnn", "int8-static") < 0.2
    assert len(np.unique(session.run(picture(7, (64, 96))))) > 256


def test_static_int8_of_a_transformer_keeps_what_lies_between_its_layers_in_float() -> None:
    session = opened("vit", "int8-static")
    kinds = {each["index"]: np.dtype(each["dtype"]).name for each in session._network.get_tensor_details()}
    operators = session._network._get_ops_details()
    assert {kinds[op["outputs"][0]] for op in operators if op["op_name"] in ("SOFTMAX", "GELU", "ADD")} == {"float32"}
    assert session.precision_ran.startswith("int8 (")
    assert error("vit", "int8-static") < 0.2


def test_dynamic_int8_takes_the_linear_layers() -> None:
    assert opened("vit", "int8-dynamic").precision_ran.startswith("int8 (")
    assert error("vit", "int8-dynamic") < 0.1


def test_narrow_weights_make_smaller_files_and_say_what_they_compute_in() -> None:
    sizes = {p: exported("vit", "litert", p).size_bytes for p in ("fp32", "fp16", "int8-weights")}
    assert sizes["int8-weights"] < sizes["fp16"] < 0.8 * sizes["fp32"]
    assert opened("vit", "fp16").precision_ran == "fp32 (fp16 weights)"
    assert opened("vit", "int8-weights").precision_ran == "fp32 (int8 weights)"
    assert error("vit", "fp16") < 5e-3
    assert error("vit", "int8-weights") < 0.05


def test_layers_can_stay_in_float(tmp_path: Path) -> None:
    options = dataclasses.replace(STATIC, exclude=("Sequential_13",))
    session = runtime("litert").open(runtime("litert").export(cnn(), options, tmp_path), SessionOptions())
    assert session.precision_ran == "int8 (38 of 41 layers)"
    with pytest.raises(ConfigError, match="no layer of tiny-cnn to exclude 'nowhere'"):
        runtime("litert").export(cnn(), dataclasses.replace(STATIC, exclude=("nowhere",)), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "entropy"},
        {"symmetric": True},
        {"per_channel": False},
        {"equalise": True},
        {"bias_correction": True},
        {"smooth": 0.5},
        {"ranges": {"a": (0.0, 1.0)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_it_cannot_do_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"litert does not have .* onnxruntime or openvino"):
        runtime("litert").export(cnn(), dataclasses.replace(STATIC, **change), tmp_path)


def test_trained_grids_are_not_replaced_silently(tmp_path: Path) -> None:
    model = cnn()
    name, weight = next((key, value) for key, value in model.model.state_dict().items() if value.ndim == 4)
    zero = Quantization({name: Channels(torch.full((len(weight),), 1e6), 0)})
    assert zero.fits(model.model)  # with steps so large every weight is the integer 0
    with pytest.raises(ConfigError, match="trained on INT8 grids"):
        runtime("litert").export(dataclasses.replace(model, quantization=zero), STATIC, tmp_path)


def test_stale_grids_do_not_stand_in_for_calibration(tmp_path: Path) -> None:
    stale = Quantization({"nowhere": Channels(torch.ones(1), 0)})
    with pytest.raises(ConfigError, match="calibration set is empty"):
        runtime("litert").export(
            dataclasses.replace(cnn(), quantization=stale), dataclasses.replace(STATIC, calibration=()), tmp_path
        )


def test_without_the_converter_bundles_run_and_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = lite_rt.importlib.util.find_spec
    bundle = exported("cnn", "litert", "fp32")
    monkeypatch.setattr(
        lite_rt.importlib.util, "find_spec", lambda name, *rest: None if name == "litert_torch" else real(name, *rest)
    )
    assert runtime("litert").availability().available
    assert runtime("litert").open(bundle, SessionOptions()).run(picture(1, (64, 96))).shape == (1, 1, 64, 96)
    with pytest.raises(UnavailableError, match=r"litert-torch is not installed.*pip install --no-deps litert-torch"):
        runtime("litert").export(cnn(), ExportOptions(), tmp_path)


@pytest.mark.parametrize("kind", ["random", "empty", "half", "tail"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    good = exported("cnn", "litert", "int8-static")
    data = good.file(lite_rt.FILE).read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    damaged = {"random": noise, "empty": b"", "half": data[: len(data) // 2], "tail": data[:-5000] + noise}
    with pytest.raises(BundleError, match="litert cannot load"):
        runtime("litert").open(with_file(good, tmp_path, damaged[kind]), SessionOptions())


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    other = exported("vit", "litert", "fp32").file(lite_rt.FILE).read_bytes()
    with pytest.raises(BundleError, match=r"does not fit its contract.*56, 84"):
        runtime("litert").open(with_file(exported("cnn", "litert", "fp32"), tmp_path, other), SessionOptions())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = runtime("litert").export(cnn(), STATIC, tmp_path)
    runtime("litert").open(bundle, SessionOptions()).run(picture(1, (64, 96)))
    assert capfd.readouterr() == ("", "")
