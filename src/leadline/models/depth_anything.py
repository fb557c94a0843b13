"""Depth Anything V2: a DINOv2 transformer and a DPT head that fuses four of its layers (SPEC.md section 6).

A picture goes `pretrained` (four feature maps at 1/14) -> `projects` and `resize_layers` (a pyramid at 4, 2, 1 and
1/2 times that) -> `scratch.refinenet4..1` (fused from the coarsest to the finest) -> `output_conv` (one map at the
input's size). Names of modules are those of the released weights (keys in SPEC.md 6.2).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.models.depth_anything_channels import wiring
from leadline.models.dinov2 import Dinov2, Dinov2Config, set_fused_attention
from leadline.models.outputs import Outputs

__all__ = ["VARIANTS", "Config", "DepthAnythingV2", "build", "contract", "set_fused_attention", "wiring"]

Width = Annotated[int, Field(ge=1)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LONGEST_SIDE = 200  # patches; a 1 x 5000 picture would otherwise ask for 185,000 patches


class Config(Dinov2Config):
    """Everything that decides the network's graph.

    Args:
        features: channels of the fused pyramid.
        out_channels: channels of the four levels before they are brought to `features`, finest first.
        resized: channels of the four levels behind their resizing, finest first. Empty: `out_channels`.
        fused: channels of the fused pyramid at the four levels, finest first, and behind the last fusion. Empty:
            `features` each.
        unit_channels: between the two convolutions of the eight residual units, two per level, finest first. Empty:
            `features` each.
        head_channels: channels of the last two hidden convolutions.
        head: `relative` returns inverse depth up to scale and shift (>= 0), `metric` returns metres.
        max_depth: the largest depth that a metric head can say, metres.
    """

    features: Width
    out_channels: tuple[Width, Width, Width, Width]
    resized: tuple[Width, ...] = ()
    fused: tuple[Width, ...] = ()
    unit_channels: tuple[Width, ...] = ()
    head_channels: tuple[Width, Width]
    head: Literal["relative", "metric"] = "relative"
    max_depth: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _depth_range(self) -> Self:
        if (self.head == "metric") != (self.max_depth is not None):
            raise ValueError("a metric head needs max_depth, a relative head has none")
        return self

    @model_validator(mode="after")
    def _pyramid(self) -> Self:
        for name, given, count in (
            ("resized", self.resized, 4),
            ("fused", self.fused, 5),
            ("unit_channels", self.unit_channels, 8),
        ):
            if given and len(given) != count:
                raise ValueError(f"{name} has {len(given)} numbers instead of {count}")
        if self.resized and self.resized[2] != self.out_channels[2]:
            why = f"resized {self.resized[2]}, out_channels {self.out_channels[2]}"
            raise ValueError(f"the third level is not resized and keeps its channels: {why}")
        return self

    @property
    def resized_channels(self) -> tuple[int, ...]:
        """Channels of the four levels behind their resizing, finest first."""
        return self.resized or self.out_channels

    @property
    def fused_channels(self) -> tuple[int, ...]:
        """Channels of the fused pyramid at the four levels, finest first, and behind the last fusion."""
        return self.fused or (self.features,) * 5

    @property
    def unit_widths(self) -> tuple[int, ...]:
        """Channels inside the eight residual units, two per level, finest first."""
        return self.unit_channels or (self.features,) * 8


def _size(dim: int, depth: int, taken: tuple[int, int, int, int], features: int, out: tuple[int, ...]) -> Config:
    plan = {"heads": (dim // 64,) * depth, "mlp": (4 * dim,) * depth, "head_channels": (features // 2, 32)}
    return Config.model_validate({"dim": dim, "taken": taken, "features": features, "out_channels": out, **plan})


SIZES = {
    "small": _size(384, 12, (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "base": _size(768, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "large": _size(1024, 24, (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
}
REDUCED = {  # students: as wide as half of `small`; the blocks that truncation picks include all that the head reads
    "depth-anything-v2-tiny": _size(192, 12, (2, 5, 8, 11), 32, (24, 48, 96, 192)),
    "depth-anything-v2-mini": _size(192, 4, (0, 1, 2, 3), 32, (24, 48, 96, 192)),
}
RELEASED: dict[str, Config] = {
    **{f"depth-anything-v2-{size}": config for size, config in SIZES.items()},
    **{
        f"depth-anything-v2-metric-{place}-{size}": config.model_copy(update={"head": "metric", "max_depth": limit})
        for place, limit in (("indoor", 20.0), ("outdoor", 80.0))
        for size, config in SIZES.items()
    },
}
VARIANTS: dict[str, Config] = RELEASED | REDUCED
LICENCES = {"small": "Apache-2.0", "base": "CC-BY-NC-4.0", "large": "CC-BY-NC-4.0"}


def build(config: Config) -> DepthAnythingV2:
    """The network with fresh weights."""
    return DepthAnythingV2(config)


def contract(config: Config) -> Contract:
    """What this network expects and returns; names, licence and data are those of the released weights of that size.

    A configuration that is none of `RELEASED` (pruned, reduced) has no released weights: its licence is `unknown`.
    """
    released = config.model_copy(update={"positions": "scale_factor_offset"})
    name = next((variant for variant, known in RELEASED.items() if known == released), None)
    reduced = next((variant for variant, known in REDUCED.items() if known == released), "depth-anything-v2")
    metric = config.head == "metric"
    side = config.patch * config.grid
    data = ("Hypersim" if config.max_depth == 20 else "Virtual KITTI 2",) if metric else ()
    return Contract(
        name=name or reduced,
        input=InputSpec(
            height=side,
            width=side,
            dynamic=True,
            multiple_of=config.patch,
            min_side=config.patch,
            max_side=config.patch * max(LONGEST_SIDE, config.grid),
            resize="keep_aspect",
            interpolation="bicubic",
            antialias=False,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        output=OutputSpec(
            kind=Kind.METRIC_DEPTH if metric else Kind.RELATIVE_DISPARITY,
            minimum=0.0,
            maximum=config.max_depth,
            align_corners=True,
        ),
        licence=LICENCES[name.rsplit("-", 1)[-1]] if name else "unknown",
        provenance="https://github.com/DepthAnything/Depth-Anything-V2" if name else "",
        training_data=("62 M pictures labelled by Depth Anything V2 Giant", *data) if name else (),
    )


class DepthAnythingV2(nn.Module):
    """DINOv2 and DPT.

    Args:
        config: the widths, the head and the rule for positions.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.pretrained = Dinov2(config)
        self.depth_head = DptHead(config)

    def forward(self, image: Tensor) -> Tensor:
        """Depth or disparity of a batch.

        Args:
            image: N x 3 x H x W float32, normalised by the contract; H and W multiples of 14.

        Returns:
            N x 1 x H x W float32: inverse depth >= 0 up to scale and shift, or metres from 0 to `max_depth`.
        """
        depth: Tensor = self.depth_head(self.pretrained(image), _size_of(image))
        return depth

    def outputs(self, image: Tensor) -> Outputs:
        """The map and, as features, the four normalised maps of tokens, N x dim x H/patch x W/patch each."""
        features = self.pretrained(image)
        return Outputs((self.depth_head(features, _size_of(image)),), features=tuple(features))


