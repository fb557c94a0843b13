"""Where a Q/DQ graph quantises, in names that hold for any export of the same network.

Names of tensors inside an ONNX graph change with exporter and input size. Here a tensor is named by what it is made of:
`Add(lateral.8.0.weight,Resize(Relu(conv2.3.weight)))` is the sum of a layer's output and another's, enlarged; or, where
its makers are no operators of convolutional networks, by the layer that reads it: `blocks.0.attn.qkv.weight:in`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError
from leadline.models.quantization import Activation, Channels, Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray
    from torch import nn

    Parameters = Mapping[str, NDArray[np.float32]]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
UNARY = ("Relu", "Clip", "Resize", "MaxPool")
JOINING = ("Add", "Concat")
INPUT = "input"
LONGEST = 160  # characters of a name; what is longer is hashed


@dataclass(frozen=True)
class Point:
    """A tensor between layers that a Q/DQ graph quantises.

    Args:
        name: what it is made of, or the layer that reads it.
        readers: weights of the layers that read it directly.
        others: whether anything else reads it.
        group: points with the same one share their grid.
        grid: step and zero point.
    """

    name: str
    readers: tuple[str, ...]
    others: bool
    group: str
    grid: Activation


def made_of(operator: str, parts: Sequence[str]) -> str:
    """The name of what an operator makes of named tensors."""
    inside = ",".join(parts)
    if len(inside) > LONGEST:
        inside = hashlib.sha256(inside.encode()).hexdigest()[:16]
    return f"{operator}({inside})"


def reads(weight: str) -> str:
    """The name of a tensor by the layer that reads it."""
    return f"{weight}:in"


class Naming:
    """Names of a float graph's tensors and weights.

    Args:
        proto: ready for the quantiser, as `onnx_quantize.preprocessed` gives it.
        model: the network that was exported; its parameters give the names.
    """

    def __init__(self, proto: onnx.ModelProto, model: nn.Module) -> None:
        import onnx

        graph = proto.graph
        self.constants = {each.name: each for each in graph.initializer}
        self.array = onnx.numpy_helper.to_array
        self.producers = {key: node for node in graph.node for key in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for key in node.input:
                self.readers.setdefault(key, []).append(node)
        self.inputs = {each.name for each in graph.input} - self.constants.keys()
        self.nodes = list(graph.node)
        self._model = model
        self._names: dict[str, str | None] = {}

    @cached_property
    def weights(self) -> dict[str, str]:
        """Initialisers that layers take as weights, each with the name of the network's parameter that it is."""
        parameters = {key: value.detach().cpu().numpy() for key, value in self._model.named_parameters()}
        found: dict[str, str] = {}
        for node in self.nodes:
            if node.op_type in WEIGHTED and node.input[1] in self.constants and node.input[1] not in found:
                name = _parameter(node.input[1], self.array(self.constants[node.input[1]]), parameters)
                if name is not None:
                    found[node.input[1]] = name
        return found

    def weight(self, node: Any) -> str | None:
        """Name of a layer's weight; None for any other node."""
        return self.weights.get(node.input[1]) if node.op_type in WEIGHTED else None

    def name(self, tensor: str) -> str | None:
        """What a tensor is made of, else which layer reads it; None where neither can be said."""
        made = self._made(tensor)
        if made is not None:
            return made
        readers = self.read_by(tensor)
        return reads(readers[0]) if readers else None

    def read_by(self, tensor: str) -> tuple[str, ...]:
        """Weights of the layers that take the tensor as their input."""
        nodes = [node for node in self.readers.get(tensor, ()) if node.input[0] == tensor]
        return tuple(sorted({weight for node in nodes if (weight := self.weight(node)) is not None}))

    def axis(self, weight: str) -> int:
        """Axis of an initialiser's output channels."""
        node = next(each for each in self.nodes if each.op_type in WEIGHTED and each.input[1] == weight)
        if node.op_type == "Gemm":
            return 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
        return 0 if node.op_type == "Conv" else len(self.constants[weight].dims) - 1 if node.op_type == "MatMul" else 1

    def _made(self, tensor: str) -> str | None:
        if tensor not in self._names:
            self._names[tensor] = self._find(tensor)
        return self._names[tensor]

    def _find(self, tensor: str) -> str | None:
        if tensor in self.inputs:
            return INPUT
        node = self.producers.get(tensor)
        if node is None:
            return None
        weight = self.weight(node)
        if weight is not None:
            return weight
        if node.op_type not in (*UNARY, *JOINING):
            return None
        parts = [self._made(key) for key in (node.input[:1] if node.op_type in UNARY else node.input)]
        known = [part for part in parts if part is not None]
        return made_of(node.op_type, known) if len(known) == len(parts) else None


