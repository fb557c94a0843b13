"""TCMonoDepth small, the reference network for relative disparity, as an ONNX file that every verb takes.

    python benchmarks/learning/tcmonodepth.py ../shared/weights/tcmonodepth_small.pt.tar --out runs/tcmonodepth.onnx
    leadline evaluate runs/tcmonodepth.onnx --data ../shared/data/nyu --split test --protocol zero-shot-disparity

The network (Li et al., ICCV 2021): a ShuffleNetV2 of width 0.5 without its max pooling, then three decoder stages that
double bilinearly, join the encoder's feature through a 1x1 convolution, and convolve depthwise and pointwise. Written
from that description, on the published tensors; short side 256, sides multiples of 32, RGB in 0..1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
import torch.nn.functional as F
from experiment import started
from torch import nn

from leadline.contract import Contract
from leadline.runtimes.onnx_export import export_onnx
from leadline.torch_files import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

STAGES = (4, 8, 4)  # blocks of the encoder's stages; the first of each halves the size
SHORT_SIDE, LONG_SIDE = 256, 352


class TCMonoDepthSmall(nn.Module):
    """N x 3 x H x W in 0..1 to N x 1 x H x W relative disparity, with the published tensors.

    Args:
        state: the published tensors by their names.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            self.register_buffer(name.replace(".", "/"), value)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self._conv("encoder.first_conv", 0, x, stride=2)
        features, number = [x], 0
        for blocks in STAGES:
            for block in range(blocks):
                x = self._block(f"encoder.features.{number}", x, first=block == 0)
                number += 1
            features.append(x)
        for stage in (3, 2, 1):
            x = self._join(f"decoder.decoder{stage}", features[stage - 1], x)
        x = F.conv2d(x, self._tensor("decoder.final.weight"), self._tensor("decoder.final.bias"), padding=1)
        return F.interpolate(F.relu(x), scale_factor=2.0, mode="bilinear", align_corners=False)

    def _block(self, name: str, x: Tensor, *, first: bool) -> Tensor:
        """One unit of ShuffleNetV2: even channels pass (projected where the size halves), odd ones are learned."""
        passed, seen = (x, x) if first else (x[:, 0::2], x[:, 1::2])
        main = f"{name}.branch_main"
        seen = self._conv(main, 0, seen)
        seen = self._conv(main, 3, seen, stride=1 + first, active=False)
        seen = self._conv(main, 5, seen)
        if first:
            passed = self._conv(f"{name}.branch_proj", 0, passed, stride=2, active=False)
            passed = self._conv(f"{name}.branch_proj", 2, passed)
        return torch.cat((passed, seen), 1)

    def _join(self, name: str, low: Tensor, high: Tensor) -> Tensor:
        low = self._conv(f"{name}.skip_conv", 0, low)
        high = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=False)
        x = self._conv(f"{name}.last_conv.0.conv", 0, torch.cat((high, low), 1))
        x = F.conv2d(x, self._tensor(f"{name}.last_conv.0.conv.3.weight"))
        return F.relu(self._norm(f"{name}.last_conv.1", x))

    def _conv(self, name: str, index: int, x: Tensor, *, stride: int = 1, active: bool = True) -> Tensor:
        """Convolution `index` of a sequence, depthwise where its kernel has one input, and the BN behind it."""
        weight = self._tensor(f"{name}.{index}.weight")
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        x = self._norm(f"{name}.{index + 1}", x)
        return F.relu(x) if active else x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            self._tensor(f"{name}.{key}") for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def _tensor(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "/"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file; its contract is written beside it")
    options = parser.parse_args()
    spec = {"height": SHORT_SIDE, "width": LONG_SIDE, "dynamic": True, "multiple_of": 32, "min_side": 64}
    contract = Contract.model_validate(
        {
            "name": "tcmonodepth-small",
            "input": {**spec, "max_side": 2048, "resize": "keep_aspect", "interpolation": "bicubic"},
            "output": {"kind": "relative_disparity", "minimum": 0.0},
            "licence": "MIT (repository yu-li/TCMonoDepth)",
            "provenance": f"published weights, {options.weights.name}",
        }
    )
    weights = read_torch_file(options.weights).state
    network = TCMonoDepthSmall({key: value.float() for key, value in weights.items() if "num_batches" not in key})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(export_onnx(network.eval(), contract), options.out)
    contract.save(options.out.with_suffix(".contract.json"))
    print(f"{options.out}: {sum(value.numel() for value in network.buffers()):,} values")


if __name__ == "__main__":
    started(main)
