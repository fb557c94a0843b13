"""CoreML packages: the program in the file, read back and computed operator by operator; the code path of a Mac."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leadline.bundle import Bundle, load_bundle
from leadline.cli import export
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes import core_ml, core_ml_program
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.core_ml_program import compute, operators, read_program
from leadline.runtimes.export import export_bundle
from leadline.runtimes.parity import ParityError
from leadline.runtimes.quiet import quiet_engine
from tiny_models import cnn, expected, exported, picture, pictures

pytest.importorskip("coremltools", reason="coremltools is not installed")
SIZE = (64, 96)


@functools.cache
def bundle(precision: str) -> Bundle:
    return exported("cnn", "coreml", precision, SIZE)


@functools.cache
def program(precision: str) -> Any:
    with quiet_engine():
        return read_program(bundle(precision).folder / core_ml.FOLDER)


def weights_size(precision: str) -> int:
    return bundle(precision).file(f"{core_ml.FOLDER}/Data/com.apple.CoreML/weights/weight.bin").stat().st_size


class TestPackage:
    def test_input_and_output_are_float_pictures_of_the_size(self) -> None:
        import coremltools as ct

        for precision in ("fp32", "int8-static"):
            spec = ct.utils.load_spec(str(bundle(precision).file(core_ml.MODEL)))
            (source,), (result,) = spec.description.input, spec.description.output
            assert (source.name, list(source.type.multiArrayType.shape)) == ("input", [1, 3, *SIZE])
            assert (result.name, list(result.type.multiArrayType.shape)) == ("depth", [1, 1, *SIZE])
            float32 = 65568  # ArrayFeatureType.FLOAT32 of Apple's specification
            assert source.type.multiArrayType.dataType == result.type.multiArrayType.dataType == float32
            assert spec.specificationVersion == 8  # iOS 17, macOS 14

    def test_the_program_computes_the_network(self) -> None:
        values = picture(5, SIZE)
        np.testing.assert_allclose(compute(program("fp32"), values)["depth"], expected(cnn(), values), atol=1e-4)

    @pytest.mark.parametrize(
        ("precision", "limit", "arithmetic"),
        [
            ("fp16", 1e-2, "fp16"),
            ("int8-weights", 5e-2, "fp16 (int8 weights)"),
            ("palettised", 0.15, "fp16 (6-bit weights)"),
            ("int8-static", 0.35, "int8 (40 of 41 layers)"),
        ],
    )
    def test_narrow_programs_stay_near(self, precision: str, limit: float, arithmetic: str) -> None:
        values = picture(5, SIZE)
        output, reference = compute(program(precision), values)["depth"], expected(cnn(), values)
        assert 0 < np.abs(output - reference).mean() / reference.std() < limit
        assert core_ml.stored_precision(program(precision)) == arithmetic

    def test_batch_norms_are_folded(self) -> None:
        kinds = [each.op_type for each in operators(program("fp32"))]
        assert "batch_norm" not in kinds
        assert kinds.count("conv") == sum(isinstance(layer, nn.Conv2d) for layer in cnn().model.modules())

    def test_the_last_layer_keeps_its_float_input(self) -> None:
        layers = [each for each in operators(program("int8-static")) if each.op_type == "conv"]
        fed = [each.inputs["x"].op.op_type if each.inputs["x"].op is not None else "input" for each in layers]
        assert fed[:-1] == ["dequantize"] * 40
        assert fed[-1] != "dequantize"

    def test_narrow_weights_take_less_room(self) -> None:
        sizes = {name: weights_size(name) for name in ("fp32", "fp16", "int8-weights", "palettised")}
        assert sizes["fp16"] < 0.7 * sizes["fp32"]
        assert sizes["palettised"] < sizes["int8-weights"] < sizes["fp16"]

    def test_the_bundle_says_what_was_compared(self) -> None:
        details = bundle("int8-static").details
        assert details["quantised_layers"] == 40
        assert details["calibration_pictures"] == 8
        assert details["program"]["compared"] is True
        assert details["program"]["arithmetic"] == "int8 (40 of 41 layers)"
        assert details["program"]["correlation"] > 0.9

    def test_equal_networks_make_equal_files(self, tmp_path: Any) -> None:
        again = runtime("coreml").export(cnn(), ExportOptions(size=SIZE), tmp_path)
        for name in bundle("fp32").files:
            assert again.file(name).read_bytes() == bundle("fp32").file(name).read_bytes(), name

    def test_no_path_of_this_machine_is_inside(self) -> None:
        data = bundle("fp32").file(core_ml.MODEL).read_bytes()
        assert str(core_ml.__file__).encode().rsplit(b"/", 1)[0] not in data
        assert b".py" not in data


class TestExport:
    def test_it_tells_that_it_was_not_run(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        made = export_bundle(cnn(), "coreml", ExportOptions(size=SIZE), tmp_path / "b")
        assert made.details["precision_ran"] == "unknown"
        assert made.details["notes"][0].startswith("coreml itself was not run: CoreML runs on macOS only")
        (tmp_path / "p.png").write_bytes(b"")
        example = [sys.executable, str(made.file("example.py")), str(tmp_path / "p.png"), str(tmp_path / "d.npy")]
        if os.uname().sysname == "Linux":
            done = subprocess.run(example, capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert "needs macOS" in done.stderr
        with pytest.raises(UnavailableError, match="macOS only"):
            runtime("coreml").open(load_bundle(made.folder), SessionOptions())

    def test_the_command_prints_what_is_known(self) -> None:
        """The file was compared here, though CoreML was not run."""
        known = bundle("int8-static").details
        lines = export._agreement(known | {"precision_ran": "unknown"})
        assert lines[0] == "computes in: int8 (40 of 41 layers), as the file says"
        assert lines[1].startswith("the file, computed operator by operator, against PyTorch fp32 on 1 calibration pic")
        assert f"correlation {known['program']['correlation']:.5f}" in lines[1]
        unread = {"precision_ran": "unknown", "program": {"compared": False, "reason": "no rule for 'softplus'"}}
        assert export._agreement(unread)[1] == "not compared with PyTorch: no rule for 'softplus'"

    def test_a_wrong_program_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = bundle("fp32")
        rules = core_ml_program.OPERATORS | {"relu": lambda inputs: inputs["x"]}
        monkeypatch.setattr(core_ml_program, "OPERATORS", rules)
        with pytest.raises(ParityError, match="tiny-cnn coreml fp32"):
            core_ml.compared(cnn(), made.contract, ExportOptions(), made.folder / core_ml.FOLDER)

    def test_an_operator_without_a_rule_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = bundle("fp32")
        rules = {key: rule for key, rule in core_ml_program.OPERATORS.items() if key != "softplus"}
        monkeypatch.setattr(core_ml_program, "OPERATORS", rules)
        told = core_ml.compared(cnn(), made.contract, ExportOptions(), made.folder / core_ml.FOLDER)
        assert told["compared"] is False
        assert "softplus" in told["reason"]

    def test_an_operator_beyond_the_converter_is_named(self, tmp_path: Any) -> None:
        class Odd(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return torch.special.i0e(image[:, :1])

        source = dataclasses.replace(cnn(), model=Odd(), architecture=None, config=None, name="odd")
        with pytest.raises(UnavailableError, match=r"coremltools cannot convert 'odd'.*i0e"):
            runtime("coreml").export(source, ExportOptions(size=SIZE), tmp_path)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"exclude": ("conv",)}, "excluded nodes"),
            ({"equalise": True}, "equalise"),
            ({"bias_correction": True}, "bias correction"),
            ({"smooth": 0.5}, "smooth"),
            ({"ranges": {"x": (0.0, 1.0)}}, "known ranges"),
        ],
    )
    def test_what_the_quantiser_lacks_is_refused(self, options: dict[str, Any], word: str, tmp_path: Any) -> None:
        wanted = ExportOptions(precision=Precision.INT8_STATIC, size=SIZE, calibration=pictures(1), **options)
        with pytest.raises(ConfigError, match=f"coreml has no {word}"):
            runtime("coreml").export(cnn(), wanted, tmp_path)

    @pytest.mark.parametrize("precision", ["bf16", "int8-dynamic"])
    def test_a_precision_that_it_lacks_is_refused_with_the_reason(self, precision: str, tmp_path: Any) -> None:
        with pytest.raises(ConfigError, match=r"CoreML (computes|keeps)"):
            runtime("coreml").export(cnn(), ExportOptions(precision=Precision(precision)), tmp_path)

    def test_static_int8_needs_pictures(self, tmp_path: Any) -> None:
        with pytest.raises(ConfigError, match="calibration set is empty"):
            runtime("coreml").export(cnn(), ExportOptions(precision=Precision.INT8_STATIC), tmp_path)

    def test_an_open_size_is_refused(self, tmp_path: Any) -> None:
        with pytest.raises(ConfigError, match="coreml cannot leave the size open"):
            runtime("coreml").export(cnn(), ExportOptions(dynamic=True), tmp_path)


class TestMac:
    """What a session does on macOS, with a stand-in for the part of coremltools that exists there only."""

    @pytest.fixture
    def model(self, monkeypatch: pytest.MonkeyPatch) -> type:
        import coremltools as ct

        class FakeModel:
            asked: tuple[str, Any]

            def __init__(self, model: str, *, compute_units: ct.ComputeUnit = ct.ComputeUnit.ALL) -> None:
                if "damaged" in model:
                    raise RuntimeError("Error compiling model\nmore")
                type(self).asked = model, compute_units

            def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                (values,) = data.values()
                assert list(data) == ["input"]
                assert values.shape == (1, 3, *SIZE)  # the package takes one picture
                return {"depth": expected(cnn(), values)}

        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(
            core_ml,
            "_import_coremltools",
            lambda: SimpleNamespace(models=SimpleNamespace(MLModel=FakeModel), ComputeUnit=ct.ComputeUnit),
        )
        return FakeModel

    def test_it_predicts_picture_by_picture(self, model: Any) -> None:
        import coremltools as ct

        assert runtime("coreml").availability().export_only == ""
        session = runtime("coreml").open(bundle("fp32"), SessionOptions(device="cpu-ne"))
        assert model.asked == (str(bundle("fp32").folder / core_ml.FOLDER), ct.ComputeUnit.CPU_AND_NE)
        values = np.concatenate(pictures(3))
        np.testing.assert_allclose(session.run(values), expected(cnn(), values), atol=1e-5)
        assert session.one_by_one
        assert session.notes == ["CoreML chooses its threads itself"]

    def test_devices_are_sets_of_compute_units(self, model: Any) -> None:
        for device in ("cpu", "cpu-gpu", "cpu-ne", "all"):
            runtime("coreml").open(bundle("fp32"), SessionOptions(device=device))
            assert model.asked[1].name == core_ml.UNITS[device]
        with pytest.raises(ConfigError, match=r"'quantum'.*cpu-gpu"):
            runtime("coreml").open(bundle("fp32"), SessionOptions(device="quantum"))

    def test_a_package_that_it_cannot_load_is_told(self, model: Any, tmp_path: Any) -> None:
        import shutil

        folder = shutil.copytree(bundle("fp32").folder, tmp_path / "damaged")
        with pytest.raises(BundleError, match="Error compiling model"):
            runtime("coreml").open(load_bundle(folder), SessionOptions())


class TestOperators:
    """Rules of the operators that the tiny networks do not have, against closed forms."""

    def one(self, kind: str, **inputs: Any) -> np.ndarray:
        result = core_ml_program.OPERATORS[kind](inputs)
        return np.asarray(result[0] if isinstance(result, list) else result)

    def test_same_padding_puts_the_odd_row_behind(self) -> None:
        x, ones = torch.arange(4.0).reshape(1, 1, 1, 4), torch.ones(1, 1, 1, 2)
        got = self.one("conv", x=x, weight=ones, pad_type="same", strides=[1, 1], dilations=[1, 1])
        assert got.ravel().tolist() == [1, 3, 5, 3]
        got = self.one("conv", x=x, weight=ones, pad_type="same_lower", strides=[1, 1], dilations=[1, 1])
        assert got.ravel().tolist() == [0, 1, 3, 5]

    def test_padding_counts_from_the_first_axis(self) -> None:
        x = torch.ones(1, 1, 1, 2)
        got = self.one("pad", x=x, pad=[0, 0, 0, 0, 1, 0, 0, 2], mode="constant", constant_val=5.0)
        assert got[0, 0].tolist() == [[5, 5, 5, 5], [1, 1, 5, 5]]
        got = self.one("pad", x=torch.arange(3.0).reshape(1, 1, 1, 3), pad=[0, 0, 0, 0, 0, 0, 1, 1], mode="reflect")
        assert got.ravel().tolist() == [1, 0, 1, 2, 1]

    def test_slices_take_masks_and_negative_ends(self) -> None:
        x = torch.arange(12.0).reshape(3, 4)
        got = self.one("slice_by_index", x=x, begin=[-1, 0], end=[0, -1], squeeze_mask=[True, False])
        assert got.tolist() == [8, 9, 10]
        got = self.one("slice_by_index", x=x, begin=[0, 1], end=[0, 0], stride=[2, 2], end_mask=[True, True])
        assert got.tolist() == [[1, 3], [9, 11]]

    def test_quantising_rounds_and_clips(self) -> None:
        x = torch.tensor([-10.0, -0.26, 0.24, 0.26, 100.0])
        steps = core_ml_program.OPERATORS["quantize"](
            {"input": x, "scale": 0.5, "zero_point": 3, "output_dtype": "int8"}
        )
        assert steps.tolist() == [-17, 2, 3, 4, 127]
        back = core_ml_program.OPERATORS["dequantize"]({"input": steps, "scale": 0.5, "zero_point": 3})
        assert back.tolist() == [-10, -0.5, 0, 0.5, 62]

    def test_average_leaves_padding_out_where_it_is_told(self) -> None:
        facts = {"x": torch.ones(1, 1, 2, 2), "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom"}
        facts["pad"] = [1, 1, 1, 1]
        assert self.one("avg_pool", **facts, exclude_padding_from_average=True).ravel().tolist() == [1, 1, 1, 1]
        assert self.one("avg_pool", **facts).ravel().tolist() == [0.25] * 4

    def test_splits_and_gathers(self) -> None:
        x = torch.arange(6.0).reshape(1, 6)
        parts = core_ml_program.OPERATORS["split"]({"x": x, "axis": 1, "split_sizes": [1, 5]})
        assert [part.shape[1] for part in parts] == [1, 5]
        assert self.one("gather", x=x, indices=[5, 0], axis=1).tolist() == [[5, 0]]
