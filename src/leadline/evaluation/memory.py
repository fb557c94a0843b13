"""Peak memory of a process; meaningful only where the process does nothing but load and run one model."""

from __future__ import annotations

import platform
from pathlib import Path


def peak_mib() -> float:
    """Largest resident memory that this process has had, MiB."""
    system = platform.system()
    if system == "Linux":
        return _status_mib("VmHWM")
    if system == "Windows":
        import psutil

        return float(getattr(psutil.Process().memory_info(), "peak_wset")) / 2**20  # noqa: B009  Windows only
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def resident_mib() -> float:
    """Resident memory of this process now, MiB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
