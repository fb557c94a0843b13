"""The runtime contract: an engine says whether it is here, exports a model to a bundle, and runs that bundle.

An engine is one module of this package that offers an object `RUNTIME`; it is listed in RUNTIMES. Nothing about an
engine stands anywhere else.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from leadline.errors import ConfigError, UnavailableError, closest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from leadline.bundle import Bundle
    from leadline.contract import Contract

RUNTIMES = {
    "torch": "leadline.runtimes.torch_eager",
    "onnxruntime": "leadline.runtimes.onnx_runtime",
    "openvino": "leadline.runtimes.open_vino",
}


class Precision(StrEnum):
    """The arithmetic that an export asks for."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here: its version, or the reason why not and the line that installs it."""

    available: bool
    version: str = ""
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class ExportOptions:
    """What an export should make.

    Args:
        precision: the arithmetic asked for.
        size: (height, width) of the input in pixels; None takes the contract's.
        dynamic: leave height and width open where the contract allows it.
        calibration: prepared inputs, each 1 x 3 x h x w float32, for static INT8.
        method: how activation ranges are found: min-max, percentile or entropy.
        percentile: of |x| that is kept by the percentile method, 0 to 100.
        per_channel: one weight scale per output channel.
        exclude: names of graph nodes that stay in float.
    """

    precision: Precision = Precision.FP32
    size: tuple[int, int] | None = None
    dynamic: bool = False
    calibration: Sequence[NDArray[np.float32]] = ()
    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionOptions:
    """How a bundle is run: threads (0 = the engine's choice) and the device or provider by the engine's own name."""

    threads: int = 1
    device: str = "cpu"


@dataclass
class Session:
    """An opened bundle.

    `precision_ran` is what the engine really computed in, read back from the engine where it can be.
    """

    contract: Contract
    precision_ran: str = ""
    notes: list[str] = field(default_factory=list)

    def run(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """N x 3 x H x W float32, prepared by the contract, to N x 1 x H x W float32."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the engine holds."""


class Runtime(Protocol):
    """An engine adapter."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]

    def availability(self) -> Availability:
        """Whether the engine runs here, found without importing it where possible."""

    def export(self, model: nn.Module, contract: Contract, options: ExportOptions, out: Path) -> Bundle:
        """Write a bundle folder; parity is checked by the caller.

        Raises:
            UnavailableError: the engine or an operator is missing.
            ConfigError: a precision that the engine does not have, or no calibration data where it needs some.
        """

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Load a bundle that `export` wrote, here or on another machine."""


def runtime(name: str) -> Runtime:
    """The adapter called `name`.

    Raises:
        ConfigError: there is no such runtime.
    """
    if name not in RUNTIMES:
        raise ConfigError("unknown runtime", where=name, mend=closest(name, RUNTIMES))
    return cast("Runtime", importlib.import_module(RUNTIMES[name]).RUNTIME)


def required(name: str) -> Runtime:
    """The adapter called `name`, which must be usable here.

    Raises:
        UnavailableError: it is not; the message says how to install it.
    """
    adapter = runtime(name)
    state = adapter.availability()
    if not state.available:
        raise UnavailableError(f"runtime {name} is not available", why=state.reason, mend=state.install)
    return adapter