class DptHead(nn.Module):
    """The dense prediction head: four maps of one resolution to a pyramid, fused to one map at the input's size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.max_depth = config.max_depth
        c1, c2, _, c4 = config.out_channels
        r1, r2, _, r4 = config.resized_channels
        self.projects = nn.ModuleList(nn.Conv2d(config.dim, channels, 1) for channels in config.out_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c1, r1, 4, stride=4),
                nn.ConvTranspose2d(c2, r2, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c4, r4, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config)
        if self.max_depth is None:  # fresh weights would often give a ReLU nothing above 0, hence no gradient, for ever
            nn.init.ones_(self.get_parameter("scratch.output_conv2.2.bias"))

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four N x dim x h x w and the wanted (H, W) to N x 1 x H x W."""
        layers = zip(maps, self.projects, self.resize_layers, strict=True)
        pyramid = [resize(project(tokens)) for tokens, project, resize in layers]
        logits = self.scratch(pyramid, size)
        return F.relu(logits) if self.max_depth is None else logits.sigmoid() * self.max_depth


class Scratch(nn.Module):
    """Fusion from the coarsest level to the finest, then the last three convolutions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, narrow = config.head_channels
        c1, c2, c3, c4 = config.resized_channels
        f1, f2, f3, f4, last = config.fused_channels
        units = config.unit_widths
        self.layer1_rn = nn.Conv2d(c1, f1, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(c2, f2, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(c3, f3, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(c4, f4, 3, padding=1, bias=False)
        self.refinenet1 = Fusion(f1, units[0:2], last)
        self.refinenet2 = Fusion(f2, units[2:4], f1)
        self.refinenet3 = Fusion(f3, units[4:6], f2)
        self.refinenet4 = Fusion(f4, units[6:8], f3)
        self.output_conv1 = nn.Conv2d(last, wide, 3, padding=1)
        self.output_conv2 = nn.Sequential(nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU(), nn.Conv2d(narrow, 1, 1))

    def forward(self, pyramid: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four levels, finest first, and the wanted (H, W) to N x 1 x H x W, before the last activation."""
        level1, level2, level3, level4 = pyramid
        skip1, skip2 = self.layer1_rn(level1), self.layer2_rn(level2)
        skip3, coarsest = self.layer3_rn(level3), self.layer4_rn(level4)
        path = self.refinenet4(coarsest, None, _size_of(skip3))
        path = self.refinenet3(path, skip3, _size_of(skip2))
        path = self.refinenet2(path, skip2, _size_of(skip1))
        path = self.refinenet1(path, skip1, None)
        fine = _bilinear(self.output_conv1(path), size)
        logits: Tensor = self.output_conv2(fine)
        return logits


class Fusion(nn.Module):
    """Add the skip through one residual unit, refine by a second, resize, mix channels.

    The first unit of the coarsest level has no skip to work on; its weights exist in the released files, unused.
    """

    def __init__(self, features: int, units: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, outputs, 1)
        self.resConfUnit1 = ResidualUnit(features, units[0])
        self.resConfUnit2 = ResidualUnit(features, units[1])

    def forward(self, path: Tensor, skip: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        """N x features x h x w to N x outputs at `size`, or at twice its own size."""
        if skip is not None:
            path = path + self.resConfUnit1(skip)
        path = self.resConfUnit2(path)
        path = _bilinear(path, size if size is not None else (2 * path.shape[2], 2 * path.shape[3]))
        mixed: Tensor = self.out_conv(path)
        return mixed


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, features, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        """N x C x h x w to the same."""
        refined: Tensor = self.conv2(F.relu(self.conv1(F.relu(values))))
        return refined + values


def _size_of(values: Tensor) -> tuple[int, int]:
    """(height, width); symbols while exporting, and never turned into numbers (RUNTIMES.md pitfall 2)."""
    return values.shape[2], values.shape[3]


def _bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=True)
