"""Counting of multiply-accumulates and parameters against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leadline.evaluation.complexity import count_kernel_weights, count_macs, count_parameters
from leadline.models import depth_anything


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3 * 8 * 9 * 10 * 12),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), 3 * 8 * 9 * 5 * 6),
        (nn.Conv2d(3, 3, 5, padding=2, groups=3), 3 * 25 * 10 * 12),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 6 * 9 * 10 * 12),
        (nn.Conv2d(3, 8, 3, padding=2, dilation=2), 3 * 8 * 9 * 10 * 12),
        (nn.ConvTranspose2d(3, 8, 5, stride=2, padding=2, output_padding=1), 10 * 12 * 3 * 8 * 25),
        (nn.ConvTranspose2d(3, 3, 5, stride=2, padding=2, output_padding=1, groups=3), 10 * 12 * 3 * 25),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 12, 7)), 3 * 10 * 12 * 7),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Upsample(scale_factor=2)), 0),
    ],
)
def test_layers_count_their_own_products(layer, macs):
    assert count_macs(layer, (10, 12)) == macs


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # 1 x 1 head x HW x 3
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_fused_attention_counts_both_of_its_products():
    assert count_macs(Attention(), (10, 12)) == 2 * 120 * 120 * 3


def test_depth_anything_small_counts_its_attention():
    with torch.device("meta"):
        model = depth_anything.build(depth_anything.VARIANTS["depth-anything-v2-small"])
    assert count_macs(model, (518, 518)) / 1e9 == pytest.approx(57.63, abs=0.005)  # RUNTIMES.md pitfall 8


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if float(x.sum()) == 0 else x


def test_a_network_that_looks_at_values_is_counted_by_running_it():
    assert count_macs(LooksAtValues(), (10, 12)) == 3 * 4 * 120


def test_counting_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, (8, 8))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_parameters_and_kernel_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 5, bias=False))
    assert count_parameters(model) == (3 * 4 * 9 + 4) + 8 + 4 * 2 * 25
    assert count_kernel_weights(model) == 3 * 4 * 9 + 4 * 2 * 25


def test_a_shared_weight_counts_once():
    layer = nn.Conv2d(3, 3, 1)
    assert count_parameters(nn.Sequential(layer, layer)) == 12
