"""The learning rate of Lite-Mono's recipe, against the figures of its own scheduler (SPEC.md 3.5)."""

from __future__ import annotations

from typing import Any

import pytest

from leadline.training.config import TrainConfig
from leadline.training.schedule import rates

EPOCH = 7  # iterations of an epoch here


def config(**schedule: Any) -> TrainConfig:
    recipe = {"kind": "cosine-restarts", "every": EPOCH, **schedule}
    return TrainConfig.model_validate({"model": "m", "sources": [{"data": "d"}], "schedule": recipe})


@pytest.mark.parametrize(
    ("epoch", "depth", "pose"),
    [
        (0, 9.976e-5, 9.977e-5),
        (10, 7.342e-5, None),  # the sheet's own formula; the figure it gives for epoch 10 is that of epoch 11
        (11, 6.900e-5, None),
        (20, 2.737e-5, None),
        (29, 5.244e-6, 1.023e-5),
        (30, 0.9e-4, 0.9e-4),
    ],
)
def test_the_published_rates_of_each_epoch(epoch: int, depth: float, pose: float | None) -> None:
    for iteration in (epoch * EPOCH, epoch * EPOCH + EPOCH - 1):
        network, auxiliary = rates(config(), iteration)
        assert 1e-4 * network == pytest.approx(depth, rel=2e-4)
        if pose is not None:
            assert 1e-4 * auxiliary == pytest.approx(pose, rel=2e-4)


def test_restarts_shrink_and_never_reach_below_the_floor() -> None:
    factors = [rates(config(cycle=10, shrink=0.5, floor=0.2), k * EPOCH)[0] for k in range(100)]
    assert factors[9] == pytest.approx(0.5)
    assert factors[19] == pytest.approx(0.25)
    assert factors[29] == pytest.approx(0.2)
    assert min(factors) >= 0.2


def test_without_a_schedule_network_and_auxiliary_modules_share_one_rate() -> None:
    plain = TrainConfig.model_validate({"model": "m", "sources": [{"data": "d"}], "warmup": 4, "iterations": 100})
    assert rates(plain, 0) == (0.25, 0.25)
    assert rates(plain, 50) == (1.0, 1.0)
