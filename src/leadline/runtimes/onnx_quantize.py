"""Narrower arithmetic for an ONNX graph: FP16, dynamic INT8, and static INT8 with Q/DQ pairs."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError, NumericalError, closest
from leadline.runtimes.calibration import activation_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx
    from numpy.typing import NDArray

    from leadline.runtimes.base import ExportOptions

# A CNN stays in INT8 from layer to layer only if what lies between its convolutions is quantised too; in a transformer
# the normalisations between the matrix products need float anyway.
CNN_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add", "Concat", "Resize", "MaxPool")
TRANSFORMER_OPERATORS = ("Conv", "Gemm", "MatMul")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def half_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in FP16, input and output in FP32.

    Raises:
        NumericalError: a weight is too large for FP16.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    limit = float(np.finfo(np.float16).max)
    for tensor in proto.graph.initializer:
        if (
            tensor.data_type == onnx.TensorProto.FLOAT
            and np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > limit
        ):
            raise NumericalError("weight out of FP16's range", where=tensor.name, mend="use bf16 or fp32")
    with warnings.catch_warnings():
        # Weights below FP16's smallest subnormal become 0 or that number; parity says whether it matters.
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        half: onnx.ModelProto = convert_float_to_float16(_unshare_constants(proto), keep_io_types=True)
    return half


def _unshare_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give each node its own small constants: the converter names two casts alike where nodes share one."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    small = {tensor.name: tensor for tensor in copied.graph.initializer if math.prod(tensor.dims) <= 16}
    taken: set[str] = set()
    for index, node in enumerate(copied.graph.node):
        for place, key in enumerate(node.input):
            if key in small and key in taken:
                own = copied.graph.initializer.add()
                own.CopyFrom(small[key])
                own.name = node.input[place] = f"{key}_{index}_{place}"
            taken.add(key)
    return copied


def dynamic_int8(
    proto: onnx.ModelProto, options: ExportOptions, *, name: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """INT8 weights, and activations whose ranges are found while running: matrix products only.

    Convolutions are left alone: ONNX Runtime's dynamic convolution is three times slower than FP32 (RUNTIMES.md 5).

    Raises:
        ConfigError: the network has no matrix product with constant weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    constants = {tensor.name for tensor in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    if not layers:
        why = "ONNX Runtime is slower with dynamic convolutions than in FP32, so only matrix products are quantised"
        mend = "use int8-static"
        raise ConfigError("nothing to quantise dynamically in", where=name, why=why, mend=mend)
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(proto, before)
        with _quiet_quantiser():
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=options.per_channel,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_excluded(proto, options),
                extra_options={"MatMulConstBOnly": True},
            )
        quantised = onnx.load(after)
    count = sum(node.op_type == "MatMulInteger" for node in quantised.graph.node)
    return quantised, {"quantised_layers": count, "per_channel": options.per_channel}


def static_int8(proto: onnx.ModelProto, options: ExportOptions, *, name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """U8 activations and S8 weights as Q/DQ pairs, ranges from calibration (RUNTIMES.md pitfalls 4 and 6).

    Raises:
        ConfigError: no calibration inputs, or an excluded node that does not exist.
        NumericalError: NaN or infinity during calibration.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ready = preprocessed(proto)
    transformer = any(node.op_type in ("LayerNormalization", "Softmax") for node in ready.graph.node)
    operators = TRANSFORMER_OPERATORS if transformer else CNN_OPERATORS
    # Attention probabilities have a few large values and many tiny ones: 8 bits lose them for little speed.
    excluded = [*_excluded(ready, options), *_products_of_activations(ready), *_head(ready)]
    limits = activation_limits(_Probe(ready, operators, excluded), options)
    ranges = {key: (np.float32(low), np.float32(high)) for key, (low, high) in limits.items()}
    with _quiet_quantiser():
        quantiser = QDQQuantizer(
            ready,
            per_channel=options.per_channel,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=excluded,
            op_types_to_quantize=list(operators),
            extra_options={"ActivationSymmetric": options.symmetric},
        )
        quantiser.quantize_model()
    quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    onnx.checker.check_model(quantised)
    details: dict[str, Any] = {
        "quantised_layers": _layers_between_pairs(quantised),
        "per_channel": options.per_channel,
        "symmetric": options.symmetric,
        "calibration": options.method,
        "calibration_pictures": len(options.calibration),
        "excluded": list(options.exclude),
    }
    if options.method == "percentile":
        details["percentile"] = options.percentile
    return quantised, details


def preprocessed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes inferred and BatchNorm, MatMul + Add and the like fused, as ONNX Runtime's quantiser wants it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "ready.onnx"
        onnx.save_model(proto, before)
        with _quiet_quantiser():
            quant_pre_process(before, after, skip_symbolic_shape=True)
        ready: onnx.ModelProto = onnx.load(after)
    for index, node in enumerate(ready.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return ready


class _Probe:
    """Runs the float network and returns every activation that a quantised operator reads or writes."""

    def __init__(self, proto: onnx.ModelProto, operators: tuple[str, ...], excluded: list[str]) -> None:
        import onnx
        import onnxruntime

        probed = onnx.ModelProto()
        probed.CopyFrom(proto)
        graph = probed.graph
        constants = {tensor.name for tensor in graph.initializer}
        kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
        chosen = [node for node in graph.node if node.op_type in operators and node.name not in excluded]
        touched = [key for node in chosen for key in [*node.input, *node.output]]
        inputs, outputs = {each.name for each in graph.input}, {each.name for each in graph.output}
        self._names = [
            key
            for key in dict.fromkeys(touched)
            if key and key not in constants and kinds.get(key, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
        ]
        self._inputs = [key for key in self._names if key in inputs]
        self._names = [key for key in self._names if key not in inputs]
        for key in self._names:
            if key not in outputs:
                graph.output.append(onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, None))
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = 1, 1
        settings.log_severity_level = 3
        # Without fusing, every activation exists as the quantiser will see it.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(probed.SerializeToString(), settings, providers=providers)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, values: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        outputs = self._session.run(self._names, {self._input: values})
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


def _layers_between_pairs(proto: onnx.ModelProto) -> int:
    """Layers with weights whose activation and weight both come out of a DequantizeLinear."""
    real = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type in WEIGHTED and real.issuperset(node.input[:2]) for node in proto.graph.node)


def _excluded(proto: onnx.ModelProto, options: ExportOptions) -> list[str]:
    known = [node.name for node in proto.graph.node]
    for wanted in options.exclude:
        if wanted not in known:
            layers = [node.name for node in proto.graph.node if node.op_type in WEIGHTED]
            raise ConfigError("no such node to exclude", where=wanted, mend=closest(wanted, layers))
    return list(options.exclude)


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
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
