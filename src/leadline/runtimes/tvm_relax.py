"""TVM: FP32 for the CPU that opens the bundle, compiled from ONNX, with schedules that tuning found.

A compiled library is code, and code for one kind of CPU. A bundle therefore holds data only, the ONNX graph and the
records of tuning, and the machine that opens it compiles for itself and keeps the result in the user's own cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, UnavailableError, one_line
from leadline.output import cache_folder
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
    refuse_precision,
)
from leadline.runtimes.quiet import quiet_engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.bundle import Bundle

FILE = "model.onnx"
WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"  # MetaSchedule's own names
INSTALL = "pip install apache-tvm"
# LLVM tells the model of the processor; a hypervisor may hide some of its instructions.
LEVELS = {"x86-64-v4": ("avx512f", "avx512bw", "avx512vl"), "x86-64-v3": ("avx2", "fma", "bmi2")}
LINKERS = ("g++", "clang++", "c++")
UNTUNED = "not tuned: plain loops, many times slower than other engines; export with --tune-seconds"


class Tvm(Runtime):
    """TVM's Relax compiler, on the CPU."""

    name: ClassVar[str] = "tvm"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32,)
    packages: ClassVar[str] = "apache-tvm onnx"
    by_name_only: ClassVar[str] = "it compiles, and untuned it is slow"
    tunes: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Whether apache-tvm is installed."""
        if importlib.util.find_spec("tvm") is None:
            return Availability(False, reason="apache-tvm is not installed", install=INSTALL)
        return Availability(True, version=importlib.metadata.version("apache-tvm"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write the ONNX graph and, if asked for, what tuning on this machine found.

        Raises:
            UnavailableError: TVM lacks an operator, or tuning is asked for and there is no C++ compiler.
            ConfigError: a precision that TVM does not have here, or an open size.
        """
        from leadline.runtimes.onnx_export import export_onnx

        refuse_precision(self, options)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        data = export_onnx(source.model, contract, options.cache).SerializeToString(deterministic=True)
        imported(data, source.name)
        (out / FILE).write_bytes(data)
        details: dict[str, Any] = {}
        if options.tune_seconds:
            from leadline.runtimes.tvm_tune import tune

            details["tuning"] = tune(out / FILE, options.tune_seconds, out)
        return bundle_of(self, source, options, contract, out, details)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Compile the bundle for this CPU, or take the library that this user compiled before.

        Raises:
            BundleError: the graph or the records are damaged.
            UnavailableError: TVM is missing.
            ConfigError: another device than the CPU.
        """
        return _TvmSession(bundle, options)

    def example(self, bundle: Bundle) -> str:
        """The compiler, and its virtual machine."""
        return EXAMPLE.format(file=FILE, tuned=TUNED if WORKLOADS in bundle.files else "")


TUNED = f"""database = meta_schedule.database.JSONDatabase(str(HERE / "{WORKLOADS}"), str(HERE / "{RECORDS}"))
with target, database:
    network = relax.get_pipeline("zero")(network)
"""
EXAMPLE = """
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.s_tir import meta_schedule
from tvm.target.codegen import llvm_get_system_cpu

