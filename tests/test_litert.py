"""LiteRT: what runs in INT8, the float interface, the converter, damaged files, silence; see test_converters.py too."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import converters
from converters import STATIC, with_file
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes import lite_rt
from leadline.runtimes.base import ExportOptions, SessionOptions, runtime
from tiny_models import cnn, exported, picture

pytestmark = pytest.mark.skipif(
    not runtime("litert").availability().available, reason="litert is not installed: pip install leadline[litert]"
)
opened, error = partial(converters.opened, "litert"), partial(converters.error, "litert")


def test_one_scale_per_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="litert does not have one weight scale per tensor"):
        runtime("litert").export(cnn(), dataclasses.replace(STATIC, per_channel=False), tmp_path)


def test_the_interface_of_static_int8_stays_float() -> None:
    """RUNTIMES.md pitfall 7."""
    session = opened("cnn", "int8-static")
    ends = [*session._network.get_input_details(), *session._network.get_output_details()]
    assert [each["dtype"] for each in ends] == [np.float32, np.float32]


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


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    other = exported("vit", "litert", "fp32").file(lite_rt.FILE).read_bytes()
    wrong = with_file(exported("cnn", "litert", "fp32"), tmp_path, lite_rt.FILE, other)
    with pytest.raises(BundleError, match=r"not fit its contract.*it maps 1 x 3 x 56 x 84 to 1 x 1 x 56 x 84, float32"):
        runtime("litert").open(wrong, SessionOptions())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = runtime("litert").export(cnn(), STATIC, tmp_path)
    runtime("litert").open(bundle, SessionOptions()).run(picture(1, (64, 96)))
    assert capfd.readouterr() == ("", "")
