"""Static INT8 for ncnn, written into its files: the pip packages have neither ncnn2table nor ncnn2int8.

Weights have one scale per output channel (per channel of a depthwise convolution), activations one per tensor; both
are symmetric: 127 over the largest magnitude (ncnn's documentation, "quantized int8 inference").
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import ConfigError, closest
from leadline.runtimes.ncnn_file import INT8, RAW, Layer, read_layers, split_weights, write_layers
from leadline.runtimes.ncnn_network import SOURCE, load_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from leadline.runtimes.base import ExportOptions

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
HEAVY = {*CONVOLUTIONS, "Deconvolution", "DeconvolutionDepthWise", "InnerProduct", "Gemm", "MatMul"}
HEAVY |= {"MultiHeadAttention"}
STATIC = 8  # a convolution's parameter: how its scales are given; 100 more where its output leaves as INT8


def static_int8(text: str, data: bytes, options: ExportOptions) -> tuple[str, bytes, dict[str, Any]]:
    """Convolutions in INT8, everything else as it was.

    Args:
        text: the FP32 `.param` file.
        data: the FP32 `.bin` file.
        options: calibration inputs, layers that stay in float, one weight scale per channel or one for all.

    Returns:
        `.param`, `.bin` and details for the bundle.

    Raises:
        ConfigError: no calibration inputs, a layer to leave out is none of the network's, or nothing is left.
    """
    if not options.calibration:
        mend = "give pictures with --calibration DIR"
        raise ConfigError("static INT8 needs calibration pictures", why="the calibration set is empty", mend=mend)
    layers = read_layers(text)
    weights = split_weights(layers, data)
    names = [layer.name for layer in layers if layer.kind in CONVOLUTIONS and not layer.get(19)]
    if strangers := [name for name in options.exclude if name not in names]:
        mend = closest(strangers[0], names)
        raise ConfigError("no such convolution to leave out", where=strangers[0], mend=mend)
    chosen = [layer for layer in layers if layer.name in set(names) - set(options.exclude)]
    if not chosen:
        raise ConfigError("nothing to quantise", why="ncnn's static INT8 is for convolutions, and none is left")
    largest = _largest({layer.inputs[0] for layer in chosen}, text, data, options.calibration)
    scales = {layer.name: 127 / (largest[layer.inputs[0]] or 1.0) for layer in chosen}
    written = []
    for layer, arrays in zip(layers, weights, strict=True):
        if layer.name in scales:
            following = _only_reader(layer, layers)
            out = scales.get(following.name) if following is not None else None
            arrays = _quantised(layer, arrays, scales[layer.name], out, per_channel=options.per_channel)
        written += arrays
    details = {"symmetric": True, "calibration": "minmax", "calibration_pictures": len(options.calibration)}
    return write_layers(layers), b"".join(written), details


def _largest(blobs: set[str], text: str, data: bytes, inputs: Sequence[NDArray[np.float32]]) -> Mapping[str, float]:
    """The largest magnitude of each blob over the calibration inputs, computed by ncnn in FP32."""
    import ncnn

    network = load_network(text, data, half=False, keep=True)
    largest = dict.fromkeys(blobs, 0.0)
    for values in inputs:
        extractor = network.create_extractor()
        extractor.input(SOURCE, ncnn.Mat(np.ascontiguousarray(values[0])))
        for blob in sorted(blobs):
            code, mat = extractor.extract(blob)
            if code:
                raise ConfigError("ncnn cannot compute on a calibration picture", where=blob, why=f"code {code}")
            largest[blob] = max(largest[blob], float(np.abs(np.array(mat)).max()))
    return largest


def _only_reader(layer: Layer, layers: Sequence[Layer]) -> Layer | None:
    """The one convolution that reads a layer's output, which may then stay INT8."""
    readers = [other for other in layers if layer.outputs[0] in other.inputs]
    return readers[0] if len(readers) == 1 and readers[0].kind in CONVOLUTIONS else None


def _quantised(layer: Layer, arrays: list[bytes], scale: float, out: float | None, *, per_channel: bool) -> list[bytes]:
    """A convolution's arrays with INT8 weights; the layer's parameters are changed accordingly."""
    count = layer.get(7, 1) if layer.kind == "ConvolutionDepthWise" else layer.get(0)
    values = np.frombuffer(arrays[0], np.float32, offset=4).reshape(count, -1)
    assert struct.unpack_from("<I", arrays[0])[0] == RAW
    magnitude = np.abs(values).max(axis=1) if per_channel else np.full(count, np.abs(values).max())
    scales = np.where(magnitude > 0, 127 / np.maximum(magnitude, 1e-30), 1.0).astype(np.float32)
    whole = np.clip(np.rint(values * scales[:, None]), -127, 127).astype(np.int8).tobytes()
    term = (1 if layer.kind == "ConvolutionDepthWise" else 2) + (100 if out is not None else 0)
    layer.values[STATIC] = str(term)
    ends = [struct.pack("<f", scale), *([struct.pack("<f", out)] if out is not None else [])]
    return [struct.pack("<I", INT8) + whole + bytes(-len(whole) % 4), *arrays[1:], scales.tobytes(), *ends]
