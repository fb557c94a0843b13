"""ExecuTorch: FP32, dynamic INT8 (Linear layers) and static INT8 on the CPU through XNNPACK."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import struct
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, NumericalError, UnavailableError, one_line, sides
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
from leadline.runtimes.executorch_program import is_program, program_precision
from leadline.runtimes.kept_conversions import kept_conversion
from leadline.runtimes.quiet import quiet_engine
from leadline.runtimes.refusals import refuse_options, refuse_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.bundle import Bundle

FILE = "model.pte"
INSTALL = 'pip install "leadline[executorch]"'


class ExecuTorch(Runtime):
    """ExecuTorch with XNNPACK, which the package's Python runtime holds."""

    name: ClassVar[str] = "executorch"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32, Precision.INT8_DYNAMIC, Precision.INT8_STATIC)
    packages: ClassVar[str] = "executorch torch"
    takes_onnx: ClassVar[bool] = False

    def availability(self) -> Availability:
        """Whether executorch, which exports and runs, is installed."""
        if importlib.util.find_spec("executorch") is None:
            return Availability(False, reason="executorch is not installed", install=INSTALL)
        return Availability(True, version=importlib.metadata.version("executorch"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write a `.pte` program of one fixed size with float32 input and output.

        Raises:
            UnavailableError: executorch is missing, or does not know an operator of the network.
            ConfigError: static INT8 without calibration pictures, options or a network that ExecuTorch does not take,
                dynamic INT8 of a network without Linear layers.
        """
        from leadline.runtimes.executorch_export import lowered

        refuse_precision(self, options)
        refuse_options(self.name, options, able=("exclude", "per_channel"))
        refuse_source(self.name, source, options)
        _require()
        needs_calibration(options, source)
        contract = bundle_contract(source.contract, options.size, options.dynamic)

        def lower() -> bytes:
            return lowered(source.model, contract, options, name=source.name)

        details: dict[str, Any] = {}
        if options.precision is Precision.FP32:
            form = f"executorch {importlib.metadata.version('executorch')}"
            data = kept_conversion(source.model, contract, form, lower, options.cache)
        else:
            data = lower()
            details = {"per_channel": options.per_channel, "excluded": list(options.exclude)}
        if options.precision is Precision.INT8_STATIC:
            details |= {"symmetric": False, "calibration": "minmax, moving average"}
        (out / FILE).write_bytes(data)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load the program.

        Raises:
            BundleError: ExecuTorch cannot read the file.
            ConfigError: a device other than the CPU.
            UnavailableError: executorch is missing.
        """
        return _ExecuTorchSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """ExecuTorch's Python runtime."""
        return EXAMPLE.format(file=FILE)


EXAMPLE = """
import os

errors = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the engine remarks on processors and libraries that are not here
try:
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(HERE / "{file}")
    network = program.load_method("forward")
finally:
    os.dup2(errors, 2)


def infer(values):
    return network.execute([torch.from_numpy(values)])[0].numpy()
"""
RUNTIME = ExecuTorch()


class _Pool:
    """The one pool of threads that all programs of the process share, and which a program keeps hold of."""

    def __init__(self) -> None:
        self.usual = 0  # threads that ExecuTorch takes by itself
        self.made = 0  # how often the pool was made anew; a program loaded before would use the one that is gone

    def set(self, library: Any, threads: int) -> None:
        """Have so many threads; 0 for ExecuTorch's own choice."""
        now = library._threadpool_get_thread_count()
        self.usual = self.usual or now
        if now != (threads or self.usual):
            library._unsafe_reset_threadpool(threads or self.usual)
            self.made += 1


_pool = _Pool()


class _ExecuTorchSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__("executorch", bundle.contract)
        _require()
        if options.device.lower() != "cpu":
            why = "a program is lowered to its device when it is exported, here to the CPU"
            raise ConfigError("executorch cannot use the device", where=options.device, why=why, mend="use cpu")
        self._path, self._threads, self._one_by_one = bundle.file(FILE), options.threads, True
        data = self._path.read_bytes()
        if not is_program(data):
            raise BundleError("executorch cannot load", where=self._path, why="it is no ExecuTorch program")
        try:
            self._precision = program_precision(data)
        except (struct.error, IndexError) as error:
            why = "a graph inside it reaches beyond the end of the file"
            raise BundleError("executorch cannot load", where=self._path, why=why) from error
        self._load()
        self._check_ends()

    @property
    def precision_ran(self) -> str:
        return self._precision

    def _load(self) -> None:
        with quiet_engine():  # remarks of its C++ on the processor, and that its interface is experimental
            from executorch import runtime as engine

            library = engine.Runtime.get()._legacy_module
            _pool.set(library, self._threads)
            try:
                self._program = engine.Runtime.get().load_program(self._path)
                self._method = self._program.load_method("forward")
            except (RuntimeError, KeyError) as error:
                why = one_line(error)
                raise BundleError("executorch cannot load", where=self._path, why=why) from error
        self._library, self._pool_made = library, _pool.made

    def _check_ends(self) -> None:
        """The program must take a picture and return depth, float32 of the contract's size."""
        facts, spec = self._method.metadata, self.contract.input
        ends = [(facts.num_inputs(), facts.input_tensor_meta, 3), (facts.num_outputs(), facts.output_tensor_meta, 1)]
        for count, tensor, channels in ends:
            if count != 1 or tuple(tensor(0).sizes()) != (1, channels, spec.height, spec.width):
                found = ", ".join(sides(tensor(index).sizes()) for index in range(count))
                why = f"it has {found or 'no tensors'}"
                raise BundleError("the file does not fit its contract", where=self._path, why=why)

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        _pool.set(self._library, self._threads)
        if self._pool_made != _pool.made:  # another session asked for other threads
            self._load()
        outputs: list[NDArray[np.float32]] = []
        for index in range(len(values)):
            picture = torch.from_numpy(np.ascontiguousarray(values[index : index + 1]))
            try:
                outputs.append(self._method.execute([picture])[0].numpy().copy())
            except RuntimeError as error:
                why = one_line(error)
                raise NumericalError("executorch could not run", where=self._path, why=why) from error
        return np.concatenate(outputs)

    def close(self) -> None:
        del self._method, self._program


def _require() -> None:
    if importlib.util.find_spec("executorch") is None:
        why = "executorch is not installed"
        raise UnavailableError("runtime executorch is not available", why=why, mend=f"run {INSTALL}")
