"""FastDepth weights whose batch norms were folded into the convolutions, as conversions to other engines have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping


def from_folded_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights whose batch norms are folded into the convolutions, in place.

    The names are `conv0`, `conv{1..13}.dw|pw`, `decode_conv{1..5}.dw|pw` and `decode_conv6`, each with `.weight` and
    `.bias`. Every batch norm becomes the identity plus that bias.

    Args:
        model: built from a MobileNet configuration with depthwise nnconv and skips, of the same widths.
        tensors: by name.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    state = model.state_dict()
    wanted: set[str] = set()
    for key in [key for key in state if state[key].ndim == 4]:
        layer, *_, index, _ = key.split(".")
        encoder = layer.startswith("conv")
        if layer in ("conv0", "decode_conv6"):
            source, norm = layer, f"{layer}.1"
        elif encoder:
            source, norm = (f"{layer}.dw", f"{layer}.1") if index == "0" else (f"{layer}.pw", f"{layer}.4")
        else:
            half = key.split(".")[1]
            source, norm = f"{layer}.{'dw' if half == '0' else 'pw'}", f"{layer}.{half}.1"
        wanted |= {f"{source}.weight", f"{source}.bias"}
        weight, bias = tensors.get(f"{source}.weight"), tensors.get(f"{source}.bias")
        if weight is None or bias is None or weight.shape != state[key].shape:
            got = "missing" if weight is None or bias is None else f"{tuple(weight.shape)}"
            raise CheckpointError(
                "folded weights do not fit", where=source, why=f"{got}, not {tuple(state[key].shape)}"
            )
        batch_norm = model.get_submodule(norm)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        state[key] = weight.float()
        state[f"{norm}.bias"] = bias.float()
        state[f"{norm}.weight"] = torch.ones_like(bias, dtype=torch.float32)
        state[f"{norm}.running_mean"] = torch.zeros_like(bias, dtype=torch.float32)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1.0 - batch_norm.eps, dtype=torch.float32)
    if set(tensors) != wanted:
        raise CheckpointError("folded weights do not fit", why=f"unknown tensors {sorted(set(tensors) - wanted)[:3]}")
    model.load_state_dict(state)
