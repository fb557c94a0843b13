"""The learning rate over a run: warm-up, constant and a final fall; or cosines with restarts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leadline.training.config import TrainConfig


def rates(config: TrainConfig, iteration: int) -> tuple[float, float]:
    """Factors of the peak learning rate for the 0-based `iteration`: the network's, and the auxiliary modules'."""
    chosen = config.schedule
    if chosen is None:
        rate = rate_at(iteration, iterations=config.iterations, warmup=config.warmup, decay=config.decay)
        return rate, rate
    network, auxiliary = (
        cosine_restarts(iteration // chosen.every + 1, cycle=chosen.cycle, shrink=chosen.shrink, floor=floor)
        for floor in (chosen.floor, chosen.auxiliary_floor)
    )
    return network, auxiliary


def cosine_restarts(step: int, *, cycle: int, shrink: float, floor: float) -> float:
    """Factor of the peak rate after `step` steps: floor + (peak - floor) (1 + cos(pi t / cycle)) / 2.

    t counts from each restart; peak is shrink^r after r restarts. Lite-Mono steps its schedule at the start of each
    epoch, so that epoch e (0-based) has step e + 1 (SPEC.md 3.5).

    Args:
        step: 0-based.
        cycle: steps from one restart to the next.
        shrink: factor of the peak at each restart.
        floor: lowest value, as a share of the first peak.
    """
    restarts, place = divmod(step, cycle)
    peak = max(shrink**restarts, floor)
    return floor + (peak - floor) * (1 + math.cos(math.pi * place / cycle)) / 2


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
