"""CoreML: an .mlpackage for Apple's CPUs, GPUs and Neural Engine; made anywhere, run on macOS and iOS."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError, one_line
from leadline.runtimes.base import (
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Runtime,
    Session,
    SessionOptions,
    bundle_contract,
    bundle_of,
    needs_calibration,
    refuse_precision,
)
from leadline.runtimes.quiet import quiet_engine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from leadline.bundle import Bundle
    from leadline.contract import Contract

INSTALL = 'pip install "leadline[coreml]"'
FOLDER = "model.mlpackage"
MODEL = f"{FOLDER}/Data/com.apple.CoreML/model.mlmodel"
ELSEWHERE = "CoreML runs on macOS only; the package can be made here and run there"
UNITS = {"cpu": "CPU_ONLY", "cpu-gpu": "CPU_AND_GPU", "cpu-ne": "CPU_AND_NE", "all": "ALL"}
PICTURES, SEED = 1, 600_000  # rendered, to compare the file with PyTorch where CoreML cannot run


class CoreML(Runtime):
    """CoreML through coremltools: an ML program (iOS 17, macOS 14 and later) of one fixed size."""

    name: ClassVar[str] = "coreml"
    precisions: ClassVar[tuple[Precision, ...]] = (
        Precision.FP32,
        Precision.FP16,
        Precision.INT8_WEIGHTS,
        Precision.INT8_STATIC,
        Precision.PALETTISED,
    )
    dynamic: ClassVar[bool] = False  # an open size keeps a program off the Neural Engine
    packages: ClassVar[str] = "coremltools"
    takes_onnx: ClassVar[bool] = False

    def availability(self) -> Availability:
        """Whether coremltools is installed; away from macOS it exports only."""
        if importlib.util.find_spec("coremltools") is None:
            return Availability(False, reason="coremltools is not installed", install=INSTALL)
        version = importlib.metadata.version("coremltools")
        return Availability(True, version=version, export_only="" if sys.platform == "darwin" else ELSEWHERE)

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write the package, read it back, and compare what its program computes with PyTorch.

        Raises:
            UnavailableError: coremltools is missing, or does not know an operator of the network.
            ConfigError: a network that is no PyTorch module, static INT8 without calibration pictures, or options that
                CoreML's quantiser does not have.
            ParityError: the program computes something else.
        """
        refuse_precision(self, options)
        refuse_options(source, options)
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        program = converted(source.model, contract, options.precision, source.name)
        details = write_package(program, options, out / FOLDER, source.name)
        details["program"] = compared(source, contract, options, out / FOLDER)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Compile and load the bundle's package on a Mac.

        Raises:
            UnavailableError: this is no Mac, or coremltools is missing.
            ConfigError: no such set of compute units.
            BundleError: CoreML cannot load the package.
        """
        return _CoreMLSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """The package through coremltools on a Mac; apps use the package from Swift."""
        return EXAMPLE.format(folder=FOLDER)


EXAMPLE = """
if sys.platform != "darwin":
    sys.exit("This network needs macOS, whose CoreML computes it.")

import coremltools

UNITS = coremltools.ComputeUnit.ALL
network = coremltools.models.MLModel(str(HERE / "{folder}"), compute_units=UNITS)


def infer(values):
    return np.asarray(network.predict({{"input": values}})["depth"], np.float32)
