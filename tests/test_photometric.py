"""Photometric error, auto-masking, smoothness and the fused minimum reprojection, against plain formulations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from leadline.losses.photometric import (
    box_sum,
    box_sum_transposed,
    edge_aware_smoothness,
    enlarge,
    identity_error,
    photometric_error,
    ssim_error,
)
from leadline.losses.projection import rigid_motion, rotation_from_axis_angle
from leadline.losses.reprojection import minimum_reprojection


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The benchmark's plain formulation."""
    path = Path(__file__).parents[1] / "benchmarks" / "self_supervised_speed.py"
    spec = importlib.util.spec_from_file_location("self_supervised_speed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["self_supervised_speed"] = module
    spec.loader.exec_module(module)
    return module


def window(image: np.ndarray, y: int, x: int) -> np.ndarray:
    """The 3 x 3 window about a pixel, reflected at the border without repeating it."""
    return np.pad(image, 1, mode="reflect")[y : y + 3, x : x + 3]


def numpy_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            a, b = window(x, i, j), window(y, i, j)
            cov = ((a - a.mean()) * (b - b.mean())).mean()
            above = (2 * a.mean() * b.mean() + 0.0001) * (2 * cov + 0.0009)
            below = (a.mean() ** 2 + b.mean() ** 2 + 0.0001) * (a.var() + b.var() + 0.0009)
            out[i, j] = above / below
    return np.clip((1 - out) / 2, 0, 1)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(7, 9), (2, 2), (3, 2)])
def test_the_box_sum_reflects_at_the_border(size: tuple[int, int]) -> None:
    x = pictures(2, *size)
    expected = [[[window(c, i, j).sum() for j in range(size[1])] for i in range(size[0])] for c in x.numpy()]
    np.testing.assert_allclose(box_sum(x).numpy(), expected, rtol=1e-12)


def test_the_transposed_box_sum_is_the_transpose() -> None:
    x, g = pictures(5, 6), pictures(5, 6, seed=1)
    torch.testing.assert_close((box_sum(x) * g).sum(), (x * box_sum_transposed(g)).sum())


def test_ssim_is_the_formula_window_by_window() -> None:
    x, y = pictures(6, 8), pictures(6, 8, seed=1)
    np.testing.assert_allclose(ssim_error(x, y).numpy(), numpy_ssim(x.numpy(), y.numpy()), atol=1e-10)


def test_equal_pictures_have_no_error_and_opposite_ones_the_largest() -> None:
    x = pictures(1, 3, 8, 8)
    assert photometric_error(x, x).abs().max() < 1e-9
    flat = torch.zeros(1, 3, 4, 4)
    # SSIM of constant 0 and 1: (0.0001 / 1.0001) * (0.0009 / 0.0009)
    expected = 0.85 * (1 - 0.0001 / 1.0001) / 2 + 0.15
    torch.testing.assert_close(photometric_error(flat, flat + 1), torch.full((1, 4, 4), expected))


