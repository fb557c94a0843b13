"""LiteRT (TensorFlow Lite): FP32, FP16 or INT8 weights, dynamic and static INT8, on the CPU through XNNPACK."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError, one_line, sides
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
from leadline.runtimes.kept_conversions import kept_conversion
from leadline.runtimes.quiet import quiet_engine
from leadline.runtimes.refusals import refuse_options, refuse_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.bundle import Bundle
    from leadline.contract import Contract

FILE = "model.tflite"
INSTALL = 'pip install "leadline[litert]"'
# The converter's pins clash with each other's (constraints.txt), so it is installed without its dependencies.
CONVERTER = f"{INSTALL} && pip install --no-deps litert-torch==0.10.0 litert-converter==0.5.0 xdsl==0.28.0"
EXPORTERS = {"litert_torch": "litert-torch", "litert_converter": "litert-converter", "xdsl": "xdsl"}
EXPORTERS |= {"ai_edge_quantizer": "ai-edge-quantizer", "jax": "jax"}
HEAVY = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV"}


class LiteRt(Runtime):
    """LiteRT on the CPU; running needs ai-edge-litert alone, exporting the converter too."""

    name: ClassVar[str] = "litert"
    precisions: ClassVar[tuple[Precision, ...]] = (
        Precision.FP32,
        Precision.FP16,
        Precision.INT8_WEIGHTS,
        Precision.INT8_DYNAMIC,
        Precision.INT8_STATIC,
    )
    packages: ClassVar[str] = "ai-edge-litert"
    takes_onnx: ClassVar[bool] = False

    def availability(self) -> Availability:
        """Whether ai-edge-litert, which runs bundles, is installed."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return Availability(False, reason="ai-edge-litert is not installed", install=INSTALL)
        return Availability(True, version=importlib.metadata.version("ai-edge-litert"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Convert to a `.tflite` file of one fixed size with float32 input and output, and quantise it.

        Raises:
            UnavailableError: the converter is missing, or does not know an operator of the network.
            ConfigError: static INT8 without calibration pictures, options or a network that LiteRT's tools do not take,
                dynamic INT8 of a network without linear layers.
        """
        refuse_precision(self, options)
        refuse_options(self.name, options, able=("exclude",))
        refuse_source(self.name, source, options)
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        _require_converter()
        form = f"litert {importlib.metadata.version('litert-torch')}"
        data = kept_conversion(source.model, contract, form, lambda: _converted(source, contract), options.cache)
        details: dict[str, Any] = {}
        if options.precision is not Precision.FP32:
            from leadline.runtimes.litert_quantize import quantised

            data, details = quantised(data, options, name=source.name)
        (out / FILE).write_bytes(data)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load the file and hand it to XNNPACK.

        Raises:
            BundleError: LiteRT cannot read the file.
            ConfigError: a device other than the CPU.
            UnavailableError: ai-edge-litert is missing.
        """
        return _LiteRtSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """An interpreter of LiteRT."""
        return EXAMPLE.format(file=FILE)


EXAMPLE = """
from ai_edge_litert.interpreter import Interpreter

network = Interpreter(str(HERE / "{file}"), num_threads=1)
network.allocate_tensors()
source, target = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]


def infer(values):
    network.set_tensor(source, values)
    network.invoke()
    return network.get_tensor(target)
"""
RUNTIME = LiteRt()


class _LiteRtSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("litert", bundle.contract)
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise UnavailableError(
                "runtime litert is not available", why="ai-edge-litert is not installed", mend=f"run {INSTALL}"
            )
        if options.device.lower() != "cpu":
            raise ConfigError(
                "litert cannot use the device", where=options.device, why="it runs on the CPU here", mend="use cpu"
            )
        from ai_edge_litert.interpreter import Interpreter

        path = bundle.file(FILE)
        # LiteRT takes one thread where no number is given.
        threads = options.threads or os.cpu_count() or 1
        try:
            with quiet_engine():
                self._network = Interpreter(str(path), num_threads=threads)
                self._network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BundleError("litert cannot load", where=path, why=one_line(error)) from error
        self._input, self._output = self._ends(path)
        self._one_by_one = True

    def _ends(self, path: Path) -> tuple[int, int]:
        """Indices of the picture and of the depth, float32 of the contract's size."""
        inputs, outputs = self._network.get_input_details(), self._network.get_output_details()
        size = self.contract.input.height, self.contract.input.width
        wanted = [(1, 3, *size)], [(1, 1, *size)]
        found = tuple([tuple(int(n) for n in each["shape"]) for each in ends] for ends in (inputs, outputs))
        kinds = {np.dtype(each["dtype"]) for each in (*inputs, *outputs)}
        if found != wanted or kinds != {np.dtype(np.float32)}:
            source, result = (", ".join(map(sides, shapes)) for shapes in found)
            why = f"it maps {source} to {result}, {', '.join(sorted(map(str, kinds)))}"
            raise BundleError("the file does not fit its contract", where=path, why=why)
        return inputs[0]["index"], outputs[0]["index"]

    @property
    def precision_ran(self) -> str:
        return stored_precision(self._network)

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        pictures = [self._one(values[index : index + 1]) for index in range(len(values))]
        return pictures[0] if len(pictures) == 1 else np.concatenate(pictures)

    def _one(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        self._network.set_tensor(self._input, np.ascontiguousarray(picture))
        self._network.invoke()
        output: NDArray[np.float32] = self._network.get_tensor(self._output)  # a copy
        return output

    def close(self) -> None:
        del self._network


def stored_precision(network: Any) -> str:
    """What convolutions and matrix products are computed in, by the types of their inputs in the opened file.

    Args:
        network: an `ai_edge_litert.interpreter.Interpreter`.

    Returns:
        `fp32`, `fp32 (fp16 weights)`, `fp32 (int8 weights)` or `int8 (38 of 40 layers)`. Weights stored narrower are
        widened by a DEQUANTIZE before their layer; an INT8 weight beside a float input is computed in INT8, its input
        quantised while running.
    """
    kinds = {each["index"]: np.dtype(each["dtype"]).name for each in network.get_tensor_details()}
    operators = network._get_ops_details()
    widened = {op["outputs"][0]: kinds[op["inputs"][0]] for op in operators if op["op_name"] == "DEQUANTIZE"}
    ran: Counter[str] = Counter()
    for op in operators:
        if op["op_name"] not in HEAVY:
            continue
        first, weight = (0, 1) if op["op_name"] != "TRANSPOSE_CONV" else (2, 1)
        stored = widened.get(op["inputs"][weight], "")
        if "int8" in (kinds[op["inputs"][first]], kinds[op["inputs"][weight]]):
            ran["int8"] += 1
        elif first_float := {"float16": "fp16", "int8": "int8"}.get(stored):
            ran[f"fp32 ({first_float} weights)"] += 1
        else:
            ran["fp32"] += 1
    total = sum(ran.values())
    if ran["int8"]:
        return f"int8 ({ran['int8']} of {total} layers)"
    return ran.most_common(1)[0][0] if total else "unknown"


def _converted(source: Exportable, contract: Contract) -> bytes:
    """The network as a float LiteRT file; inputs and outputs stay N x C x H x W, what lies between is channels-last."""
    with quiet_engine():  # progress lines, deprecations inside torch, a TensorFlow banner
        import litert_torch
        import torch

        spec = contract.input
        example = torch.zeros(1, 3, spec.height, spec.width) + torch.linspace(-1, 1, spec.width)
        device = next((p.device for p in source.model.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                made = litert_torch.convert(source.model.eval(), (example.to(device),))
            data: bytes = made.model_content()
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            why, mend = one_line(error), "export it to onnxruntime"
            raise UnavailableError("litert cannot convert", where=source.name, why=why, mend=mend) from error
    return data


def _require_converter() -> None:
    for module, package in EXPORTERS.items():
        if importlib.util.find_spec(module) is None:
            why = f"{package} is not installed; running its bundles needs ai-edge-litert alone"
            raise UnavailableError("litert cannot export", why=why, mend=f"run {CONVERTER}")
