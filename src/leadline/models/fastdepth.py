"""FastDepth: encoder, five upsampling stages with skips, pointwise head (Wofk et al. 2019; SPEC.md section 1).

A network is decided by its `Config` alone, channel counts included, so that a pruned network is the same architecture
with other numbers. Parameters of the published networks have the published names (SPEC.md 1.4).
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import CheckpointError
from leadline.models import decoders, efficientnet_lite, mobilenet, mobilenet_v2, resnet
from leadline.models.fastdepth_channels import wiring
from leadline.models.fastdepth_config import STAGE_NAMES, Config
from leadline.models.outputs import Outputs

__all__ = ["BRIDGE", "VARIANTS", "Config", "build", "contract", "load_imagenet", "wiring"]

BRIDGE = 1024  # what the published networks reduce a ResNet's last feature to


def _stages(config: Config) -> list[nn.Module]:
    if config.upsampler == "shuffle":
        widths = (config.decoder_input, *config.shuffle_widths, 4)
        pairs = ((before // 4, after) for before, after in itertools.pairwise(widths))
        shuffles = [decoders.conv_stage(i, o, config.kernel, False, nn.PixelShuffle(2)) for i, o in pairs]
        return [nn.PixelShuffle(2), *shuffles]
    stages: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(zip(config.stage_inputs, config.decoder_widths, strict=True)):
        if config.upsampler == "deconv":
            stages.append(decoders.deconv_stage(inputs, outputs, config.kernel, config.depthwise))
        elif config.upsampler == "upconv":
            stages.append(decoders.upconv_stage(inputs, outputs))
        elif config.upsampler == "upproj":
            branch = config.branch_widths[k] if config.branch_widths else outputs
            stages.append(decoders.UpProj(inputs, outputs, branch))
        else:
            doubling = decoders.upsampling(config.upsampler) if k < 4 or config.head_stride == 1 else None
            stages.append(decoders.conv_stage(inputs, outputs, config.kernel, config.depthwise, doubling))
    return stages


def _head(config: Config) -> nn.Sequential:
    low, high = config.bounds
    start = 1 / config.start_depth if config.kind is Kind.SCALED_DISPARITY else config.start_depth
    head = decoders.head(config.decoder_widths[-1], config.head, high, start, low)
    if config.head_stride == 2:
        head.append(decoders.upsampling("blconv"))
    return head


class Decoder(nn.Module):
    """Five stages with skips and the head: features at strides 2 .. 32 to N x 1 x H x W depth, metres."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        stage_name, self._head_name = STAGE_NAMES[config.upsampler]
        first = 0 if config.upsampler == "shuffle" else 1  # the first shuffle has no parameters and no number
        self._stage_names = [stage_name.format(k + first) for k in range(5)]
        for name, stage in zip(self._stage_names, _stages(config), strict=True):
            self.add_module(name, stage)
        if self._head_name:
            self.add_module(self._head_name, _head(config))
        self.skip_strides = config.skip_strides if config.skip != "none" else ()
        self.concatenate = config.skip == "concat"
        self.lateral = nn.ModuleDict()
        if config.lateral:
            for stride in config.skip_strides:
                width = config.decoder_widths[decoders.STRIDES.index(stride)]
                self.lateral[str(stride)] = decoders.lateral(config.features[stride.bit_length() - 2], width)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Depth in metres, N x 1 x H x W, from features at strides 2, 4, 8, 16, 32."""
        stages = [self.get_submodule(name) for name in self._stage_names]
        y = decoders.decode(stages, features, self.skip_strides, self.concatenate, self.lateral)
        return self.get_submodule(self._head_name)(y) if self._head_name else y


class MobileNetSkip(nn.Module):
    """The published MobileNet networks with skips, whose layers all stand at the top level."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        for index, layer in enumerate(mobilenet.layers(config.encoder_widths, config.activation)):
            self.add_module(f"conv{index}", layer)
        for k, stage in enumerate(_stages(config), start=1):
            self.add_module(f"decode_conv{k}", stage)
        self.decode_conv6 = _head(config)
        self.skip_strides = config.skip_strides
        self.concatenate = config.skip == "concat"

    def forward(self, x: Tensor) -> Tensor:
        """Depth in metres, N x 1 x H x W, from N x 3 x H x W."""
        return self.outputs(x).maps[0]

    def outputs(self, x: Tensor) -> Outputs:
        """The map, and the encoder's features at strides 2, 4, 8, 16, 32."""
        features = []
        for index in range(14):
            x = self.get_submodule(f"conv{index}")(x)
            if index in mobilenet.FEATURE_LAYERS:
                features.append(x)
        stages = [self.get_submodule(f"decode_conv{k}") for k in range(1, 6)]
        decoded = decoders.decode(stages, features, self.skip_strides, self.concatenate)
        return Outputs((self.decode_conv6(decoded),), features=tuple(features))


