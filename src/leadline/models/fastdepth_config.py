"""What decides a FastDepth network: encoder, decoder, skips, output and every channel count (SPEC.md section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leadline.depth import Kind
from leadline.models import decoders, efficientnet_lite, mobilenet, mobilenet_v2, resnet

if TYPE_CHECKING:
    from typing import Self

Width = Annotated[int, Field(ge=1, le=8192)]
Encoder = Literal[
    "mobilenet-v1",
    "mobilenet-v2",
    "resnet18",
    "resnet50",
    "efficientnet-lite0",
    "efficientnet-lite0-short",
    "efficientnet-lite1",
    "efficientnet-lite2",
]
Upsampler = Literal["nnconv", "blconv", "deconv", "upconv", "upproj", "shuffle"]
DECODER_WIDTHS = (512, 256, 128, 64, 32)
# names of the stages and of the head in the published state dicts
STAGE_NAMES = {
    "nnconv": ("conv{}", "conv6"),
    "blconv": ("conv{}", "conv6"),
    "deconv": ("convt{}", "convf"),
    "upconv": ("upconv{}", "convf"),
    "upproj": ("upproj{}", "convf"),
    "shuffle": ("conv{}", ""),
}


PUBLISHED = ("mobilenet-v1", "mobilenet-v2", *resnet.WIDTHS, *efficientnet_lite.WIDTHS)


def published_widths(encoder: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The published (encoder_widths, hidden_widths) of an encoder."""
    if encoder == "mobilenet-v1":
        return mobilenet.WIDTHS, ()
    if encoder == "mobilenet-v2":
        return mobilenet_v2.WIDTHS, mobilenet_v2.hidden_widths()
    if encoder in resnet.WIDTHS:
        return resnet.WIDTHS[encoder], resnet.hidden_widths(encoder)
    return efficientnet_lite.WIDTHS[encoder], efficientnet_lite.hidden_widths(encoder)


