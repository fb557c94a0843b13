"""Time of each layer by the engines' own profilers: whose they are, that they add up, and their operations."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.evaluation.complexity import count_macs
from leadline.evaluation.isolation import IsolatedSession, Job
from leadline.runtimes.base import Session, SessionOptions, runtime
from leadline.runtimes.layer_time import LayerTime
from leadline.runtimes.onnx_layers import _operations
from leadline.runtimes.torch_layers import OUTSIDE
from tiny_models import cnn, exported, picture

SIZE = (64, 96)


def profiled(engine: str, batch: int = 1) -> list[LayerTime]:
    session = runtime(engine).open(exported("cnn", engine, "fp32"), SessionOptions())
    found = session.profile(np.repeat(picture(0, SIZE), batch, axis=0), 3)
    assert found is not None
    return found


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_every_engine_names_its_layers(engine: str) -> None:
    layers = profiled(engine)
    assert len({layer.name for layer in layers}) > 20
    assert all(layer.ms >= 0 and layer.kind for layer in layers)
    assert sum(layer.ms for layer in layers) > 0


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_operations_of_all_layers_are_those_of_the_network(engine: str) -> None:
    operations = sum(layer.operations or 0 for layer in profiled(engine))
    assert operations == 2 * count_macs(cnn().model, SIZE)


def test_pytorch_counts_the_whole_batch() -> None:
    one, two = (sum(layer.operations or 0 for layer in profiled("torch", batch)) for batch in (1, 2))
    assert two == 2 * one


def test_what_happens_between_modules_has_a_row_of_its_own() -> None:
    assert [layer.kind for layer in profiled("torch") if layer.name == OUTSIDE] == ["functions"]


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "operations"),
    [
        ("Conv", [[1, 8, 32, 48], [16, 8, 3, 3], [16]], [[1, 16, 32, 48]], 2 * 16 * 32 * 48 * 8 * 9),
        ("Conv", [[1, 16, 32, 48], [16, 1, 3, 3], [16]], [[1, 16, 32, 48]], 2 * 16 * 32 * 48 * 9),  # depthwise
        ("MatMul", [[1, 24, 32], [32, 96]], [[1, 24, 96]], 2 * 24 * 96 * 32),
        ("Add", [[1, 24, 32], [1, 24, 32]], [[1, 24, 32]], None),
        ("QLinearConv", [[1, 16, 24, 16], [], [], [16], []], [[1, 16, 24, 16]], None),  # packed weights
    ],
)
def test_operations_of_onnx_runtime_in_closed_form(
    kind: str, inputs: list[list[int]], outputs: list[list[int]], operations: int | None
) -> None:
    assert _operations(kind, inputs, outputs) == operations


def test_the_process_tells_the_slowest_first() -> None:
    with IsolatedSession(Job(str(exported("cnn", "onnxruntime", "fp32").folder))) as session:
        layers = session.profile(2)
    assert layers is not None
    assert [layer.ms for layer in layers] == sorted((layer.ms for layer in layers), reverse=True)


def test_an_engine_without_a_profiler_says_none() -> None:
    assert Session.profile(object(), picture(0, SIZE), 1) is None  # type: ignore[arg-type]
