"""Time of each layer of a PyTorch network: of its innermost modules by name, and of what happens outside them."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

from leadline.runtimes.layer_time import LayerTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

OUTSIDE = "(outside modules)"
WARMUP = 2


def layer_times(
    model: nn.Module, call: Callable[[], object], runs: int, wait: Callable[[], object] = lambda: None
) -> list[LayerTime]:
    """Medians over the runs.

    Args:
        model: the network.
        call: runs it once.
        runs: that count.
        wait: lets an accelerator finish, so that each module's time is its own.
    """
    layers = {layer: name for name, layer in model.named_modules() if not any(True for _ in layer.children())}
    spent: dict[str, list[float]] = defaultdict(list)
    now: dict[str, float] = {}
    operations: dict[str, int] = {}
    started: dict[nn.Module, float] = {}

    def before(layer: nn.Module, values: Any) -> None:
        wait()
        started[layer] = time.perf_counter()

    def after(layer: nn.Module, values: Any, result: Any) -> None:
        wait()
        name = layers[layer]
        now[name] = now.get(name, 0.0) + 1e3 * (time.perf_counter() - started[layer])
        if (count := _operations(layer, values[0] if values else None, result)) is not None:
            operations[name] = operations.get(name, 0) + count

    hooks = [hook for layer in layers for hook in _hooks(layer, before, after)]
    try:
        for run in range(WARMUP + runs):
            now.clear()
            operations.clear()
            wait()
            began = time.perf_counter()
            call()
            wait()
            whole = 1e3 * (time.perf_counter() - began)
            if run >= WARMUP:
                now[OUTSIDE] = max(whole - sum(now.values()), 0.0)
                for name, ms in now.items():
                    spent[name].append(ms)
    finally:
        for hook in hooks:
            hook.remove()
    kinds = {name: type(layer).__name__ for layer, name in layers.items()}
    return [
        LayerTime(name, kinds.get(name, "functions"), median(found), operations.get(name))
        for name, found in spent.items()
    ]


def _hooks(layer: nn.Module, before: Any, after: Any) -> tuple[Any, Any]:
    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after)


def _operations(layer: nn.Module, value: Any, result: Any) -> int | None:
    from torch import nn

    if isinstance(layer, nn.ConvTranspose2d):
        return 2 * int(value.numel()) * layer.weight[0].numel()
    if isinstance(layer, nn.Conv2d):
        return 2 * int(result.numel()) * layer.weight[0].numel()
    if isinstance(layer, nn.Linear):
        return 2 * int(result.numel()) * layer.in_features
    return None