target = tvm.target.Target({{"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 1}})
network = from_onnx(onnx.load(HERE / "{file}"), keep_params_in_input=False)
{tuned}machine = relax.VirtualMachine(tvm.compile(network, target=target), tvm.cpu())


def infer(values):
    return machine["main"](tvm.runtime.tensor(values)).numpy()
"""
RUNTIME = Tvm()


class _TvmSession(Session):
    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        tuned = WORKLOADS in bundle.files
        super().__init__("tvm", bundle.contract, () if tuned else (UNTUNED,))
        if importlib.util.find_spec("tvm") is None:
            raise UnavailableError(
                "runtime tvm is not available", why="apache-tvm is not installed", mend=f"run {INSTALL}"
            )
        if options.device.lower() != "cpu":
            raise ConfigError("tvm cannot use the device", where=options.device, why="it has cpu", mend="use cpu")
        self._one_by_one, self._threads = True, options.threads
        data = bundle.file(FILE).read_bytes()
        database = tuple(bundle.file(name) for name in (WORKLOADS, RECORDS)) if tuned else None
        with quiet_engine():
            import tvm
            from tvm import relax

            self._tvm = tvm
            self._machine = relax.VirtualMachine(_library(data, database, bundle.folder), tvm.cpu())
        self._run = self._machine["main"]

    @property
    def precision_ran(self) -> str:
        return "fp32"  # the compiler changes no types unless it is told to

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        _use_threads(self._tvm, self._threads)
        outputs = [
            self._run(self._tvm.runtime.tensor(np.ascontiguousarray(values[i : i + 1]))) for i in range(len(values))
        ]
        depth = np.concatenate([output.numpy() for output in outputs])
        return depth[:, None] if depth.ndim == 3 else depth

    def close(self) -> None:
        del self._run, self._machine


_threads_in_use: list[int] = []


def _use_threads(tvm: Any, threads: int) -> None:
    """Set TVM's one thread pool, which all sessions of a process share, if it is set otherwise."""
    wanted = threads or os.cpu_count() or 1
    if _threads_in_use != [wanted]:
        any_core = 0
        tvm.get_global_func("runtime.config_threadpool")(any_core, wanted)
        _threads_in_use[:] = [wanted]


def imported(data: bytes, name: str) -> Any:
    """An ONNX graph as TVM's module.

    Raises:
        BundleError: it is no ONNX graph.
        UnavailableError: TVM lacks an operator.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model_from_string(data)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BundleError("not an ONNX graph", where=name, why=one_line(error)) from error
    with quiet_engine():
        import tvm
        from tvm.relax.frontend.onnx import from_onnx

        try:
            return from_onnx(proto, keep_params_in_input=False)
        except (tvm.error.InternalError, tvm.error.OpNotImplemented, ValueError, TypeError, AttributeError) as error:
            why, mend = one_line(error), "export it to onnxruntime"
            raise UnavailableError("tvm cannot convert", where=name, why=why, mend=mend) from error


def host_target() -> dict[str, Any]:
    """LLVM for the CPU that this runs on, by its model, or by a level that all its instructions are known to reach."""
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

    model = str(llvm_get_system_cpu())
    known = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and known.is_file():
        flags = set(known.read_text(encoding="utf-8").partition("\nflags")[2].partition("\n")[0].split())
        promised = {str(each) for each in llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": model}))}
        needed = {flag for level in LEVELS.values() for flag in level} & promised
        if not needed <= flags:
            model = next((level for level, needs in LEVELS.items() if set(needs) <= flags), "x86-64")
    return {"kind": "llvm", "mcpu": model, "num-cores": 1}


def _library(data: bytes, database: tuple[Path, ...] | None, folder: Path) -> Any:
    """The compiled network, from the user's cache where it lies there."""
    import tvm

    target = host_target()
    digest = hashlib.sha256(f"{tvm.__version__} {sorted(target.items())} ".encode() + data)
    for path in database or ():
        digest.update(path.read_bytes())
    kept = cache_folder() / "tvm" / f"{digest.hexdigest()[:40]}.so"
    if kept.is_file() and _own(kept):
        try:
            return tvm.runtime.load_module(str(kept))
        except (tvm.error.InternalError, RuntimeError, OSError):
            kept.unlink()  # of another system under the same home, say
    built = _compiled(imported(data, folder.name), tvm.target.Target(target), database, folder)
    _keep(built, kept)
    return built


def _compiled(network: Any, target: Any, database: tuple[Path, ...] | None, folder: Path) -> Any:
    import tvm
    from tvm import relax
    from tvm.s_tir import meta_schedule

    if database is None:
        return tvm.compile(network, target=target)
    try:
        with target, meta_schedule.database.JSONDatabase(*(str(path) for path in database)):
            network = relax.get_pipeline("zero")(network)  # fuses layers, then applies the database
    except (tvm.error.InternalError, ValueError, TypeError, RuntimeError) as error:
        raise BundleError("tvm cannot use the records of tuning", where=folder, why=one_line(error)) from error
    return tvm.compile(network, target=target)


def _own(path: Path) -> bool:
    """Whether nobody else can have written the file: it is code that this process will run."""
    if not hasattr(os, "getuid"):  # Windows keeps other users out of the folder by itself
        return True
    state, place = path.stat(), path.parent.stat()
    return all(each.st_uid == os.getuid() and not each.st_mode & 0o022 for each in (state, place))


def _keep(built: Any, path: Path) -> None:
    """Put the library into the cache; without a compiler to link it, or room for it, the next start compiles again."""
    if not any(shutil.which(name) for name in LINKERS):
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            built.export_library(str(made))
            made.chmod(0o600)
            made.replace(path)
    except (OSError, RuntimeError):
        return