def layout(
    ready: onnx.ModelProto, quantised: onnx.ModelProto, model: nn.Module
) -> tuple[dict[str, Channels], list[Point]]:
    """What a Q/DQ graph quantises.

    Args:
        ready: the float graph that it was made of.
        quantised: the Q/DQ graph.
        model: the network that was exported.

    Returns:
        Steps of the weights by parameter, with the parameter's own axis; and the tensors between layers.
    """
    import torch

    naming = Naming(ready, model)
    shapes = {key: value.ndim for key, value in model.named_parameters()}
    scalars = {each.name: naming.array(each) for each in quantised.graph.initializer}
    weights: dict[str, Channels] = {}
    points: list[Point] = []
    for node in quantised.graph.node:
        if node.op_type == "DequantizeLinear":
            weight = node.input[0].removesuffix("_quantized")
            if weight in naming.weights:
                name = naming.weights[weight]
                linear = shapes[name] == 2
                steps = _positive(
                    np.atleast_1d(scalars[node.input[1]]), naming.array(naming.constants[weight]), naming.axis(weight)
                )
                weights[name] = Channels(torch.from_numpy(steps), 0 if linear else naming.axis(weight))
        elif node.op_type == "QuantizeLinear":
            tensor, readers = naming.name(node.input[0]), naming.read_by(node.input[0])
            if tensor is None:
                raise ConfigError("cannot name a quantised tensor", where=node.input[0], mend="exclude its node")
            others = len(naming.readers.get(node.input[0], ())) > len(readers)
            grid = Activation(float(scalars[node.input[1]]), int(scalars[node.input[2]]))
            points.append(Point(tensor, readers, others, node.input[1], grid))
    return weights, points


def overrides(ready: onnx.ModelProto, quantization: Quantization, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The grids of a trained network in the form that ONNX Runtime's quantiser takes, by the graph's own names."""
    naming = Naming(ready, model)
    found: dict[str, list[dict[str, Any]]] = {}
    for weight, name in naming.weights.items():
        if name in quantization.weights:
            axis, zero = naming.axis(weight), np.array(0, np.int8)
            steps = quantization.weights[name].steps.numpy().astype(np.float32)
            found[weight] = [{"axis": axis, "scale": np.array(step), "zero_point": zero} for step in steps]
    for tensor in [*naming.producers, *naming.inputs]:
        grid = quantization.activations.get(naming.name(tensor) or "")
        if grid is not None:
            found[tensor] = [{"scale": np.array(grid.step, np.float32), "zero_point": np.array(grid.zero, np.uint8)}]
    return found


def check_all_stored(quantised: onnx.ModelProto, stored: Mapping[str, Any], *, where: str) -> None:
    """Refuse a Q/DQ graph in which a tensor has a grid that training did not leave.

    Raises:
        ConfigError: it has; the message names the tensor.
    """
    for node in quantised.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1].removesuffix("_scale") not in stored:
            mend = "export with the Leadline that trained it, or run the step `qat` again"
            why = f"the graph quantises {node.input[0]}, for which training left no range"
            raise ConfigError("the trained ranges do not fit the graph of", where=where, why=why, mend=mend)


def _parameter(name: str, value: NDArray[np.float32], parameters: Parameters) -> str | None:
    """The parameter that an initialiser holds: of the same name, else of the same values.

    It may lie transposed, and a linear layer's as the kernel of a 1 x 1 convolution.
    """
    if name in parameters and parameters[name].shape == value.shape:
        return name
    for key, candidate in parameters.items():
        if candidate.size == value.size:
            forms = (candidate, candidate.T, candidate[..., None, None]) if candidate.ndim == 2 else (candidate,)
            for form in forms:
                if form.shape == value.shape and np.allclose(form, value, rtol=1e-5, atol=1e-9):
                    return key
    return None


def _positive(steps: NDArray[np.float32], weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The steps, a useful one for channels that are all 0, whose bias is rounded to step x input step."""
    if len(steps) == 1:
        return steps.astype(np.float32) if weight.any() else np.full(1, 1 / 127, np.float32)
    dead = ~np.moveaxis(weight, axis, 0).reshape(len(steps), -1).any(axis=1)
    alive = steps[~dead]
    return np.where(dead, alive.max() if alive.size else 1 / 127, steps).astype(np.float32)
