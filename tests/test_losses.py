"""Losses against closed forms, and their manners with nothing valid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.losses.regression import berhu, masked_l1
from leadline.losses.scale_invariant import (
    gradient_matching,
    normalise_per_image,
    scale_and_shift_invariant,
    silog,
)

ALL = {"l1": masked_l1, "berhu": berhu, "silog": silog, "ssi": scale_and_shift_invariant, "gradient": gradient_matching}


def maps(n: int = 2, h: int = 12, w: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(seed)) * 4 + 0.5


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


@pytest.mark.parametrize("name", ALL)
def test_nothing_valid_is_zero_with_a_gradient(name: str) -> None:
    prediction = maps().requires_grad_()
    loss = ALL[name](prediction, torch.full_like(prediction, torch.nan), torch.zeros_like(prediction, dtype=torch.bool))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_invalid_pixels_do_not_count(name: str) -> None:
    prediction, target = maps(seed=1), maps(seed=2)
    valid = torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) > 0.3
    spoiled = torch.where(valid, target, torch.nan)
    assert torch.equal(ALL[name](prediction, target, valid), ALL[name](prediction, spoiled, valid))


def test_l1_is_the_mean_absolute_error() -> None:
    target = maps()
    assert masked_l1(target + 0.25, target, everywhere(target)).item() == pytest.approx(0.25, abs=1e-6)


def test_berhu_by_hand() -> None:
    # errors 0.1 and 1.0: c = 0.2, so 0.1 stays and 1.0 becomes (1 + 0.04) / 0.4 = 2.6
    prediction, target = torch.tensor([[[[1.1, 2.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    assert berhu(prediction, target, everywhere(target)).item() == pytest.approx((0.1 + 2.6) / 2, rel=1e-5)


@pytest.mark.parametrize("focus", [0.0, 0.5, 0.85, 1.0])
def test_silog_of_a_constant_factor(focus: float) -> None:
    target = maps()
    found = silog(target * 2, target, everywhere(target), focus).item()
    assert found == pytest.approx(math.log(2) * math.sqrt(1 - focus), abs=3e-4)


def test_normalisation_takes_the_median_of_the_valid_alone() -> None:
    values = torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 2.0, 6.0]]]])
    valid = torch.tensor([[[[False, False, False, True, True, True]]]])
    # median 2, mean absolute deviation (1 + 0 + 4) / 3
    expected = torch.tensor([-1.0, 0.0, 4.0]) / (5 / 3)
    assert torch.allclose(normalise_per_image(values, valid)[0, 0, 0, 3:], expected)
    assert torch.equal(normalise_per_image(values, valid)[0, 0, 0, :3], torch.zeros(3))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.05, 20), shift=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_affine_changes_of_the_prediction_do_not_matter(scale: float, shift: float, seed: int) -> None:
    target = maps(seed=seed)
    for loss in (scale_and_shift_invariant, gradient_matching):
        assert loss(scale * target + shift, target, everywhere(target)).item() < 2e-3


def test_gradient_matching_by_hand() -> None:
    # One scale, one row: R = normalised(p) - normalised(t). t = (0, 1, 2): median 1, deviation 2/3 -> (-1.5, 0, 1.5);
    # p = (0, 1, 5): median 1, deviation 5/3 -> (-0.6, 0, 2.4); R = (0.9, 0, 0.9): mean |dR| = 0.9.
    target, prediction = torch.tensor([[[[0.0, 1.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0, 5.0]]]])
    assert gradient_matching(prediction, target, everywhere(target), scales=1).item() == pytest.approx(0.9, abs=1e-6)


def test_constant_prediction_gives_a_finite_loss() -> None:
    target = maps()
    flat = torch.full_like(target, 2.0).requires_grad_()
    for loss in ALL.values():
        value = loss(flat, target, everywhere(target))
        assert torch.isfinite(value)