"""
RUNTIME = CoreML()


def refuse_options(source: Exportable, options: ExportOptions) -> None:
    """Refuse what CoreML's converter and quantiser do not have.

    Raises:
        ConfigError: a network without PyTorch layers, INT8 grids from training, or one of ONNX's own refinements.
    """
    from leadline.runtimes.onnx_source import OnnxNetwork
    from leadline.runtimes.onnx_trained import has_trained_grids

    if isinstance(source.model, OnnxNetwork):
        why = "coremltools converts PyTorch networks, and this one is an ONNX file"
        mend = "run it through onnxruntime's provider: --runtime onnxruntime, device coreml"
        raise ConfigError("coreml cannot export", where=source.name, why=why, mend=mend)
    if options.precision is Precision.INT8_STATIC and has_trained_grids(source):
        why = "its INT8 grids come from training, and CoreML's quantiser would find others"
        raise ConfigError("coreml cannot take", where=source.name, why=why, mend="export to onnxruntime or openvino")
    asked = {
        "excluded nodes": bool(options.exclude),
        "equalise": options.equalise,
        "bias correction": options.bias_correction,
        "smooth": options.smooth is not None,
        "known ranges": options.ranges is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            why = "it has calibration methods, symmetric activations and scales per tensor"
            raise ConfigError(f"coreml has no {name}", where=source.name, why=why, mend="leave it out")


def converted(model: nn.Module, contract: Contract, precision: Precision, name: str) -> Any:
    """The network as a `mil.Program`: input `input`, output `depth`, both float32.

    Raises:
        UnavailableError: coremltools is missing, or does not know an operator of the network.
    """
    import torch

    ct = _import_coremltools()
    example = torch.zeros(1, 3, contract.input.height, contract.input.width)
    narrow = ct.precision.FLOAT32 if precision is Precision.FP32 else ct.precision.FLOAT16
    # These two are beyond coremltools 9; it has rules for all else and does better without PyTorch's decompositions.
    table = torch.export.default_decompositions()
    ones, both = torch.ops.aten.new_ones.default, torch.ops.aten.__and__.Tensor
    try:
        with quiet_engine(), torch.no_grad():
            program = torch.export.export(model.eval(), (example,))
            program = program.run_decompositions({ones: table[ones], both: torch.logical_and})
            return ct.convert(
                program,
                inputs=[ct.TensorType(name="input", shape=example.shape, dtype=np.float32)],
                outputs=[ct.TensorType(name="depth", dtype=np.float32)],
                convert_to="milinternal",
                compute_precision=narrow,
                minimum_deployment_target=ct.target.iOS17,
            )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        why, mend = one_line(error), "export it to onnxruntime, whose coreml provider runs it on a Mac"
        raise UnavailableError("coremltools cannot convert", where=name, why=why, mend=mend) from error


def write_package(program: Any, options: ExportOptions, path: Path, name: str) -> dict[str, Any]:
    """Bring a program to the precision and write it as an .mlpackage.

    Args:
        program: from `converted`; static INT8 changes it.
        options: of the export.
        path: of the folder, which does not exist yet.
        name: of the network, for messages.

    Returns:
        What is known of the precision, for a bundle's details.

    Raises:
        ConfigError: static INT8 of a network without convolutions and linear layers.
    """
    from leadline.runtimes import core_ml_quantize as quantize

    ct = _import_coremltools()
    details: dict[str, Any] = {}
    passes = ct.PassPipeline.EMPTY
    if options.precision is Precision.INT8_STATIC:
        passes, details = quantize.activation_passes(program, options, name=name)
    with quiet_engine():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            pass_pipeline=passes,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        if options.precision in (Precision.INT8_WEIGHTS, Precision.INT8_STATIC):
            model = quantize.int8_weights(model, per_channel=options.per_channel)
        elif options.precision is Precision.PALETTISED:
            model = quantize.palettised_weights(model)
        model.save(str(path))
    if options.precision is Precision.PALETTISED:
        details["palette_bits"] = quantize.PALETTE_BITS
    elif options.precision.startswith("int8"):
        details["per_channel"] = options.per_channel
    _without_chance(path)
    return details


def _without_chance(path: Path) -> None:
    """Name the package's parts by what they are instead of by chance: equal networks make equal bundles."""
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    manifest = path / "Manifest.json"
    known = json.loads(manifest.read_text(encoding="utf-8"))
    new = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for key, item in known["itemInfoEntries"].items()}
    known["itemInfoEntries"] = {new[key]: item for key, item in known["itemInfoEntries"].items()}
    known["rootModelIdentifier"] = new[known["rootModelIdentifier"]]
    manifest.write_text(json.dumps(known, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def compared(source: Exportable, contract: Contract, options: ExportOptions, path: Path) -> dict[str, Any]:
    """Agreement of a package's program, computed operator by operator in PyTorch, with the network.

    Args:
        source: the network.
        contract: of the package.
        options: of the export.
        path: of the package.

    Returns:
        Figures as parity has them, what pictures they are of and the program's arithmetic, or why it was not compared.

    Raises:
        ParityError: they differ by more than the precision may.
    """
    import torch

    from leadline.runtimes.calibration import calibration_inputs
    from leadline.runtimes.core_ml_program import compute, read_program
    from leadline.runtimes.parity import check_parity, compare_outputs

    # A network is what its calibration pictures made it: others would say how far those reach.
    inputs = options.calibration[:PICTURES] or calibration_inputs(None, contract, None, PICTURES, seed=SEED)
    try:
        with quiet_engine():
            program = read_program(path)
        mine = np.concatenate([compute(program, values)["depth"] for values in inputs])
    except UnavailableError as error:
        return {"compared": False, "reason": str(error)}
    with torch.inference_mode():
        theirs = np.concatenate([source.model(torch.from_numpy(values)).numpy() for values in inputs])
    parity = compare_outputs(mine, theirs)
    check_parity(parity, options.precision, name=f"{source.name} coreml {options.precision}")
    of = "calibration" if options.calibration else "rendered"
    return {"compared": True, "of": of, "arithmetic": stored_precision(program), **parity.as_dict()}


def stored_precision(program: Any) -> str:
    """What a program computes its convolutions and matrix products in, as its own types say.

    Returns:
        `fp32`, `fp16`, `fp16 (int8 weights)`, `fp16 (6-bit weights)` or `int8 (38 of 40 layers)`.
    """
    from coremltools.converters.mil.mil import types

    from leadline.runtimes.core_ml_program import operators

    heavy = [each for each in operators(program) if each.op_type in ("conv", "conv_transpose", "linear", "matmul")]
    integer = sum(each.inputs["x"].op is not None and each.inputs["x"].op.op_type == "dequantize" for each in heavy)
    if integer:
        return f"int8 ({integer} of {len(heavy)} layers)"
    kind = "fp16" if any(each.outputs[0].dtype == types.fp16 for each in heavy) else "fp32"
    weights = {each.op_type: each for each in operators(program) if each.op_type.startswith("constexpr_")}
    if "constexpr_lut_to_dense" in weights:
        bits = (len(weights["constexpr_lut_to_dense"].inputs["lut"].val) - 1).bit_length()
        return f"{kind} ({bits}-bit weights)"
    return f"{kind} (int8 weights)" if weights else kind


class _CoreMLSession(Session):
    _one_by_one = True

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("coreml", bundle.contract, ["CoreML chooses its threads itself"])
        if options.device.lower() not in UNITS:
            why = "it has sets of compute units"
            raise ConfigError("coreml cannot use the device", where=options.device, why=why, mend=", ".join(UNITS))
        if RUNTIME.availability().export_only:
            why, mend = f"this is {sys.platform}", "run the bundle on a Mac, or export to another runtime"
            raise UnavailableError("CoreML runs on macOS only", where=bundle.folder, why=why, mend=mend)
        self._path = bundle.file(MODEL).parents[2]
        ct = _import_coremltools()
        units = getattr(ct.ComputeUnit, UNITS[options.device.lower()])
        try:
            with quiet_engine():
                self._model = ct.models.MLModel(str(self._path), compute_units=units)
        except (RuntimeError, OSError) as error:
            raise BundleError("CoreML cannot load", where=self._path, why=one_line(error)) from error

    @property
    def precision_ran(self) -> str:
        from leadline.runtimes.core_ml_program import read_program

        with quiet_engine():
            return stored_precision(read_program(self._path))

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = [self._model.predict({"input": values[index : index + 1]}) for index in range(len(values))]
        return np.concatenate([np.asarray(answer["depth"], np.float32) for answer in answers])

    def close(self) -> None:
        del self._model


def _import_coremltools() -> Any:
    if importlib.util.find_spec("coremltools") is None:
        why, mend = "coremltools is not installed", f"run {INSTALL}"
        raise UnavailableError("runtime coreml is not available", why=why, mend=mend)
    with quiet_engine():  # it remarks on every version that it was not tested with
        import coremltools
    return coremltools
