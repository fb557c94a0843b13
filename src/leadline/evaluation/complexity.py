"""Size of a network: multiply-accumulates and parameters, counted as SPEC.md's tables count them.

One multiply-accumulate (MAC) is one multiplication of a convolution, linear layer or attention product with its
addition, at batch 1. Biases, batch norms, activations and resizing count nothing. A depthwise or grouped convolution
counts its own connections only. A transposed convolution counts input pixels x kernel x connections, the products that
really happen, and not the zeros between them (SPEC.md 1.2: 3.21 G against the printed 12.9 G of FastDepth's DeConv5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

PRODUCTS = {"convolution", "mm", "addmm", "bmm", "baddbmm"}  # what PyTorch computes all of them with


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        model: takes 1 x 3 x H x W float32; its weights, mode and device stay as they are.
        size: (height, width) of the input, pixels.
    """
    return _counted(model, size, _macs)


def count_outputs(model: nn.Module, size: tuple[int, int]) -> int:
    """Numbers that all convolutions, linear layers and attention products of one forward pass return.

    Args:
        model: as for `count_macs`.
        size: (height, width) of the input, pixels.
    """
    return _counted(model, size, _outputs)


def _counted(
    model: nn.Module, size: tuple[int, int], count: Callable[[nn.Module, dict[str, torch.Tensor], torch.Tensor], int]
) -> int:
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        try:
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            shapes_only = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
            return count(model, shapes_only, torch.empty(1, 3, *size, device="meta"))
        except (RuntimeError, NotImplementedError):  # a network that looks at values must really run
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            return count(model, {}, torch.zeros(1, 3, *size, device=device))
    finally:
        for module, training in modes.items():
            module.training = training


def _macs(model: nn.Module, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> int:
    import torch
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # fused attention is invisible to the counter on the CPU; the plain one is two matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        functional_call(model, tensors, (x,))
    return int(counter.get_total_flops()) // 2


def _outputs(model: nn.Module, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> int:
    import torch
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._python_dispatch import TorchDispatchMode

    numbers = [0]

    class Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.__name__.split(".")[0] in PRODUCTS:
                numbers[0] += result.numel()
            return result

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Outputs():  # type: ignore[no-untyped-call]
        functional_call(model, tensors, (x,))
    return numbers[0]


def count_parameters(model: nn.Module) -> int:
    """All trainable numbers of the network; a tensor that two layers share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_kernel_weights(model: nn.Module) -> int:
    """Weights of convolutions and linear layers only, without biases and batch norms, as FastDepth's paper counts."""
    from torch import nn

    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, kinds))
