"""What every architecture of the registry must do; a new one joins by a line in VARIANTS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression.graph import groups, keep
from leadline.contract import Contract
from leadline.errors import ContractError
from leadline.evaluation.complexity import count_parameters
from leadline.models import registry
from leadline.reference import LoadedModel

VARIANTS = ["fastdepth-pruned", "fastdepth-concat", "fastdepth-resnet18-add", "leadline-s", "depth-anything-v2-small"]
VARIANTS += ["lite-mono-tiny", "lite-mono-adaptive-bins"]
MORE = [
    "lite-mono",
    "lite-mono-8m-1024",
    "lite-mono-attention",
    "lite-mono-fixed-bins",
    "fastdepth",
    "fastdepth-mobilenet-deconv5dw",
    "fastdepth-mobilenet-upconv",
    "fastdepth-mobilenet-upproj",
    "fastdepth-mobilenet-shuffle5",
    "fastdepth-resnet50-nnconv5dw",
    "fastdepth-mobilenet-v2",
    "leadline-xs",
    "leadline-l",
    "depth-anything-v2-tiny",
    "depth-anything-v2-metric-indoor-small",
]
UNUSED = {  # parameters of a published network that no output depends on
    "depth-anything-v2": ("mask_token", "refinenet4.resConfUnit1"),
    "lite-mono": ("decoder.7.", "decoder.8."),  # heads of the coarser scales, which `outputs` alone runs
}


class Case:
    """One variant with random weights and a small input."""

    def __init__(self, variant: str) -> None:
        self.architecture, self.config = registry.variants()[variant]
        module = registry.architecture(self.architecture)
        torch.manual_seed(0)
        self.model = module.build(self.config)
        self.contract = module.contract(self.config)
        n = self.contract.input.multiple_of
        unit = n * math.ceil(max(32, self.contract.input.min_side / 2) / n)
        self.size = (2 * unit, 3 * unit)
        self.x = torch.randn(2, 3, *self.size, generator=torch.Generator().manual_seed(1))
        self._settle()

    def _settle(self) -> None:
        """Batch statistics of the input instead of 0 and 1, without which depth saturates in eval mode."""
        self.model.train()
        norms = [module for module in self.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            self.model(self.x)
        self.model.eval()

    def run(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model(x)


@pytest.fixture(
    scope="module", params=[*VARIANTS, *(pytest.param(variant, marks=pytest.mark.slow) for variant in MORE)]
)
def case(request):
    return Case(request.param)


def test_returns_one_finite_depth_map_per_picture(case):
    depth = case.run(case.x)
    assert depth.shape == (2, 1, *case.size)
    assert depth.dtype == torch.float32
    assert torch.isfinite(depth).all()
    assert depth.std() > 0


def test_stays_within_the_range_that_the_contract_names(case):
    output = case.contract.output
    for value in (0, 255):
        flat = case.contract.prepare(np.full((*case.size, 3), value, np.uint8), case.size)
        for x in (torch.from_numpy(flat), case.x):
            depth = case.run(x)
            assert torch.isfinite(depth).all()
            assert output.minimum is None or depth.min() >= output.minimum
            assert output.maximum is None or depth.max() <= output.maximum


def test_gradients_reach_every_parameter(case):
    case.model.train()
    case.model.zero_grad()
    case.model(case.x).square().mean().backward()
    case.model.eval()
    unused = UNUSED.get(case.architecture, ())
    for name, parameter in case.model.named_parameters():
        if any(part in name for part in unused) or not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    case.model.zero_grad()


def test_other_allowed_sizes_run_and_odd_ones_are_refused_with_a_proposal(case):
    n = case.contract.input.multiple_of
    taller = (case.size[0] + n, case.size[1])
    assert case.contract.checked_size(taller) == taller
    assert case.run(torch.zeros(1, 3, *taller)).shape == (1, 1, *taller)
    with pytest.raises(ContractError, match=f"Use {case.size[0]},{case.size[1]}"):
        case.contract.checked_size((case.size[0] + 1, case.size[1]))


def test_eval_is_deterministic(case):
    assert torch.equal(case.run(case.x), case.run(case.x))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """As a share of the map's spread: rounding stays far below 1, a real difference is about 1."""
    return float((a - b).abs().max() / b.std())


def test_pictures_of_a_batch_do_not_touch_each_other(case):
    together, alone = case.run(case.x), case.run(case.x[1:])
    assert largest_difference(together[1:], alone) < 0.02


def test_memory_format_changes_nothing(case):
    channels_last = case.x.contiguous(memory_format=torch.channels_last)
    assert largest_difference(case.run(channels_last), case.run(case.x)) < 0.02


def test_half_of_all_channels_leave_and_what_is_left_is_a_checkpoint(case, tmp_path):
    source = LoadedModel(case.model, case.contract, "case", (), case.architecture, case.config)
    chosen = {}
    for group in groups(source):
        bundles = range(0, group.width // group.multiple, 2)
        chosen[group.name] = [bundle * group.multiple + k for bundle in bundles for k in range(group.multiple)]
    pruned = keep(source, chosen)
    assert {group.name: group.width for group in groups(pruned)} == {name: len(kept) for name, kept in chosen.items()}
    assert count_parameters(pruned.model) < 0.6 * count_parameters(case.model)
    with torch.no_grad():
        depth = pruned.model(case.x)
    assert depth.shape == (2, 1, *case.size)
    folder = tmp_path / "pruned"
    save_checkpoint(
        folder, pruned.model, architecture=case.architecture, config=pruned.config, contract=pruned.contract
    )
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(folder).model()(case.x), depth, rtol=0, atol=1e-6)


def test_configuration_and_contract_survive_json(case):
    config = registry.parse_config(case.architecture, case.config.model_dump(mode="json"))
    assert config == case.config
    assert Contract.model_validate_json(case.contract.model_dump_json()) == case.contract


def test_checkpoint_gives_the_same_network_back(case, tmp_path):
    folder = tmp_path / "model"
    save_checkpoint(folder, case.model, architecture=case.architecture, config=case.config, contract=case.contract)
    checkpoint = load_checkpoint(folder)
    loaded = checkpoint.model()
    assert checkpoint.config == case.config
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(case.x), case.run(case.x))
