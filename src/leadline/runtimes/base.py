"""The runtime contract: an engine says whether it is here, exports a model to a bundle, and runs that bundle.

An engine is one module of this package that offers an object `RUNTIME`; it is listed in `leadline.runtimes.RUNTIMES`.
Nothing about an engine stands anywhere else.
"""

from __future__ import annotations

import importlib
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np

from leadline.bundle import write_bundle
from leadline.errors import ConfigError, ContractError, NumericalError, UnavailableError, closest, sides
from leadline.runtimes import RUNTIMES
from leadline.runtimes.options import CALIBRATIONS, LACKS, Calibration, ExportOptions, Precision, check_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydantic import BaseModel
    from torch import nn

    from leadline.bundle import Bundle
    from leadline.contract import Contract
    from leadline.models.quantization import Quantization
    from leadline.runtimes.layer_time import LayerTime

__all__ = [
    "CALIBRATIONS",
    "RUNTIMES",
    "Availability",
    "Calibration",
    "ExportOptions",
    "Exportable",
    "Precision",
    "Runtime",
    "Session",
    "SessionOptions",
    "bundle_contract",
    "bundle_of",
    "check_options",
    "needs_calibration",
    "refuse_precision",
    "required",
    "runtime",
    "usual_runtimes",
]


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be used here.

    Args:
        available: it exports here, runs here, or both.
        version: of the engine.
        reason: why it is not available.
        install: the line that installs it.
        export_only: why its bundles cannot be run on this machine; empty where they can.
        note: what else it found that a user may want to know.
    """

    available: bool
    version: str = ""
    reason: str = ""
    install: str = ""
    export_only: str = ""
    note: str = ""


@dataclass(frozen=True)
class SessionOptions:
    """How a bundle is run: threads (0 = the engine's choice) and the device or provider by the engine's own name."""

    threads: int = 1
    device: str = "cpu"


class Exportable(Protocol):
    """A model in memory with what is known about it, as `leadline.reference.load_model` returns it."""

    @property
    def model(self) -> nn.Module:
        """The network, float32, in eval mode."""

    @property
    def contract(self) -> Contract:
        """What it expects and returns."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def lineage(self) -> Sequence[dict[str, Any]]:
        """The steps that made it."""

    @property
    def architecture(self) -> str | None:
        """Its entry in `leadline.models.registry`; None for a network that is not ours."""

    @property
    def config(self) -> BaseModel | None:
        """The architecture's configuration."""

    @property
    def quantization(self) -> Quantization | None:
        """INT8 grids that training left; None where it was not trained so."""


class Session(ABC):
    """An opened model: checks what goes in and what comes out, and leaves the computing to the engine.

    Args:
        engine: name of the runtime, for messages.
        contract: what the network expects and returns; a fixed-size file has a contract with a fixed size.
        notes: what the user should know about this session.
    """

    _one_by_one: bool = False

    def __init__(self, engine: str, contract: Contract, notes: Sequence[str] = ()) -> None:
        self.engine, self.contract, self.notes = engine, contract, list(notes)

    def run(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Infer.

        Args:
            values: N x 3 x H x W float32, prepared by the contract.

        Returns:
            N x 1 x H x W float32, raw values of the contract's output kind.

        Raises:
            ContractError: wrong shape, dtype or size of the input.
            NumericalError: the engine returned NaN or infinity.
        """
        self._check_input(values)
        output = self._infer(values)
        if not np.isfinite(output).all():
            share = 1 - float(np.isfinite(output).mean())
            mend = "use a wider precision" if np.isfinite(values).all() else "the input holds NaN or infinity"
            place = f"{self.engine} ({self.precision_ran})"
            raise NumericalError("NaN or infinity in the output of", where=place, why=f"{share:.1%} of it", mend=mend)
        return output

    @property
    def precision_ran(self) -> str:
        """What the engine really computes in, read back from it where it can be asked."""
        raise NotImplementedError

    @abstractmethod
    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The engine's own call."""

    @property
    def one_by_one(self) -> bool:
        """Whether a batch is run picture by picture, because the file takes one only."""
        return self._one_by_one

    def last_parts(self) -> dict[str, float] | None:
        """Milliseconds of the last run's host-to-device copy, compute and device-to-host copy; None where it is one."""
        return None

    def profile(self, values: NDArray[np.float32], runs: int) -> list[LayerTime] | None:
        """Time of each layer by the engine's own profiler; None: it has none.

        Args:
            values: as for `run`.
            runs: that count; medians are over them.
        """
        return None

    def device_mib(self) -> float | None:
        """Largest memory that the engine has held on an accelerator, MiB, as the engine counts it; None on a CPU."""
        return None

    def close(self) -> None:  # noqa: B027  (engines that hold nothing need not override it)
        """Free what the engine holds."""

    def _check_input(self, values: NDArray[np.float32]) -> None:
        if values.ndim != 4 or values.shape[1] != 3 or values.dtype != np.float32 or 0 in values.shape:
            why = f"got {values.dtype} {sides(values.shape)}"
            raise ContractError("the input must be float32 N x 3 x H x W", why=why)
        self.contract.checked_size((values.shape[2], values.shape[3]))


class Runtime(ABC):
    """An engine adapter: what differs from the defaults here is said by the engine."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]
    packages: ClassVar[str]  # what pip installs to run a bundle
    dynamic: ClassVar[bool] = False  # whether a bundle may leave height and width open
    tunes: ClassVar[bool] = False  # whether an export can search for what is fast on this machine
    by_name_only: ClassVar[str] = ""  # why nobody wants it tried without having asked for it; empty for most
    in_process: ClassVar[bool] = True  # whether the engine computes in this process, so that its clock counts
    takes_onnx: ClassVar[bool] = True  # whether `export` and `open_network` take an ONNX file as the network

    @abstractmethod
    def availability(self) -> Availability:
        """Whether the engine runs here, found without importing it where possible."""

    @abstractmethod
    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write a bundle into the existing folder `out`; `leadline.runtimes.export` checks parity and atomicity.

        Raises:
            UnavailableError: the engine or an operator is missing.
            ConfigError: a precision that the engine does not have, or no calibration data where it needs some.
        """

    @abstractmethod
    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load a bundle that `export` wrote, here or on another machine.

        Raises:
            BundleError: a file is missing or damaged.
            UnavailableError: the engine is missing.
        """

    def open_network(self, source: Exportable, options: SessionOptions) -> Session:
        """Run a network in float as this engine would run its bundle, whether or not it is one of the registry's.

        Raises:
            UnavailableError: the engine, or an operator, is missing.
        """
        with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
            return self.open(self.export(source, ExportOptions(), Path(folder)), options)

    def example(self, bundle: Bundle) -> str:
        """Python lines that define `infer(values)` with the engine alone, for a bundle's `example.py`.

        They run beside the bundle's files, with `HERE` (its folder, a Path) and numpy as `np`; `values` and the result
        are 1 x 3 x H x W and 1 x 1 x H x W float32 arrays. Empty where a bundle needs Leadline to run.
        """
        return ""


def bundle_contract(contract: Contract, size: tuple[int, int] | None, dynamic: bool) -> Contract:
    """The contract of an exported file: its own size, which is fixed (pictures are stretched to it) or stays dynamic.

    Raises:
        ContractError: the size is not allowed.
        ConfigError: `dynamic` was asked of a network with a fixed input.
    """
    if dynamic and not contract.input.dynamic:
        mend = "leave --dynamic out"
        raise ConfigError("cannot leave the size open", where=contract.name, why="its input is fixed", mend=mend)
    height, width = contract.checked_size(size or (contract.input.height, contract.input.width))
    changes: dict[str, Any] = {"height": height, "width": width, "dynamic": dynamic}
    if not dynamic:
        changes["resize"] = "stretch"
    return contract.model_copy(update={"input": contract.input.model_copy(update=changes)})


def bundle_of(
    adapter: Runtime,
    source: Exportable,
    options: ExportOptions,
    contract: Contract,
    folder: Path,
    details: dict[str, Any],
) -> Bundle:
    """The engine's files in `folder` as a bundle of what was asked for.

    Args:
        adapter: the engine.
        source: the network that was exported.
        options: of the export.
        contract: of the files, as `bundle_contract` gives it.
        folder: holds the files.
        details: what the adapter needs to know again; plain JSON values.

    Raises:
        OutputError: the place is full or not writable.
    """
    return write_bundle(
        folder,
        runtime=adapter.name,
        precision=str(options.precision),
        contract=contract,
        size=(contract.input.height, contract.input.width),
        dynamic=options.dynamic,
        lineage=source.lineage,
        details=details,
    )


def needs_calibration(options: ExportOptions, source: Exportable) -> None:
    """Refuse static INT8 without pictures, unless training has left its ranges.

    Raises:
        ConfigError: static INT8 was asked for, and there are no calibration inputs.
    """
    from leadline.runtimes.onnx_trained import has_trained_grids

    if options.precision is not Precision.INT8_STATIC or options.calibration or options.ranges is not None:
        return
    if not has_trained_grids(source):
        mend = "give pictures with --calibration DIR, or leave it out for rendered ones"
        raise ConfigError("static INT8 needs calibration pictures", why="the calibration set is empty", mend=mend)


def refuse_precision(adapter: Runtime, options: ExportOptions) -> None:
    """Refuse a precision that the engine does not have, and options that the precision does not know.

    Raises:
        ConfigError: it does not have it (the message lists those that it has), it cannot leave the size open, or
            options contradict each other.
    """
    if options.precision not in adapter.precisions:
        known = ", ".join(adapter.precisions)
        why = LACKS.get((adapter.name, options.precision), "")
        what = f"{adapter.name} has no precision"
        raise ConfigError(what, where=str(options.precision), why=why, mend=f"known: {known}")
    if options.dynamic and not adapter.dynamic:
        mend = "leave --dynamic out, or export one bundle per size"
        raise ConfigError(f"{adapter.name} cannot leave the size open", where="--dynamic", mend=mend)
    if options.tune_seconds and not adapter.tunes:
        raise ConfigError(f"{adapter.name} cannot be tuned", where="--tune-seconds", mend="leave it out")
    if not 0 <= options.tune_seconds < float("inf"):
        raise ConfigError("bad time for tuning", where=options.tune_seconds, why="it is 0 seconds or more")
    check_options(options)


def runtime(name: str) -> Runtime:
    """The adapter called `name`.

    Raises:
        ConfigError: there is no such runtime.
    """
    if name not in RUNTIMES:
        raise ConfigError("unknown runtime", where=name, mend=closest(name, RUNTIMES))
    return cast("Runtime", importlib.import_module(RUNTIMES[name]).RUNTIME)


def usual_runtimes() -> tuple[list[str], str]:
    """The engines that are tried where none is named, and what is left out and why, in words (empty: nothing is)."""
    taken, missing, waiting = [], [], []
    for name in RUNTIMES:
        adapter = runtime(name)
        state = adapter.availability()
        if adapter.by_name_only or state.export_only:
            waiting.append(f"{name} ({adapter.by_name_only or state.export_only})")
        elif not state.available:
            missing.append(name)
        else:
            taken.append(name)
    said = [f"not installed: {', '.join(missing)} (`leadline doctor` says how)"] if missing else []
    said += [f"by name only: {', '.join(waiting)}"] if waiting else []
    return taken, f"Engines that were not tried: {'; '.join(said)}." if said else ""


def required(name: str) -> Runtime:
    """The adapter called `name`, which must be usable here.

    Raises:
        UnavailableError: it is not; the message says how to install it.
    """
    adapter = runtime(name)
    state = adapter.availability()
    if not state.available:
        raise UnavailableError(f"runtime {name} is not available", why=state.reason, mend=f"run {state.install}")
    return adapter
