"""PyTorch, compiled: the eager runtime's bundles through torch.compile, with kernels for this machine."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import ConfigError, UnavailableError, one_line
from leadline.runtimes.base import Availability, Precision, Session, SessionOptions
from leadline.runtimes.quiet import quiet_engine
from leadline.runtimes.torch_eager import TorchRuntime

if TYPE_CHECKING:
    from leadline.bundle import Bundle
    from leadline.runtimes.base import Exportable


class TorchCompile(TorchRuntime):
    """torch.compile with Inductor: C++ kernels on a CPU, Triton kernels and CUDA graphs on an NVIDIA GPU."""

    name: ClassVar[str] = "torch-compile"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32, Precision.BF16)
    dynamic: ClassVar[bool] = False  # kernels are made for one size
    by_name_only: ClassVar[str] = "it compiles for a minute or more"

    def availability(self) -> Availability:
        """Whether PyTorch and a C++ compiler are here."""
        state = super().availability()
        found = compiler()
        if state.available and found is None:
            reason = "torch.compile needs a C++ compiler, and there is none"
            return Availability(False, state.version, reason, "apt install g++, or name one in the variable CXX")
        return replace(state, note=f"compiles with {found}") if state.available else state

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Build the network, compile it and run it once; the notes say how long that took.

        Raises:
            UnavailableError: there is no compiler, or it fails.
            ConfigError: no such device, or one that Inductor has no kernels for.
        """
        state = self.availability()
        if not state.available:
            why, mend = state.reason, f"run {state.install}"
            raise UnavailableError("runtime torch-compile is not available", why=why, mend=mend)
        if options.device.partition(":")[0] not in ("cpu", "cuda"):
            why = "it has kernels for cpu and cuda"
            raise ConfigError("torch-compile cannot use the device", where=options.device, why=why, mend="use cpu")
        return self._compiled(super().open(bundle, options), str(bundle.folder))

    def open_network(self, source: Exportable, options: SessionOptions) -> Session:
        """The network as it is in memory, compiled.

        Raises:
            UnavailableError: the compiler or PyTorch's own tracing fails.
        """
        return self._compiled(super().open_network(source, options), source.name)

    def _compiled(self, session: Session, name: str) -> Session:
        size = session.contract.input.height, session.contract.input.width
        session.engine = self.name
        started = time.perf_counter()
        compile_session(session, size, name=name)
        took = time.perf_counter() - started
        session.notes.append(f"compiled for {size[0]}x{size[1]} in {took:.1f} s; kernels are kept")
        return session


RUNTIME = TorchCompile()


def compiler() -> str | None:
    """The C++ compiler that Inductor would call."""
    wanted = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")
    return shutil.which(wanted) or (shutil.which("clang++") if "CXX" not in os.environ else None)


def compile_session(session: Any, size: tuple[int, int], *, name: str) -> None:
    """Put the compiled network into an eager session, and compile it by running it once.

    Args:
        session: of `leadline.runtimes.torch_eager`.
        size: (height, width) of its input.
        name: of the network, for messages.

    Raises:
        UnavailableError: the compiler or PyTorch's own tracing fails.
    """
    import torch

    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadline" / "torch-compile"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))
    # Starting compile processes takes longer than what they save on a machine of few cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # On a GPU the kernels are recorded once as a CUDA graph; on a CPU that mode means nothing.
    mode = "reduce-overhead" if session.device.type == "cuda" else "default"
    values = np.zeros((1, 3, *size), np.float32)
    try:
        with quiet_engine():  # Inductor warns of what it calls in PyTorch from its import on
            session.model = torch.compile(session.model, dynamic=False, mode=mode)
            session.run(values)
    except FAULTS as error:
        # A compiler that was killed leaves half a library, which every later run would stumble on.
        if not any(word in str(error) for word in TORN) or os.environ["TORCHINDUCTOR_CACHE_DIR"] != str(kept):
            raise _failed(error, name) from error
        shutil.rmtree(kept, ignore_errors=True)
        torch.compiler.reset()
        try:
            with quiet_engine():
                session.run(values)
        except FAULTS as again:
            raise _failed(again, name) from again


FAULTS = (RuntimeError, OSError, ImportError)
TORN = ("file too short", "invalid ELF header")


def _failed(error: BaseException, name: str) -> UnavailableError:
    return UnavailableError("torch.compile failed on", where=name, why=one_line(error), mend="use runtime torch")
