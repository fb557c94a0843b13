"""Batch norms measured again: their statistics against float64, and what the step refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from calm_network import place
from leadline.compression.base import Place
from leadline.compression.graph import groups, keep
from leadline.compression.importance import scores, strongest
from leadline.compression.recalibrate import Recalibrate, pictures, recalibrated
from leadline.errors import ConfigError, NumericalError

SIZE = (64, 96)


def batches(count: int = 3) -> list[torch.Tensor]:
    return [torch.from_numpy(tiny_models.picture(number, SIZE)).repeat(2, 1, 1, 1) for number in range(count)]


def test_the_first_norm_has_the_mean_of_its_batches_in_float64() -> None:
    source, seen = tiny_models.cnn(), batches()
    result = recalibrated(source, seen)
    (first, *_) = [each for each in source.model.modules() if isinstance(each, nn.Conv2d)]
    path, norm = next(each for each in result.model.named_modules() if isinstance(each[1], nn.BatchNorm2d))
    inputs: list[np.ndarray] = []
    with torch.no_grad():
        for batch in seen:
            inputs.append(first(batch).double().numpy())
    means = np.mean([each.mean(axis=(0, 2, 3)) for each in inputs], axis=0)
    variances = np.mean([each.var(axis=(0, 2, 3), ddof=1) for each in inputs], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-4, atol=1e-6)
    before = source.model.get_submodule(path)
    assert norm.momentum == before.momentum
    assert not any(each.training for each in result.model.modules())
    weights = dict(source.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in result.model.named_parameters())


def test_it_brings_back_what_narrowing_moved() -> None:
    source = tiny_models.cnn()
    seen = batches(6)
    whole = recalibrated(source, seen)
    group = next(each for each in groups(whole) if each.name == "mobilenet.2.3")
    narrow = keep(whole, {group.name: strongest(group, scores(whole, group), 8)})
    x = torch.from_numpy(tiny_models.picture(9, SIZE))
    with torch.no_grad():
        truth, moved, again = (m.model(x) for m in (whole, narrow, recalibrated(narrow, seen)))
    assert float((again - truth).abs().mean()) < 0.8 * float((moved - truth).abs().mean())


def test_the_step_takes_pictures_of_the_recipe(tmp_path: Path) -> None:
    source = replace(tiny_models.cnn())
    where = replace(place(tmp_path), train={**place(tmp_path).train, "size": list(SIZE)})
    one = Recalibrate(batches=2).apply(source, where)
    two = recalibrated(source, pictures(source, where, 2))
    assert all(torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    assert (one.name, one.config, one.contract) == (source.name, source.config, source.contract)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no batch norm in 'tiny-vit'"):
        recalibrated(tiny_models.vit(), [])
    with pytest.raises(ConfigError, match="no batch to recalibrate with"):
        recalibrated(tiny_models.cnn(), [])
    bad = batches(1)[0].clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="an activation is not finite"):
        recalibrated(tiny_models.cnn(), [bad])
    empty: dict[str, Any] = {}
    with pytest.raises(ConfigError, match="has no `train`"):
        Recalibrate().apply(tiny_models.cnn(), Place(tmp_path, empty))
