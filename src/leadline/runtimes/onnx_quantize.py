"""Static INT8 for an ONNX graph: Q/DQ pairs around its layers, with ranges from calibration."""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError, closest
from leadline.runtimes.calibration import activation_limits
from leadline.runtimes.onnx_graph import WEIGHTED, Graph, session, slim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import onnx
    from numpy.typing import NDArray

    from leadline.runtimes.base import ExportOptions

# A CNN stays in INT8 from layer to layer only if what lies between its convolutions is quantised too; in a transformer
# the normalisations between the matrix products need float anyway.
CNN_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add", "Concat", "Resize", "MaxPool")
TRANSFORMER_OPERATORS = ("Conv", "Gemm", "MatMul")


def static_int8(proto: onnx.ModelProto, options: ExportOptions, *, name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """U8 activations and S8 weights as Q/DQ pairs, ranges from calibration (RUNTIMES.md pitfalls 4 and 6).

    Raises:
        ConfigError: no calibration inputs, an excluded node that does not exist, nothing to equalise or to smooth.
        NumericalError: NaN or infinity during calibration.
    """
    from leadline.runtimes.onnx_bias import corrected

    ready, details = prepared(proto, options, name=name)
    limits = options.ranges if options.ranges is not None else calibrated(ready, options)
    quantised = with_pairs(ready, limits, options)
    if options.bias_correction:
        ready, details["corrected_biases"] = corrected(ready, quantised, options.calibration)
        quantised = with_pairs(ready, limits, options)
    details |= {
        "quantised_layers": int8_layers(quantised),
        "per_channel": options.per_channel,
        "symmetric": options.symmetric,
        "calibration": options.method,
        "calibration_pictures": len(options.calibration),
        "excluded": list(options.exclude),
    }
    if options.method == "percentile":
        details["percentile"] = options.percentile
    return slim(quantised), details


def prepared(proto: onnx.ModelProto, options: ExportOptions, *, name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float network as the quantiser takes it: smoothed and equalised where asked for, fused, every node named.

    Raises:
        ConfigError: nothing to equalise or to smooth, or no calibration inputs to smooth with.
    """
    from leadline.runtimes.onnx_equalise import equalised, smoothed

    details: dict[str, Any] = {}
    if options.smooth is not None:
        proto, count = smoothed(proto, options.calibration, options.smooth, name=name)
        details |= {"smooth": options.smooth, "smoothed_norms": count}
    ready = preprocessed(proto)
    if options.equalise:
        ready, details["equalised"] = equalised(ready, name=name)
    return ready, details


def calibrated(ready: onnx.ModelProto, options: ExportOptions) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of every activation that may be quantised, by tensor name.

    Args:
        ready: from `prepared`.
        options: calibration inputs and rule; `exclude` does not matter, so that one calibration serves any choice.

    Raises:
        ConfigError: no calibration inputs.
        NumericalError: NaN or infinity in an activation.
    """
    return activation_limits(_Probe(ready), options)


def with_pairs(
    ready: onnx.ModelProto,
    limits: Mapping[str, tuple[float, float]],
    options: ExportOptions,
    grids: Mapping[str, list[dict[str, Any]]] | None = None,
) -> onnx.ModelProto:
    """Put Q/DQ pairs around every layer that is to be quantised.

    Args:
        ready: from `prepared`.
        limits: from `calibrated`.
        options: per_channel, symmetric and exclude count.
        grids: steps and zero points by tensor that stand above limits and weights (ONNX Runtime's overrides).

    Raises:
        ConfigError: an excluded node does not exist.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {key: (np.float32(low), np.float32(high)) for key, (low, high) in limits.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(ready)  # the quantiser works on what it is given
    with quiet_quantiser():
        quantiser = QDQQuantizer(
            copied,
            per_channel=options.per_channel,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[*excluded(ready, options), *_kept_in_float(ready)],
            op_types_to_quantize=list(_operators(ready)),
            extra_options={"ActivationSymmetric": options.symmetric, "TensorQuantOverrides": dict(grids or {})},
        )
        quantiser.quantize_model()
    quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    onnx.checker.check_model(quantised)
    return quantised


def layers(ready: onnx.ModelProto) -> list[str]:
    """Names of the layers with weights that static INT8 quantises unless they are excluded, in order."""
    graph = Graph(ready)
    kept, operators = set(_kept_in_float(ready)), _operators(ready)
    nodes = [node for node in graph.nodes if node.op_type in operators and node.name not in kept]
    return [node.name for node in nodes if graph.weight(node) is not None]


def with_neighbours(ready: onnx.ModelProto, names: Iterable[str]) -> tuple[str, ...]:
    """Layers that leave INT8, and the sums, resizings and the like that then have no INT8 layer on one of their sides.

    Args:
        ready: from `prepared`.
        names: of layers.
    """
    graph, out = Graph(ready), set(names)
    whole = {node.name for node in graph.nodes if graph.weight(node) is not None and node.name not in out}
    whole -= set(_kept_in_float(ready))
    before: dict[str, bool] = {}  # by tensor: an INT8 layer made it, or made what it was made of
    for node in graph.nodes:
        made = node.name in whole or (graph.weight(node) is None and any(before.get(key) for key in node.input))
        before |= dict.fromkeys(node.output, made)
    after: dict[str, bool] = {}  # by tensor: an INT8 layer reads it, or what is made of it
    for node in reversed(graph.nodes):
        read = node.name in whole or (graph.weight(node) is None and any(after.get(key) for key in node.output))
        for key in node.input:
            after[key] = after.get(key, False) or read
    for node in graph.nodes:
        if node.op_type in _operators(ready) and graph.weight(node) is None:
            made, read = any(before.get(key) for key in node.input), any(after.get(key) for key in node.output)
            if not (made and read):
                out.add(node.name)
    return tuple(node.name for node in graph.nodes if node.name in out)


def _operators(proto: onnx.ModelProto) -> tuple[str, ...]:
    transformer = any(node.op_type in ("LayerNormalization", "Softmax") for node in proto.graph.node)
    return TRANSFORMER_OPERATORS if transformer else CNN_OPERATORS


def _kept_in_float(proto: onnx.ModelProto) -> list[str]:
    # Attention probabilities have a few large values and many tiny ones: 8 bits lose them for little speed.
    return [*_products_of_activations(proto), *_head(proto)]


def preprocessed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes inferred and BatchNorm, MatMul + Add and the like fused, as ONNX Runtime's quantiser wants it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "ready.onnx"
        onnx.save_model(proto, before)
        with quiet_quantiser():
            quant_pre_process(before, after, skip_symbolic_shape=True)
        ready: onnx.ModelProto = onnx.load(after)
    for index, node in enumerate(ready.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return ready


class _Probe:
    """Runs the float network and returns every activation that a quantised operator reads or writes."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnx

        graph, operators, kept = proto.graph, _operators(proto), _kept_in_float(proto)
        constants = {tensor.name for tensor in graph.initializer}
        kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
        chosen = [node for node in graph.node if node.op_type in operators and node.name not in kept]
        touched = [key for node in chosen for key in [*node.input, *node.output]]
        names = [
            key
            for key in dict.fromkeys(touched)
            if key and key not in constants and kinds.get(key, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
        ]
        inputs = {each.name for each in graph.input}
        self._inputs = [key for key in names if key in inputs]
        # Without fusing, every activation exists as the quantiser will see it.
        self._session, _ = session(proto, [key for key in names if key not in inputs])
        self._names = [key for key in names if key not in inputs]

    def __call__(self, values: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        outputs = self._session.run(self._names, {self._session.get_inputs()[0].name: values})
        seen = dict(zip(self._names, outputs, strict=True))
        return seen | dict.fromkeys(self._inputs, values)


def _products_of_activations(proto: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [n.name for n in proto.graph.node if n.op_type == "MatMul" and not constants.intersection(n.input)]


def _head(proto: onnx.ModelProto) -> list[str]:
    """The last layer with weights and what follows it: 256 levels of depth would show as steps, 4 cm of 10 m."""
    producers = {key: node for node in proto.graph.node for key in node.output}
    waiting, head = [output.name for output in proto.graph.output], []
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in head:
            head.append(node.name)
            waiting += [] if node.op_type in WEIGHTED else node.input
    return head


def int8_layers(proto: onnx.ModelProto) -> int:
    """Layers with weights whose activation and weight both come out of a DequantizeLinear."""
    real = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type in WEIGHTED and real.issuperset(node.input[:2]) for node in proto.graph.node)


def excluded(proto: onnx.ModelProto, options: ExportOptions) -> list[str]:
    """The nodes that the user leaves out of quantising.

    Raises:
        ConfigError: there is none of that name.
    """
    known = [node.name for node in proto.graph.node]
    for wanted in options.exclude:
        if wanted not in known:
            layers = [node.name for node in proto.graph.node if node.op_type in WEIGHTED]
            raise ConfigError("no such node to exclude", where=wanted, mend=closest(wanted, layers))
    return list(options.exclude)


@contextmanager
def quiet_quantiser() -> Iterator[None]:
    """ONNX Runtime's quantiser advises through the root logger what `preprocessed` has done already."""
    root = logging.getLogger()
    root.addFilter(_is_no_advice)
    handlers = list(root.handlers)
    try:
        yield
    finally:
        root.removeFilter(_is_no_advice)
        for handler in [each for each in root.handlers if each not in handlers]:
            root.removeHandler(handler)  # logging.warning() installs one as a side effect


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
