"""`leadline export`: a model as a bundle for one runtime and precision, proven against PyTorch."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import DEFAULT_MODEL, Json, Reference, Size, parse_size
from leadline.runtimes import RUNTIMES
from leadline.runtimes.options import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadline.bundle import Bundle
    from leadline.reference import LoadedModel

HELP = f"""Turn a model into a bundle that a runtime runs.

Runtimes: {", ".join(RUNTIMES)}. Precisions: {", ".join(Precision)}. `leadline doctor` says which runtimes are here and
which precisions each has; an engine refuses the others. Static INT8 is calibrated on the pictures of --calibration (a
folder or a data set; without it, rendered rooms and streets). The bundle is compared with PyTorch at once: a difference
that its precision does not explain is an error, and nothing is written. What the engine really computes in is read
back."""

EXAMPLES = (
    "leadline export leadline-s-indoor --runtime onnxruntime --out runs/fp32",
    "leadline export leadline-s-indoor --runtime openvino --precision int8-static --out runs/int8",
    "leadline export leadline-s-indoor -r onnxruntime -p int8-static --calibration PICTURES --method percentile -o OUT",
    "leadline export random:depth-anything-v2-small -r openvino --dynamic --out runs/any-size",
)


def command(
    reference: Reference = DEFAULT_MODEL,
    *,
    runtime: Annotated[str, typer.Option("--runtime", "-r", metavar="R", help="Engine: one of the runtimes above.")],
    precision: Annotated[
        str, typer.Option("--precision", "-p", metavar="P", help="Arithmetic to ask for: one of the above.")
    ] = "fp32",
    calibration: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--calibration", "-c", metavar="DIR|DATA", help="Pictures for static INT8: folder or data set."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="At most so many calibration pictures.")] = 100,
    method: Annotated[
        str, typer.Option("--method", help="How activation ranges are found: minmax, percentile, entropy or mse.")
    ] = "minmax",
    percentile: Annotated[float, typer.Option("--percentile", help="Of |x| that --method percentile keeps.")] = 99.99,
    per_channel: Annotated[
        bool, typer.Option("--per-channel/--per-tensor", help="One weight scale per output channel, or one for all.")
    ] = True,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Activation ranges symmetric about zero (static INT8).")
    ] = False,
    equalise: Annotated[
        bool, typer.Option("--equalise", help="Even out weights along chains of convolutions with ReLU (static INT8).")
    ] = False,
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction", help="Take each layer's mean error out of its bias (static INT8).")
    ] = False,
    smooth: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--smooth", metavar="ALPHA", help="SmoothQuant for transformers, 0 to 1 (static INT8)."),
    ] = None,
    exclude: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--exclude", metavar="NODE", help="A graph node that stays in float; may be given again."),
    ] = None,
    size: Size = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave batch, height and width open, where the network allows it.")
    ] = False,
    tune_seconds: Annotated[
        float, typer.Option("--tune-seconds", metavar="S", help="Let an engine that can (tvm) tune itself so long.")
    ] = 0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the bundle. [default: NAME-RUNTIME-PRECISION]"),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a model into a bundle that a runtime runs."""
    from leadline.errors import ConfigError, closest
    from leadline.manifest import manifest_kind
    from leadline.output import check_writable
    from leadline.runtimes.base import CALIBRATIONS, ExportOptions, refuse_precision, required

    adapter = required(runtime)
    if precision not in list(Precision):
        raise ConfigError("unknown precision", where=precision, mend=closest(precision, list(Precision)))
    if method not in CALIBRATIONS:
        raise ConfigError("unknown calibration method", where=method, mend=closest(method, CALIBRATIONS))
    if calibration is not None and precision != Precision.INT8_STATIC:
        mend = "leave --calibration out, or ask for int8-static"
        raise ConfigError("nothing to calibrate", where=precision, mend=mend)
    size_wanted = parse_size(size)
    options = ExportOptions(
        precision=Precision(precision),
        size=size_wanted,
        dynamic=dynamic,
        method=method,
        percentile=percentile,
        per_channel=per_channel,
        symmetric=symmetric,
        exclude=tuple(exclude or ()),
        equalise=equalise,
        bias_correction=bias_correction,
        smooth=smooth,
        tune_seconds=tune_seconds,
    )
    refuse_precision(adapter, options)
    folder = out or Path(f"{_plain(reference)}-{runtime}-{precision}")
    check_writable(folder.parent)
    replaced = manifest_kind(folder) == "bundle"

    from leadline.reference import load_exportable
    from leadline.runtimes.calibration import calibration_inputs
    from leadline.runtimes.export import export_bundle
    from leadline.runtimes.onnx_trained import has_trained_grids

    with _status(json) as tell:
        tell("loading")
        loaded = load_exportable(reference)
        if precision == Precision.INT8_STATIC and has_trained_grids(loaded):
            if calibration is not None:
                why = "quantisation-aware training fixed its ranges"
                raise ConfigError("nothing to calibrate in", where=reference, why=why, mend="leave --calibration out")
        elif precision == Precision.INT8_STATIC:
            tell("preparing calibration pictures")
            inputs = calibration_inputs(calibration, loaded.contract, size_wanted, count)
            options = replace(options, calibration=inputs)
        tell("exporting and comparing with PyTorch")
        bundle = export_bundle(loaded, runtime, options, folder)
        tell("counting")
        counts = _counts(loaded, bundle)
        bundle.write_measurements(counts)
    facts = _facts(bundle) | counts | {"replaced": replaced}
    typer.echo(json_module.dumps(facts, indent=2, allow_nan=False) if json else _text(facts))