def test_the_mix_weighs_ssim_and_difference_and_averages_channels() -> None:
    x, y = pictures(3, 5, 6), pictures(3, 5, 6, seed=1)
    ssim = np.stack([numpy_ssim(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)])
    expected = (0.85 * ssim + 0.15 * np.abs(x.numpy() - y.numpy())).mean(0)
    np.testing.assert_allclose(photometric_error(x, y).numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(photometric_error(x, y, 0.0).numpy(), np.abs(x.numpy() - y.numpy()).mean(0), atol=1e-12)


def test_the_identity_error_is_the_smallest_with_a_little_reproducible_noise() -> None:
    sources, target = pictures(2, 2, 3, 6, 7), pictures(2, 3, 6, 7, seed=1)
    first = identity_error(sources, target, generator=torch.Generator().manual_seed(5))
    again = identity_error(sources, target, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    exact = torch.minimum(photometric_error(sources[:, 0], target), photometric_error(sources[:, 1], target))
    difference = (first - exact).abs()
    assert 0 < difference.max() < 1e-4
    torch.manual_seed(9)
    one = identity_error(sources, target)
    torch.manual_seed(9)
    assert torch.equal(one, identity_error(sources, target))


def test_smoothness_is_the_formula() -> None:
    d, image = 0.1 + pictures(1, 1, 5, 6), pictures(1, 3, 5, 6, seed=1)
    normal = d.numpy()[0, 0] / (d.numpy().mean() + 1e-7)
    i = image.numpy()[0]
    along_x = np.abs(np.diff(normal, axis=1)) * np.exp(-np.abs(np.diff(i, axis=2)).mean(0))
    along_y = np.abs(np.diff(normal, axis=0)) * np.exp(-np.abs(np.diff(i, axis=1)).mean(0))
    np.testing.assert_allclose(float(edge_aware_smoothness(d, image)), along_x.mean() + along_y.mean(), rtol=1e-9)


def test_smoothness_forgives_scale_edges_and_constant_maps() -> None:
    d, image = 0.1 + pictures(2, 1, 8, 8), pictures(2, 3, 16, 16, seed=1)
    torch.testing.assert_close(edge_aware_smoothness(7 * d, image), edge_aware_smoothness(d, image), rtol=1e-5, atol=0)
    assert edge_aware_smoothness(torch.ones(1, 1, 8, 8), torch.rand(1, 3, 8, 8)) == 0
    step = torch.ones(1, 1, 8, 8)
    step[..., 4:] = 2
    edge = (step - 1).expand(1, 3, 8, 8)  # a full black to white edge at the step
    assert float(edge_aware_smoothness(step, edge) / edge_aware_smoothness(step, 0 * edge)) == pytest.approx(np.exp(-1))


class Case:
    """Random views with plausible geometry."""

    def __init__(self, n: int, size: tuple[int, int], dtype: torch.dtype, scales: int = 3, sources: int = 2) -> None:
        h, w = size
        r = torch.Generator().manual_seed(11)

        def rand(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=r, dtype=dtype)

        self.maps = tuple((0.05 + rand(n, 1, h >> s, w >> s)).requires_grad_() for s in range(scales))
        self.target, self.sources = rand(n, 3, h, w), rand(n, sources, 3, h, w)
        turn = (0.05 * (rand(n, sources, 3) - 0.5)).requires_grad_()
        shift = (0.4 * (rand(n, sources, 3) - 0.5)).requires_grad_()
        self.leaves = (*self.maps, turn, shift)
        camera = torch.tensor([[0.6 * w, 0, w / 2], [0, 1.9 * h, h / 2], [0, 0, 1]], dtype=dtype)
        self.intrinsics = camera.expand(n, 3, 3)

    def poses(self) -> torch.Tensor:
        turn, shift = self.leaves[-2:]
        return rigid_motion(rotation_from_axis_angle(turn), shift)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sources", [1, 2])
def test_loss_and_gradients_are_those_of_the_plain_formulation(
    plain: ModuleType, align_corners: bool, sources: int
) -> None:
    case = Case(2, (32, 48), torch.float64, sources=sources)
    views = plain.Views(case.target, case.sources, case.intrinsics)
    noise = torch.randn(2, sources, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = plain.plain_loss(case.maps, case.poses(), views, noise, align_corners=align_corners)
    ours = plain.our_loss(case.maps, case.poses(), views, torch.Generator().manual_seed(1), align_corners=align_corners)
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=0)
    for mine, theirs in zip(case.gradients(ours), case.gradients(expected), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_losses_in_float32_agree_to_five_digits(plain: ModuleType) -> None:
    case = Case(2, (48, 160), torch.float32)
    views = plain.Views(case.target, case.sources, case.intrinsics)
    noise = torch.randn(2, 2, 48, 160, generator=torch.Generator().manual_seed(1))
    expected = plain.plain_loss(case.maps, case.poses(), views, noise)
    ours = plain.our_loss(case.maps, case.poses(), views, torch.Generator().manual_seed(1))
    assert abs(float((ours - expected).detach())) < 1e-5


def test_the_gradient_is_that_of_finite_differences() -> None:
    case = Case(1, (6, 8), torch.float64, scales=1)
    identity = identity_error(case.sources, case.target, generator=torch.Generator().manual_seed(1))

    def loss(disparity: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        poses = rigid_motion(rotation_from_axis_angle(turn), shift)
        return minimum_reprojection(disparity, poses, case.intrinsics, case.sources, case.target, identity).loss

    assert torch.autograd.gradcheck(loss, case.leaves, eps=1e-7, atol=1e-4)


def test_unmoved_sources_mask_every_pixel() -> None:
    case = Case(1, (16, 24), torch.float32, scales=1)
    static = case.target[:, None].expand(-1, 2, -1, -1, -1)
    identity = identity_error(static, case.target)
    moved = minimum_reprojection(case.maps[0], case.poses(), case.intrinsics, static, case.target, identity)
    assert float(moved.kept) < 0.02
    without = minimum_reprojection(case.maps[0], case.poses(), case.intrinsics, static, case.target)
    assert float(without.kept) == 1
    assert float(without.loss.detach()) > float(moved.loss.detach())


def test_the_minimum_takes_the_source_that_sees_the_pixel() -> None:
    """One source is the target itself, the other is black: only the first counts."""
    case = Case(1, (16, 24), torch.float32, scales=1)
    sources = torch.stack([case.target, torch.zeros_like(case.target)], 1)
    still = torch.eye(4).expand(1, 2, 4, 4)
    found = minimum_reprojection(case.maps[0], still, case.intrinsics, sources, case.target)
    assert float(found.loss.detach()) < 1e-5


def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, (16, 24), torch.float64)
    full = torch.cat([enlarge(m, 16, 24) for m in case.maps], 1)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = minimum_reprojection(full, case.poses(), case.intrinsics, case.sources, case.target).loss
        return loss, list(torch.autograd.grad(loss, case.leaves, retain_graph=True))

    together = run()
    monkeypatch.setattr("leadline.losses.reprojection.PIECE_FLOATS", 1)
    apart = run()
    torch.testing.assert_close(together[0], apart[0])
    torch.testing.assert_close(together[1], apart[1])


def test_a_disparity_that_is_nan_is_a_loss_that_is_nan_and_not_the_end_of_the_process() -> None:
    disparity = torch.rand(1, 1, 32, 64)
    disparity[0, 0, 3, 4] = float("nan")
    camera = torch.tensor([[[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]])
    motion = torch.eye(4)[None, None].clone()
    motion[..., 0, 3] = 0.1
    pictures = torch.rand(1, 1, 3, 32, 64), torch.rand(1, 3, 32, 64)
    found = minimum_reprojection(
        disparity.requires_grad_(), motion, camera, *pictures, None, ssim_weight=0.85, align_corners=False
    )
    assert torch.isnan(found.loss)
