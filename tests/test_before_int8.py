"""What is done to a network before static INT8: equalisation, smoothing, and the correction of biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from leadline.errors import ConfigError
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, bundle_contract, runtime
from leadline.runtimes.onnx_bias import corrected
from leadline.runtimes.onnx_equalise import equalised, smoothed
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_quantize import calibrated, prepared, with_pairs
from tiny_graphs import chain, inputs, ran, tokens
from tiny_models import VIT_SIZE, cnn, expected, picture, pictures, vit

STATIC = ExportOptions(precision=Precision.INT8_STATIC)


def constant(proto: Any, key: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == key)


def largest(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)))


class TestEqualisation:
    def test_the_function_stays_and_ranges_agree(self) -> None:
        even, facts = equalised(chain(), name="chain")
        values = inputs()[0]
        before = ran(chain(), values)[0]
        np.testing.assert_allclose(ran(even, values)[0], before, atol=1e-5 * np.abs(before).max())
        assert facts == {"pairs": 2, "stopped_by_clip": 0}
        first, depthwise = constant(even, "w0"), constant(even, "w1")
        np.testing.assert_allclose(largest(first, 0), largest(depthwise, 0), rtol=5e-3)
        np.testing.assert_allclose(largest(depthwise, 0), largest(constant(even, "w2"), 1), rtol=5e-3)

    def test_the_product_of_a_channels_ranges_stays(self) -> None:
        """Three layers share one range per channel: the cube root of the product of theirs before."""
        before, (even, _) = chain(), equalised(chain(), name="chain")
        product = largest(constant(before, "w0"), 0) * largest(constant(before, "w1"), 0)
        product = product * largest(constant(before, "w2"), 1)
        np.testing.assert_allclose(largest(constant(even, "w0"), 0), np.cbrt(product), rtol=1e-2)

    def test_it_helps_weights_with_one_scale_per_tensor(self) -> None:
        """The chain's channels lie three decades apart, as in MobileNet (Nagel et al. 2019, figure 2)."""
        errors = []
        reference = np.stack([ran(chain(), values)[0] for values in inputs()])
        for equalise in (False, True):
            options = replace(STATIC, calibration=inputs(), per_channel=False, equalise=equalise)
            ready, _ = prepared(chain(), options, name="chain")
            quantised = with_pairs(ready, calibrated(ready, options), options)
            got = np.stack([ran(quantised, values)[0] for values in inputs()])
            errors.append(float(np.abs(got - reference).mean()))
        assert errors[1] < 0.8 * errors[0]

    def test_relu6_is_refused_with_the_reason(self) -> None:
        with pytest.raises(ConfigError, match=r"nothing to equalise in 'chain'.*2 pairs have a Clip \(ReLU6\)"):
            equalised(chain("Clip"), name="chain")

    def test_a_real_network_keeps_its_function(self) -> None:
        proto = export_onnx(cnn().model, bundle_contract(cnn().contract, None, False))
        ready, details = prepared(proto, replace(STATIC, equalise=True), name="cnn")
        values = picture(3, (64, 96))
        np.testing.assert_allclose(ran(ready, values)[0], expected(cnn(), values), atol=1e-5)
        assert details["equalised"]["pairs"] > 3
        assert details["equalised"]["stopped_by_clip"] > 10


