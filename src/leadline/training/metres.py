"""What must hold for a network's metres: targets within its range, and a camera that they are right for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.depth import Kind
from leadline.training.doctor import Finding

if TYPE_CHECKING:
    from leadline.contract import Contract
    from leadline.training.batches import Batch

BEYOND = 0.01  # largest share of measured pixels above the network's maximum


def beyond_maximum(batch: Batch, contract: Contract) -> list[Finding]:
    """Targets in metres that a network cannot say, since its output ends below them; nothing where there are few.

    Args:
        batch: as training sees it.
        contract: of the network.
    """
    end = contract.output.maximum
    metric = [row for row, kind in enumerate(batch.kinds) if kind is Kind.METRIC_DEPTH]
    if end is None or contract.output.kind is not Kind.METRIC_DEPTH or not metric:
        return []
    measured = batch.target[metric][batch.valid[metric]]
    share = float((measured > end).float().mean()) if measured.numel() else 0.0
    if share <= BEYOND:
        return []
    figure = f"{share:.0%} of a batch's measured pixels lie above {end:g} m, where {contract.name}'s output ends"
    mend = "start at a variant that reaches farther, as in --model leadline-s --set 'network={max_depth: 80}'"
    return [Finding("targets beyond the network's maximum", figure, f"at most {BEYOND:.0%}", mend)]
