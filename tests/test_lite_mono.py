"""Lite-Mono against the published figures, and against its description written plainly."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.models import lite_mono
from leadline.models.lite_mono_blocks import DropPath
from leadline.models.lite_mono_config import VARIANTS, WIDE_DILATIONS, Config
from leadline.models.outputs import outputs
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.onnx_export import export_onnx
from tiny_models import picture, pictures

PUBLISHED = {  # SPEC.md 3.4: parameters of encoder and decoder; thop's total at 192 x 640 and 320 x 1024
    "lite-mono": (2_848_120, 226_627, 5_031_895_200, 13_418_387_200),
    "lite-mono-small": (2_250_232, 226_627, 4_746_383_520, 12_657_022_720),
    "lite-mono-tiny": (1_955_192, 192_467, 2_841_620_640, 7_577_655_040),
    "lite-mono-8m": (8_139_960, 635_891, 11_212_482_720, 29_899_953_920),
}
KEYS = {  # SHA-256 of "key <TAB> shape" lines of the published encoder and decoder, in order
    "lite-mono": ("486b22fa88c7de9b", "d5a57bb16c3f3651"),
    "lite-mono-small": ("d7f90a5621af5188", "d5a57bb16c3f3651"),
    "lite-mono-tiny": ("d16a1f03b9a4bfdd", "402008d3e9bf57f2"),
    "lite-mono-8m": ("b3d9a9a443143290", "6cf2ef03ca83de07"),
}
SMALL = Config(widths=(16, 24, 32), dilations=((1,), (2,), (1, 3)), height=64, width=96)


def shapes_only(config: Config) -> lite_mono.LiteMono:
    with torch.device("meta"):
        return lite_mono.build(config).eval()


def lived_in(config: Config, seed: int = 0) -> lite_mono.LiteMono:
    """A network whose every tensor matters: no layer scale of 1e-6, no batch norm of 0 and 1."""
    torch.manual_seed(seed)
    model = lite_mono.build(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "gamma" in name:
                value.uniform_(0.1, 0.3)
            elif name.endswith(("running_var", "temperature")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif "norm" in name or ".bn" in name:
                value.copy_(torch.empty(value.shape).uniform_(0.5, 1.5))
        _spread_heads(model, torch.from_numpy(picture(0, (64, 96))) * 2 - 1)
    return model


def _spread_heads(model: lite_mono.LiteMono, x: torch.Tensor) -> None:
    """Logits with a mean of 0 and a deviation of 1, so that disparity varies over a picture."""
    logits: dict[torch.nn.Conv2d, torch.Tensor] = {}
    heads = [head.conv for head in model.depth.decoder[6:]]
    hooks = [head.register_forward_hook(lambda conv, _, y: logits.update({conv: y})) for head in heads]
    model.outputs(x)
    for head, hook in zip(heads, hooks, strict=True):
        hook.remove()
        mean, deviation = logits[head].mean((0, 2, 3)), logits[head].std((0, 2, 3))
        head.weight /= deviation[:, None, None, None]
        head.bias.sub_(mean).div_(deviation)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_numbers_of_parameters(variant):
    for name in (variant, f"{variant}-1024"):
        model = shapes_only(VARIANTS[name])
        counted = count_parameters(model.encoder), count_parameters(model.depth), count_parameters(model)
        assert counted == (*PUBLISHED[variant][:2], sum(PUBLISHED[variant][:2]))


def convolutions(model: torch.nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions, and of linear layers, which are 1x1 convolutions here; all scales."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.outputs(torch.empty(1, 3, *size, device="meta"))
    return counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2


def thop_extra(config: Config, size: tuple[int, int]) -> int:
    """What thop adds to them: 4 per batch norm's element, 1 per pooled element. It sees no matrix product.

    The published encoder pools the picture anew for each of four scales: once, twice, three and four times.
    """
    area = size[0] * size[1]
    norms = 3 * config.widths[0] * area // 4
    for width, dilations, stride in zip(config.widths, config.dilations, (4, 8, 16), strict=True):
        norms += len(dilations) * width * area // stride**2
    pooled = sum((4 - k) * 3 * area // 4 ** (k + 1) for k in range(4))
    return 4 * norms + pooled


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_multiply_accumulates(variant):
    small, large = VARIANTS[variant], VARIANTS[f"{variant}-1024"]
    for config, size, total in zip((small, large), ((192, 640), (320, 1024)), PUBLISHED[variant][2:], strict=True):
        assert (config.height, config.width) == size
        assert convolutions(shapes_only(config), size) + thop_extra(config, size) == total


@pytest.mark.parametrize(("stages", "pixels"), [((1,), 7680), ((1, 2), 9600), ((1, 3), 8160), ((1, 2, 3), 10080)])
def test_spatial_attention_costs_98_per_pixel(stages, pixels):
    config = VARIANTS["lite-mono"].model_copy(update={"attention": stages})
    more = count_macs(shapes_only(config), (192, 640)) - count_macs(shapes_only(VARIANTS["lite-mono"]), (192, 640))
    assert more == 98 * pixels  # SPEC.md 5.1
    assert count_parameters(shapes_only(config)) == 3_074_747 + len(stages) * (98 + 2)


def test_a_forward_pass_counts_less_than_training_sees():
    """Without the two coarse heads and normalisations, with attention's two products per global block."""
    products = 2 * sum(c * c // 8 * n for c, n in ((48, 48 * 160), (80, 24 * 80), (128, 12 * 40)))
    heads = 9 * (40 * 48 * 160 + 64 * 24 * 80)
    config = VARIANTS["lite-mono"]
    wanted = 5_031_895_200 - thop_extra(config, (192, 640)) - heads + products
    assert count_macs(shapes_only(config), (192, 640)) == wanted


@pytest.mark.parametrize("variant", KEYS)
def test_published_names_and_shapes_in_their_order(variant):
    model = shapes_only(VARIANTS[variant])
    for part, wanted in zip((model.encoder, model.depth), KEYS[variant], strict=True):
        lines = "".join(f"{key}\t{tuple(value.shape)}\n" for key, value in part.state_dict().items())
        assert hashlib.sha256(lines.encode()).hexdigest()[:16] == wanted


class Plain:
    """SPEC.md 3.1 and 3.2 as they are written: channels-last linear layers, tokens, pooling anew for each scale."""

    def __init__(self, model: torch.nn.Module, config: Config) -> None:
        self.t, self.config = model.state_dict(), config

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            self.t[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.t[f"{name}.gamma"] * self.linear(f"{name}.pwconv2", F.gelu(self.linear(f"{name}.pwconv1", x)))

    def positions(self, name: str, height: int, width: int) -> torch.Tensor:
        waves = np.zeros((height, width, 64))
        for k in range(32):
            wave = np.sin if k % 2 == 0 else np.cos
            steps = 10000 ** (2 * (k // 2) / 32)
            waves[:, :, k] = wave(np.arange(1, height + 1) / (height + 1e-6) * 2 * math.pi / steps)[:, None]
            waves[:, :, 32 + k] = wave(np.arange(1, width + 1) / (width + 1e-6) * 2 * math.pi / steps)[None]
        kernel = self.t[f"{name}.token_projection.weight"][:, :, 0, 0]
        return torch.from_numpy(waves).float() @ kernel.T + self.t[f"{name}.token_projection.bias"]

    def attention(self, name: str, tokens: torch.Tensor, heads: int) -> torch.Tensor:
        n, count, channels = tokens.shape
        qkv = self.linear(f"{name}.qkv", tokens).reshape(n, count, 3, heads, channels // heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1)
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        mixed = (q @ k.transpose(-2, -1) * self.t[f"{name}.temperature"]).softmax(-1) @ v
        return self.linear(f"{name}.proj", mixed.permute(0, 3, 1, 2).reshape(n, count, channels))

    def global_block(self, name: str, x: torch.Tensor, heads: int, positions: bool) -> torch.Tensor:
        n, c, h, w = x.shape
        t = x.permute(0, 2, 3, 1)
        if positions:
            t = t + self.positions(f"{name}.pos_embd", h, w)
        tokens = t.reshape(n, h * w, c)
        update = self.attention(f"{name}.xca", self.layer_norm(f"{name}.norm_xca", tokens), heads)
        tokens = tokens + self.t[f"{name}.gamma_xca"] * update
        branch = self.mlp(name, self.layer_norm(f"{name}.norm", tokens))
        return x + branch.transpose(1, 2).reshape(n, c, h, w)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        pools = []
        for times in (1, 2, 3):
            pooled = x
            for _ in range(times):
                pooled = F.avg_pool2d(pooled, 3, stride=2, padding=1)
            pools.append(pooled)
        for k, stride in enumerate((2, 1, 1)):
            name = f"encoder.downsample_layers.0.{k}"
            x = F.conv2d(x, self.t[f"{name}.conv.weight"], stride=stride, padding=1)
            x = F.gelu(self.norm(f"{name}.bn_gelu.bn", x))
        found, parts, name = [], [x, pools[0]], "encoder.stem2.0"
        for stage, dilations in enumerate(self.config.dilations):
            x = down = F.conv2d(torch.cat(parts, 1), self.t[f"{name}.conv.weight"], stride=2, padding=1)
            for block, d in enumerate(dilations):
                name = f"encoder.stages.{stage}.{block}"
                kernel = self.t[f"{name}.ddwconv.conv.weight"]
                y = self.norm(f"{name}.bn1", F.conv2d(x, kernel, padding=d, dilation=d, groups=x.shape[1]))
                x = x + self.mlp(name, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = self.global_block(f"encoder.stages.{stage}.{len(dilations)}", x, self.config.heads[stage], stage == 0)
            found.append(x)
            parts, name = [down, x, *pools[stage + 1 : stage + 2]], f"encoder.downsample_layers.{stage + 1}.0"
        return found

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        def conv(index: int, suffix: str, y: torch.Tensor) -> torch.Tensor:
            name = f"depth.decoder.{index}.{suffix}"
            return F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), self.t[f"{name}.weight"], self.t[f"{name}.bias"])

        def doubled(y: torch.Tensor) -> torch.Tensor:
            return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)

        features, found = self.features(x), []
        y = features[2]
        for scale in (2, 1, 0):
            y = doubled(F.elu(conv(4 - 2 * scale, "conv.conv", y)))
            y = torch.cat([y, features[scale - 1]], 1) if scale else y
            y = F.elu(conv(5 - 2 * scale, "conv.conv", y))
            sigma = doubled(conv(6 + scale, "conv", y)).sigmoid()
            found.insert(0, 1 / 100 + (1 / 0.1 - 1 / 100) * sigma)
        return found


@pytest.mark.parametrize("size", [(64, 96), (96, 224)])
@pytest.mark.parametrize("variant", ["lite-mono-tiny", "lite-mono-1024"])
def test_computes_what_the_description_says(variant, size):
    config = VARIANTS[variant]
    model = lived_in(config)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = outputs(model, x), Plain(model, config)
        maps, features = wanted.maps(x), wanted.features(x)
        assert torch.equal(model(x), found.maps[0])
    assert [tuple(each.shape[2:]) for each in found.maps] == [(size[0] // k, size[1] // k) for k in (1, 2, 4)]
    for ours, plain in zip([*found.maps, *found.features], [*maps, *features], strict=True):
        assert plain.std() > 0.01
        assert (ours - plain).abs().max() < 2e-4 * plain.abs().max()


def test_features_have_the_published_shapes():
    found = shapes_only(VARIANTS["lite-mono"]).outputs(torch.empty(1, 3, 192, 640, device="meta"))
    assert [tuple(each.shape) for each in found.features] == [(1, 48, 48, 160), (1, 80, 24, 80), (1, 128, 12, 40)]
    assert [tuple(each.shape) for each in found.maps] == [(1, 1, 192, 640), (1, 1, 96, 320), (1, 1, 48, 160)]


def test_spatial_attention_gates_each_pixel_by_maximum_and_mean():
    model = lived_in(SMALL.model_copy(update={"attention": (2,)}))
    gate = model.encoder.attention["2"]
    x = torch.randn(1, 24, 8, 12)
    with torch.no_grad():
        summary = torch.stack([x.max(1).values, x.mean(1)], 1)
        logits = F.conv2d(summary, gate.conv.weight, padding=3)
        mean, var = gate.bn.running_mean, gate.bn.running_var
        wanted = x * torch.sigmoid((logits - mean) / (var + 1e-5).sqrt() * gate.bn.weight[0] + gate.bn.bias[0])
        assert torch.allclose(gate(x), wanted, atol=1e-5)
        with_gate = model.outputs(torch.ones(1, 3, 64, 96)).features
        del model.encoder.attention["2"]
        without = model.outputs(torch.ones(1, 3, 64, 96)).features
    assert torch.equal(with_gate[0], without[0])
    assert torch.allclose(with_gate[1], gate(without[1]), atol=1e-5)
    assert gate.bn.momentum == 0.01


def test_drop_path_leaves_branches_out_in_training_only_and_keeps_the_mean():
    model = lite_mono.build(SMALL)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(np.linspace(0, 0.2, 7))
    torch.manual_seed(0)
    drop, x = DropPath(0.2), torch.ones(20_000, 1, 1, 1)
    assert sorted(drop(x).unique().tolist()) == pytest.approx([0, 1 / 0.8])
    assert drop(x).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = lite_mono.build(VARIANTS["lite-mono"])
    state = model.state_dict()
    assert all((value == 1e-6).all() for name, value in state.items() if "gamma" in name)
    pointwise = state["encoder.stages.2.0.pwconv1.weight"]
    assert pointwise.std().item() == pytest.approx(math.sqrt(2 / pointwise.shape[0]), rel=0.02)
    assert state["depth.decoder.0.conv.conv.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert all((state[f"depth.decoder.{k}.conv.bias"] == 0).all() for k in (6, 7, 8))


def test_the_contract_normalises_as_the_published_encoder_does():
    contract = lite_mono.contract(VARIANTS["lite-mono"])
    prepared = contract.prepare(np.full((10, 10, 3), 255, np.uint8))
    assert prepared.shape == (1, 3, 192, 640)
    assert prepared.max() == pytest.approx((1 - 0.45) / 0.225)
    assert (contract.output.kind, contract.output.minimum, contract.output.maximum) == ("scaled_disparity", 0.01, 10)


PRUNED = Config(
    widths=(12, 20, 28),
    dilations=((1,), (2,), (3, 1)),
    stem=(6, 10, 14),
    hidden=((31, 7), (64, 50), (40, 33, 9)),
    heads=(3, 2, 8),
    head_widths=(4, 5, 3),
    decoder_widths=(18, 17, 13, 12, 9, 8),
    attention=(1, 3),
    bins="adaptive",
    bin_count=10,
    bin_hidden=11,
)


def test_any_channel_counts_load_again(tmp_path):
    model = lived_in(PRUNED)
    contract = lite_mono.contract(PRUNED)
    save_checkpoint(tmp_path / "m", model, architecture="lite-mono", config=PRUNED, contract=contract)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.config == PRUNED
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded.model()(x), model(x))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dilations": ((1,), (2,), (1, 2, 3))}, "hidden names 3 blocks of stage 3, dilations ask for 3"),
        ({"min_depth": 5.0, "max_depth": 1.0}, "min_depth must be below max_depth"),
        ({"attention": (2, 1)}, "ascending"),
        ({"widths": (0, 1, 2)}, "greater than or equal to 1"),
        ({"height": 100}, "multiple of 32"),
        ({"widths": 3}, "tuple"),
    ],
)
def test_contradictions_in_the_configuration_are_named(change, why):
    with pytest.raises(ValidationError, match=why):
        Config.model_validate(PRUNED.model_dump() | change)


def test_the_dilation_plan_is_an_option_of_any_size():
    config = Config(widths=(8, 8, 8), dilations=WIDE_DILATIONS, height=32, width=64)
    kernels = [
        m.dilation[0] for m in lite_mono.build(config).modules() if getattr(m, "dilation", None) and m.groups > 1
    ]
    assert kernels == [d for stage in WIDE_DILATIONS for d in stage]
    with torch.no_grad():
        assert lite_mono.build(config).eval()(torch.zeros(1, 3, 32, 64)).shape == (1, 1, 32, 64)


@pytest.fixture(scope="module")
def exported() -> LoadedModel:
    return LoadedModel(lived_in(SMALL), lite_mono.contract(SMALL), "small", (), "lite-mono", SMALL)


def parity(model: LoadedModel, folder, engine: str, precision: str, size=(64, 96), run_at=(64, 96), dynamic=False):
    options = ExportOptions(
        precision=Precision(precision),
        size=size,
        dynamic=dynamic,
        calibration=pictures(8, size) if precision == "int8-static" else (),
    )
    session = runtime(engine).open(runtime(engine).export(model, options, folder), SessionOptions())
    values = picture(3, run_at)
    with torch.inference_mode():
        wanted = model.model(torch.from_numpy(values)).numpy()
    found = session.run(values)
    return np.abs(found - wanted).mean() / wanted.std(), np.corrcoef(found.ravel(), wanted.ravel())[0, 1]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("int8-static", 0.4)])
def test_exports_compute_the_same(exported, tmp_path, engine, precision, limit):
    difference, correlation = parity(exported, tmp_path, engine, precision)
    assert difference < limit
    assert correlation > 1 - limit / 4


def test_positions_are_a_constant_at_a_fixed_size(exported):
    spec = exported.contract.input.model_copy(update={"dynamic": False})
    graph = export_onnx(exported.model, exported.contract.model_copy(update={"input": spec})).graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Sin", "Cos", "Range", "Shape"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_open_size_stays_open(exported, tmp_path, engine):
    difference, _ = parity(exported, tmp_path, engine, "fp32", run_at=(96, 160), dynamic=True)
    assert difference < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("change", [{"bins": "fixed"}, {"bins": "adaptive"}, {"attention": (1, 2, 3)}])
def test_bins_and_attention_export_too(tmp_path, engine, change):
    config = SMALL.model_copy(update=change)
    model = LoadedModel(lived_in(config), lite_mono.contract(config), "small", (), "lite-mono", config)
    assert parity(model, tmp_path, engine, "fp32")[0] < 1e-3
