"""The Lite-Mono decoder, and what turns its maps into scaled disparity: a sigmoid or bins (SPEC.md 3.2, 5.3).

Bins: K centres share the disparity range; a softmax of K logits mixes them at the map's own resolution, and one plane
is doubled to the next. `fixed` is the published study's form: a 3x3 convolution to K logits at each of three scales.

`adaptive` is ours. The study spent 3.6 G multiply-accumulates on its heads; almost all of that is convolutions to 64
channels at half resolution. What the centres need is knowledge of the whole picture, which the pooled features of all
three encoder stages hold for nothing; what the logits need is one vector per pixel, and the 3x3 convolution before them
has already gathered it: a 1x1 convolution of the finest map suffices. The coarser scales, which only training looks at,
keep their sigmoid. Widths are a softmax with a floor, summed up over the range: positive, ordered, each with a gradient
and never empty. They start out equal in the logarithm of disparity, since the range spans a factor of 1000.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from leadline.models.lite_mono_config import Config

SMALLEST_WIDTH = 0.1  # of an equal share of the range: no bin becomes empty


class ReflectConv(nn.Module):
    """A convolution that keeps the size; a 3x3 one mirrors the border."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H x W."""
        y: Tensor = self.conv(x)
        return y


class ReflectConvElu(nn.Module):
    """A 3x3 convolution that mirrors the border, and ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ReflectConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H x W."""
        return F.elu(self.conv(x))


class BinCentres(nn.Module):
    """Disparity bins of a picture, from what the encoder saw in the whole of it.

    Args:
        widths: channels of the encoder's features.
        hidden: channels between the two layers.
        count: number of bins.
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(sum(widths), hidden), nn.ELU(), nn.Linear(hidden, count))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Centres as ascending places in the range, N x K, 0 to 1."""
        pooled = torch.cat([feature.mean(dim=(2, 3)) for feature in features], dim=1)
        shares: Tensor = self.layers(pooled).softmax(dim=1)
        shares = (1 - SMALLEST_WIDTH) * shares + SMALLEST_WIDTH / shares.shape[1]
        return shares.cumsum(dim=1) - shares / 2


class Decoder(nn.Module):
    """Encoder features to scaled disparity, at the input's size for the finest scale.

    Args:
        config: of the network.
    """

    fixed_centres: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.widths
        w = config.decoder_widths
        inputs = (third, w[0] + second, w[1], w[2] + first, w[3], w[4])
        layers: list[nn.Module] = [ReflectConvElu(*pair) for pair in zip(inputs, w, strict=True)]
        scales = (w[5], w[3], w[1])
        if config.bins == "adaptive":
            heads = [ReflectConv(scales[0], config.bin_count, 1), *(ReflectConv(width, 1) for width in scales[1:])]
        else:
            heads = [ReflectConv(width, 1 if config.bins == "none" else config.bin_count) for width in scales]
        self.decoder = nn.ModuleList([*layers, *heads])
        self.centres = (
            BinCentres(config.widths, config.bin_hidden, config.bin_count) if config.bins == "adaptive" else None
        )
        self.low, self.high = config.disparity_range
        self.bins, self.spacing = config.bins, config.bin_spacing
        fixed = self._place(torch.linspace(0, 1, config.bin_count))[None]
        self.register_buffer("fixed_centres", fixed if config.bins == "fixed" else None, persistent=False)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """The finest disparity, N x 1 x H x W, from features at 1/4, 1/8 and 1/16, finest first."""
        return self._disparity(0, self._maps(features)[0], self.bin_centres(features))

    def scales(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Disparity at 1/1, 1/2 and 1/4 of the input, and the bin centres, N x K, of a network that has them."""
        maps, centres = self._maps(features), self.bin_centres(features)
        return tuple(self._disparity(scale, y, centres) for scale, y in enumerate(maps)), centres

    def bin_centres(self, features: tuple[Tensor, ...]) -> Tensor | None:
        """Bin centres in scaled disparity, ascending, N x K; None for a network without bins."""
        if self.bins == "fixed":
            return self.fixed_centres.expand(features[0].shape[0], -1)
        return None if self.centres is None else self._place(self.centres(features))

    def _maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """What the heads read: 1/2, 1/4 and 1/8 of the input."""
        maps = []
        y = features[2]
        for level, skip in enumerate((features[1], features[0], None)):
            y = _doubled(self.decoder[2 * level](y))
            y = self.decoder[2 * level + 1](y if skip is None else torch.cat([y, skip], dim=1))
            maps.append(y)
        return maps[2], maps[1], maps[0]

    def _disparity(self, scale: int, y: Tensor, centres: Tensor | None) -> Tensor:
        head: Tensor = self.decoder[6 + scale](y)
        if centres is None or head.shape[1] == 1:
            return self.low + (self.high - self.low) * torch.sigmoid(_doubled(head))
        # sums of products, not a matrix product: INT8 engines would round the centres to 256 equal steps
        mixed = (head.softmax(dim=1) * centres[:, :, None, None]).sum(dim=1, keepdim=True)
        return _doubled(mixed)

    def _place(self, share: Tensor) -> Tensor:
        """Disparity at a share (0 to 1) of the range."""
        if self.spacing == "step":
            return self.low + (self.high - self.low) * share
        return self.low * torch.exp(math.log(self.high / self.low) * share)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
