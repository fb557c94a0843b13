"""MobileNetV2 without its last pointwise layer and classifier, as an encoder (Sandler et al. 2018, table 2).

Parameters have the names that torchvision gives them (`features.0.0.weight`, ...), so that its weights are these.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

REPEATS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
WIDTHS = (32, 16, 24, 32, 64, 96, 160, 320)  # stem, then the output of each stage
FEATURE_STAGES = (0, 1, 2, 4, 6)  # the last stage at strides 2, 4, 8, 16, 32
EXPANSION = 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet training


def hidden_widths(widths: tuple[int, ...] = WIDTHS) -> tuple[int, ...]:
    """Width after the expansion of each block that expands, in order: six times its input."""
    hidden = []
    for stage in range(1, 7):
        for repeat in range(REPEATS[stage]):
            hidden.append(EXPANSION * (widths[stage] if repeat == 0 else widths[stage + 1]))
    return tuple(hidden)


def scaled(factor: float) -> tuple[int, ...]:
    """The widths of the network `factor` times as wide: multiples of 8, never below 90 % of what was asked."""
    widths = []
    for width in WIDTHS:
        wanted = width * factor
        nearest = max(8, int(wanted + 4) // 8 * 8)
        widths.append(nearest + 8 if nearest < 0.9 * wanted else nearest)
    return tuple(widths)


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise 3x3, linear 1x1 projection; ReLU6 in between.

    Shapes: N x inputs x H x W to N x outputs x H/stride x W/stride. `hidden=None` leaves the expansion out.
    All blocks of a stage but the first are `residual`, as where the published widths of input and output are equal;
    equal widths alone, as pruning may leave them, do not join two stages.
    """

    def __init__(self, inputs: int, hidden: int | None, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        width = inputs if hidden is None else hidden
        self.residual = residual
        expansion = [] if hidden is None else [_layer(inputs, width, 1)]
        projection = [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*expansion, _layer(width, width, 3, stride, groups=width), *projection)

    def forward(self, x: Tensor) -> Tensor:
        """N x outputs x H/stride x W/stride."""
        y = self.conv(x)
        return cast("Tensor", x + y) if self.residual else cast("Tensor", y)


class MobileNetV2(nn.Module):
    """The encoder: N x 3 x H x W float32 to five features at strides 2, 4, 8, 16, 32.

    Args:
        widths: of the stem and the seven stages.
        hidden: of each block that expands (`hidden_widths` gives the published ones).
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, hidden: tuple[int, ...] = ()) -> None:
        super().__init__()
        inner = iter(hidden or hidden_widths(widths))
        layers: list[nn.Module] = [_layer(3, widths[0], 3, stride=2)]
        self.feature_layers: list[int] = []
        inputs = widths[0]
        for stage, repeats in enumerate(REPEATS):
            for repeat in range(repeats):
                stride = STRIDES[stage] if repeat == 0 else 1
                expanded = None if stage == 0 else next(inner)
                layers.append(Block(inputs, expanded, widths[stage + 1], stride, residual=repeat > 0))
                inputs = widths[stage + 1]
            if stage in FEATURE_STAGES:
                self.feature_layers.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.channels = tuple(widths[stage + 1] for stage in FEATURE_STAGES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five features, N x C x H/s x W/s for s = 2, 4, 8, 16, 32."""
        features: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.feature_layers:
                features.append(x)
        return features
