"""Joining a Ray cluster: nothing is reported to Ray's makers, and Ray's own lines stay off the terminal."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError, ProcessError, UnavailableError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator


def join(option: str, address: str | None = None) -> tuple[Any, bool]:
    """Ray, connected, and whether that was done here.

    Args:
        option: of the command, that asked for Ray; for the message.
        address: of the cluster's head, HOST:PORT, or "auto" for one on this machine; None takes `RAY_ADDRESS`, else
            starts one on this machine.

    Raises:
        UnavailableError: Ray is not installed.
        ConnectionError: no cluster at the address; Ray also raises RuntimeError and ValueError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of its own default
    try:
        import ray
    except ImportError as error:
        mend = f"install it: pip install 'leadline[ray]', or leave {option} out"
        raise UnavailableError("Ray is not installed", mend=mend) from error
    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    ray.init(address=address, include_dashboard=None if address else False, **quiet)
    return ray, True


@contextmanager
def cluster(option: str) -> Iterator[Any]:
    """Ray, connected in the block to the cluster of `RAY_ADDRESS`, else to one of this machine's cores.

    Raises:
        UnavailableError: Ray is not installed.
    """
    ray, started_here = join(option)
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


def result(ray: Any, ticket: Any) -> Any:
    """What a finished task returned.

    Raises:
        LeadlineError: the task's own error, as it raised it; any other error of the task is Ray's RayTaskError.
        ProcessError: the task's process or machine is gone.
    """
    try:
        return ray.get(ticket)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, LeadlineError) else error from error
    except ray.exceptions.RayError as error:
        raise ProcessError("a process died", why=one_line(error), mend="run it again, it continues") from error
