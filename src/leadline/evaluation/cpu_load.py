"""Other work beside a measurement, as on a robot: processes that keep cores busy for a share of the time.

    python -m leadline.evaluation.cpu_load SHARE CORE

One such process per core, pinned to it where the system can do that. It ends with its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PERIOD = 0.02  # seconds of one turn of working and sleeping: shorter than most inferences, longer than a time slice
COMMAND = (sys.executable, "-m", "leadline.evaluation.cpu_load")


class Load:
    """The running processes.

    Args:
        processes: one per core.
        share: asked of each, 0 to 1.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]], share: float) -> None:
        self.processes, self.share = processes, share
        self._began = time.perf_counter()
        self._used = self._seconds()

    def reached(self) -> float:
        """Share of the time that each process really worked so far, as the system counts; 0 to 1."""
        passed = (time.perf_counter() - self._began) * max(len(self.processes), 1)
        return (self._seconds() - self._used) / passed

    def _seconds(self) -> float:
        import psutil

        total = 0.0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(process.pid).cpu_times()
                total += times.user + times.system
        return total


@contextmanager
def cpu_load(percent: float, cores: int = 0) -> Iterator[Load]:
    """Keep cores busy while the block runs; the processes are ended however it ends.

    Args:
        percent: of each core's time, 0 to 100.
        cores: how many; 0: all that this process may use.

    Raises:
        ConfigError: a share outside 0..100, or more cores than there are.
    """
    usable = usable_cores()
    if not 0 <= percent <= 100:
        raise ConfigError("not a load", where=f"{percent:g}", why="it is a percentage of each core", mend="give 0..100")
    if not 0 <= cores <= len(usable):
        why = f"this process may use {len(usable)}"
        raise ConfigError("not so many cores to keep busy", where=str(cores), why=why, mend=f"give 1..{len(usable)}")
    chosen = usable[: cores or len(usable)] if percent else []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for core in chosen:
            command = [*COMMAND, str(percent / 100), str(core)]
            processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it works from now on
        yield Load(processes, percent / 100)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def work(
    share: float,
    turns: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Work for `share` of each PERIOD and sleep for the rest of it; `turns` None: for ever."""
    began, turn = clock(), 0
    while turns is None or turn < turns:
        start = max(began + turn * PERIOD, clock() - PERIOD)  # what another program took is not caught up
        while clock() < start + share * PERIOD:
            pass
        rest = start + PERIOD - clock()
        if rest > 0:
            sleep(rest)
        turn += 1


def main() -> None:
    """Work until stdin is closed."""
    share, core = float(sys.argv[1]), int(sys.argv[2])
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print("working", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        work(share)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
