"""The upsampling stages and heads of FastDepth's decoders (Wofk et al. 2019; SPEC.md 1.1 and 1.3).

Every stage doubles height and width: N x inputs x H x W to N x outputs x 2H x 2W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (16, 8, 4, 2, 1)  # of the map that each of the five stages returns


class Unpool(nn.Module):
    """Zero insertion: N x C x H x W to N x C x 2H x 2W, each value at the top left of its 2x2."""

    def forward(self, x: Tensor) -> Tensor:
        """Doubled height and width, three of four values zero."""
        n, c, h, w = x.shape
        return F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), *_norm_relu(outputs))


def conv_stage(inputs: int, outputs: int, kernel: int, depthwise: bool, upsample: nn.Module | None) -> nn.Sequential:
    """NNConv and BLConv: k x k convolution, BN, ReLU (or depthwise then pointwise), then the upsampling."""
    after = [] if upsample is None else [upsample]
    if depthwise:
        spread = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
        return nn.Sequential(nn.Sequential(spread, *_norm_relu(inputs)), _pointwise(inputs, outputs), *after)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, *_norm_relu(outputs), *after)


def deconv_stage(inputs: int, outputs: int, kernel: int, depthwise: bool) -> nn.Sequential:
    """DeConv: transposed k x k convolution of stride 2, BN, ReLU (or depthwise then pointwise)."""
    shape: dict[str, Any] = {"stride": 2, "padding": kernel // 2, "output_padding": 1, "bias": False}
    if depthwise:
        spread = nn.ConvTranspose2d(inputs, inputs, kernel, groups=inputs, **shape)
        return nn.Sequential(nn.Sequential(spread, *_norm_relu(inputs)), _pointwise(inputs, outputs))
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, kernel, **shape), *_norm_relu(outputs))


def upconv_stage(inputs: int, outputs: int) -> nn.Sequential:
    """UpConv: zero insertion, 5x5 convolution, BN, ReLU."""
    return nn.Sequential(Unpool(), nn.Conv2d(inputs, outputs, 5, padding=2, bias=False), *_norm_relu(outputs))


class UpProj(nn.Module):
    """UpProj: zero insertion, then ReLU of the sum of two branches: two convolutions, `hidden` in between, and one."""

    def __init__(self, inputs: int, outputs: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or outputs
        self.unpool = Unpool()
        self.branch1 = nn.Sequential(
            nn.Conv2d(inputs, hidden, 5, padding=2, bias=False),
            *_norm_relu(hidden),
            nn.Conv2d(hidden, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.branch2 = nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=2, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x 2H x 2W."""
        y = self.unpool(x)
        return cast("Tensor", self.relu(self.branch1(y) + self.branch2(y)))


class Bounded(nn.Module):
    """A sigmoid from `low` to `high`: depth in metres from 0, or scaled disparity."""

    def __init__(self, high: float, low: float = 0.0) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, x: Tensor) -> Tensor:
        """Values between the bounds, same shape."""
        y = (self.high - self.low) * torch.sigmoid(x)
        return self.low + y if self.low else y


class Prediction(nn.Conv2d):
    """Pointwise convolution whose bias starts at a sensible depth, so that no iterations go into finding the scale."""

    def __init__(self, inputs: int, bias: float) -> None:
        super().__init__(inputs, 1, 1)
        assert self.bias is not None
        nn.init.constant_(self.bias, bias)
        nn.init.normal_(self.weight, std=0.1 / math.sqrt(inputs))


def head(inputs: int, kind: str, high: float, start: float, low: float = 0.0) -> nn.Sequential:
    """Pointwise convolution to one channel and the output function.

    Args:
        inputs: channels.
        kind: `relu` (BN and ReLU, as published), `sigmoid` (from `low` to `high`) or `softplus`.
        high: largest value of `sigmoid`, metres or disparity.
        start: value that an untrained `sigmoid` or `softplus` head returns on average.
        low: smallest value of `sigmoid`.
    """
    if kind == "relu":
        return nn.Sequential(nn.Conv2d(inputs, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU())
    if kind == "sigmoid":
        share = (start - low) / (high - low)
        return nn.Sequential(Prediction(inputs, math.log(share / (1 - share))), Bounded(high, low))
    return nn.Sequential(Prediction(inputs, math.log(math.expm1(start))), nn.Softplus())


def lateral(inputs: int, outputs: int) -> nn.Sequential:
    """Projection of an encoder's feature to the decoder's width: 1x1 convolution and BN."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def upsampling(upsampler: str) -> nn.Module:
    """Doubling of nnconv (nearest neighbour) and blconv (bilinear)."""
    if upsampler == "blconv":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Upsample(scale_factor=2, mode="nearest")


def initialise(model: nn.Module) -> None:
    """Weights of convolutions from N(0, 2 / fan_out), biases 0, batch norms 1 and 0; heads keep theirs.

    The authors' rule (SPEC.md 1.1) is the same for full convolutions; theirs takes all output channels as the fan-out
    of a depthwise convolution too, which starts it far too small. Theirs is also, by a slip, not applied to the decoder
    of the networks with skips, which keep PyTorch's default. Here every layer is initialised.
    """
    for module in model.modules():
        if isinstance(module, Prediction) or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        outputs = module.out_channels if isinstance(module, nn.Conv2d) else module.in_channels
        fan = module.kernel_size[0] * module.kernel_size[1] * outputs / module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def decode(
    stages: Sequence[nn.Module],
    features: Sequence[Tensor],
    skip_strides: Sequence[int],
    concatenate: bool,
    laterals: nn.ModuleDict | None = None,
) -> Tensor:
    """Run the five stages and join the encoder's features after the upsampling.

    Args:
        stages: five modules, each doubling the size (the last may not).
        features: at strides 2, 4, 8, 16, 32, each N x C x h x w.
        skip_strides: where to join.
        concatenate: the decoder's and the encoder's map along channels, instead of adding them.
        laterals: projection of the encoder's map by stride, where there is one.
    """
    y = features[-1]
    for stage, stride in zip(stages, STRIDES, strict=True):
        y = stage(y)
        if stride in skip_strides:
            feature = features[stride.bit_length() - 2]
            if laterals:
                feature = laterals[str(stride)](feature)
            y = torch.cat((y, feature), 1) if concatenate else y + feature
    return y
