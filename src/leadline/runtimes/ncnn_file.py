"""ncnn's two files: the text that lists layers, and the weights that follow one another without names."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadline.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = "7767517"
FP16, INT8, RAW = 0x01306B47, 0x000D4B38, 0x00000000  # what precedes a tagged array says how its numbers are stored
WIDTHS = {FP16: 2, INT8: 1, RAW: 4, 0x0002C056: 4}
ARRAYS = 23300  # keys of lists are written as -23300 minus the number
# Kinds with weights whose layout is not known here; none of them is met in depth networks.
UNKNOWN = {"RNN", "LSTM", "GRU", "Embed", "DeformableConv2D", "SDPA", "Bias", "Normalize", "Quantize", "Requantize"}
UNKNOWN |= {"Dequantize", "Convolution1D", "Convolution3D", "ConvolutionDepthWise1D", "ConvolutionDepthWise3D"}
UNKNOWN |= {"Deconvolution1D", "Deconvolution3D", "DeconvolutionDepthWise1D", "DeconvolutionDepthWise3D"}


@dataclass
class Layer:
    """A line of a `.param` file.

    Args:
        kind: such as `Convolution`.
        name: unique.
        inputs: names of the blobs that it reads.
        outputs: names of the blobs that it makes.
        values: its parameters by number, as text.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    values: dict[int, str] = field(default_factory=dict)

    def get(self, key: int, default: int = 0) -> int:
        """A whole-numbered parameter."""
        return int(self.values.get(key, default))


@dataclass(frozen=True)
class Array:
    """Numbers in a `.bin` file: how many, and whether a tag says how they are stored (FP32 otherwise)."""

    count: int
    tagged: bool


