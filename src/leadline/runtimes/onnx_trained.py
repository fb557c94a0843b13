"""Static INT8 with the grids that quantisation-aware training left, in the place of calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError
from leadline.runtimes.onnx_points import check_all_stored, overrides

if TYPE_CHECKING:
    import onnx

    from leadline.runtimes.base import Exportable
    from leadline.runtimes.options import ExportOptions

TRAINED = "trained"  # in the details, where calibration names its rule


def has_trained_grids(source: Exportable) -> bool:
    """Whether a network brings INT8 grids, and its weights lie on them still."""
    return source.quantization is not None and source.quantization.fits(source.model)


def trained_int8(
    proto: onnx.ModelProto, options: ExportOptions, source: Exportable
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The Q/DQ graph that the network was trained as: ONNX Runtime and OpenVINO compute what training saw.

    Args:
        proto: the float graph of `source`.
        options: `exclude` counts; the rule of calibration and its pictures do not matter.
        source: has `quantization`.

    Raises:
        ConfigError: options that would change the weights or the form of the grids, an excluded node that does not
            exist, or a graph that the grids do not fit.
    """
    from leadline.runtimes.onnx_graph import slim
    from leadline.runtimes.onnx_quantize import int8_layers

    _, quantised = trained_graphs(proto, options, source)
    details = {
        "quantised_layers": int8_layers(quantised),
        "per_channel": True,
        "symmetric": False,
        "calibration": TRAINED,
        "excluded": list(options.exclude),
    }
    return slim(quantised), details


def trained_graphs(
    proto: onnx.ModelProto, options: ExportOptions, source: Exportable
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float graph that the quantiser took, and the Q/DQ graph with the graph's own names; see `trained_int8`."""
    from leadline.runtimes.onnx_quantize import prepared, with_pairs

    assert source.quantization is not None
    asked = {
        "equalise": options.equalise,
        "bias correction": options.bias_correction,
        "smooth": options.smooth is not None,
        "symmetric activations": options.symmetric,
        "one scale per tensor": not options.per_channel,
    }
    for name, wanted in asked.items():
        if wanted:
            why = "quantisation-aware training fixed its INT8 weights and ranges"
            raise ConfigError(f"{name} is not for", where=source.name, why=why, mend="leave it out")
    ready, _ = prepared(proto, options, name=source.name)
    grids = overrides(ready, source.quantization, source.model)
    computed = [key for node in ready.graph.node for key in node.output] + [each.name for each in ready.graph.input]
    quantised = with_pairs(ready, dict.fromkeys(computed, (0.0, 1.0)), options, grids)  # grids stand above limits
    check_all_stored(quantised, grids, where=source.name)
    return ready, quantised
