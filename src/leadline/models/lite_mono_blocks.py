"""Blocks of the Lite-Mono encoder, all in N x C x H x W (Zhang et al. 2023; SPEC.md 3.1).

The published blocks turn to channels-last for their linear layers and back. Here a linear layer is a 1x1 convolution
with the linear layer's tensors, and the attention over channels takes N x C x HW as it lies: no turning, no copies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
LAYER_SCALE = 1e-6
FREQUENCIES = 32
TEMPERATURE = 10000.0


class Pointwise(nn.Linear):
    """A linear layer over channels: N x in_features x H x W to N x out_features x H x W."""

    def forward(self, x: Tensor) -> Tensor:
        """The same linear map at every pixel."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel.

    Args:
        width: channels.
        used: False for the pair of tensors that stands in the published files and takes part in nothing.
    """

    def __init__(self, width: int, *, used: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=used)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=used)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)
        return last.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: in training, leave the branch out for a share `rate` of the pictures and scale the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class DilatedDepthwise(nn.Module):
    """A 3x3 depthwise convolution without bias that keeps the size."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        y: Tensor = self.conv(x)
        return y


class DilatedBlock(nn.Module):
    """CDC block: x + gamma * MLP(BN(dilated depthwise convolution of x)).

    Args:
        width: channels.
        hidden: channels between the two linear layers.
        dilation: of the 3x3 kernel, pixels.
        drop_path: rate of the branch in training.
    """

    def __init__(self, width: int, hidden: int, dilation: int, drop_path: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.ddwconv = DilatedDepthwise(width, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.norm = ChannelNorm(width, used=False)
        self.pwconv1 = Pointwise(width, hidden)
        self.pwconv2 = Pointwise(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        y = self.pwconv2(F.gelu(self.pwconv1(self.bn1(self.ddwconv(x)))))
        updated: Tensor = x + self.drop_path(self.gamma[:, None, None] * y)
        return updated


class CrossCovarianceAttention(nn.Module):
    """XCA: attention between channels, whose cost is linear in the number of pixels.

    Args:
        width: channels of input and output.
        heads: number of heads.
        head_width: channels of one head.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(width, 3 * heads * head_width)
        self.proj = Pointwise(heads * head_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        qkv = self.qkv(x).reshape(x.shape[0], 3, self.heads, self.head_width, -1)
        q, k, v = qkv.unbind(1)  # each N x heads x head_width x HW
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        mixed = (scores.softmax(dim=-1) @ v).reshape(x.shape[0], self.heads * self.head_width, *x.shape[2:])
        projected: Tensor = self.proj(mixed)
        return projected


class FourierPositions(nn.Module):
    """Sines and cosines of row and column, brought to the block's width; a constant at a fixed size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FREQUENCIES, width, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """1 x C x height x width."""
        y, x = self._waves(height)[:, :, None], self._waves(width)[:, None, :]
        waves = torch.cat([y.expand(-1, -1, width), x.expand(-1, height, -1)])
        projected: Tensor = self.token_projection(waves[None])
        return projected

    def _waves(self, count: int) -> Tensor:
        """FREQUENCIES x count: sin and cos in turn, the wavelength growing from 1 to TEMPERATURE times the side."""
        device = self.token_projection.weight.device
        place = (torch.arange(count, device=device, dtype=torch.float32) + 1) / (count + 1e-6) * (2 * math.pi)
        steps = torch.arange(FREQUENCIES // 2, device=device, dtype=torch.float32)
        angle = place / (TEMPERATURE ** (2 * steps / FREQUENCIES))[:, None]
        return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)


class GlobalBlock(nn.Module):
    """LGFI block: x + gamma * MLP(LN(t)), t = x + positions + gamma_xca * XCA(LN(x + positions)).

    Args:
        width: channels.
        hidden: channels between the two linear layers.
        heads: of the attention.
        head_width: channels of one head.
        positions: add Fourier positions (the first stage does).
        drop_path: rate of the branch in training.
    """

    def __init__(
        self, width: int, hidden: int, heads: int, head_width: int, *, positions: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.gamma_xca = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.pos_embd = FourierPositions(width) if positions else None
        self.norm_xca = ChannelNorm(width)
        self.xca = CrossCovarianceAttention(width, heads, head_width)
        self.norm = ChannelNorm(width)
        self.pwconv1 = Pointwise(width, hidden)
        self.pwconv2 = Pointwise(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        t = x if self.pos_embd is None else x + self.pos_embd(x.shape[2], x.shape[3])
        t = t + self.gamma_xca[:, None, None] * self.xca(self.norm_xca(t))
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(t))))
        updated: Tensor = x + self.drop_path(self.gamma[:, None, None] * y)
        return updated


class SpatialAttention(nn.Module):
    """The spatial half of CBAM: each pixel times a gate from the maximum and the mean over channels (SPEC.md 5.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.bn(self.conv(summary)))
