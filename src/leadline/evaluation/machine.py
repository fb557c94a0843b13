"""The machine that a figure was measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# What decides which INT8, BF16 and FP16 kernels an engine can take, on x86 and on ARM.
INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "leadline")


@dataclass(frozen=True)
class Machine:
    """Hardware and software that decide a latency.

    Args:
        cpu: model name.
        cores: logical processors that this process may use.
        physical_cores: of the machine; 0 where unknown.
        instruction_sets: those of INSTRUCTION_SETS that the CPU has.
        memory_gib: of the machine, rounded.
        system: operating system and release.
        python: version.
        versions: of the installed packages that compute.
    """

    cpu: str
    cores: int
    physical_cores: int
    instruction_sets: tuple[str, ...]
    memory_gib: int
    system: str
    python: str
    versions: dict[str, str]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change with any of the fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Plain values and the id."""
        return {"id": self.id, **asdict(self), "instruction_sets": list(self.instruction_sets)}

    def __str__(self) -> str:
        sets = ", ".join(name for name in self.instruction_sets if name not in ("avx2", "fma", "f16c", "avx512f"))
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib} GiB, {self.system}" + (f" ({sets})" if sets else "")


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import psutil

    flags = _cpu_flags()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        physical_cores=psutil.cpu_count(logical=False) or 0,
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=package_versions(),
    )


def fingerprint() -> dict[str, Any]:
    """`this_machine` as plain values."""
    return this_machine().as_dict()


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that compute, found without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    for line in _cpu_lines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    for line in _cpu_lines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _cpu_lines() -> list[str]:
    if sys.platform != "linux":
        return []
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
