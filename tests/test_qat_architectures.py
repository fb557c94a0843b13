"""Quantisation-aware training of networks whose graphs are not convolutions with batch norms alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from calm_network import place
from int8_networks import STATIC, integers_apart, said, save
from leadline.compression.qat_start import calibrated_start, finished
from leadline.compression.quantised_network import Training
from leadline.models import lite_mono
from leadline.reference import LoadedModel, load_model
from leadline.runtimes.base import runtime


@pytest.mark.slow
def test_transformers_round_at_their_products_alone(tmp_path: Path) -> None:
    size, vit = tiny_models.VIT_SIZE, tiny_models.vit()
    at = replace(place(tmp_path), train={**place(tmp_path).train, "size": list(size)})
    begun = calibrated_start(vit, at, Training())
    names = {point.name for point in begun.network.points}
    assert {"pretrained.blocks.0.attn.qkv.weight:in", "pretrained.blocks.0.attn.qkv.weight"} <= names
    made = finished(vit, begun, begun.network)
    apart = integers_apart(made, begun.network, size)
    assert {name: share for name, share in apart.items() if ".blocks.0." in name and share > 0.001} == {}
    assert runtime("openvino").export(made, replace(STATIC, size=size), tmp_path).details["calibration"] == "trained"


@pytest.mark.slow
def test_convolutions_that_take_a_linear_layer_s_weight(tmp_path: Path) -> None:
    """Lite-Mono stores its pointwise layers as linear ones and runs them as 1 x 1 convolutions."""
    widths: dict[str, Any] = {"widths": (12, 16, 20), "dilations": ((1,), (2,), (1, 3)), "heads": (3, 2, 1)}
    config = lite_mono.Config(**widths, height=64, width=96)
    torch.manual_seed(0)
    lite = LoadedModel(lite_mono.build(config).eval(), lite_mono.contract(config), "lite", (), "lite-mono", config)
    begun = calibrated_start(
        lite, replace(place(tmp_path), train={**place(tmp_path).train, "size": [64, 96]}), Training()
    )
    block = "encoder.stages.0.0.pwconv1.weight"
    assert block in begun.network.names
    names = {point.name for point in begun.network.points}
    assert {block, "encoder.stages.0.0.pwconv2.weight:in"} <= names
    x = tiny_models.picture(5, (64, 96))
    moved = np.abs(said(begun.network.eval(), x) - said(lite.model, x))
    assert moved.max() > 0
    assert moved.mean() < 0.1 * said(lite.model, x).std()
    made = finished(lite, begun, begun.network)
    apart = integers_apart(made, begun.network, (64, 96))
    assert max(share for name, share in apart.items() if ".stages.0.0." in name) < 0.01
    save(made, tmp_path / "checkpoint")
    again = load_model(str(tmp_path / "checkpoint"))
    assert runtime("openvino").export(again, STATIC, tmp_path).details["calibration"] == "trained"
