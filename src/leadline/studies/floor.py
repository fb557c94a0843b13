"""What share of the machine's floor a candidate reaches: one question to `leadline.evaluation.roofline`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.errors import LeadlineError

if TYPE_CHECKING:
    from leadline.evaluation.latency import Latency
    from leadline.studies.planning import Candidate


def floor_share(one: Candidate, latency: Latency, precision_ran: str) -> float | None:
    """Floor over time of a cell that ran on this machine's CPU; None where there is no roofline to hold it against.

    The roofline is taken from the user's cache and never measured here: `leadline doctor --roofline` does that.
    """
    from leadline.evaluation.machine import this_machine
    from leadline.evaluation.roofline import roofline_of, share_of_floor

    if one.cell.on or one.cell.device not in ("", "cpu", "CPU") or not latency.threads or one.base.macs is None:
        return None
    try:
        roofline = roofline_of(this_machine(), latency.threads, cached_only=True)
    except LeadlineError:
        return None
    return share_of_floor(
        roofline,
        latency,
        precision_ran,
        macs=one.base.macs,
        parameters=one.base.parameters or 0,
        activations=one.activations,
    )
