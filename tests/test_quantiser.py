"""The quantiser's arithmetic against float64: ranges, scales, zero points, rounding, clipping, axes, and slim files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from leadline.errors import ConfigError
from leadline.runtimes.base import ExportOptions, Precision, check_options
from leadline.runtimes.calibration import BINS, STEPS, Activation, mse_clip, percentile_clip
from leadline.runtimes.onnx_graph import slim
from leadline.runtimes.onnx_narrow import int8_weights, symmetric_int8
from leadline.runtimes.onnx_quantize import calibrated, layers, prepared, static_int8, with_neighbours, with_pairs
from tiny_graphs import chain, inputs, model, ran, weights

STATIC = ExportOptions(precision=Precision.INT8_STATIC)


def seen(values: np.ndarray) -> Activation:
    activation = Activation()
    activation.extend(values)
    activation.count(values)
    return activation


def mean_squared_error(counts: np.ndarray, edge: int, sides: tuple[float, float]) -> float:
    """Of 64 values per bin, each really rounded and clipped."""
    step = (min(edge, sides[0]) + min(edge, sides[1])) / 255
    centres = np.arange(len(counts))[:, None] + (np.arange(64) + 0.5) / 64
    given = np.where(centres > edge, float(edge), np.rint(centres / step) * step)
    return float((counts[:, None] * (given - centres) ** 2).mean())


class TestMse:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("sides", [(0.0, 1.0), (1.0, 1.0), (0.1, 1.0)])
    def test_no_edge_is_better_than_the_chosen_one(self, seed: int, sides: tuple[float, float]) -> None:
        random = np.random.default_rng(seed)
        shape = (
            random.exponential(0.02 + 0.03 * seed, 20_000) if seed % 2 else np.abs(random.standard_t(3, 20_000)) / 20
        )
        counts = np.histogram(shape, 256, range=(0, shape.max()))[0]
        reach = (sides[0] * 256, sides[1] * 256)
        tried = [mean_squared_error(counts, edge, reach) for edge in range(1, 257)]
        assert tried[mse_clip(counts, reach) - 1] <= 1.01 * min(tried)

    def test_uniform_values_are_kept_and_a_far_outlier_is(self) -> None:
        assert mse_clip(np.full(BINS, 10), (0, BINS)) > 0.99 * BINS
        values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
        values[0] = 1000.0
        low, high = seen(values).limits("mse")
        assert 3 < high < 1000
        assert -low <= high

    def test_empty_and_tiny(self) -> None:
        assert mse_clip(np.zeros(BINS, np.int64), (0, BINS)) == BINS
        assert seen(np.zeros(10, np.float32)).limits("mse") == (0.0, 1.0)
        low, high = seen(np.full(10, 1e-42, np.float32)).limits("minmax")
        assert np.float32((high - low) / STEPS) > 0


@pytest.mark.parametrize("share", [99.9, 99.99, 99.999, 99.9999, 42.0])
def test_percentile_of_a_known_distribution(share: float) -> None:
    """|x| exponential with mean 100 bins: its quantile is -100 ln(1 - share)."""
    expected = -100 * np.log1p(-share / 100)
    total = 10**13
    edges = np.arange(BINS + 1)
    counts = np.rint(total * np.diff(1 - np.exp(-edges / 100))).astype(np.int64)
    assert percentile_clip(counts, 0, share) == pytest.approx(expected, abs=1.01)


def parameters(proto: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Scale, whole numbers and axis of the weight of each layer, by the layer's name."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = {key: node for node in proto.graph.node for key in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in makers:
            maker = makers[node.input[1]]
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
            found[node.name] = constants[maker.input[1]], constants[maker.input[0]], axis
    return found


class TestWeights:
    @pytest.mark.parametrize(
        ("layer", "key", "axis"), [("first", "w0", 0), ("depthwise", "w1", 0), ("pointwise", "w2", 0), ("up", "w3", 1)]
    )
    def test_each_output_channel_has_its_scale(self, layer: str, key: str, axis: int) -> None:
        proto = chain()
        ready, _ = prepared(proto, STATIC, name="chain")
        options = replace(STATIC, calibration=inputs())
        scale, whole, found_axis = parameters(with_pairs(ready, calibrated(ready, options), options))[layer]
        weight = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == key).astype(np.float64)
        others = tuple(a for a in range(4) if a != axis)
        expected = np.abs(weight).max(axis=others) / 127
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        assert found_axis == axis
        shape = [-1 if a == axis else 1 for a in range(4)]
        # a weight within a rounding error of the middle of two levels may fall to either
        assert np.abs(whole - weight / expected.reshape(shape)).max() <= 0.5 + 1e-4
        assert np.abs(whole.astype(int)).max() == 127

    def test_one_scale_per_tensor(self) -> None:
        options = replace(STATIC, calibration=inputs(), per_channel=False)
        ready, _ = prepared(chain(), options, name="chain")
        scale, whole, _ = parameters(with_pairs(ready, calibrated(ready, options), options))["first"]
        assert scale.size == 1
        assert np.abs(whole.astype(int)).max() == 127

    @given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40))
    @settings(max_examples=50, deadline=None)
    def test_whole_numbers_are_half_a_step_away_at_most(self, numbers: list[float]) -> None:
        weight = np.array(numbers, np.float32)
        whole, scale = symmetric_int8(weight, None)
        assert scale > 0
        assert np.abs(whole.astype(int)).max() <= 127
        assert np.abs(whole * scale.astype(np.float64) - weight).max() <= float(scale) * (0.5 + 1e-4)

    def test_halves_go_to_even_and_a_dead_channel_has_a_scale(self) -> None:
        whole, scale = symmetric_int8(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32), None)
        assert whole.tolist() == [127, 0, 2, 2, 0, -2]
        assert scale == 1
        dead = np.stack([np.zeros(4), np.ones(4)]).astype(np.float32)
        whole, scale = symmetric_int8(dead, 0)
        assert scale.tolist() == [1, np.float32(1 / 127)]
        assert whole.tolist() == [[0] * 4, [127] * 4]


class TestActivations:
    def scales(self, **changes: Any) -> dict[str, tuple[float, int]]:
        options = replace(STATIC, calibration=inputs(), **changes)
        ready, _ = prepared(chain(), options, name="chain")
        self.limits = calibrated(ready, options)
        proto = with_pairs(ready, self.limits, options)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        return {node.input[0]: (float(constants[node.input[1]]), int(constants[node.input[2]])) for node in nodes}

    def test_scale_and_zero_point(self) -> None:
        found = self.scales()["input"]
        low, high = (np.float64(end) for end in self.limits["input"])
        values = np.stack(inputs()).astype(np.float64)
        assert (low, high) == (values.min(), values.max())
        assert found[0] == pytest.approx((high - low) / 255, rel=1e-6)
        assert found[1] == np.rint(-low / ((high - low) / 255))

    def test_what_relu_leaves_starts_at_zero(self) -> None:
        assert self.scales()["a0" if "a0" in self.scales() else "y0"][1] == 0

    def test_symmetric_ranges_have_their_zero_in_the_middle(self) -> None:
        scale, zero = self.scales(symmetric=True)["input"]
        largest = max(abs(end) for end in self.limits["input"])
        assert zero in (127, 128)
        assert scale == pytest.approx(2 * largest / 255, rel=1e-6)

    def test_the_engine_rounds_half_to_even_and_clips(self) -> None:
        constants: dict[str, np.ndarray] = {"s": np.array(0.5, np.float32), "z": np.array(10, np.uint8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["depth"]),
        ]
        values = np.array([0.25, 0.75, 1.25, -0.25, 1e6, -1e6], np.float32)
        whole = np.clip(np.rint(values.astype(np.float64) / 0.5) + 10, 0, 255)
        assert whole.tolist() == [10, 12, 12, 10, 255, 0]
        np.testing.assert_array_equal(ran(model(nodes, constants, (6,)), values)[0], (whole - 10) * 0.5)

    @pytest.mark.parametrize("value", [0.0, -2.5, 7.0])
    @pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
    def test_a_constant_activation_still_has_a_scale(self, value: float, method: Any) -> None:
        options = replace(STATIC, calibration=[np.full((1, 3, 8, 8), value, np.float32)] * 2, method=method)
        made, _ = static_int8(chain(), options, name="chain")
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
        scales = [constants[node.input[1]] for node in made.graph.node if node.op_type == "QuantizeLinear"]
        assert scales
        assert all(scale > 0 and np.isfinite(scale) for scale in scales)
        assert np.isfinite(ran(made, inputs()[0])[0]).all()


class TestChoice:
    def test_layers_are_listed_and_the_head_stays_in_float(self) -> None:
        ready, _ = prepared(chain(), STATIC, name="chain")
        assert layers(ready) == ["first", "depthwise", "pointwise", "up"]

    def test_activations_leave_with_the_layers_on_one_side_of_them(self) -> None:
        ready, _ = prepared(chain(), STATIC, name="chain")
        assert set(with_neighbours(ready, ["pointwise"])) == {"pointwise", "act1", "act2", "act3"}
        assert set(with_neighbours(ready, ["up"])) == {"up", "act2", "act3"}

    def test_known_ranges_need_no_pictures(self) -> None:
        options = replace(STATIC, calibration=inputs())
        ready, _ = prepared(chain(), options, name="chain")
        ranges = calibrated(ready, options)
        again, _ = static_int8(chain(), replace(STATIC, ranges=ranges), name="chain")
        assert again == static_int8(chain(), options, name="chain")[0]

    def test_an_unknown_node_gets_a_suggestion(self) -> None:
        options = replace(STATIC, calibration=inputs(1), exclude=("pointwse",))
        with pytest.raises(ConfigError, match=r"no such node to exclude 'pointwse'.*pointwise"):
            static_int8(chain(), options, name="chain")


class TestNarrowWeights:
    def test_only_weights_change_and_each_by_half_a_step(self) -> None:
        options = ExportOptions(precision=Precision.INT8_WEIGHTS)
        large = model(
            [
                helper.make_node("Conv", ["input", "w", "b"], ["y"], name="first"),
                helper.make_node("Conv", ["y", "v"], ["depth"], name="small"),
            ],
            {"w": weights(0, 16, 3, 3, 3), "b": weights(1, 16), "v": weights(2, 1, 16, 1, 1)},
        )
        made, details = int8_weights(large, options, name="large")
        assert details["quantised_layers"] == 1
        assert "QuantizeLinear" not in {node.op_type for node in made.graph.node}
        assert made.ByteSize() < large.ByteSize() / 1.6
        scale, whole, axis = parameters(made)["first"]
        assert (scale.shape, axis) == ((16,), 0)
        error = np.abs(whole * scale.reshape(-1, 1, 1, 1) - weights(0, 16, 3, 3, 3)).max(axis=(1, 2, 3))
        assert (error <= scale * 0.5001).all()
        np.testing.assert_allclose(ran(made, inputs()[0])[0], ran(large, inputs()[0])[0], atol=0.5)

    def test_nothing_to_narrow(self) -> None:
        only = model([helper.make_node("Relu", ["input"], ["depth"], name="relu")], {})
        with pytest.raises(ConfigError, match="no weights to narrow"):
            int8_weights(only, ExportOptions(precision=Precision.INT8_WEIGHTS), name="only")


def test_a_slim_file_computes_the_same() -> None:
    options = replace(STATIC, calibration=inputs())
    ready, _ = prepared(chain(), options, name="chain")
    full = with_pairs(ready, calibrated(ready, options), options)
    small = slim(full)
    assert small.ByteSize() < full.ByteSize()
    np.testing.assert_array_equal(ran(small, inputs()[0])[0], ran(full, inputs()[0])[0])
    assert {"first", "depthwise", "pointwise", "up", "head"} <= {node.name for node in small.graph.node}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"equalise": True}, "equalise belongs to int8-static"),
        ({"bias_correction": True}, "bias correction belongs to int8-static"),
        ({"smooth": 0.5}, "smooth belongs to int8-static"),
        ({"method": "mse"}, "method mse belongs to int8-static"),
        ({"exclude": ("a",)}, "nothing to exclude from 'fp32'"),
        ({"precision": Precision.INT8_STATIC, "smooth": 1.5}, "bad smoothing strength 1.5"),
        ({"precision": Precision.INT8_STATIC, "method": "percentile", "percentile": 101.0}, "bad percentile 101"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_options(ExportOptions(**changes))
