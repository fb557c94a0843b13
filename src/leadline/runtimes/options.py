"""What an export should make: the arithmetic, and how INT8 is found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, get_args

from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Calibration = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)


class Precision(StrEnum):
    """The arithmetic that an export asks for."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8_WEIGHTS = "int8-weights"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    PALETTISED = "palettised"


@dataclass(frozen=True)
class ExportOptions:
    """What an export should make.

    Args:
        precision: the arithmetic asked for.
        size: (height, width) of the input in pixels; None takes the contract's.
        dynamic: leave height and width open where the contract allows it.
        batch: pictures that one run may take; engines whose files can, leave the number open above 1, and others run a
            batch picture by picture.
        calibration: prepared inputs, each 1 x 3 x h x w float32, for static INT8.
        method: how activation ranges are found (static INT8).
        percentile: of |x| that is kept by the percentile method, 0 to 100.
        per_channel: one weight scale per output channel instead of one per tensor.
        symmetric: activation ranges symmetric about zero (static INT8): cheaper on some engines, coarser after ReLU.
        exclude: names of graph nodes that stay in float (INT8).
        equalise: even out weight ranges along chains of convolutions before quantising (static INT8).
        bias_correction: take the mean error that quantising makes at a layer's output out of its bias (static INT8).
        smooth: share of the activations' outliers that goes over to the weights, 0 to 1 (SmoothQuant, static INT8);
            None for none.
        ranges: (lowest, highest) of activations by tensor name that are known already; no calibration is run then.
        tune_seconds: how long an engine that tunes itself to this machine may search; 0 for not at all.
        cache: folder where engines that go through ONNX share the float graph between precisions and processes.
    """

    precision: Precision = Precision.FP32
    size: tuple[int, int] | None = None
    dynamic: bool = False
    batch: int = 1
    calibration: Sequence[NDArray[np.float32]] = ()
    method: Calibration = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    symmetric: bool = False
    exclude: tuple[str, ...] = ()
    equalise: bool = False
    bias_correction: bool = False
    smooth: float | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None
    tune_seconds: float = 0
    cache: Path | None = None

    @property
    def plain(self) -> bool:
        """Static INT8 by the extremes of activations and nothing else."""
        changed = self.equalise or self.bias_correction or self.smooth is not None or self.exclude or self.ranges
        return self.method == "minmax" and not changed


# Why an engine goes without a precision, by (engine, precision).
LACKS = {
    ("coreml", Precision.BF16): "CoreML computes in FP32, FP16 and INT8",
    ("tensorrt", Precision.INT8_DYNAMIC): "TensorRT wants the ranges of activations before it builds its engine",
    ("coreml", Precision.INT8_DYNAMIC): "CoreML keeps the ranges of activations in the file",
    ("onnxruntime", Precision.BF16): "its convolutions and matrix products for the CPU take FP32 and INT8 only",
    ("torch", Precision.INT8_STATIC): "PyTorch's own static INT8 is not the arithmetic of any device here",
    ("torch", Precision.INT8_WEIGHTS): "eager PyTorch would widen the weights again when it opens them",
}
# Engines whose FP16 on a CPU is a file of half the size that is computed in FP32.
WIDENS_FP16 = frozenset({"torch", "onnxruntime", "openvino", "litert"})


def check_options(options: ExportOptions) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: something of static INT8 is asked for with another precision, or a value lies outside its range.
    """
    if not 0 < options.percentile <= 100:
        raise ConfigError("bad percentile", where=options.percentile, why="it must lie above 0 and be at most 100")
    if options.smooth is not None and not 0 <= options.smooth <= 1:
        why = "the share that goes over to the weights lies between 0 and 1"
        raise ConfigError("bad smoothing strength", where=options.smooth, why=why, mend="0.5 is usual")
    wanted = {
        "equalise": options.equalise,
        "bias correction": options.bias_correction,
        "smooth": options.smooth is not None,
        "symmetric activations": options.symmetric,
        f"method {options.method}": options.method != "minmax",
    }
    asked = next((name for name, is_wanted in wanted.items() if is_wanted), None)
    if asked is not None and options.precision is not Precision.INT8_STATIC:
        mend = "ask for int8-static, or leave it out"
        raise ConfigError(f"{asked} belongs to int8-static", where=str(options.precision), mend=mend)
    if options.exclude and not options.precision.startswith("int8"):
        mend = "ask for an INT8 precision, or leave it out"
        raise ConfigError("nothing to exclude from", where=str(options.precision), mend=mend)