def _counts(loaded: LoadedModel, bundle: Bundle) -> dict[str, int]:
    """Multiply-accumulates, parameters and activations, which an exported file no longer tells; none of an ONNX."""
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.evaluation.roofline import count_activations
    from leadline.runtimes.onnx_source import OnnxNetwork

    if isinstance(loaded.model, OnnxNetwork):
        return {}
    model, size = loaded.model, bundle.size
    return {
        "macs": count_macs(model, size),
        "parameters": count_parameters(model),
        "activations": count_activations(model, size),
    }


def _facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": str(bundle.folder),
        "runtime": bundle.runtime,
        "precision": bundle.precision,
        "size": list(bundle.size),
        "dynamic": bundle.dynamic,
        "bytes": bundle.size_bytes,
        "details": bundle.details,
    }


def _text(facts: dict[str, Any]) -> str:
    details = facts["details"]
    height, width = facts["size"]
    lines = [
        f"{facts['bundle']}: {facts['runtime']} {facts['precision']}, input {height}x{width} (height x width)"
        + (", any size its contract allows" if facts["dynamic"] else "")
        + f", {facts['bytes'] / 1e6:.2f} MB",
    ]
    lines += _agreement(details)
    if details.get("calibration") == "trained":
        lines.append("ranges and INT8 weights: as quantisation-aware training left them, not calibrated")
    lines += [f"note: {note}" for note in details.get("notes", ())]
    if facts["replaced"]:
        lines.append(f"note: this replaces the earlier bundle at {facts['bundle']}")
    return "\n".join(lines)


def _agreement(details: dict[str, Any]) -> list[str]:
    """What the bundle computes in, and how near to PyTorch it stays.

    Args:
        details: of the bundle; `program` is there where the engine cannot run here and its file was read back and
            computed operator by operator.
    """
    read, lines = details.get("program", {}), [f"computes in: {details['precision_ran']}"]
    if parity := details.get("parity"):
        lines.append(f"against PyTorch fp32 on {parity['pictures']} rendered pictures: {_figures(parity)}")
    elif read.get("compared"):
        count = f"{read['pictures']} {read['of']} picture{'s' if read['pictures'] > 1 else ''}"
        lines = [
            f"computes in: {read['arithmetic']}, as the file says",
            f"the file, computed operator by operator, against PyTorch fp32 on {count}: {_figures(read)}",
        ]
    elif "reason" in read:
        lines.append(f"not compared with PyTorch: {read['reason']}")
    return lines


def _figures(parity: dict[str, Any]) -> str:
    return (
        f"mean |difference| {parity['mean_abs']:.3g} ({parity['relative']:.2%} of the spread), "
        f"largest {parity['max_abs']:.3g}, δ1 {parity['delta1']:.4f}, correlation {parity['correlation']:.5f}"
    )


def _plain(reference: str) -> str:
    name = reference.removeprefix("hf:").removeprefix("random:").rstrip("/")
    return Path(name).name or "model"


@contextmanager
def _status(quiet: bool) -> Iterator[Any]:
    """What is being done now, on stderr where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
