"""Removing channels: exact counts, exact functions, joint ranking, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leadline.compression.graph import Group, groups, keep, wiring_of
from leadline.compression.importance import scores, strongest
from leadline.evaluation.complexity import count_kernel_weights, count_macs, count_parameters
from leadline.models import depth_anything, fastdepth, lite_mono, registry
from leadline.models.lite_mono_blocks import ChannelNorm, SpatialAttention
from leadline.models.wiring import Part, size
from leadline.reference import LoadedModel

MOBILE = (8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32)
DECODER = (24, 16, 12, 8, 6)
LITE0 = {
    "encoder_widths": (8, 6, 10, 12, 14, 16, 18, 20),
    "hidden_widths": (12, 14, 14, 14, 16, 16, 16, 16, 16, 18, 18, 18, 18, 18, 20),
}
LITE1 = {
    "encoder_widths": LITE0["encoder_widths"],
    "hidden_widths": (12, 14, 14, 14, 14, 14, 16, 16, 16, 16, 16, 16, 16, 18, 18, 18, 18, 18, 18, 18, 20)[:21],
}


def fastdepth_of(**options: object) -> LoadedModel:
    return loaded("fastdepth", fastdepth.Config(**options))


FASTDEPTH = {
    "mobilenet, depthwise, add": {"depthwise": True, "skip": "add", "decoder_widths": (24, 16, 16, 8, 6)},
    "mobilenet, depthwise, concat": {"depthwise": True, "skip": "concat"},
    "mobilenet, 3x3, lateral": {"kernel": 3, "skip": "add", "skip_strides": (16, 8, 4, 2), "lateral": True},
    "mobilenet, bilinear": {"upsampler": "blconv", "head": "softplus"},
    "mobilenet, deconv": {"upsampler": "deconv", "skip": "concat"},
    "mobilenet, deconv depthwise, add": {
        "upsampler": "deconv",
        "depthwise": True,
        "skip": "add",
        "decoder_widths": (24, 16, 16, 8, 6),
    },
    "mobilenet, upconv": {"upsampler": "upconv"},
    "mobilenet, upproj": {"upsampler": "upproj"},
    "mobilenet, upproj with branches": {"upsampler": "upproj", "branch_widths": (10, 9, 8, 7, 6)},
    "mobilenet, bridge": {"bridge": 20},
    "mobilenet, shuffle": {"upsampler": "shuffle", "decoder_widths": (24, 16, 12)},
    "resnet18, shuffle": {"encoder": "resnet18", "upsampler": "shuffle", "decoder_widths": (24, 16, 12), "bridge": 16},
    "resnet18": {"encoder": "resnet18", "bridge": 20},
    "resnet18, concat": {"encoder": "resnet18", "depthwise": True, "skip": "concat"},
    "resnet18, stem apart": {"encoder": "resnet18", "encoder_widths": (6, 8, 10, 12, 14)},
    "resnet18, plain add": {"encoder": "resnet18", "skip": "add", "decoder_widths": (16, 10, 8, 8, 6)},
    "resnet50, lateral": {"encoder": "resnet50", "skip": "add", "lateral": True},
    "mobilenet-v2": {"encoder": "mobilenet-v2", "skip": "add", "lateral": True, "head": "sigmoid", "head_stride": 2},
    "efficientnet-lite0": {"encoder": "efficientnet-lite0", **LITE0, "skip": "concat"},
    "efficientnet-lite0, shuffle": {
        "encoder": "efficientnet-lite0",
        **LITE0,
        "upsampler": "shuffle",
        "decoder_widths": (24, 16, 12),
    },
    "efficientnet-lite0-short": {
        "encoder": "efficientnet-lite0-short",
        "encoder_widths": LITE0["encoder_widths"][:7],
        "hidden_widths": (12, 14, 14, 14, 16, 16, 16, 16, 16, 18, 18)[:11],
        "skip": "add",
        "lateral": True,
    },
}


def small(options: dict[str, object]) -> dict[str, object]:
    """The options with small widths where they name none."""
    encoder = str(options.get("encoder", "mobilenet-v1"))
    defaults: dict[str, object] = {"decoder_widths": DECODER, "height": 64, "width": 96}
    if encoder == "mobilenet-v1":
        defaults |= {"encoder_widths": MOBILE}
    elif encoder == "mobilenet-v2":
        defaults |= {"encoder_widths": (8, 6, 10, 12, 14, 16, 18, 20), "hidden_widths": (12,) * 16}
    elif encoder.startswith("resnet"):
        defaults |= {"encoder_widths": (8, 8, 10, 12, 14), "hidden_widths": (6,) * (8 if encoder == "resnet18" else 32)}
    return defaults | options


def loaded(architecture: str, config: object) -> LoadedModel:
    """A random network in which every tensor matters."""
    module = registry.architecture(architecture)
    torch.manual_seed(0)
    model = module.build(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.2)
            elif "gamma" in name:
                value.uniform_(0.2, 0.6)
    return LoadedModel(model, module.contract(config), "small", (), architecture, config)


def picture(source: LoadedModel, count: int = 2) -> Tensor:
    spec = source.contract.input
    return torch.randn(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def before_the_head(source: LoadedModel) -> Tensor:
    """What the last convolution that runs says, which no output function hides, and the output."""
    convs = [m for m in source.model.modules() if isinstance(m, nn.Conv2d)]
    seen: list[Tensor] = []
    hooks = [conv.register_forward_hook(lambda _m, _x, y: seen.append(y)) for conv in convs]
    output = source.model(picture(source))
    for hook in hooks:
        hook.remove()
    return torch.cat([seen[-1].flatten(), output.flatten()])


def halves(source: LoadedModel, only: object = None) -> dict[str, list[int]]:
    """About every second bundle of every group, never the same stretch."""
    chosen = {}
    for number, group in enumerate(groups(source)):
        bundles = group.width // group.multiple
        kept = [b for b in range(bundles) if (b + number) % 2 == 0 or (b + number) % 5 == 1] or [0]
        if only is None or only(group):
            chosen[group.name] = [b * group.multiple + k for b in kept for k in range(group.multiple)]
    return chosen


@torch.no_grad()
def silenced(source: LoadedModel, chosen: dict[str, list[int]]) -> LoadedModel:
    """The same network with zeros for the other channels: weights, biases and scales that make them."""
    import copy

    model = copy.deepcopy(source.model)
    state = model.state_dict()
    wiring = wiring_of(source)
    for space in wiring.spaces:
        if space.name not in chosen:
            continue
        unit = {channel // space.bundle for channel in chosen[space.name]}
        gone = torch.tensor([u not in unit for u in range(space.units)])
        for name, axes in wiring.axes.items():
            vector = len(axes) == 1 and state[name].ndim == 1 and "running" not in name
            produced = name.removesuffix(".weight") in space.producers
            for number, axis in enumerate(axes):
                layer = model.get_submodule(name.rpartition(".")[0]) if produced else None
                if not vector and not (produced and number == int(isinstance(layer, nn.ConvTranspose2d))):
                    continue
                start = 0
                for part in axis:
                    if isinstance(part, Part) and part.space is space:
                        mask = gone[:, None].expand(-1, part.each).flatten().repeat(part.times)
                        state[name].transpose(0, number)[start : start + len(mask)][mask] = 0
                    start += size((part,))
    return replace(source, model=model)


class NormOverKept(nn.Module):
    """Layer normalisation over the channels that its weights did not silence."""

    def __init__(self, norm: nn.Module, axis: int) -> None:
        super().__init__()
        self.norm, self.axis = norm, axis

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        kept = self.norm.weight != 0
        inside = x[..., kept]
        normal = (x - inside.mean(-1, keepdim=True)) / (inside.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return (normal * self.norm.weight + self.norm.bias).movedim(-1, self.axis)


class GateOverKept(nn.Module):
    """Spatial attention that sees only channels with anything in them."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        inside = x[:, x.abs().amax((0, 2, 3)) > 0]
        summary = torch.cat([inside.amax(1, keepdim=True), inside.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.gate.bn(self.gate.conv(summary)))


def with_statistics_of_kept(source: LoadedModel) -> LoadedModel:
    """Layer norms and gates look at all channels of a pixel: here, only at those that are not silent."""
    for path, module in list(source.model.named_modules()):
        swap: nn.Module | None = None
        if isinstance(module, nn.LayerNorm):
            swap = NormOverKept(module, -1)
        elif isinstance(module, ChannelNorm):
            swap = NormOverKept(module, 1)
        elif isinstance(module, SpatialAttention):
            swap = GateOverKept(module)
        if swap is not None:
            parent, _, name = path.rpartition(".")
            setattr(source.model.get_submodule(parent), name, swap)
    return source


LITE = {"widths": (12, 16, 20), "dilations": ((1,), (2,), (1, 3)), "heads": (3, 2, 4), "height": 64, "width": 96}
TOKENS = {
    "dim": 40,
    "heads": (3, 2, 3, 1),
    "head_width": 16,
    "mlp": (60, 50, 40, 30),
    "taken": (0, 1, 2, 3),
    "grid": 4,
    "features": 12,
    "out_channels": (8, 10, 12, 14),
    "head_channels": (9, 7),
}
OTHERS = {
    "lite-mono": ("lite-mono", lite_mono.Config(**LITE)),
    "lite-mono, attention": ("lite-mono", lite_mono.Config(**LITE, attention=(1, 3))),
    "lite-mono, fixed bins": ("lite-mono", lite_mono.Config(**LITE, bins="fixed", bin_count=6)),
    "lite-mono, adaptive bins": ("lite-mono", lite_mono.Config(**LITE, bins="adaptive", bin_count=6, bin_hidden=10)),
    "depth anything": ("depth-anything-v2", depth_anything.Config(**TOKENS)),
    "depth anything, metric, uneven": (
        "depth-anything-v2",
        depth_anything.Config(
            **TOKENS,
            head="metric",
            max_depth=20.0,
            resized=(7, 9, 12, 11),
            fused=(8, 9, 10, 11, 12),
            unit_channels=(5, 6, 7, 8, 9, 10, 11, 12),
        ),
    ),
}
NORMED = ("encoder.stem2", "encoder.downsample_layers.1", "encoder.downsample_layers.2", "pretrained.patch_embed")


@pytest.mark.parametrize(("architecture", "config"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("everything", [True, False])
def test_heads_expansions_and_tokens_leave_without_a_trace(architecture, config, everything):
    source = loaded(architecture, config)
    chosen = halves(source, None if everything else lambda group: not group.name.startswith(NORMED))
    pruned = keep(source, chosen)
    silent = silenced(source, chosen)
    before = before_the_head(with_statistics_of_kept(silent) if everything else silent)
    assert before.std() > 0.01
    assert (before - before_the_head(source)).abs().max() > 0.01
    assert all(group.width == len(chosen.get(group.name, range(group.width))) for group in groups(pruned))
    tolerance = 1e-6 * float(before.abs().max().clamp(min=1))
    torch.testing.assert_close(before_the_head(pruned), before, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("options", FASTDEPTH.values(), ids=FASTDEPTH)
def test_channels_that_say_nothing_leave_without_a_trace(options):
    source = fastdepth_of(**small(options))
    chosen = halves(source)
    pruned = keep(source, chosen)
    for group in groups(pruned):
        assert group.width == len(chosen[group.name])
    before, after = before_the_head(silenced(source, chosen)), before_the_head(pruned)
    assert before.std() > 0.01
    assert (before - before_the_head(source)).abs().max() > 0.01  # what was silenced did say something
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6 * float(before.abs().max().clamp(min=1)))


def test_the_authors_plan_comes_out_of_masks():
    config = fastdepth.VARIANTS["fastdepth"]
    model = fastdepth.build(config)
    source = LoadedModel(model, fastdepth.contract(config), "fastdepth", (), "fastdepth", config)
    encoder = (16, 56, 88, 120, 144, 256, 408, 376, 272, 288, 296, 328, 480, 512)  # SPEC.md 1.1
    decoder = (200, 256, 120, 56, 16)
    plan = {"conv0.0": 16} | {f"conv{i}.3": encoder[i] for i in range(1, 14)}
    plan |= {"decode_conv1.1.0": 200, "decode_conv5.1.0": 16}
    found = {group.name: group for group in groups(source)}
    tied = {name: group.producers for name, group in found.items() if len(group.producers) > 1}
    assert tied == {  # blocks 0 .. 18 of SPEC.md 2.3: {5, 15}, {3, 16}, {1, 17}
        "conv5.3": ("conv5.3", "decode_conv2.1.0"),
        "conv3.3": ("conv3.3", "decode_conv3.1.0"),
        "conv1.3": ("conv1.3", "decode_conv4.1.0"),
    }
    assert set(plan) == set(found)
    pruned = keep(source, {name: strongest(found[name], scores(source, found[name]), n) for name, n in plan.items()})
    assert count_kernel_weights(pruned.model) == 1_343_664
    assert count_macs(pruned.model, (224, 224)) == 366_393_384
    assert count_parameters(pruned.model) == 1_360_786
    assert pruned.config == fastdepth.VARIANTS["fastdepth-pruned"]
    assert pruned.config.decoder_widths == decoder


def test_tied_layers_are_ranked_by_their_joint_norm():
    source = fastdepth_of(**small(FASTDEPTH["mobilenet, depthwise, add"]))
    group = next(group for group in groups(source) if group.name == "conv5.3")
    assert group == Group("conv5.3", 16, ("conv5.3", "decode_conv2.1.0"), 16 + 24)
    encoder, decoder = (source.model.get_submodule(path).weight.data for path in group.producers)
    encoder.zero_()
    decoder.zero_()
    for channel in range(16):
        encoder[channel, 0], decoder[channel, 0] = 3.0, float(channel)
    expected = torch.tensor([(9 + channel**2) ** 0.5 for channel in range(16)], dtype=torch.float64)
    torch.testing.assert_close(scores(source, group, "l2"), expected)
    torch.testing.assert_close(scores(source, group, "l1"), 3 + torch.arange(16, dtype=torch.float64))
    encoder[0, 0] = 100.0
    assert strongest(group, scores(source, group), 3) == (0, 14, 15)
