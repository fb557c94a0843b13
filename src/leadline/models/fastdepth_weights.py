"""FastDepth weights whose batch norms were folded into the convolutions, as conversions to other engines have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

# folded name: (convolution, batch norm) in the published state dict
FOLDED: dict[str, tuple[str, str]] = {
    "conv0": ("conv0.0", "conv0.1"),
    **{f"conv{i}.dw": (f"conv{i}.0", f"conv{i}.1") for i in range(1, 14)},
    **{f"conv{i}.pw": (f"conv{i}.3", f"conv{i}.4") for i in range(1, 14)},
    **{f"decode_conv{k}.dw": (f"decode_conv{k}.0.0", f"decode_conv{k}.0.1") for k in range(1, 6)},
    **{f"decode_conv{k}.pw": (f"decode_conv{k}.1.0", f"decode_conv{k}.1.1") for k in range(1, 6)},
    "decode_conv6": ("decode_conv6.0", "decode_conv6.1"),
}


def from_folded_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights whose batch norms are folded into the convolutions, in place.

    Every batch norm of the model becomes the identity plus the folded bias.

    Args:
        model: `fastdepth`, or a pruned one, of the widths of these weights; N x 3 x H x W to N x 1 x H x W metres.
        tensors: `<name>.weight` (O x I x k x k) and `<name>.bias` (O) for each name of FOLDED, any float type.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    unknown = set(tensors) - {f"{name}.{part}" for name in FOLDED for part in ("weight", "bias")}
    if unknown:
        raise CheckpointError("folded weights do not fit", where=min(unknown), why="no layer has this name")
    state = model.state_dict()
    for name, (convolution, norm) in FOLDED.items():
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is None or bias is None:
            raise CheckpointError("folded weights do not fit", where=name, why="weight or bias is missing")
        wanted = state.get(f"{convolution}.weight")
        if wanted is None or wanted.shape != weight.shape:
            why = "no such layer" if wanted is None else f"{tuple(weight.shape)} given, {tuple(wanted.shape)} wanted"
            raise CheckpointError("the model does not fit the folded weights", where=name, why=why)
        batch_norm = model.get_submodule(norm)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        ones = torch.ones(bias.shape)
        state[f"{convolution}.weight"] = weight.float()
        state[f"{norm}.weight"], state[f"{norm}.bias"] = ones, bias.float()
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = 0 * ones, ones * (1 - batch_norm.eps)
    model.load_state_dict(state)