class ResNetDepth(resnet.ResNet):
    """A ResNet, the 1x1 bridge and the decoder, named as published (the encoder stands at the top level)."""

    def __init__(self, config: Config) -> None:
        widths = config.encoder_widths, config.hidden_widths
        super().__init__(config.encoder, *widths, projected=config.stem_projection)
        self.conv2 = nn.Conv2d(config.features[-1], config.bridge, 1) if config.bridge else nn.Identity()
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # depth, not features
        """Depth in metres, N x 1 x H x W, from N x 3 x H x W."""
        return self.outputs(x).maps[0]

    def outputs(self, x: Tensor) -> Outputs:
        """The map, and the encoder's features at strides 2, 4, 8, 16, 32."""
        features = super().forward(x)
        depth = self.decoder([*features[:-1], self.conv2(features[-1])])
        return Outputs((depth,), features=tuple(features))


class EncoderDecoder(nn.Module):
    """MobileNet (`mobilenet`), MobileNetV2 or EfficientNet-Lite (`encoder`), and the decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._encoder_name = "mobilenet" if config.encoder == "mobilenet-v1" else "encoder"
        if config.encoder == "mobilenet-v1":
            self.mobilenet = mobilenet.MobileNet(config.encoder_widths, config.activation)
        elif config.encoder == "mobilenet-v2":
            self.encoder: nn.Module = mobilenet_v2.MobileNetV2(config.encoder_widths, config.hidden_widths)
        else:
            self.encoder = efficientnet_lite.EfficientNetLite(
                config.encoder, config.encoder_widths, config.hidden_widths
            )
        self.bridge = nn.Conv2d(config.features[-1], config.bridge, 1) if config.bridge else None
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        """Depth in metres, N x 1 x H x W, from N x 3 x H x W."""
        return self.outputs(x).maps[0]

    def outputs(self, x: Tensor) -> Outputs:
        """The map, and the encoder's features at strides 2, 4, 8, 16, 32."""
        features: list[Tensor] = self.get_submodule(self._encoder_name)(x)
        joined = features if self.bridge is None else [*features[:-1], self.bridge(features[-1])]
        return Outputs((self.decoder(joined),), features=tuple(features))


def build(config: Config) -> nn.Module:
    """The network with random weights: N x 3 x H x W float32, sides multiples of 32, to N x 1 x H x W metres."""
    if config.encoder.startswith("resnet"):
        model: nn.Module = ResNetDepth(config)
    elif config.flat:
        model = MobileNetSkip(config)
    else:
        model = EncoderDecoder(config)
    decoders.initialise(model)
    return model