def read_layers(text: str) -> list[Layer]:
    """The layers of a `.param` file, in order.

    Raises:
        BundleError: it is none: bad counts, a blob that no earlier layer makes, numbers that are none. ncnn itself
            would crash on some of these.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        if lines[0] != [MAGIC] or len(lines) - 2 != int(lines[1][0]):
            raise BundleError("not an ncnn network", why="its first lines do not count its layers")
        layers = [_layer(words) for words in lines[2:]]
    except (IndexError, ValueError) as error:
        raise BundleError("not an ncnn network", why=str(error)) from error
    known: set[str] = set()
    for layer in layers:
        if missing := [name for name in layer.inputs if name not in known]:
            raise BundleError("not an ncnn network", where=layer.name, why=f"nothing makes its input {missing[0]}")
        if twice := [name for name in layer.outputs if name in known]:
            raise BundleError("not an ncnn network", where=layer.name, why=f"{twice[0]} is made twice")
        known.update(layer.outputs)
    if len(known) != int(lines[1][1]):
        raise BundleError("not an ncnn network", why=f"it counts {lines[1][1]} blobs and makes {len(known)}")
    return layers


def _layer(words: Sequence[str]) -> Layer:
    kind, name, inputs, outputs = words[0], words[1], int(words[2]), int(words[3])
    first = 4 + inputs + outputs
    if inputs < 0 or outputs < 0 or len(words) < first:
        raise ValueError(f"{name} has fewer blobs than it counts")
    layer = Layer(kind, name, list(words[4 : 4 + inputs]), list(words[4 + inputs : first]))
    for word in words[first:]:
        key, equals, value = word.partition("=")
        numbers = value.split(",")
        if not equals or not all(math.isfinite(float(number)) for number in numbers):
            raise ValueError(f"{name} has the parameter {word}")
        if int(key) <= -ARRAYS and int(numbers[0]) != len(numbers) - 1:
            raise ValueError(f"{name} miscounts the list {word}")
        layer.values[int(key)] = value
    return layer


def write_layers(layers: Sequence[Layer]) -> str:
    """The text of a `.param` file."""
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {blobs}"]
    for layer in layers:
        head = f"{layer.kind:24} {layer.name:24} {len(layer.inputs)} {len(layer.outputs)}"
        values = [f"{key}={value}" for key, value in layer.values.items()]
        lines.append(" ".join([head, *layer.inputs, *layer.outputs, *values]))
    return "\n".join(lines) + "\n"


def arrays_of(layer: Layer) -> list[Array]:
    """What a layer reads from the `.bin` file, in order, as ncnn's own loaders do."""
    get = layer.get

    def tagged(count: int) -> Array:
        return Array(count, True)

    def plain(count: int) -> Array:
        return Array(count, False)

    match layer.kind:
        case "Convolution" | "ConvolutionDepthWise":
            if get(19):  # its weights are a second input
                return []
            scales = get(8)
            each = get(0) if layer.kind == "Convolution" else get(7, 1) if scales % 100 == 1 else 1
            arrays = [tagged(get(6)), *([plain(get(0))] if get(5) else [])]
            return arrays + [plain(each), plain(1)] * bool(scales) + [plain(1)] * (scales > 100)
        case "Deconvolution" | "DeconvolutionDepthWise":
            return [] if get(28) else [tagged(get(6)), *([plain(get(0))] if get(5) else [])]
        case "InnerProduct":
            arrays = [tagged(get(2)), *([plain(get(0))] if get(1) else [])]
            return arrays + [plain(get(0)), plain(1)] * bool(get(8))
        case "Gemm":
            rows, columns, inner = get(7), get(8), get(9)
            added = {0: 1, 1: rows, 2: rows, 3: rows * columns, 4: columns}.get(get(10)) if get(6) else None
            sizes = [rows * inner] * bool(get(4)) + [inner * columns] * bool(get(5))
            return [tagged(size) for size in [*sizes, *([added] if added is not None else [])]]
        case "MultiHeadAttention":
            width, square = get(0), get(2)
            key, value, out = get(3, width), get(4, width), square // max(width, 1)
            pairs = ((square, width), (width * key, width), (width * value, width), (square, out))
            return [array for weights, bias in pairs for array in (tagged(weights), plain(bias))]
        case "LayerNorm" | "GroupNorm" | "InstanceNorm":
            count, default = (get(1), get(3, 1)) if layer.kind == "GroupNorm" else (get(0), get(2, 1))
            return [plain(count)] * 2 * bool(default)
        case "RMSNorm":
            return [plain(get(0))] * bool(get(2, 1))
        case "MemoryData":
            sides = [get(key) or 1 for key in (0, 1, 11, 2)]
            return [Array(math.prod(sides), get(21, 1) == 0)]
        case "BatchNorm":
            return [plain(get(0))] * 4
        case "PReLU":
            return [plain(get(0))]
        case "Scale":
            return [plain(get(0))] * (1 + bool(get(1)))
    return []


def split_weights(layers: Sequence[Layer], data: bytes) -> list[list[bytes]]:
    """The arrays of each layer, tags included, as they lie in a `.bin` file.

    Raises:
        BundleError: the file is longer or shorter than its layers need; ncnn would read past its end.
    """
    position, found = 0, []
    for layer in layers:
        parts = []
        for array in arrays_of(layer):
            size = _size(data, position, array, layer)
            if array.count < 0 or position + size > len(data):
                raise BundleError("the weights of an ncnn network end too early", where=layer.name)
            parts.append(data[position : position + size])
            position += size
        found.append(parts)
    if position != len(data):
        why = f"its layers need {position} bytes, it has {len(data)}"
        raise BundleError("the weights do not fit the ncnn network", why=why)
    return found


def _size(data: bytes, position: int, array: Array, layer: Layer) -> int:
    if not array.tagged:
        return 4 * array.count
    tag = struct.unpack_from("<I", data, position)[0] if position + 4 <= len(data) else RAW
    if tag not in WIDTHS:
        raise BundleError("the weights do not fit the ncnn network", where=layer.name, why=f"unknown storage {tag:#x}")
    return 4 + (WIDTHS[tag] * array.count + 3) // 4 * 4


def known_kinds(layers: Sequence[Layer]) -> bool:
    """Whether the layout of every layer's weights is known here."""
    return not any(layer.kind in UNKNOWN for layer in layers)
