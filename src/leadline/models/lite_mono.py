"""Lite-Mono: a light hybrid of dilated convolutions and channel attention (Zhang et al. 2023; SPEC.md 3, 5).

A network is decided by its `Config` alone, channel counts included. Tensors have the published names: those of
`encoder.pth` under `encoder.`, those of `depth.pth` under `depth.`. The published encoder normalises its input inside;
here the contract does that (mean 0.45, std 0.225), which gives the pooled copies of the input the same values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.models.lite_mono_blocks import DilatedBlock, GlobalBlock, SpatialAttention
from leadline.models.lite_mono_channels import wiring
from leadline.models.lite_mono_config import VARIANTS, Config
from leadline.models.lite_mono_decoder import Decoder
from leadline.models.outputs import Outputs

__all__ = ["VARIANTS", "Config", "LiteMono", "build", "contract", "wiring"]

MEAN, STD = 0.45, 0.225


class _NormGelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """BN and GELU."""
        return F.gelu(self.bn(x))


class _Conv(nn.Module):
    """A 3x3 convolution without bias; with BN and GELU where `activated`."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, activated: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn_gelu = _NormGelu(outputs) if activated else None

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y: Tensor = self.conv(x)
        return y if self.bn_gelu is None else self.bn_gelu(y)


class Encoder(nn.Module):
    """Three stages of dilated blocks, each ended by a global one.

    Args:
        config: of the network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.widths
        stem = config.stem
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    _Conv(3, stem[0], 2, activated=True),
                    _Conv(stem[0], stem[1], 1, activated=True),
                    _Conv(stem[1], stem[2], 1, activated=True),
                ),
                nn.Sequential(_Conv(2 * first + 3, second, 2)),
                nn.Sequential(_Conv(2 * second + 3, third, 2)),
            ]
        )
        self.stem2 = nn.Sequential(_Conv(stem[2] + 3, first, 2))
        self.stages = nn.ModuleList(_stages(config))
        self.attention = nn.ModuleDict({str(stage): SpatialAttention() for stage in config.attention})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/4, 1/8 and 1/16 from the normalised picture, N x 3 x H x W, sides multiples of 32."""
        pooled = [F.avg_pool2d(x, 3, stride=2, padding=1)]
        pooled += [F.avg_pool2d(pooled[0], 3, stride=2, padding=1)]
        pooled += [F.avg_pool2d(pooled[1], 3, stride=2, padding=1)]
        y = self.stem2(torch.cat([self.downsample_layers[0](x), pooled[0]], dim=1))
        first = self._stage(1, y)
        y = self.downsample_layers[1](torch.cat([y, first, pooled[1]], dim=1))
        second = self._stage(2, y)
        y = self.downsample_layers[2](torch.cat([y, second, pooled[2]], dim=1))
        return first, second, self._stage(3, y)

    def _stage(self, number: int, x: Tensor) -> Tensor:
        y: Tensor = self.stages[number - 1](x)
        return self.attention[str(number)](y) if str(number) in self.attention else y


def _stages(config: Config) -> list[nn.Sequential]:
    depth = sum(len(hidden) for hidden in config.hidden)
    rates = iter([config.drop_path * k / max(depth - 1, 1) for k in range(depth)])
    stages = []
    for stage, (width, hidden, dilations) in enumerate(
        zip(config.widths, config.hidden, config.dilations, strict=True)
    ):
        blocks: list[nn.Module] = [
            DilatedBlock(width, inner, dilation, next(rates))
            for inner, dilation in zip(hidden[:-1], dilations, strict=True)
        ]
        heads, head_width = config.heads[stage], config.head_widths[stage]
        blocks.append(
            GlobalBlock(width, hidden[-1], heads, head_width, positions=stage == 0, drop_path=next(rates)),
        )
        stages.append(nn.Sequential(*blocks))
    return stages


class LiteMono(nn.Module):
    """Picture to scaled disparity (1 / depth up to one scale).

    Args:
        config: everything that decides the graph.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.depth = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled disparity, N x 1 x H x W, from N x 3 x H x W float32 normalised by the contract.

        The heads of the coarser scales, which only training looks at, do not run.
        """
        disparity: Tensor = self.depth(self.encoder(x))
        return disparity

    def outputs(self, x: Tensor) -> Outputs:
        """Scaled disparity at 1/1, 1/2 and 1/4 of the input, the bin centres where there are bins, and the features."""
        features = self.encoder(x)
        maps, centres = self.depth.scales(features)
        return Outputs(maps=maps, centres=centres, features=features)


def build(config: Config) -> nn.Module:
    """The network with random weights: N x 3 x H x W float32, sides multiples of 32, to N x 1 x H x W disparity."""
    model = LiteMono(config)
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in model.depth.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def contract(config: Config) -> Contract:
    """What the network expects and returns."""
    low, high = config.disparity_range
    spec = InputSpec(
        height=config.height,
        width=config.width,
        dynamic=True,
        multiple_of=32,
        min_side=32,
        max_side=4096,
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
    )
    name = next((name for name, known in VARIANTS.items() if known == config), "lite-mono-custom")
    return Contract(name=name, input=spec, output=OutputSpec(kind=Kind.SCALED_DISPARITY, minimum=low, maximum=high))
