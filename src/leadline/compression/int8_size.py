"""How large a quantised network is: its weights in INT8 as they stand, and in archives, where zeros count."""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError
from leadline.models.quantization import along

if TYPE_CHECKING:
    from leadline.reference import LoadedModel

LEVEL = 9  # of deflate and xz, the slowest


@dataclass(frozen=True)
class Size:
    """Bytes of a network's parameters, without the file format's own.

    Args:
        fp32: four for every parameter, as many as the network has now.
        int8: one for each weight of a quantised layer, four for the rest and for each step.
        deflated: the same bytes in a ZIP archive, tensor by tensor; zeros that pruning left take little room there, and
            none is saved in memory or time by an engine that computes densely.
        xz: the same bytes as one stream in an xz archive.
        zeros: share of zeros among the INT8 weights.
    """

    fp32: int
    int8: int
    deflated: int
    xz: int
    zeros: float

    @property
    def said(self) -> str:
        """In words."""
        dense, packed, smallest = (size / self.fp32 for size in (self.int8, self.deflated, self.xz))
        sizes = f"{dense:.3f} of FP32's bytes, {packed:.3f} deflated, {smallest:.3f} in xz"
        return f"INT8 weights: {sizes}; {self.zeros:.1%} are 0"


def int8_size(network: LoadedModel) -> Size:
    """Count a network that quantisation-aware training left.

    Raises:
        ConfigError: it has no INT8 grids.
    """
    grids = network.quantization
    if grids is None:
        raise ConfigError("no INT8 grids in", where=network.name, mend="train it with the step `qat`")
    fp32 = zeros = weights = 0
    tensors: list[bytes] = []
    identity = _added_alone(network)
    for name, value in network.model.named_parameters():
        array = value.detach().cpu().numpy()
        if name in identity:
            continue
        fp32 += 4 * array.size
        if name in grids.weights:
            channels = grids.weights[name]
            integers = np.rint(array / along(channels.steps, channels.axis, array.ndim).numpy()).astype(np.int8)
            steps = channels.steps.numpy().astype(np.float32)
            weights, zeros = weights + integers.size, zeros + int((integers == 0).sum())
            tensors += [integers.tobytes(), steps.tobytes()]
        else:
            tensors.append(array.tobytes())
    whole = b"".join(tensors)
    deflated = sum(len(zlib.compress(tensor, LEVEL)) for tensor in tensors)
    xz = len(lzma.compress(whole, preset=LEVEL | lzma.PRESET_EXTREME))
    return Size(fp32, len(whole), deflated, xz, zeros / max(1, weights))


def _added_alone(network: LoadedModel) -> set[str]:
    """Scales of batch norms that folding left at 1: they are not in any file that a device runs."""
    from torch import nn

    return {
        f"{name}.weight"
        for name, module in network.model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and bool((module.weight == 1).all())
    }