def contract(config: Config) -> Contract:
    """What the network expects and returns; the published networks take RGB in 0..1 without mean and std."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.encoder.startswith("efficientnet"):
        mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    elif config.encoder == "mobilenet-v2":
        mean, std = mobilenet_v2.MEAN, mobilenet_v2.STD
    spec = InputSpec(
        height=config.height,
        width=config.width,
        dynamic=True,
        multiple_of=32,
        min_side=32,
        max_side=4096,
        mean=mean,
        std=std,
    )
    low, high = config.bounds
    top = high if config.head == "sigmoid" else None
    name = next((name for name, known in VARIANTS.items() if known == config), f"fastdepth-{config.encoder}")
    return Contract(
        name=name, input=spec, output=OutputSpec(kind=config.kind, minimum=low if top else 0.0, maximum=top)
    )


def load_imagenet(model: nn.Module) -> None:
    """Load ImageNet weights into the EfficientNet-Lite encoder of `model`, in place.

    Raises:
        UnavailableError: the package that carries them is not installed.
        CheckpointError: the encoder is another, or has other widths.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, efficientnet_lite.EfficientNetLite):
        raise CheckpointError("no packaged ImageNet weights", why="only the EfficientNet-Lite encoders have them")
    efficientnet_lite.load_imagenet(encoder)


_UPSAMPLERS: dict[str, dict[str, Any]] = {
    "nnconv3": {"kernel": 3},
    "nnconv5": {},
    "nnconv7": {"kernel": 7},
    "nnconv9": {"kernel": 9},
    "blconv5": {"upsampler": "blconv"},
    "deconv5": {"upsampler": "deconv"},
    "upconv": {"upsampler": "upconv"},
    "upproj": {"upsampler": "upproj"},
    "shuffle5": {"upsampler": "shuffle"},
}
_UPSAMPLERS |= {
    f"{n}dw": {**o, "depthwise": True} for n, o in _UPSAMPLERS.items() if n[:6] in ("nnconv", "blconv", "deconv")
}
_ENCODERS: dict[str, dict[str, Any]] = {
    "mobilenet": {"encoder": "mobilenet-v1"},
    "resnet18": {"encoder": "resnet18", "bridge": BRIDGE},
    "resnet50": {"encoder": "resnet50", "bridge": BRIDGE},
}
_SKIPPED: dict[str, Any] = {"depthwise": True, "skip": "add"}
_SMALL: dict[str, Any] = {  # full 3x3 convolutions: INT8 engines gain more on them than on depthwise pairs
    "kernel": 3,
    "decoder_widths": (128, 96, 64, 48, 32),
    "skip": "add",
    "skip_strides": (16, 8, 4, 2),
    "lateral": True,
    "head": "sigmoid",
    "head_stride": 2,
    "height": 224,
    "width": 288,
}
# a decoder that leaves room for two blocks at stride 32: at most 1.4 M parameters and 0.37 G MACs at 224 x 224
_XS: dict[str, Any] = {**_SMALL, "decoder_widths": (56, 40, 32, 24, 20)}

VARIANTS: dict[str, Config] = {
    "fastdepth": Config(**_SKIPPED),
    "fastdepth-pruned": Config(
        **_SKIPPED, encoder_widths=mobilenet.PRUNED_WIDTHS, decoder_widths=(200, 256, 120, 56, 16)
    ),
    "fastdepth-concat": Config(depthwise=True, skip="concat"),
    **{
        f"fastdepth-{encoder}-{upsampler}": Config(**base, **options)
        for encoder, base in _ENCODERS.items()
        for upsampler, options in _UPSAMPLERS.items()
    },
    **{f"fastdepth-{encoder}-add": Config(**_ENCODERS[encoder], **_SKIPPED, lateral=True) for encoder in resnet.WIDTHS},
    **{
        f"fastdepth-{encoder}-concat": Config(**_ENCODERS[encoder], depthwise=True, skip="concat")
        for encoder in resnet.WIDTHS
    },
    "fastdepth-mobilenet-v2": Config(encoder="mobilenet-v2", **_SMALL),
    "leadline-xs": Config(encoder="efficientnet-lite0-short", **_XS),
    "leadline-s": Config(encoder="efficientnet-lite0", **_SMALL),
    "leadline-m": Config(encoder="efficientnet-lite1", **_SMALL),
    "leadline-l": Config(encoder="efficientnet-lite2", **_SMALL),
}