class TestSmoothing:
    @pytest.mark.parametrize("strength", [0.0, 0.5, 0.85, 1.0])
    def test_the_function_stays(self, strength: float) -> None:
        smooth, count = smoothed(tokens(), inputs(), strength, name="tokens")
        before = ran(tokens(), inputs()[0])[0]
        assert count == 1
        np.testing.assert_allclose(ran(smooth, inputs()[0])[0], before, atol=1e-5 * np.abs(before).max())

    def test_factors_are_those_of_the_paper(self) -> None:
        """s = max|X|^0.5 / max|W|^0.5 leaves each channel of X with the range of its row of W."""
        smooth, _ = smoothed(tokens(), inputs(), 0.5, name="tokens")
        norm = [node for node in smooth.graph.node if node.op_type == "LayerNormalization"]
        assert len(norm) == 2  # the residual reads the old one
        key = next(node.input[0] for node in smooth.graph.node if node.name == "query")
        reach = np.max([np.abs(ran(smooth, values, key)[0]).max(axis=0) for values in inputs()], axis=0)
        readers = {
            node.name: constant(smooth, node.input[1]) for node in smooth.graph.node if node.name in ("query", "key")
        }
        rows = np.maximum(largest(readers["query"], 0), largest(readers["key"], 1))
        np.testing.assert_allclose(reach, rows, rtol=1e-4)

    def test_outliers_cost_less(self) -> None:
        errors = []
        reference = np.stack([ran(tokens(), values, "s")[0] for values in inputs()])
        for smooth in (None, 0.5):
            options = replace(STATIC, calibration=inputs(), smooth=smooth)
            ready, _ = prepared(tokens(), options, name="tokens")
            quantised = with_pairs(ready, calibrated(ready, options), options)
            got = np.stack([ran(quantised, values, "s")[0] for values in inputs()])
            errors.append(float(np.abs(got - reference).mean()))
        assert errors[1] < 0.8 * errors[0]

    def test_a_transformer_keeps_its_function(self) -> None:
        proto = export_onnx(vit().model, bundle_contract(vit().contract, VIT_SIZE, False))
        smooth, count = smoothed(proto, pictures(4, VIT_SIZE), 0.5, name="vit")
        values = picture(3, VIT_SIZE)
        assert count == 8  # two per block
        np.testing.assert_allclose(ran(smooth, values)[0], expected(vit(), values), atol=1e-5 * 20)

    def test_no_norm_and_no_pictures(self) -> None:
        with pytest.raises(ConfigError, match="no LayerNorm feeds a linear layer"):
            smoothed(chain(), inputs(), 0.5, name="chain")
        with pytest.raises(ConfigError, match="calibration set is empty"):
            smoothed(tokens(), [], 0.5, name="tokens")


class TestBiases:
    def test_the_means_of_every_layer_are_those_of_float(self) -> None:
        options = replace(STATIC, calibration=inputs(), per_channel=False)
        ready, _ = prepared(chain(), options, name="chain")
        limits = calibrated(ready, options)
        quantised = with_pairs(ready, limits, options)
        mended, count = corrected(ready, quantised, inputs())
        assert count == 4
        after = with_pairs(mended, limits, options)
        for name in ("first", "depthwise", "pointwise", "up"):
            off = []
            for proto in (quantised, after):
                keys = {node.name: node.output[0] for node in proto.graph.node}
                key = next(node.output[0] for node in ready.graph.node if node.name == name)
                got = np.mean([ran(proto, values, keys[name])[0].mean(axis=(0, 2, 3)) for values in inputs()], axis=0)
                real = np.mean([ran(ready, values, key)[0].mean(axis=(0, 2, 3)) for values in inputs()], axis=0)
                off.append(float(np.abs(got - real).max()))
            assert off[1] < 0.3 * off[0], name  # what is left is the whole-number bias's own step

    def test_a_layer_without_bias_gets_one(self) -> None:
        options = replace(STATIC, calibration=inputs())
        ready, _ = prepared(chain(), options, name="chain")
        mended, _ = corrected(ready, with_pairs(ready, calibrated(ready, options), options), inputs())
        node = next(node for node in mended.graph.node if node.name == "pointwise")
        assert len(node.input) == 3
        assert constant(mended, node.input[2]).shape == (4,)

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_all_at_once_through_an_export(self, engine: str, tmp_path: Any) -> None:
        options = replace(
            STATIC, calibration=pictures(8), equalise=True, bias_correction=True, method="mse", symmetric=True
        )
        bundle = runtime(engine).export(cnn(), options, tmp_path)
        assert bundle.details["corrected_biases"] == 40
        assert bundle.details["equalised"]["pairs"] > 3
        session = runtime(engine).open(bundle, SessionOptions())
        values = picture(5, (64, 96))
        assert np.corrcoef(session.run(values).ravel(), expected(cnn(), values).ravel())[0, 1] > 0.97
        assert session.precision_ran == "int8 (40 of 41 layers)"
