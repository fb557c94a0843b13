"""ONNX export and ONNX Runtime: the graph's own form, every pitfall of quantisation, and files from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import BundleError, ConfigError, ContractError, NumericalError, UnavailableError
from leadline.runtimes import onnx_export
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_quantize import static_int8
from leadline.runtimes.onnx_runtime import executed_precision, open_file
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, pictures, vit


def graph(name: str, precision: str) -> Any:
    return onnx.load(exported(name, "onnxruntime", precision).file("model.onnx")).graph


def contract(height: int = 8, width: int = 8, **changes: Any) -> Contract:
    return Contract(
        name="other", input=InputSpec(height=height, width=width, **changes), output=OutputSpec(kind=Kind.METRIC_DEPTH)
    )


def write(path: Path, nodes: list[Any], *, shape: tuple[Any, ...] = (1, 3, 8, 8), domain: str = "") -> Path:
    inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, ir_version=9), path
    )
    return path


class TestExport:
    def test_names_opset_and_one_fixed_size(self) -> None:
        proto = onnx.load(exported("cnn", "onnxruntime", "fp32").file("model.onnx"))
        assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [18]
        assert [value.name for value in [*proto.graph.input, *proto.graph.output]] == ["input", "depth"]
        sides = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
        assert sides == [1, 3, 64, 96]

    def test_batch_norms_are_folded(self) -> None:
        kinds = [node.op_type for node in graph("cnn", "fp32").node]
        assert "BatchNormalization" not in kinds
        assert kinds.count("Conv") == sum(isinstance(layer, nn.Conv2d) for layer in cnn().model.modules())

    def test_no_path_of_the_exporting_machine_is_inside(self) -> None:
        data = exported("vit", "onnxruntime", "fp32").file("model.onnx").read_bytes()
        assert b".py" not in data
        assert str(Path(torch.__file__).parent).encode() not in data

    def test_an_open_batch_is_not_taken_for_one(self) -> None:
        """RUNTIMES.md pitfall 3."""
        proto = onnx.load(exported("cnn", "onnxruntime", "fp32", (64, 96), True).file("model.onnx"))
        for value in (proto.graph.input[0], proto.graph.output[0]):
            sides = value.type.tensor_type.shape.dim
            assert sides[0].dim_value == 0
            assert sides[2].dim_param
            assert sides[3].dim_param

    def test_the_network_keeps_its_mode_and_a_changed_weight_is_seen(self) -> None:
        layer = nn.Conv2d(3, 1, 1).eval()
        first = export_onnx(layer, contract())
        with torch.no_grad():
            layer.weight.data.mul_(2)
        second = export_onnx(layer, contract())
        weights = [
            numpy_helper.to_array(next(t for t in p.graph.initializer if t.dims[:] == [1, 3, 1, 1]))
            for p in (first, second)
        ]
        np.testing.assert_allclose(weights[1], 2 * weights[0])
        layer.train()
        export_onnx(layer, contract())
        assert layer.training

    def test_an_operator_that_cannot_be_exported_is_named(self) -> None:
        class Odd(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.mean(1, keepdim=True) if bool(x.sum() > 0) else x[:, :1]

        with pytest.raises(UnavailableError, match="cannot export to ONNX"):
            export_onnx(Odd(), contract())

    @pytest.mark.slow
    def test_a_transformer_follows_every_size(self) -> None:
        """RUNTIMES.md pitfall 2, on Depth Anything V2."""
        session = runtime("onnxruntime").open(exported("vit", "onnxruntime", "fp32", VIT_SIZE, True), SessionOptions())
        for size in (VIT_SIZE, (70, 70), (42, 112)):
            values = np.concatenate([picture(1, size), picture(2, size)])
            np.testing.assert_allclose(session.run(values), expected(vit(), values), atol=1e-3)  # of 0 to 20 m


class TestStaticInt8:
    def test_activations_are_u8_and_weights_s8_per_channel(self) -> None:
        """RUNTIMES.md pitfall 6."""
        nodes = graph("cnn", "int8-static")
        constants = {tensor.name: tensor for tensor in nodes.initializer}
        quantisers = [node for node in nodes.node if node.op_type == "QuantizeLinear"]
        assert quantisers
        assert {constants[node.input[2]].data_type for node in quantisers} == {TensorProto.UINT8}
        weights = [t for t in nodes.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
        assert len(weights) == 40
        readers = {n.input[0]: n for n in nodes.node if n.op_type == "DequantizeLinear"}
        for weight in weights:
            assert constants[readers[weight.name].input[1]].dims[:] == [weight.dims[0]]
            assert np.abs(numpy_helper.to_array(weight).astype(int)).max() <= 127

    def test_every_layer_but_the_last_runs_in_int8(self) -> None:
        bundle = exported("cnn", "onnxruntime", "int8-static")
        assert bundle.details["quantised_layers"] == 40
        assert executed_precision(bundle.file("model.onnx")) == "int8 (40 of 41 layers)"

    def test_the_depth_map_is_not_cut_into_256_levels(self) -> None:
        session = runtime("onnxruntime").open(exported("cnn", "onnxruntime", "int8-static"), SessionOptions())
        assert len(np.unique(session.run(picture(3, (64, 96))))) > 1000

    def test_linear_layers_that_become_gemm_are_quantised(self) -> None:
        """RUNTIMES.md pitfall 4: fusing turns Linear into Gemm; MatMul alone would miss it."""

        class Global(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(192, 32), nn.Linear(32, 64)
                self.last = nn.Conv2d(1, 1, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                hidden = self.second(torch.relu(self.first(x.flatten(1))))
                out: torch.Tensor = self.last(hidden.unflatten(1, (1, 8, 8)))
                return out

        torch.manual_seed(0)
        proto = export_onnx(Global().eval(), contract())
        made, details = static_int8(proto, ExportOptions(calibration=pictures(2, (8, 8))), name="global")
        gemms = [node for node in made.graph.node if node.op_type == "Gemm"]
        assert len(gemms) == 2
        assert details["quantised_layers"] == 2

    def test_products_of_activations_stay_in_float(self) -> None:
        made = graph("vit", "int8-static")
        producers = {key: node.op_type for node in made.node for key in node.output}
        attention = [n for n in made.node if n.op_type == "MatMul" and producers.get(n.input[1]) != "DequantizeLinear"]
        assert len(attention) == 8  # two in each of four blocks

    def test_per_tensor_and_symmetric_are_what_they_say(self) -> None:
        proto = export_onnx(cnn().model, exported("cnn", "onnxruntime", "fp32").contract)
        options = ExportOptions(calibration=pictures(2), per_channel=False, symmetric=True)
        made, _ = static_int8(proto, options, name="cnn")
        constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        zeros = {int(constants[n.input[2]]) for n in made.graph.node if n.op_type == "QuantizeLinear"}
        assert zeros == {128}
        scales = [constants[n.input[1]] for n in made.graph.node if n.op_type == "DequantizeLinear"]
        assert {scale.size for scale in scales} == {1}

    def test_an_excluded_node_stays_in_float(self) -> None:
        proto = export_onnx(cnn().model, exported("cnn", "onnxruntime", "fp32").contract)
        layer = next(node.name for node in proto.graph.node if node.op_type == "Conv")
        made, details = static_int8(proto, ExportOptions(calibration=pictures(2), exclude=(layer,)), name="cnn")
        assert details["quantised_layers"] == 39
        node = next(node for node in made.graph.node if node.name == layer)
        assert node.input[0] == "input"
        with pytest.raises(ConfigError, match="no such node to exclude 'node_Conv_x'"):
            static_int8(proto, ExportOptions(calibration=pictures(2), exclude=("node_Conv_x",)), name="cnn")

    @pytest.mark.parametrize("method", ["percentile", "entropy"])
    def test_other_calibrations_agree_with_pytorch(self, method: Any, tmp_path: Path) -> None:
        options = ExportOptions(precision=Precision.INT8_STATIC, method=method, calibration=pictures(8))
        bundle = runtime("onnxruntime").export(cnn(), options, tmp_path)
        values = picture(5, (64, 96))
        output = runtime("onnxruntime").open(bundle, SessionOptions()).run(values)
        reference = expected(cnn(), values)
        assert np.corrcoef(output.ravel(), reference.ravel())[0, 1] > 0.95
        assert bundle.details["calibration"] == method


class TestOtherPrecisions:
    def test_dynamic_int8_takes_matrix_products_and_no_convolution(self) -> None:
        """RUNTIMES.md pitfall 5."""
        kinds = [node.op_type for node in graph("vit", "int8-dynamic").node]
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in vit().model.modules())
        unused = 2  # the coarsest level's first residual unit has weights and no input
        assert "ConvInteger" not in kinds
        assert kinds.count("Conv") == convolutions - unused
        assert kinds.count("MatMulInteger") == sum(isinstance(layer, nn.Linear) for layer in vit().model.modules())
        weights = [
            t for t in graph("vit", "int8-dynamic").initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2
        ]
        assert len(weights) == 16

    def test_dynamic_int8_agrees(self) -> None:
        session = runtime("onnxruntime").open(exported("vit", "onnxruntime", "int8-dynamic"), SessionOptions())
        values = picture(4, VIT_SIZE)
        reference = expected(vit(), values)
        assert np.corrcoef(session.run(values).ravel(), reference.ravel())[0, 1] > 0.99
        assert session.precision_ran.startswith("int8 (16 of ")

    def test_fp16_halves_the_file_keeps_fp32_ends_and_admits_what_ran(self) -> None:
        bundle = exported("vit", "onnxruntime", "fp16")
        proto = onnx.load(bundle.file("model.onnx"))
        ends = [*proto.graph.input, *proto.graph.output]
        assert {end.type.tensor_type.elem_type for end in ends} == {TensorProto.FLOAT}
        full = exported("vit", "onnxruntime", "fp32").file("model.onnx").stat().st_size
        assert bundle.file("model.onnx").stat().st_size < 0.75 * full
        assert executed_precision(bundle.file("model.onnx")) in ("fp32 (fp16 weights)", "fp16")

    def test_a_weight_beyond_fp16_is_refused(self, tmp_path: Path) -> None:
        layer = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            layer.weight.fill_(1e5)
        source = type(cnn())(layer, contract(), "big")
        with pytest.raises(NumericalError, match="FP16"):
            runtime("onnxruntime").export(source, ExportOptions(precision=Precision.FP16), tmp_path)


class TestForeignFiles:
    def test_a_map_without_channel_axis_gets_one(self, tmp_path: Path) -> None:
        node = helper.make_node("ReduceMax", ["picture", "axes"], ["out"], keepdims=0)
        axes = helper.make_node("Constant", [], ["axes"], value=helper.make_tensor("a", TensorProto.INT64, [1], [1]))
        session = open_file(write(tmp_path / "m.onnx", [axes, node]), contract())
        values = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
        np.testing.assert_array_equal(session.run(values), values.max(axis=1, keepdims=True))
        assert session.precision_ran == "fp32"

    def test_nan_is_found_and_the_engine_named(self, tmp_path: Path) -> None:
        """FAULTS.md row 18."""
        session = open_file(write(tmp_path / "m.onnx", [helper.make_node("Log", ["picture"], ["out"])]), contract())
        with pytest.raises(NumericalError, match="onnxruntime"):
            session.run(-np.ones((1, 3, 8, 8), np.float32))

    def test_the_contract_must_fit(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["picture"], ["out"])])
        with pytest.raises(ContractError, match="8x8"):
            open_file(path, contract(16, 8))
        with pytest.raises(ContractError, match="dynamic"):
            open_file(path, contract(dynamic=True))

    def test_no_picture_input(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["picture"], ["out"])], shape=(1, 5))
        with pytest.raises(BundleError, match="not a network of one picture"):
            open_file(path, contract())

    def test_missing_empty_and_junk(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="no such ONNX file"):
            open_file(tmp_path / "none.onnx", contract())
        for name, data in (("empty", b""), ("junk", b"\x08junk" * 50)):
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(data)
            with pytest.raises(BundleError, match="onnxruntime cannot load"):
                open_file(path, contract())

    def test_an_unknown_operator_is_unavailable_or_refused(self, tmp_path: Path) -> None:
        node = helper.make_node("Dream", ["picture"], ["out"], domain="elsewhere")
        with pytest.raises((UnavailableError, BundleError), match="Dream"):
            open_file(write(tmp_path / "m.onnx", [node], domain="elsewhere"), contract())


def test_export_is_shared_between_precisions_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 1, 1).eval()
    calls = []
    real = onnx_export._exported
    monkeypatch.setattr(onnx_export, "_exported", lambda *a: calls.append(1) or real(*a))
    export_onnx(layer, contract())
    export_onnx(layer, contract())
    export_onnx(layer, contract(16, 16))
    assert len(calls) == 2


def test_export_is_shared_between_processes_through_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 1, 1).eval()
    first = export_onnx(layer, contract(), tmp_path / "graphs")
    monkeypatch.setattr(onnx_export, "_recent", {})  # as in a new process
    monkeypatch.setattr(onnx_export, "_exported", lambda *_: pytest.fail("exported again"))
    assert export_onnx(layer, contract(), tmp_path / "graphs") == first
    assert len(list((tmp_path / "graphs").iterdir())) == 1
