"""PyTorch as a runtime: dynamic INT8 as the study did it and per channel, BF16, and what has no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leadline.bundle import write_bundle
from leadline.errors import BundleError, CheckpointError, ConfigError
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.torch_eager import open_model
from tiny_models import VIT_SIZE, cnn, expected, exported, picture, vit


def quantised_layers(session: Any) -> list[Any]:
    return [
        layer
        for layer in session.model.modules()
        if type(layer).__name__ == "Linear" and "quantized" in str(type(layer))
    ]


@pytest.mark.parametrize(
    ("per_channel", "scheme"), [(True, torch.per_channel_affine), (False, torch.per_tensor_affine)]
)
def test_dynamic_int8_quantises_every_linear_and_leaves_the_network_alone(per_channel: bool, scheme: Any) -> None:
    """SPEC.md 7.2: PyTorch's default is one scale per tensor."""
    model = vit()
    session = open_model(model.model, model.contract, precision=Precision.INT8_DYNAMIC, per_channel=per_channel)
    layers = quantised_layers(session)
    assert len(layers) == 16
    assert {layer.weight().qscheme() for layer in layers} == {scheme}
    assert sum(type(layer) is nn.Linear for layer in model.model.modules()) == 16
    assert session.precision_ran == "int8 (Linear), fp32"
    assert any("16 Linear layers" in note for note in session.notes)
    values = picture(3, VIT_SIZE)
    reference = expected(model, values)
    assert np.abs(session.run(values) - reference).mean() / reference.std() < 0.1


def test_the_scale_rule_survives_the_bundle(tmp_path: Path) -> None:
    options = ExportOptions(precision=Precision.INT8_DYNAMIC, per_channel=False, size=VIT_SIZE)
    session = runtime("torch").open(runtime("torch").export(vit(), options, tmp_path), SessionOptions())
    assert {layer.weight().qscheme() for layer in quantised_layers(session)} == {torch.per_tensor_affine}


def test_bf16_computes_layers_in_bf16_and_stores_half() -> None:
    session = runtime("torch").open(exported("vit", "torch", "bf16"), SessionOptions())
    kinds: set[torch.dtype] = set()
    for layer in session.model.modules():  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda *call: kinds.add(call[2].dtype))
    values = picture(3, VIT_SIZE)
    reference = expected(vit(), values)
    assert np.abs(session.run(values) - reference).mean() / reference.std() < 0.1
    assert kinds == {torch.bfloat16}
    sizes = [exported("vit", "torch", p).file("weights.safetensors").stat().st_size for p in ("fp32", "bf16")]
    assert sizes[1] < 0.6 * sizes[0]
    assert {p.dtype for p in vit().model.parameters()} == {torch.float32}


def test_a_network_from_elsewhere_has_a_session_but_no_bundle(tmp_path: Path) -> None:
    stranger = LoadedModel(cnn().model, cnn().contract, "hf:owner/name")
    with pytest.raises(ConfigError, match=r"torch bundle of 'hf:owner/name'.*onnxruntime or openvino"):
        runtime("torch").export(stranger, ExportOptions(), tmp_path)
    values = picture(1, (64, 96))
    np.testing.assert_array_equal(open_model(stranger.model, stranger.contract).run(values), expected(cnn(), values))


def test_weights_that_do_not_fit_their_configuration(tmp_path: Path) -> None:
    good = runtime("torch").export(cnn(), ExportOptions(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"depthwise": true', '"depthwise": false'), encoding="utf-8"
    )
    again = {"runtime": "torch", "precision": "fp32", "contract": good.contract, "size": good.size, "dynamic": False}
    with pytest.raises(CheckpointError, match="do not fit"):
        runtime("torch").open(write_bundle(tmp_path, **again), SessionOptions())  # type: ignore[arg-type]
    config.write_text('{"architecture": "fastdepth"}', encoding="utf-8")
    with pytest.raises(BundleError, match="unreadable configuration"):
        runtime("torch").open(write_bundle(tmp_path, **again), SessionOptions())  # type: ignore[arg-type]


def test_a_precision_without_kernels_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch has no precision 'int8-static'"):
        open_model(cnn().model, cnn().contract, precision=Precision.INT8_STATIC)


def test_fp16_on_a_cpu_rounds_the_weights_and_widens_them() -> None:
    """What the file holds is what a GPU would compute with; a CPU takes the same weights in FP32."""
    bundle = exported("cnn", "torch", "fp16")
    session = runtime("torch").open(bundle, SessionOptions())
    assert session.precision_ran == "fp32 (fp16 weights)"
    sizes = [made.file("weights.safetensors").stat().st_size for made in (bundle, exported("cnn", "torch", "fp32"))]
    assert sizes[0] < 0.7 * sizes[1]  # names take the rest
    layers = [layer for layer in session.model.modules() if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
    theirs = [layer for layer in cnn().model.modules() if isinstance(layer, nn.Conv2d)]
    for mine, other in zip(layers, theirs, strict=True):
        assert torch.equal(mine.weight, other.weight.half().float())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_cuda_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"torch cannot use the device '{device}'"):
        open_model(cnn().model, cnn().contract, SessionOptions(device=device))
