"""ncnn: FP32, FP16 weights (FP16 arithmetic where the CPU has it) and static INT8, converted from ONNX by pnnx."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError
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
from leadline.runtimes.ncnn_file import Layer, read_layers
from leadline.runtimes.ncnn_network import RESULT, SOURCE, WEIGHTS, load_network
from leadline.runtimes.ncnn_quantize import HEAVY, STATIC, static_int8
from leadline.runtimes.refusals import refuse_options

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from leadline.bundle import Bundle

PARAM = "model.ncnn.param"
PATIENCE = 600  # seconds for pnnx


class Ncnn(Runtime):
    """ncnn on the CPU, or on a GPU through Vulkan."""

    name: ClassVar[str] = "ncnn"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)
    packages: ClassVar[str] = "ncnn"

    def availability(self) -> Availability:
        """Whether ncnn and, for exporting, pnnx are installed."""
        for package in ("ncnn", "pnnx"):
            if importlib.util.find_spec(package) is None:
                return Availability(False, reason=f"{package} is not installed", install="pip install ncnn pnnx")
        return Availability(True, version=importlib.metadata.version("ncnn"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Convert the ONNX export to ncnn's two files.

        Raises:
            UnavailableError: the network cannot be exported, or ncnn lacks one of its operators.
            ConfigError: static INT8 without calibration pictures, grids that training left, or an option of INT8 that
                only other engines have.
        """
        from leadline.runtimes.onnx_export import export_onnx
        from leadline.runtimes.onnx_trained import has_trained_grids

        refuse_precision(self, options)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        int8, details = options.precision is Precision.INT8_STATIC, dict[str, Any]()
        if int8:
            refuse_options("ncnn", options, able=("symmetric", "exclude", "per_channel"))
            if has_trained_grids(source):
                why = "ncnn's INT8 is symmetric and for convolutions only, training had other grids"
                raise ConfigError("ncnn cannot take trained INT8", why=why, mend="export to onnxruntime or openvino")
            needs_calibration(options, source)
        proto = export_onnx(source.model, contract, options.cache)
        text, data = _converted(proto, source.name, half=options.precision is Precision.FP16)
        if int8:
            text, data, details = static_int8(text, data, options)
        (out / PARAM).write_text(text, encoding="utf-8")
        (out / WEIGHTS).write_bytes(data)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load the bundle's two files.

        Raises:
            BundleError: they are no ncnn network, or do not belong together.
            UnavailableError: ncnn is missing, or this version lacks an operator.
            ConfigError: there is no such device.
        """
        return _NcnnSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """An extractor of ncnn, set up as ours is."""
        half = bundle.precision == Precision.FP16
        return EXAMPLE.format(param=PARAM, weights=WEIGHTS, half=half, source=SOURCE, result=RESULT)


EXAMPLE = """
import ncnn

net = ncnn.Net()
net.opt.num_threads = 1
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = {half}
net.load_param(str(HERE / "{param}"))
net.load_model(str(HERE / "{weights}"))


def infer(values):
    extractor = net.create_extractor()
    extractor.input("{source}", ncnn.Mat(values[0]))
    return np.array(extractor.extract("{result}")[1]).reshape(1, 1, *values.shape[2:])
"""
RUNTIME = Ncnn()


class _NcnnSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("ncnn", bundle.contract)
        if importlib.util.find_spec("ncnn") is None:
            raise UnavailableError(
                "runtime ncnn is not available", why="ncnn is not installed", mend="run pip install ncnn"
            )
        param, weights = bundle.file(PARAM), bundle.file(WEIGHTS)
        half = bundle.precision == Precision.FP16
        try:
            text, data = param.read_text(encoding="utf-8"), weights.read_bytes()
            self._layers = read_layers(text)
            self._network = load_network(text, data, half=half, threads=options.threads, device=options.device)
        except UnicodeDecodeError as error:
            raise BundleError("not an ncnn network", where=param, why=str(error)) from error
        self._half, self._one_by_one = half, True

    @property
    def precision_ran(self) -> str:
        heavy = [layer for layer in self._layers if layer.kind in HEAVY]
        whole = sum(layer.kind.startswith("Convolution") and layer.get(STATIC) != 0 for layer in heavy)
        if whole:
            return f"int8 ({whole} of {len(heavy)} layers)"
        if not self._half:
            return "fp32"
        return "fp16" if self._bits_between_layers(heavy[0]) == 16 else "fp32 (fp16 weights)"

    def _bits_between_layers(self, layer: Layer) -> int:
        """How wide the numbers are that a layer hands on, which tells whether this CPU computes in FP16."""
        import ncnn

        spec = self.contract.input
        extractor = self._network.create_extractor()
        extractor.input(SOURCE, ncnn.Mat(np.zeros((3, spec.height, spec.width), np.float32)))
        as_stored = 1
        bits: int = extractor.extract(layer.outputs[0], as_stored)[1].elembits()
        return bits

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([self._one(picture) for picture in values])

    def _one(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        import ncnn

        extractor = self._network.create_extractor()
        code = extractor.input(SOURCE, ncnn.Mat(np.ascontiguousarray(picture)))
        if not code:
            code, result = extractor.extract(RESULT)
        if code:
            raise UnavailableError("ncnn cannot run", where=self.contract.name, why=f"it answers with code {code}")
        depth = np.array(result, np.float32)
        return depth.reshape(1, *depth.shape[-2:])

    def close(self) -> None:
        self._network.clear()


def _converted(proto: onnx.ModelProto, name: str, *, half: bool) -> tuple[str, bytes]:
    """The contents of `.param` and `.bin`, made by pnnx in a process of its own."""
    import pnnx

    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        shape = ",".join(str(side.dim_value) for side in proto.graph.input[0].type.tensor_type.shape.dim)
        command = [pnnx.EXEC_PATH, str(path), f"inputshape=[{shape}]", f"fp16={int(half)}"]
        mend = "export it to onnxruntime"
        try:
            ran = subprocess.run(command, cwd=folder, capture_output=True, timeout=PATIENCE, check=False)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise UnavailableError("pnnx failed", where=name, why=type(error).__name__, mend=mend) from error
        made = [Path(folder) / file for file in (PARAM, WEIGHTS)]
        if ran.returncode or not all(file.is_file() for file in made):
            lines = ran.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"it ended with {ran.returncode}"
            raise UnavailableError("pnnx cannot convert", where=name, why=why, mend=mend)
        return made[0].read_text(encoding="utf-8"), made[1].read_bytes()
