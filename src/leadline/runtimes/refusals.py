"""What engines that convert a PyTorch network by themselves refuse: options of quantising that they do not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.errors import ConfigError
from leadline.runtimes.options import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.runtimes.base import Exportable
    from leadline.runtimes.options import ExportOptions

ELSEWHERE = "export to onnxruntime or openvino"


def refuse_options(engine: str, options: ExportOptions, able: Sequence[str] = ()) -> None:
    """Refuse what the engine's quantiser would ignore.

    Args:
        engine: name of the runtime.
        options: of the export.
        able: those of `method`, `symmetric`, `exclude`, `per_channel`, `equalise`, `bias_correction`, `smooth`,
            `ranges` that it does have.

    Raises:
        ConfigError: names the option and the engines that have it.
    """
    asked = {
        "method": (options.method != "minmax", f"calibration by {options.method}"),
        "symmetric": (options.symmetric, "symmetric activations"),
        "exclude": (bool(options.exclude), "excluding layers"),
        "per_channel": (not options.per_channel, "one weight scale per tensor"),
        "equalise": (options.equalise, "equalising weights"),
        "bias_correction": (options.bias_correction, "bias correction"),
        "smooth": (options.smooth is not None, "smoothing"),
        "ranges": (options.ranges is not None, "ranges that are known already"),
    }
    for name, (is_asked, words) in asked.items():
        if is_asked and name not in able:
            raise ConfigError(f"{engine} does not have {words}", mend=f"leave it out, or {ELSEWHERE}")


def refuse_source(engine: str, source: Exportable, options: ExportOptions) -> None:
    """Refuse networks that the engine cannot take as they are.

    Raises:
        ConfigError: the network is an ONNX file, or static INT8 is asked of one that was trained on INT8 grids: new
            ones by calibration would silently undo that training.
    """
    from leadline.runtimes.onnx_source import OnnxNetwork

    if isinstance(source.model, OnnxNetwork):
        why = "it converts PyTorch networks, and this one is an ONNX file"
        raise ConfigError(f"{engine} cannot convert", where=source.name, why=why, mend=ELSEWHERE)
    trained = source.quantization
    if options.precision is Precision.INT8_STATIC and trained is not None and trained.fits(source.model):
        why = "the network was trained on INT8 grids, which its quantiser would replace by calibrated ones"
        raise ConfigError(f"{engine} cannot keep the grids of", where=source.name, why=why, mend=ELSEWHERE)