class Config(BaseModel):
    """Everything that decides the graph.

    Args:
        encoder: which backbone.
        encoder_widths: mobilenet-v1: conv0 .. conv13; resnet: stem, layer1 .. layer4; mobilenet-v2 and
            efficientnet-lite: stem and the stages. Empty: the published widths.
        hidden_widths: inside the blocks of all encoders but mobilenet-v1, in order. Empty: the published widths.
        activation: of mobilenet-v1.
        stem_projection: resnet18: a 1x1 projection past the first block even where its input has the output's width, as
            pruning leaves it of a network where the widths differed.
        bridge: width of a 1x1 convolution between encoder and decoder (the published ResNets have one), 0 for none.
        upsampler: how a stage doubles the size (SPEC.md 1.3).
        kernel: of nnconv, blconv, deconv and shuffle, pixels; upconv and upproj have 5.
        depthwise: depthwise and pointwise instead of full convolutions (nnconv, blconv, deconv).
        decoder_widths: outputs of the five stages; `shuffle` quarters the channels, or has the outputs of its first
            three convolutions here.
        branch_widths: upproj: between the two convolutions of the first branch of each stage. Empty: `decoder_widths`.
        skip: how features of the encoder join the decoder, after the upsampling.
        skip_strides: where.
        lateral: bring a feature to the decoder's width by a 1x1 convolution and BN before it is added.
        kind: what the values mean; `relative_disparity` (inverse depth up to scale and shift) is for any picture,
            `scaled_disparity` (inverse depth up to scale) for self-supervision.
        head: output function; `relu` is the published one, the others keep gradients alive everywhere.
        head_stride: 2 predicts at half the size and doubles bilinearly; after nearest doubling nothing is lost by it.
        min_depth: nearest depth that scaled disparity can say, in the unit of the network's own scale.
        max_depth: metres; the bound of a `sigmoid` head.
        start_depth: what an untrained `sigmoid` or `softplus` head says on average, metres (relative disparity: its
            value).
        height: of the input that the network was made for, pixels.
        width: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: Encoder = "mobilenet-v1"
    encoder_widths: tuple[Width, ...] = ()
    hidden_widths: tuple[Width, ...] = ()
    activation: Literal["relu6", "relu"] = "relu6"
    stem_projection: bool = False
    bridge: Annotated[int, Field(ge=0, le=8192)] = 0
    upsampler: Upsampler = "nnconv"
    kernel: Literal[3, 5, 7, 9] = 5
    depthwise: bool = False
    decoder_widths: tuple[Width, ...] = ()
    branch_widths: tuple[Width, ...] = ()
    skip: Literal["none", "add", "concat"] = "none"
    skip_strides: tuple[Literal[2, 4, 8, 16], ...] = (8, 4, 2)
    lateral: bool = False
    kind: Literal[Kind.METRIC_DEPTH, Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY] = Kind.METRIC_DEPTH
    head: Literal["relu", "sigmoid", "softplus"] = "relu"
    head_stride: Literal[1, 2] = 1
    min_depth: Annotated[float, Field(gt=0)] = 0.1
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
            ("decoder_widths", self.decoder_widths, self._default_decoder_widths()),
            ("branch_widths", self.branch_widths, DECODER_WIDTHS if self.branch_widths else ()),
        ):
            if len(given) != len(known):
                raise ValueError(f"{self.encoder} with {self.upsampler} needs {len(known)} {name}, got {len(given)}")
        if self.depthwise and self.upsampler in ("upconv", "upproj", "shuffle"):
            raise ValueError(f"{self.upsampler} has no depthwise form: use nnconv, blconv or deconv")
        if self.upsampler in ("upconv", "upproj") and self.kernel != 5:
            raise ValueError(f"{self.upsampler} has kernel 5 only, got {self.kernel}")
        if self.stem_projection and self.encoder != "resnet18":
            raise ValueError(f"stem_projection belongs to resnet18, not {self.encoder}")
        if self.branch_widths and self.upsampler != "upproj":
            raise ValueError(f"branch_widths belong to upproj, not {self.upsampler}")
        if self.head_stride == 2 and self.upsampler not in ("nnconv", "blconv"):
            raise ValueError(f"head_stride 2 needs nnconv or blconv, not {self.upsampler}")
        if self.kind is Kind.RELATIVE_DISPARITY and self.head == "sigmoid":
            raise ValueError("relative_disparity has no largest value: use head softplus or relu")
        if self.kind is Kind.SCALED_DISPARITY:
            self._check_scaled()
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

    def _check_scaled(self) -> None:
        if self.head != "sigmoid":
            raise ValueError("scaled_disparity lies between 1 / max_depth and 1 / min_depth: use head sigmoid")
        if not self.min_depth < self.start_depth < self.max_depth:
            limits = f"min_depth {self.min_depth} and max_depth {self.max_depth}"
            raise ValueError(f"start_depth {self.start_depth} must lie between {limits}")

    def _check_shuffle(self) -> None:
        if self.skip != "none" or self.head != "relu":
            raise ValueError("shuffle is defined without skips and with a relu head only")
        if not self.decoder_widths and self.decoder_input % 1024:
            raise ValueError(f"shuffle quarters the channels five times: {self.decoder_input} is no multiple of 1024")
        for width in (self.decoder_input, *self.decoder_widths):
            if width % 4:
                raise ValueError(f"shuffle quarters the channels: {width} is no multiple of 4")

    def _default_decoder_widths(self) -> tuple[int, ...]:
        if self.upsampler == "shuffle":
            return DECODER_WIDTHS[:3] if self.decoder_widths else ()
        return DECODER_WIDTHS

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
    def bounds(self) -> tuple[float, float]:
        """(smallest, largest) value of a sigmoid head: metres, or scaled disparity."""
        return (1 / self.max_depth, 1 / self.min_depth) if self.kind is Kind.SCALED_DISPARITY else (0.0, self.max_depth)

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the encoder's features at strides 2, 4, 8, 16, 32."""
        if self.encoder == "mobilenet-v1":
            return mobilenet.channels(self.encoder_widths)
        if self.encoder.startswith("resnet"):
            return self.encoder_widths
        v2 = self.encoder == "mobilenet-v2"
        stages = mobilenet_v2.FEATURE_STAGES if v2 else efficientnet_lite.feature_stages(self.encoder)
        return tuple(self.encoder_widths[stage + 1] for stage in stages)

    @property
    def decoder_input(self) -> int:
        """Channels that enter the first stage."""
        return self.bridge or self.features[-1]

    @property
    def flat(self) -> bool:
        """Whether the layers of encoder and decoder all stand at the top level, as in the published skip networks."""
        plain = not self.lateral and not self.bridge and self.upsampler in ("nnconv", "blconv")
        return self.encoder == "mobilenet-v1" and self.skip != "none" and plain

    @property
    def shuffle_widths(self) -> tuple[int, ...]:
        """Outputs of the first three convolutions of `shuffle`."""
        return self.decoder_widths or tuple(self.decoder_input // 4**k for k in range(1, 4))

    @property
    def stage_inputs(self) -> tuple[int, ...]:
        """Channels that enter each of the five stages, skips by concatenation included."""
        inputs = [self.decoder_input]
        for width, stride in zip(self.decoder_widths[:-1], decoders.STRIDES, strict=False):
            joined = self.skip == "concat" and stride in self.skip_strides
            inputs.append(width + (self.features[stride.bit_length() - 2] if joined else 0))
        return tuple(inputs)
