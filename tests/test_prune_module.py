"""Removing channels of networks that are not ours: a detector, grouped convolutions, refusals, export."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import tiny_detector
import tiny_models
from leadline.compression import Place
from leadline.compression.channels import PruneChannels
from leadline.compression.foreign import prune_module
from leadline.errors import ConfigError, UnavailableError
from leadline.reference import LoadedModel

SIZE = (64, 96)


def test_a_detector_loses_half_of_its_channels_and_none_of_its_outputs():
    model, x = tiny_detector.detector(), torch.randn(1, 3, 32, 48)
    pruned = prune_module(model, x, 0.5)
    shapes = {name: tuple(value.shape) for name, value in pruned.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "boxes.0.weight": (8, 8, 3, 3),
        "boxes.2.weight": (4, 8, 1, 1),
        "classes.0.weight": (8, 8, 3, 3),
        "classes.2.weight": (5, 8, 1, 1),
        "stem.0.weight": (4, 3, 3, 3),
        "stem.1.weight": (4,),
        "stage1.0.weight": (8, 4, 3, 3),
        "stage1.1.weight": (8,),
        "stage2.0.weight": (8, 1, 3, 3),
        "stage2.1.weight": (8,),
        "stage2.2.weight": (8, 8, 1, 1),
        "up.weight": (8, 8, 2, 2),
    }
    with torch.no_grad():
        before, after = model(x), pruned(x)
    assert {key: [tuple(each.shape) for each in values] for key, values in after.items()} == {
        key: [tuple(each.shape) for each in values] for key, values in before.items()
    }
    assert model.stem[0].out_channels == 8


@torch.no_grad()
def test_a_detectors_silent_channels_leave_without_a_trace():
    model, x = tiny_detector.detector(), torch.randn(1, 3, 32, 48)
    stem, up, tied = model.stem, model.up, (model.stage1, model.stage2)
    stem[0].weight[::2] = 0
    stem[1].bias[::2] = 0
    model.stage1[0].weight[1::2] = 0
    model.stage1[1].bias[1::2] = 0
    model.stage2[2].weight[1::2], model.stage2[2].bias[1::2] = 0, 0
    up.weight[:, 1::2], up.bias[1::2] = 0, 0
    for head in (model.boxes, model.classes):
        head[0].weight[:8], head[0].bias[:8] = 0, 0
    pruned = prune_module(model, x, 0.5)
    assert len(tied) == 2
    for key, values in model(x).items():
        for a, b in zip(pruned(x)[key], values, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Grouped(nn.Module):
    """Grouped convolution, group norm, a concatenation, a flattening, and no batch norm anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.b = nn.Conv2d(16, 24, 3, groups=4, padding=1)
        self.c = nn.Conv2d(40, 6, 1)
        self.out = nn.Linear(6 * 8 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.norm(self.a(x)).relu()
        said: torch.Tensor = self.out(self.c(torch.cat([a, self.b(a).relu()], 1)).flatten(1))
        return said


def test_grouped_convolutions_lose_the_same_number_from_every_group():
    torch.manual_seed(0)
    model, x = Grouped().eval(), torch.randn(2, 3, 8, 8)
    pruned = prune_module(model, x, 0.5)
    assert pruned.b.weight.shape == (12, 2, 3, 3)
    assert (pruned.b.groups, pruned.norm.num_groups, pruned.norm.num_channels) == (4, 4, 8)
    assert (pruned.c.in_channels, pruned.out.in_features) == (20, 3 * 64)
    assert pruned(x).shape == (2, 3)
    wide = prune_module(model, x, 0.5, multiple=8, exclude=["c"])
    assert (wide.a.out_channels, wide.b.out_channels, wide.c.out_channels) == (8, 16, 6)


def test_foreign_networks_are_refused_in_words_and_exported(tmp_path, monkeypatch):
    model, x = tiny_detector.detector(), torch.randn(1, 3, 32, 48)
    with pytest.raises(ConfigError, match=r"bad ratio 1\.5"):
        prune_module(model, x, 1.5)
    with pytest.raises(ConfigError, match="no such layer 'sten'"):
        prune_module(model, x, 0.5, exclude=["sten"])
    with pytest.raises(ConfigError, match="nothing to remove"):
        prune_module(model, x, 0.01)
    assert not torch.equal(
        prune_module(model, x, 0.5, "random", seed=1).up.weight, prune_module(model, x, 0.5, "random", seed=2).up.weight
    )
    foreign = LoadedModel(nn.Conv2d(3, 1, 1), tiny_models.cnn().contract, "strange")
    with pytest.raises(ConfigError, match=r"no groups of channels 'strange'.*prune_module"):
        PruneChannels(ratio=0.5).apply(foreign, Place(tmp_path))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UnavailableError, match=r'Install it: pip install "leadline\[prune\]"'):
        prune_module(model, x, 0.5)


def test_a_pruned_foreign_network_exports(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from leadline.runtimes.onnx_export import export_onnx

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = tiny_detector.detector()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            said = self.detector(x)
            logits = said["boxes"][0][:, :1] + said["classes"][0][:, 1:2]
            depth: torch.Tensor = nn.functional.interpolate(logits, scale_factor=4).relu()
            return depth

    x = torch.randn(1, 3, *SIZE)
    pruned = prune_module(Depth().eval(), x, 0.5)
    assert pruned.detector.stage1[0].out_channels == 8
    spec = tiny_models.cnn().contract.input.model_copy(update={"dynamic": False})
    proto = export_onnx(pruned, tiny_models.cnn().contract.model_copy(update={"input": spec}))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, pruned(x).numpy(), atol=1e-5)
