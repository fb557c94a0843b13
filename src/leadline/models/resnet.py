"""ResNet-18 and ResNet-50 without pooling and classifier, as encoders (He et al. 2016; SPEC.md 1.3)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
WIDTHS = {"resnet18": (64, 64, 128, 256, 512), "resnet50": (64, 256, 512, 1024, 2048)}  # stem, layer1 .. layer4
INNER = (64, 128, 256, 512)


def hidden_widths(name: str) -> tuple[int, ...]:
    """Widths inside the blocks, in order: one per block in ResNet-18, two per block in ResNet-50."""
    per_block = 1 if name == "resnet18" else 2
    return tuple(width for width, count in zip(INNER, BLOCKS[name], strict=True) for _ in range(count * per_block))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; N x inputs x H x W to N x outputs x H/stride x W/stride."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        (width,) = hidden
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the convolutions' and the shortcut's sum."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return cast("Tensor", self.relu(y + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut; shapes as in BasicBlock."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        first, second = hidden
        self.conv1 = nn.Conv2d(inputs, first, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the convolutions' and the shortcut's sum."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return cast("Tensor", self.relu(y + (x if self.downsample is None else self.downsample(x))))


class ResNet(nn.Module):
    """The encoder: N x 3 x H x W float32 to five features at strides 2, 4, 8, 16, 32.

    Names of parameters are torchvision's, so that its ImageNet state dicts load.

    Args:
        name: `resnet18` or `resnet50`.
        widths: of the stem and of layer1 .. layer4.
        hidden: inside the blocks (`hidden_widths` gives the published ones).
        projected: a projection after the stem of ResNet-18 even where its widths are equal.
    """

    def __init__(self, name: str, widths: tuple[int, ...], hidden: tuple[int, ...], *, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        kind, per_block = (BasicBlock, 1) if name == "resnet18" else (Bottleneck, 2)
        inner = iter(hidden)
        inputs = widths[0]
        layers: list[nn.Sequential] = []
        for layer, (outputs, count) in enumerate(zip(widths[1:], BLOCKS[name], strict=True), start=1):
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if layer > 1 and index == 0 else 1
                needed = layer > 1 or kind is Bottleneck or inputs != outputs
                project = index == 0 and (needed or projected)
                blocks.append(kind(inputs, tuple(next(inner) for _ in range(per_block)), outputs, stride, project))
                inputs = outputs
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = widths

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five features, N x C x H/s x W/s for s = 2, 4, 8, 16, 32."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        y = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = layer(y)
            features.append(y)
        return features
