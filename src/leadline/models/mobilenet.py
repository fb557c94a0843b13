"""MobileNet-v1 without pooling and classifier, as an encoder (Howard et al. 2017; SPEC.md 1.1)."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)  # conv0 .. conv13
PRUNED_WIDTHS = (16, 56, 88, 120, 144, 256, 408, 376, 272, 288, 296, 328, 480, 512)  # the authors' plan
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
FEATURE_LAYERS = (1, 3, 5, 11, 13)  # the last layer at strides 2, 4, 8, 16, 32


def activation_layer(name: str) -> nn.Module:
    """`relu6` (as published) or `relu` (what some conversions of the weights were folded with)."""
    return nn.ReLU6(inplace=True) if name == "relu6" else nn.ReLU(inplace=True)


def layers(widths: tuple[int, ...] = WIDTHS, activation: str = "relu6") -> list[nn.Sequential]:
    """The fourteen layers: a full 3x3 convolution, then thirteen of depthwise 3x3 and pointwise 1x1.

    Args:
        widths: output channels of conv0 .. conv13.
        activation: `relu6` or `relu`.
    """
    out = []
    inputs = 3
    for index, (outputs, stride) in enumerate(zip(widths, STRIDES, strict=True)):
        parts: list[nn.Module] = []
        if index > 0:
            parts += [
                nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                activation_layer(activation),
                nn.Conv2d(inputs, outputs, 1, bias=False),
            ]
        else:
            parts.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
        out.append(nn.Sequential(*parts, nn.BatchNorm2d(outputs), activation_layer(activation)))
        inputs = outputs
    return out


def channels(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the features at strides 2, 4, 8, 16, 32."""
    return tuple(widths[layer] for layer in FEATURE_LAYERS)


class MobileNet(nn.Sequential):
    """The encoder: N x 3 x H x W float32 to five features at strides 2, 4, 8, 16, 32.

    Args:
        widths: output channels of conv0 .. conv13.
        activation: `relu6` or `relu`.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, activation: str = "relu6") -> None:
        super().__init__(*layers(widths, activation))
        self.channels = channels(widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five features, N x C x H/s x W/s for s = 2, 4, 8, 16, 32."""
        features = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in FEATURE_LAYERS:
                features.append(x)
        return features
