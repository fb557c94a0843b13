"""Narrow arithmetic for ONNX networks that are not ours: a detector with two heads at two strides."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import tiny_detector
from leadline.compression.foreign import OPTIONS, quantize_onnx
from leadline.errors import ConfigError
from leadline.runtimes.options import ExportOptions

INPUTS = [np.random.default_rng(seed).normal(size=(1, 3, 32, 48)).astype(np.float32) for seed in range(6)]


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own advice
        program = torch.onnx.export(tiny_detector.detector(), (torch.zeros(1, 3, 32, 48),), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto


def ran(proto: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: INPUTS[0]})
    return found


@pytest.mark.parametrize(
    ("precision", "options", "off"),
    [
        ("fp16", {}, 0.002),
        ("int8-weights", {}, 0.02),
        ("int8-static", {}, 0.06),
        ("int8-static", {"method": "percentile", "percentile": 99.99, "bias_correction": True}, 0.06),
    ],
)
def test_a_detector_keeps_its_outputs(graph: onnx.ModelProto, precision: str, options: Any, off: float) -> None:
    before = graph.SerializeToString()
    narrow, details = quantize_onnx(graph, precision, INPUTS, **options)
    assert graph.SerializeToString() == before
    assert len(narrow.SerializeToString()) < len(before)
    for ours, theirs in zip(ran(narrow), ran(graph), strict=True):
        assert ours.shape == theirs.shape
        assert 0 < np.abs(ours - theirs).mean() < off * theirs.std()
    if precision == "int8-static":
        assert details["calibration_pictures"] == 6
        pairs = sum(node.op_type == "DequantizeLinear" for node in narrow.graph.node)
        assert details["quantised_layers"] >= 5
        assert pairs >= 2 * details["quantised_layers"]


def test_what_it_cannot_do_is_refused(graph: onnx.ModelProto) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int8'"):
        quantize_onnx(graph, "int8")
    with pytest.raises(ConfigError, match=r"unknown option 'percentil'.*percentile"):
        quantize_onnx(graph, inputs=INPUTS, percentil=99)
    with pytest.raises(ConfigError, match=r"unknown method 'ms'.*mse"):
        quantize_onnx(graph, inputs=INPUTS, method="ms")
    for wrong in (INPUTS[0].astype(np.float64), INPUTS[0][0], INPUTS[0][:, :1], np.concatenate(INPUTS), None):
        with pytest.raises(ConfigError, match=r"not an input of the network 'inputs\[1\]': .* 1 x 3 x 32 x 48"):
            quantize_onnx(graph, inputs=[INPUTS[0], wrong])
    with pytest.raises(ConfigError, match="inputs of one value"):
        quantize_onnx(graph, inputs=[np.zeros_like(INPUTS[0])])
    with pytest.raises(ConfigError, match="calibration"):
        quantize_onnx(graph)
    with pytest.raises(ConfigError, match="belongs to int8-static"):
        quantize_onnx(graph, "fp16", equalise=True)
    with pytest.raises(ConfigError, match="nothing to quantise dynamically"):
        quantize_onnx(graph, "int8-dynamic")


def test_a_percentile_alone_is_the_method(graph: onnx.ModelProto) -> None:
    assert quantize_onnx(graph, inputs=INPUTS, percentile=99.0)[1]["calibration"] == "percentile"


def test_the_linear_layer_of_a_classifier_in_dynamic_int8() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own advice
        example = (torch.zeros(1, 3, 32, 48),)
        program = torch.onnx.export(nn.Sequential(*layers).eval(), example, dynamo=True, verbose=False)
    assert program is not None
    narrow, _ = quantize_onnx(program.model_proto, "int8-dynamic")
    [ours], [theirs] = ran(narrow), ran(program.model_proto)
    assert 0 < np.abs(ours - theirs).mean() < 0.05 * theirs.std()


def test_its_options_are_those_of_an_export() -> None:
    assert set(OPTIONS) <= set(ExportOptions.__dataclass_fields__)
