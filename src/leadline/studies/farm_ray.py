"""The link of a device farm over Ray: a device is a node that joined with a resource of its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import leadline.errors
from leadline.errors import LeadlineError, UnavailableError, one_line
from leadline.ray_cluster import join
from leadline.studies.farm import DeviceLostError
from leadline.studies.farm_tasks import perform

if TYPE_CHECKING:
    from collections.abc import Sequence

# Resources that Ray gives to every node, or that a node has for its address.
OWN = ("CPU", "GPU", "memory", "object_store_memory", "node:", "accelerator_type:", "TPU")


class RayLink:
    """Devices of a Ray cluster that this machine belongs to.

    Args:
        address: of the cluster's head, HOST:PORT; None takes `RAY_ADDRESS`, else the head on this machine.

    Raises:
        UnavailableError: Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray, self._started = _joined(address)
        self._of: dict[Any, str] = {}

    def devices(self) -> set[str]:
        """Resources of living nodes that are no hardware of Ray's own."""
        names = {name for node in self._ray.nodes() if node["Alive"] for name in node["Resources"]}
        return {name for name in names if not name.startswith(OWN)}

    def submit(self, device: str, task: str, order: dict[str, Any]) -> Any:
        """Send an order; it holds the whole device, so that nothing runs beside what is timed."""
        remote = self._ray.remote(perform).options(num_cpus=0, resources={device: 1}, max_retries=0)
        ticket = remote.remote(task, order)
        self._of[ticket] = device
        return ticket

    def ready(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are answered; waits for the first."""
        done, _ = self._ray.wait(list(tickets), num_returns=1, timeout=seconds)
        if not done:
            return []
        return list(self._ray.wait(list(tickets), num_returns=len(tickets), timeout=0)[0])

    def answer(self, ticket: Any) -> dict[str, Any]:
        """The answer of a ticket that is ready."""
        device = self._of.pop(ticket)
        faults = self._ray.exceptions
        try:
            told: dict[str, Any] = self._ray.get(ticket)
        except faults.RayTaskError as error:
            cause = f"{type(error.cause).__name__}: {error.cause}"
            raise LeadlineError("the task failed", where=device, why=cause) from error
        except faults.RayError as error:  # its process or its node ended
            raise DeviceLostError(f"{device} left the farm", why=one_line(error)) from error
        if "error" in told:
            kind = getattr(leadline.errors, told["kind"], LeadlineError)
            raise (kind if issubclass(kind, LeadlineError) else LeadlineError)(told["error"])
        return told

    def close(self) -> None:
        """Leave the cluster, unless the program was in it before."""
        if self._started:
            self._ray.shutdown()


def _joined(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster that exists, and whether that was done here."""
    try:
        return join("--on", address or os.environ.get("RAY_ADDRESS") or "auto")
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = one_line(error)
        mend = "start the head on this machine: ray start --head --port=6379"
        raise UnavailableError("no device farm", where=address, why=why, mend=mend) from error
