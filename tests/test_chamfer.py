"""Chamfer distances between bins and disparities, against the definition written as a matrix of distances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.losses.chamfer import FARTHEST, chamfer, scale_invariant_chamfer


def by_definition(centres: torch.Tensor, points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    totals = []
    for c, p, v in zip(centres, points, valid, strict=True):
        if v.any():
            squared = (c[:, None] - p[v][None]).square()
            totals.append(squared.min(1).values.mean() + squared.min(0).values.mean())
    return torch.stack(totals).mean()


def sets(seed: int, rows: int, bins: int, count: int):
    make = torch.Generator().manual_seed(seed)
    centres = torch.rand(rows, bins, generator=make, dtype=torch.float64) * 4 + 0.1
    points = torch.rand(rows, count, generator=make, dtype=torch.float64) * 5 + 0.1
    return centres, points, torch.rand(rows, count, generator=make) < 0.6


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 3), bins=st.integers(2, 9), count=st.integers(1, 30))
def test_the_sorted_search_finds_what_the_matrix_of_distances_does(seed, rows, bins, count):
    centres, points, valid = sets(seed, rows, bins, count)
    valid[:, 0] = True
    assert chamfer(centres, points, valid).item() == pytest.approx(by_definition(centres, points, valid).item())


def test_a_value_by_hand():
    centres, points = torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 100.0]])
    valid = torch.tensor([[True, True, True, False]])
    assert chamfer(centres, points, valid).item() == pytest.approx((0 + 1) / 2 + (0 + 1 + 1) / 3)


def test_bins_upon_the_points_cost_nothing():
    points = torch.tensor([[0.5, 2.0, 1.0]])
    assert chamfer(points, points.repeat(1, 4), torch.ones(1, 12, dtype=torch.bool)).item() == 0


def test_gradients_agree_with_finite_differences():
    centres, points, valid = sets(3, 2, 5, 12)
    prediction = points.flip(1) + 0.05
    centres.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: chamfer(c, points, valid), centres)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, p: scale_invariant_chamfer(c, p, points, valid), (centres, prediction))


@pytest.mark.parametrize("invariant", [False, True])
def test_a_batch_without_points_costs_nothing_and_has_a_gradient(invariant):
    centres = torch.tensor([[0.5, 1.0]], requires_grad=True)
    points, valid = torch.zeros(1, 6), torch.zeros(1, 6, dtype=torch.bool)
    loss = scale_invariant_chamfer(centres, points + 1, points, valid) if invariant else chamfer(centres, points, valid)
    loss.backward()
    assert loss.item() == 0
    assert centres.grad is not None
    assert torch.equal(centres.grad, torch.zeros(1, 2))


def test_a_picture_without_points_leaves_the_others_as_they_are():
    centres, points, valid = sets(5, 2, 4, 9)
    alone = chamfer(centres[:1], points[:1], valid[:1])
    valid[1] = False
    assert chamfer(centres, points, valid).item() == pytest.approx(alone.item())


@given(alpha=st.floats(1e-3, 1e3), beta=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_neither_side_s_scale_matters(alpha, beta, seed):
    centres, points, valid = sets(seed, 2, 6, 40)
    prediction = points.flip(1) + 0.2
    before = scale_invariant_chamfer(centres, prediction, points, valid)
    after = scale_invariant_chamfer(beta * centres, beta * prediction, alpha * points, valid)
    assert before.item() > 0
    assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_the_plain_distance_does_depend_on_the_scale():
    centres, points, valid = sets(0, 2, 6, 40)
    assert chamfer(centres, 2 * points, valid).item() != pytest.approx(chamfer(centres, points, valid).item(), rel=0.1)


def test_nothing_pulls_at_the_network_s_scale():
    """Euler: the gradient of a function that one common factor leaves alone has no part along its arguments."""
    centres, points, valid = sets(7, 1, 6, 40)
    centres.requires_grad_()
    prediction = (points.flip(1) + 0.2).requires_grad_()
    scale_invariant_chamfer(centres, prediction, points, valid).backward()
    assert centres.grad.abs().max() > 1e-3
    along = (centres * centres.grad).sum() + (prediction * prediction.grad).sum()
    assert abs(along.item()) < 1e-12


def test_zeros_and_negative_values_are_no_points():
    centres, points, valid = sets(9, 1, 6, 40)
    prediction = points + 0.2
    before = scale_invariant_chamfer(centres, prediction, points, valid)
    points[~valid] = 0.0
    points[0, (~valid)[0].nonzero()[0]] = -3.0
    everywhere = torch.ones_like(valid)
    assert scale_invariant_chamfer(centres, prediction, points, everywhere).item() == pytest.approx(before.item())


def test_a_teacher_s_sky_does_not_outweigh_the_rest():
    centres = torch.tensor([[FARTHEST, 1.0]], dtype=torch.float64)
    points = torch.tensor([[1e-9, 1.0, 1.0]], dtype=torch.float64)
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert scale_invariant_chamfer(centres, torch.ones_like(points), points, valid).item() == pytest.approx(
        0, abs=1e-12
    )
