"""Depth Anything V2: counts, keys, operations and sizes of SPEC.md section 6, and an export with open sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from leadline.depth import Kind
from leadline.errors import CheckpointError
from leadline.evaluation.complexity import count_macs
from leadline.models import depth_anything
from leadline.models.depth_anything import SIZES, VARIANTS, Config
from leadline.models.depth_anything_weights import from_official
from leadline.models.dinov2 import set_fused_attention
from leadline.models.registry import parse_config

ROUNDING = 3e-5  # float32 positions near 50 times the slope of a cubic through N(0, 1) values
KEYS = Path(__file__).parent / "keys"
TINY = Config(
    dim=48,
    heads=(3, 2, 3, 1),
    head_width=16,
    mlp=(96, 96, 64, 80),
    taken=(0, 1, 2, 3),
    features=16,
    out_channels=(8, 16, 16, 24),
    head_channels=(8, 8),
)


def network(config: Config = TINY) -> torch.nn.Module:
    torch.manual_seed(0)
    model = depth_anything.build(config).eval()
    torch.nn.init.normal_(model.pretrained.pos_embed)
    torch.nn.init.constant_(model.depth_head.scratch.output_conv2[2].bias, 0.5)  # away from an all-zero ReLU
    return model


def on_meta(config: Config) -> torch.nn.Module:
    with torch.device("meta"):
        return depth_anything.build(config)


@pytest.mark.parametrize(
    ("size", "total", "backbone"),
    [("small", 24_785_089, 22_056_576), ("base", 97_470_785, 86_580_480), ("large", 335_315_649, 304_368_640)],
)
def test_parameters_are_as_many_as_published(size: str, total: int, backbone: int) -> None:
    model = on_meta(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.pretrained.parameters()) == backbone


@pytest.mark.parametrize(("size", "list_name"), [("small", "vits"), ("base", "vitb"), ("large", "vitl")])
def test_state_dict_has_the_published_keys_shapes_and_order(size: str, list_name: str) -> None:
    lines = (KEYS / f"dav2_{list_name}.txt").read_text().splitlines()
    ours = [f"{key}\t{tuple(value.shape)}" for key, value in on_meta(SIZES[size]).state_dict().items()]
    assert ours == lines


@pytest.mark.parametrize(
    ("size", "shape", "billions"),
    [
        ("small", (518, 518), 57.63),
        ("small", (252, 252), 10.53),
        ("small", (518, 686), 83.73),
        ("base", (518, 518), 190.35),
    ],
)
def test_macs_are_as_many_as_published(size: str, shape: tuple[int, int], billions: float) -> None:
    assert round(count_macs(on_meta(SIZES[size]), shape) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("picture", "tensor"),
    [
        ((480, 640), (518, 686)),
        ((375, 1242), (518, 1722)),
        ((370, 1226), (518, 1722)),
        ((370, 1224), (518, 1708)),
        ((376, 1241), (518, 1708)),
        ((352, 1216), (518, 1792)),
        ((1216, 1936), (518, 826)),
        ((1080, 1920), (518, 924)),
        ((720, 1280), (518, 924)),
        ((192, 640), (518, 1722)),
        ((320, 1024), (518, 1652)),
    ],
)
def test_input_size_follows_the_authors_rule(picture: tuple[int, int], tensor: tuple[int, int]) -> None:
    assert depth_anything.contract(SIZES["small"]).size_for(*picture) == tensor


def test_extreme_pictures_stay_within_the_longest_side() -> None:
    contract = depth_anything.contract(SIZES["small"])
    assert contract.size_for(1, 5000) == (518, 2800)
    assert contract.size_for(1, 1) == (518, 518)


def test_every_variant_names_its_licence_kind_and_range() -> None:
    assert len(VARIANTS) == 11  # nine of the authors, two students
    for name, config in VARIANTS.items():
        contract = depth_anything.contract(config)
        assert contract.name == name
        ours = name.endswith(("tiny", "mini"))
        assert contract.licence == ("unknown" if ours else "Apache-2.0" if name.endswith("small") else "CC-BY-NC-4.0")
        assert contract.output.align_corners
        limit = 20.0 if "indoor" in name else 80.0 if "outdoor" in name else None
        assert contract.output.maximum == limit
        assert contract.output.kind is (Kind.METRIC_DEPTH if limit else Kind.RELATIVE_DISPARITY)


def test_a_changed_network_has_no_published_licence() -> None:
    assert depth_anything.contract(TINY).licence == "unknown"


@pytest.mark.parametrize("patches", [(5, 6), (37, 37), (37, 50), (60, 9), (1, 1)])
def test_positions_follow_torchs_bicubic_by_scale_factor(patches: tuple[int, int]) -> None:
    model = network().pretrained
    learned = model.pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    factors = tuple((n + 0.1) / 37 for n in patches)
    expected = F.interpolate(learned, scale_factor=factors, mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        model.position_map(*patches), learned if patches == (37, 37) else expected, atol=ROUNDING, rtol=0
    )


@pytest.mark.parametrize("patches", [(5, 6), (37, 37), (37, 50), (60, 9)])
def test_positions_follow_torchs_bicubic_by_size(patches: tuple[int, int]) -> None:
    model = network(TINY.model_copy(update={"positions": "size"})).pretrained
    learned = model.pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(learned, size=patches, mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.position_map(*patches), expected, atol=ROUNDING, rtol=0)


def test_plain_attention_gives_what_the_fused_kernel_gives() -> None:
    model, image = network(), torch.randn(2, 3, 56, 70)
    fused = model(image)
    set_fused_attention(model, False)
    torch.testing.assert_close(model(image), fused, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(14, 14), (14, 70), (98, 42)])
def test_forward_and_backward_at_odd_sizes(size: tuple[int, int]) -> None:
    model = network()
    output = model(torch.randn(2, 3, *size))
    assert output.shape == (2, 1, *size)
    assert float(output.detach().min()) >= 0
    output.mean().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {
        "pretrained.mask_token",
        *(f"depth_head.scratch.refinenet4.resConfUnit1.conv{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
    }


def test_a_metric_head_is_a_scaled_sigmoid_of_the_same_logits() -> None:
    relative = network()
    metric = network(TINY.model_copy(update={"head": "metric", "max_depth": 20.0}))
    image = torch.randn(1, 3, 42, 56)
    logits = relative(image)
    assert float(logits.detach().min()) > 0  # so that the ReLU of the relative head hides nothing
    torch.testing.assert_close(metric(image), 20 * torch.sigmoid(logits))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp": (96, 96)}, "heads names 4 blocks and mlp 2"),
        ({"taken": (0, 1, 2, 4)}, "four ascending blocks from 0 to 3"),
        ({"head": "metric"}, "a metric head needs max_depth"),
        ({"max_depth": 10.0}, "a relative head has none"),
        ({"registers": 4}, "Extra inputs"),
    ],
)
def test_configurations_that_make_no_network_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(TINY.model_dump() | changes)


def test_a_configuration_survives_json() -> None:
    assert parse_config("depth-anything-v2", TINY.model_dump(mode="json")) == TINY


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_official_tensors_say_their_size(size: str) -> None:
    tensors = {f"module.{key}": value for key, value in on_meta(SIZES[size]).state_dict().items()}
    config, state = from_official(tensors)
    assert config == SIZES[size]
    assert list(state) == list(on_meta(config).state_dict())
    assert from_official(tensors, "metric", 80.0)[0] == VARIANTS[f"depth-anything-v2-metric-outdoor-{size}"]


def test_official_tensors_that_fit_no_size_are_refused() -> None:
    with pytest.raises(CheckpointError, match="4 blocks of 48 channels; released are small 384 x 12"):
        from_official(on_meta(TINY).state_dict())
    with pytest.raises(CheckpointError, match=r"no tensor 'pretrained.cls_token'; the first is 'conv.weight'"):
        from_official({"conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="Give 20 for the indoor"):
        from_official(on_meta(SIZES["small"]).state_dict(), "metric")


def test_exported_height_width_and_batch_stay_open() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from leadline.runtimes.onnx_export import export_onnx

    model = network()
    exported = export_onnx(model, depth_anything.contract(TINY))
    kinds = {node.op_type for node in exported.graph.node}
    assert {"MatMul", "Softmax"} <= kinds
    assert "Attention" not in kinds
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 126, 168), (1, 252, 336), (1, 182, 98), (3, 28, 42), (1, 518, 518)):
        image = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            expected = model(image).numpy()
        (found,) = session.run(None, {"input": image.numpy()})
        assert found.shape == (batch, 1, height, width)
        np.testing.assert_allclose(found, expected, atol=1e-5)
