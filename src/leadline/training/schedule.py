"""The learning rate over a run: warm-up, constant, and a final fall to zero."""

from __future__ import annotations

import math


def rate_at(iteration: int, *, iterations: int, warmup: int, decay: float) -> float:
    """Factor of the peak learning rate, 0 to 1, for the 0-based `iteration`.

    A constant phase, then 1 - sqrt over the final `decay` share: the length of a run may be changed while it is in the
    constant phase, and the result is the same as if it had been planned (Hagele et al., Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations, 2024).

    Args:
        iteration: 0-based.
        iterations: length of the run.
        warmup: iterations of linear rise from 1/warmup.
        decay: share of the run in which the rate falls, 0 to 1.
    """
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    start = iterations - round(decay * iterations)
    if iteration < start:
        return rise
    progress = (iteration - start) / max(1, iterations - start)
    return min(rise, 1.0 - math.sqrt(progress))
