"""Tuning of a network by TVM's MetaSchedule on this machine, within a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from leadline.errors import UnavailableError
from leadline.output import cache_folder
from leadline.runtimes.tvm_relax import LINKERS, RECORDS, WORKLOADS, host_target, imported

TRIALS = 1_000_000  # more than any time allows
BUILD_S = 60.0  # that building one schedule may take


def tune(network: Path, seconds: float, out: Path) -> dict[str, Any]:
    """Measure schedules of each layer for some time, and write the records of the best into `out`.

    Records stay in the user's cache too: tuning the same network for the same CPU again goes on from there.

    Args:
        network: the ONNX file.
        seconds: that this may take.
        out: folder for MetaSchedule's database.

    Returns:
        How many schedules are known, for how many layers, and the CPU they were measured on.

    Raises:
        UnavailableError: there is no C++ compiler, which measuring needs, or the tuner fails at once.
    """
    if not any(shutil.which(name) for name in LINKERS):
        mend = "install g++, or export without --tune-seconds"
        raise UnavailableError("tvm cannot tune", why="measuring needs a C++ compiler", mend=mend)
    target = host_target()
    key = hashlib.sha256(network.read_bytes() + json.dumps(target).encode()).hexdigest()[:40]
    place = cache_folder() / "tvm" / "tuning" / key
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    _mend(place)
    said = _search(network, place, seconds)
    found = _mend(place)
    if not found:
        mend = "give it more seconds"
        raise UnavailableError("tvm found no schedule in its time", why=said, mend=mend)
    for name in (WORKLOADS, RECORDS):
        shutil.copyfile(place / name, out / name)
    layers = len((place / WORKLOADS).read_text(encoding="utf-8").splitlines())
    return {"seconds": seconds, "records": found, "layers": layers, "mcpu": target["mcpu"]}


def _search(network: Path, place: Path, seconds: float) -> str:
    """Run the tuner in a process group of its own, which ends with the time: C++ loops cannot be interrupted here."""
    command = [sys.executable, "-m", "leadline.runtimes.tvm_tune", str(network), str(place)]
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}  # what is measured is one thread
    log = place / "log.txt"
    with log.open("wb") as sink:
        worker = subprocess.Popen(
            command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            worker.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _mend(place: Path) -> int:
    """Take out lines that were being written when the time ended, and count the records."""
    count = 0
    for name in (WORKLOADS, RECORDS):
        path = place / name
        if not path.is_file():
            return 0
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _whole(line)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        count = len(lines)
    return count


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _worker(network: Path, place: Path) -> None:
    """Search until the process is ended; every measured schedule is in the database at once."""
    module = imported(network.read_bytes(), network.name)
    import tvm
    from tvm import relax
    from tvm.s_tir import meta_schedule

    target = tvm.target.Target(host_target())
    with target:
        module = relax.get_pipeline("zero")(module)  # layers are fused as they will be when the bundle is opened
    meta_schedule.relax_integration.tune_relax(
        module,
        {},
        target,
        str(place),
        max_trials_global=TRIALS,
        num_trials_per_iter=8,
        cost_model="random",  # the learned one needs xgboost, and hundreds of records
        strategy="replay-trace",
        builder=meta_schedule.builder.LocalBuilder(max_workers=1, timeout_sec=BUILD_S, f_build=_built),
        seed=0,
    )


def _built(module: Any, target: Any, _: object) -> Any:
    """As TVM's own builder, which first imports tensor instructions of GPUs: that takes longer than a build may."""
    from tvm.driver import build
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    return build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), Path(sys.argv[2]))
