"""What `test_distributed` lets torchrun start: a batch-normalised network in FP64, then the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leadline.cli import main
from leadline.training.synchronised import synchronise
from leadline.training.team import Team


def batch_normalised() -> tuple[nn.Module, Tensor, Tensor]:
    """A network in training mode, five pictures, and the weight of each of its results in a loss."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)
    ).double()
    return network.train(), torch.randn(5, 3, 10, 12).double(), torch.randn(5, 1, 6, 8).double()


def share(folder: Path, team: Team) -> None:
    """Run this process's rows forward and backward, and write the gradients of all."""
    network, image, weight = batch_normalised()
    given = load_file(folder / "network.safetensors")
    image, weight = given.pop("image"), given.pop("weight")
    network.load_state_dict(given)
    synchronise(network, team)
    rows = team.rows(len(image))
    (network(image[rows]) * weight[rows]).sum().backward()
    team.sum_gradients(network.parameters())
    found = {f"gradient.{key}": value.grad for key, value in network.named_parameters() if value.grad is not None}
    found |= {key: value for key, value in network.state_dict().items() if "running" in key}
    if team.leads:
        save_file(found, folder / "shared.safetensors")


if __name__ == "__main__":
    with Team(torch.device("cpu")) as team:
        share(Path(sys.argv[1]), team)
        sys.argv[1:] = sys.argv[2:]
        main()
