"""FastDepth: encoder, five upsampling stages with skips, pointwise head (Wofk et al. 2019; SPEC.md section 1).

A network is decided by its `Config` alone, channel counts included, so that a pruned network is the same architecture
with other numbers. Parameters of the published networks have the published names (SPEC.md 1.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import CheckpointError
from leadline.models import decoders, efficientnet_lite, mobilenet, resnet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

Width = Annotated[int, Field(ge=1, le=8192)]
Encoder = Literal[
    "mobilenet-v1", "resnet18", "resnet50", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"
]
Upsampler = Literal["nnconv", "blconv", "deconv", "upconv", "upproj", "shuffle"]
DECODER_WIDTHS = (512, 256, 128, 64, 32)
BRIDGE = 1024  # what the published networks reduce a ResNet's last feature to


class Config(BaseModel):
    """Everything that decides the graph.

    Args:
        encoder: which backbone.
        encoder_widths: mobilenet-v1: conv0 .. conv13; resnet: stem, layer1 .. layer4; efficientnet-lite: stem and the
            seven stages. Empty: the published widths.
        hidden_widths: inside the blocks of ResNet and EfficientNet-Lite, in order. Empty: the published widths.
        activation: of mobilenet-v1.
        bridge: width of a 1x1 convolution between encoder and decoder (the published ResNets have one), 0 for none.
        upsampler: how a stage doubles the size (SPEC.md 1.3).
        kernel: of nnconv, blconv, deconv and shuffle, pixels; upconv and upproj have 5.
        depthwise: depthwise and pointwise instead of full convolutions (nnconv, blconv, deconv).
        decoder_widths: outputs of the five stages; `shuffle` has none, it quarters the channels.
        skip: how features of the encoder join the decoder, after the upsampling.
        skip_strides: where.
        lateral: bring a feature to the decoder's width by a 1x1 convolution and BN before it is added.
        head: output function; `relu` is the published one, the others keep gradients alive everywhere.
        head_stride: 2 predicts at half the size and doubles bilinearly; after nearest doubling nothing is lost by it.
        max_depth: metres; the bound of a `sigmoid` head.
        start_depth: metres; what an untrained `sigmoid` or `softplus` head returns on average.
        height: of the input that the network was made for, pixels.
        width: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: Encoder = "mobilenet-v1"
    encoder_widths: tuple[Width, ...] = ()
    hidden_widths: tuple[Width, ...] = ()
    activation: Literal["relu6", "relu"] = "relu6"
    bridge: Annotated[int, Field(ge=0, le=8192)] = 0
    upsampler: Upsampler = "nnconv"
    kernel: Literal[3, 5, 7, 9] = 5
    depthwise: bool = False
    decoder_widths: tuple[Width, ...] = ()
    skip: Literal["none", "add", "concat"] = "none"
    skip_strides: tuple[Literal[2, 4, 8, 16], ...] = (8, 4, 2)
    lateral: bool = False
    head: Literal["relu", "sigmoid", "softplus"] = "relu"
    head_stride: Literal[1, 2] = 1
    max_depth: Annotated[float, Field(gt=0)] = 10.0
    start_depth: Annotated[float, Field(gt=0)] = 2.5
    height: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 224
    width: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 224

    @model_validator(mode="before")
    @classmethod
    def _published_widths(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        encoder = values.get("encoder", "mobilenet-v1")
        widths, hidden = published_widths(encoder) if encoder in PUBLISHED else ((), ())
        values = dict(values)
        values["encoder_widths"] = values.get("encoder_widths") or widths
        values["hidden_widths"] = values.get("hidden_widths") or hidden
        if values.get("upsampler") != "shuffle":
            values["decoder_widths"] = values.get("decoder_widths") or DECODER_WIDTHS
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        widths, hidden = published_widths(self.encoder)
        for name, given, known in (
            ("encoder_widths", self.encoder_widths, widths),
            ("hidden_widths", self.hidden_widths, hidden),
            ("decoder_widths", self.decoder_widths, () if self.upsampler == "shuffle" else DECODER_WIDTHS),
        ):
            if len(given) != len(known):
                raise ValueError(f"{self.encoder} with {self.upsampler} needs {len(known)} {name}, got {len(given)}")
        if self.depthwise and self.upsampler in ("upconv", "upproj", "shuffle"):
            raise ValueError(f"{self.upsampler} has no depthwise form: use nnconv, blconv or deconv")
        if self.upsampler in ("upconv", "upproj") and self.kernel != 5:
            raise ValueError(f"{self.upsampler} has kernel 5 only, got {self.kernel}")
        if self.head_stride == 2 and self.upsampler not in ("nnconv", "blconv"):
            raise ValueError(f"head_stride 2 needs nnconv or blconv, not {self.upsampler}")
        if self.head != "relu" and self.start_depth >= self.max_depth:
            raise ValueError(f"start_depth {self.start_depth} must be below max_depth {self.max_depth}")
        if self.upsampler == "shuffle":
            self._check_shuffle()
        if self.skip != "none" and (not self.skip_strides or len(set(self.skip_strides)) != len(self.skip_strides)):
            raise ValueError(f"skip_strides must be distinct and at least one, got {self.skip_strides}")
        if self.skip == "add" and not self.lateral:
            self._check_equal_widths()
        if self.lateral and self.skip != "add":
            raise ValueError(f"lateral projections belong to skip 'add', not {self.skip!r}")
        return self

    def _check_shuffle(self) -> None:
        if self.skip != "none" or self.head != "relu":
            raise ValueError("shuffle is defined without skips and with a relu head only")
        if self.decoder_input % 1024:
            raise ValueError(f"shuffle quarters the channels five times: {self.decoder_input} is no multiple of 1024")

    def _check_equal_widths(self) -> None:
        for stride in self.skip_strides:
            ours = self.decoder_widths[decoders.STRIDES.index(stride)]
            theirs = self.features[stride.bit_length() - 2]
            if ours != theirs:
                raise ValueError(
                    f"skip 'add' at stride {stride} needs equal widths, but the encoder gives {theirs} channels and "
                    f"the decoder {ours}: set lateral to true (1x1 projections) or change decoder_widths"
                )

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the encoder's features at strides 2, 4, 8, 16, 32."""
        if self.encoder == "mobilenet-v1":
            return mobilenet.channels(self.encoder_widths)
        if self.encoder.startswith("resnet"):
            return self.encoder_widths
        return tuple(self.encoder_widths[stage + 1] for stage in efficientnet_lite.FEATURE_STAGES)

    @property
    def decoder_input(self) -> int:
        """Channels that enter the first stage."""
        return self.bridge or self.features[-1]

    @property
    def stage_inputs(self) -> tuple[int, ...]:
        """Channels that enter each of the five stages, skips by concatenation included."""
        inputs = [self.decoder_input]
        for width, stride in zip(self.decoder_widths[:-1], decoders.STRIDES, strict=False):
            joined = self.skip == "concat" and stride in self.skip_strides
            inputs.append(width + (self.features[stride.bit_length() - 2] if joined else 0))
        return tuple(inputs)


PUBLISHED = ("mobilenet-v1", *resnet.WIDTHS, *efficientnet_lite.WIDTHS)


def published_widths(encoder: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The published (encoder_widths, hidden_widths) of an encoder."""
    if encoder == "mobilenet-v1":
        return mobilenet.WIDTHS, ()
    if encoder in resnet.WIDTHS:
        return resnet.WIDTHS[encoder], resnet.hidden_widths(encoder)
    return efficientnet_lite.WIDTHS[encoder], efficientnet_lite.hidden_widths(encoder)


def _stages(config: Config) -> list[nn.Module]:
    if config.upsampler == "shuffle":
        widths = [config.decoder_input // 4**k for k in range(1, 5)]
        shuffles = [decoders.conv_stage(w, w, config.kernel, False, nn.PixelShuffle(2)) for w in widths]
        return [nn.PixelShuffle(2), *shuffles]
    stages: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(zip(config.stage_inputs, config.decoder_widths, strict=True)):
        if config.upsampler == "deconv":
            stages.append(decoders.deconv_stage(inputs, outputs, config.kernel, config.depthwise))
        elif config.upsampler == "upconv":
            stages.append(decoders.upconv_stage(inputs, outputs))
        elif config.upsampler == "upproj":
            stages.append(decoders.UpProj(inputs, outputs))
        else:
            doubling = decoders.upsampling(config.upsampler) if k < 4 or config.head_stride == 1 else None
            stages.append(decoders.conv_stage(inputs, outputs, config.kernel, config.depthwise, doubling))
    return stages


def _head(config: Config) -> nn.Sequential:
    head = decoders.head(config.decoder_widths[-1], config.head, config.max_depth, config.start_depth)
    if config.head_stride == 2:
        head.append(decoders.upsampling("blconv"))
    return head


# names of the stages and of the head in the published state dicts
_NAMES = {
    "nnconv": ("conv{}", "conv6"),
    "blconv": ("conv{}", "conv6"),
    "deconv": ("convt{}", "convf"),
    "upconv": ("upconv{}", "convf"),
    "upproj": ("upproj{}", "convf"),
    "shuffle": ("conv{}", ""),
}


class Decoder(nn.Module):
    """Five stages with skips and the head: features at strides 2 .. 32 to N x 1 x H x W depth, metres."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        stage_name, self._head_name = _NAMES[config.upsampler]
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
        features = []
        for index in range(14):
            x = self.get_submodule(f"conv{index}")(x)
            if index in mobilenet.FEATURE_LAYERS:
                features.append(x)
        stages = [self.get_submodule(f"decode_conv{k}") for k in range(1, 6)]
        depth: Tensor = self.decode_conv6(decoders.decode(stages, features, self.skip_strides, self.concatenate))
        return depth


class ResNetDepth(resnet.ResNet):
    """A ResNet, the 1x1 bridge and the decoder, named as published (the encoder stands at the top level)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.encoder, config.encoder_widths, config.hidden_widths)
        self.conv2 = nn.Conv2d(config.features[-1], config.bridge, 1) if config.bridge else nn.Identity()
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # depth, not features
        """Depth in metres, N x 1 x H x W, from N x 3 x H x W."""
        features = super().forward(x)
        features[-1] = self.conv2(features[-1])
        depth: Tensor = self.decoder(features)
        return depth


class EncoderDecoder(nn.Module):
    """MobileNet (`mobilenet`) or EfficientNet-Lite (`encoder`), and the decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._encoder_name = "mobilenet" if config.encoder == "mobilenet-v1" else "encoder"
        if config.encoder == "mobilenet-v1":
            self.mobilenet = mobilenet.MobileNet(config.encoder_widths, config.activation)
        else:
            self.encoder = efficientnet_lite.EfficientNetLite(
                config.encoder, config.encoder_widths, config.hidden_widths
            )
        self.bridge = nn.Conv2d(config.features[-1], config.bridge, 1) if config.bridge else None
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        """Depth in metres, N x 1 x H x W, from N x 3 x H x W."""
        features = self.get_submodule(self._encoder_name)(x)
        if self.bridge is not None:
            features[-1] = self.bridge(features[-1])
        depth: Tensor = self.decoder(features)
        return depth


def build(config: Config) -> nn.Module:
    """The network with random weights: N x 3 x H x W float32, sides multiples of 32, to N x 1 x H x W metres."""
    if config.encoder.startswith("resnet"):
        model: nn.Module = ResNetDepth(config)
    elif (
        config.encoder == "mobilenet-v1"
        and config.skip != "none"
        and not config.lateral
        and not config.bridge
        and (config.upsampler in ("nnconv", "blconv"))
    ):
        model = MobileNetSkip(config)
    else:
        model = EncoderDecoder(config)
    decoders.initialise(model)
    return model


def contract(config: Config) -> Contract:
    """What the network expects and returns; the published networks take RGB in 0..1 without mean and std."""
    lite = config.encoder.startswith("efficientnet")
    spec = InputSpec(
        height=config.height,
        width=config.width,
        dynamic=True,
        multiple_of=32,
        min_side=32,
        max_side=4096,
        mean=efficientnet_lite.MEAN if lite else (0.0, 0.0, 0.0),
        std=efficientnet_lite.STD if lite else (1.0, 1.0, 1.0),
    )
    top = config.max_depth if config.head == "sigmoid" else None
    name = next((name for name, known in VARIANTS.items() if known == config), f"fastdepth-{config.encoder}")
    return Contract(name=name, input=spec, output=OutputSpec(kind=Kind.METRIC_DEPTH, minimum=0.0, maximum=top))


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


def from_folded_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights whose batch norms are folded into the convolutions, in place.

    The names are `conv0`, `conv{1..13}.dw|pw`, `decode_conv{1..5}.dw|pw` and `decode_conv6`, each with `.weight` and
    `.bias`. Every batch norm becomes the identity plus that bias.

    Args:
        model: built from a MobileNet configuration with depthwise nnconv and skips, of the same widths.
        tensors: by name.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    state = model.state_dict()
    wanted: set[str] = set()
    for key in [key for key in state if state[key].ndim == 4]:
        layer, *_, index, _ = key.split(".")
        encoder = layer.startswith("conv")
        if layer in ("conv0", "decode_conv6"):
            source, norm = layer, f"{layer}.1"
        elif encoder:
            source, norm = (f"{layer}.dw", f"{layer}.1") if index == "0" else (f"{layer}.pw", f"{layer}.4")
        else:
            half = key.split(".")[1]
            source, norm = f"{layer}.{'dw' if half == '0' else 'pw'}", f"{layer}.{half}.1"
        wanted |= {f"{source}.weight", f"{source}.bias"}
        weight, bias = tensors.get(f"{source}.weight"), tensors.get(f"{source}.bias")
        if weight is None or bias is None or weight.shape != state[key].shape:
            got = "missing" if weight is None or bias is None else f"{tuple(weight.shape)}"
            raise CheckpointError(
                "folded weights do not fit", where=source, why=f"{got}, not {tuple(state[key].shape)}"
            )
        batch_norm = model.get_submodule(norm)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        state[key] = weight.float()
        state[f"{norm}.bias"] = bias.float()
        state[f"{norm}.weight"] = torch.ones_like(bias, dtype=torch.float32)
        state[f"{norm}.running_mean"] = torch.zeros_like(bias, dtype=torch.float32)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1.0 - batch_norm.eps, dtype=torch.float32)
    if set(tensors) != wanted:
        raise CheckpointError("folded weights do not fit", why=f"unknown tensors {sorted(set(tensors) - wanted)[:3]}")
    model.load_state_dict(state)


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
_SMALL: dict[str, Any] = {
    "depthwise": True,
    "decoder_widths": (512, 256, 96, 48, 32),
    "skip": "add",
    "skip_strides": (16, 8, 4, 2),
    "lateral": True,
    "head": "sigmoid",
    "head_stride": 2,
    "height": 224,
    "width": 288,
}

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
    "leadline-s": Config(encoder="efficientnet-lite0", **_SMALL),
    "leadline-m": Config(encoder="efficientnet-lite1", **_SMALL),
    "leadline-l": Config(encoder="efficientnet-lite2", **_SMALL),
}
