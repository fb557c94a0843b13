"""A small detector, to show that a technique is not tied to depth networks: a backbone and two heads at two strides."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Detector(nn.Module):
    """N x 3 x H x W to classes and boxes at strides 4 and 8; both heads are shared by the two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 1))
        self.classes = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 5, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.stage1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.stage2 = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.SiLU()
        )
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        fine = self.stage1(self.stem(x))
        coarse = self.stage2(fine)
        both = (fine + self.up(coarse), coarse)
        return {"boxes": tuple(map(self.boxes, both)), "classes": tuple(map(self.classes, both))}  # type: ignore[dict-item]


WEIGHTS = {
    "boxes.0": 16 * 16 * 9,
    "boxes.2": 4 * 16,
    "classes.0": 16 * 16 * 9,
    "classes.2": 5 * 16,
    "stem.0": 8 * 3 * 9,
    "stage1.0": 16 * 8 * 9,
    "stage2.0": 16 * 9,
    "stage2.2": 16 * 16,
    "up": 16 * 16 * 4,
}
HEADS = {"boxes.2", "classes.2"}


def detector() -> Detector:
    torch.manual_seed(3)
    return Detector().eval()
