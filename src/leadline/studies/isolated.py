"""Jobs in a process of their own, so that an engine that crashes, hangs or fills the memory costs one row only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from leadline.errors import LeadlineError, closest

JOBS = ("probe", "export", "evaluate", "export_and_evaluate")
_running: dict[subprocess.Popen[str], bool] = {}  # the jobs' processes, and whether each was told to stop


class JobError(LeadlineError):
    """A job in a process of its own that gave no result; the message says how it ended.

    `cause` names the class of the error that the job raised; empty where the process crashed or hung.
    """

    exit_status = 1
    cause = ""


def run_isolated(job: str, arguments: dict[str, Any], *, threads: int = 1, timeout: float = 1800.0) -> dict[str, Any]:
    """Run a job of `leadline.studies.jobs` in a fresh process.

    Args:
        job: a name of JOBS.
        arguments: plain JSON values, given to the job as keywords.
        threads: of every library in that process; 0 leaves them alone.
        timeout: seconds until the process is killed.

    Returns:
        What the job returned.

    Raises:
        JobError: the job failed in words, crashed, or did not end in time.
    """
    if job not in JOBS:
        raise JobError("unknown job", where=job, mend=closest(job, JOBS))
    environment = dict(os.environ)
    if threads:
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with tempfile.TemporaryDirectory(prefix="leadline-") as place:
        answer = Path(place) / "answer.json"
        order = json.dumps({"job": job, "arguments": arguments, "answer": str(answer)})
        command = [sys.executable, "-m", "leadline.studies.jobs"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,  # Ctrl-C reaches the study alone, which then stops its jobs once and in order
        )
        _running[process] = False
        try:
            _, complaints = process.communicate(order, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise JobError(f"{job} did not end", why=f"killed after {timeout:g} s") from error
        except BaseException:
            process.kill()
            process.communicate()
            raise
        finally:
            del _running[process]
        if not answer.is_file():
            raise JobError(f"{job} ended without a result", why=_ending(process.returncode, complaints))
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in result:
        refused = JobError(result["error"])
        refused.cause = result["cause"]
        raise refused
    return result


def stop_jobs(*, kill: bool = False) -> None:
    """Interrupt every job that runs, once, so that it removes what is half written; `kill` ends it at once."""
    for process, told in list(_running.items()):
        if kill:
            process.kill()
        elif not told:
            _running[process] = True
            process.send_signal(signal.SIGINT)


def _ending(status: int, complaints: str) -> str:
    last = complaints.strip().splitlines()[-1][:300] if complaints.strip() else "no message"
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name} ({last})"
    return f"exit status {status}: {last}"
