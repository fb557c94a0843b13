"""Zeros by magnitude: which weights of any network become 0, over all layers, per layer, or N of each M.

Pure functions: `prune` for PyTorch modules, `prune_onnx` for ONNX graphs; `leadline.compression.magnitude` is the step.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from leadline.compression.tuning import WEIGHTED
from leadline.compression.weighted import (
    LAYER_KINDS,
    LayerKind,
    Weighted,
    ancestors,
    graph_layers,
    inside,
    module_layers,
)
from leadline.errors import ConfigError, NumericalError, closest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch import Tensor, nn

UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class Rule:
    """Which weights become 0.

    Args:
        amount: share of the weights that are chosen from, at least 0 and below 1; of N weights exactly
            round(amount * N) are 0 afterwards, those that were 0 before among them.
        amounts: share per layer instead; layers that are not named stay as they are.
        scope: the smallest of all layers together, or of each layer.
        pattern: `unstructured`, or N:M: of each M successive input channels at one place of one kernel the N largest
            stay. `amount` and `scope` then mean nothing. A layer whose inputs are no multiple of M stays dense: no
            hardware with such kernels runs it. Depthwise convolutions, with one input, are always among these.
        layers: kinds of layers.
        exclude: layers, or modules with all layers in them, that stay as they are.
        output_layer: the network's last layers too. They have few weights, and each counts in every pixel.

    Raises:
        ConfigError: a share outside 0 to 1, or an unknown pattern.
    """

    amount: float = 0.5
    amounts: Mapping[str, float] | None = None
    scope: Literal["global", "layer"] = "global"
    pattern: str = UNSTRUCTURED
    layers: Sequence[LayerKind] = LAYER_KINDS
    exclude: Sequence[str] = ()
    output_layer: bool = False

    def __post_init__(self) -> None:
        for name, share in {"amount": self.amount, **(self.amounts or {})}.items():
            if not 0 <= share < 1:
                why = "it must be at least 0 and below 1: a layer without weights says nothing"
                raise ConfigError("bad share of zeros", where=f"{name} = {share}", why=why)
        kept_of(self.pattern)


def kept_of(pattern: str) -> tuple[int, int] | None:
    """(N, M) of a pattern N:M, None for `unstructured`.

    Raises:
        ConfigError: anything else.
    """
    if pattern == UNSTRUCTURED:
        return None
    parts = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern)
    if parts is None or not 0 < int(parts[1]) < int(parts[2]):
        mend = "write `unstructured`, or N:M with N below M, as in 2:4: of 4 weights 2 stay"
        raise ConfigError("bad pattern", where=pattern, mend=mend)
    return int(parts[1]), int(parts[2])


@dataclass(frozen=True)
class Cut:
    """What a rule does to a list of layers.

    Args:
        masks: by layer: True where a weight becomes 0, in the weight's shape.
        dense: layers that the pattern does not fit, with their inputs.
    """

    masks: dict[str, Tensor]
    dense: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Zeros among the weights of the layers that were cut."""
        return sum(int(mask.sum()) for mask in self.masks.values()) / sum(map(torch.numel, self.masks.values()))


def cut(layers: Sequence[Weighted], rule: Rule) -> Cut:
    """Choose the weights that become 0. Among equal ones the first in the network's order go, so that none is chance.

    Raises:
        ConfigError: an unknown layer, or no layer left to prune.
        NumericalError: a weight is NaN or infinite.
    """
    chosen = _chosen(layers, rule)
    sizes = {layer.name: layer.weight.detach().abs().float() for layer in chosen}
    for name, values in sizes.items():
        if not bool(torch.isfinite(values).all()):
            raise NumericalError("NaN or infinity in the weights of", where=name, mend="prune a network that works")
    ratio = kept_of(rule.pattern)
    if ratio is not None:
        return _patterned(chosen, sizes, *ratio)
    if rule.amounts is not None:
        return Cut({name: _smallest(values, rule.amounts[name]) for name, values in sizes.items()})
    if rule.scope == "layer":
        return Cut({name: _smallest(values, rule.amount) for name, values in sizes.items()})
    together = _smallest(torch.cat([values.flatten() for values in sizes.values()]), rule.amount)
    ends = itertools.accumulate(values.numel() for values in sizes.values())
    return Cut(
        {
            name: together[end - v.numel() : end].view(v.shape)
            for (name, v), end in zip(sizes.items(), ends, strict=True)
        }
    )


def prune(model: nn.Module, rule: Rule, example: Tensor | None = None) -> nn.Module:
    """A copy of any network, with real zeros where the rule puts them.

    Weights outside Conv2d, ConvTranspose2d and Linear modules (`nn.MultiheadAttention`'s joint projection) stay.

    Args:
        model: any network; stays as it is.
        rule: what becomes 0.
        example: an input, by which the output layers are found; needed unless the rule takes them too.

    Raises:
        ConfigError: no example where one is needed, an unknown layer, or no layer left to prune.
        NumericalError: a weight is NaN or infinite.
    """
    return pruned(model, rule, example)[0]


def pruned(model: nn.Module, rule: Rule, example: Tensor | None) -> tuple[nn.Module, Cut]:
    """`prune`, and what it did."""
    if example is None and not rule.output_layer:
        mend = "give an example input, or prune the output layer too (output_layer)"
        raise ConfigError("the output layer is not known", why="it stays dense and is found by a run", mend=mend)
    with torch.no_grad():
        result = copy.deepcopy(model)
        layers = module_layers(result, example)
        done = cut(layers, rule)
        for layer in layers:
            if layer.name in done.masks:
                layer.weight.masked_fill_(done.masks[layer.name], 0.0)
    return result, done


def prune_onnx(proto: onnx.ModelProto, rule: Rule) -> onnx.ModelProto:
    """A copy of an ONNX graph of any vision model, with real zeros in the weights of its float layers.

    Layers are called by their nodes' names.

    Raises:
        ConfigError: an unknown layer, or no layer left to prune (a quantised graph has none).
        NumericalError: a weight is NaN or infinite.
    """
    return pruned_onnx(proto, rule)[0]


def pruned_onnx(proto: onnx.ModelProto, rule: Rule) -> tuple[onnx.ModelProto, Cut]:
    """`prune_onnx`, and what it did."""
    from onnx import ModelProto, numpy_helper

    result = ModelProto()
    result.CopyFrom(proto)
    held = graph_layers(result)
    done = cut([layer for layer, _ in held], rule)
    for layer, tensor in held:
        if layer.name in done.masks:
            values = numpy_helper.to_array(tensor).copy()
            values[done.masks[layer.name].numpy()] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result, done


def zeros(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(zeros, weights) of each convolution and linear layer."""
    held = {name: module.weight for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    return {name: (int((weight == 0).sum()), weight.numel()) for name, weight in held.items()}


def _chosen(layers: Sequence[Weighted], rule: Rule) -> list[Weighted]:
    names = [layer.name for layer in layers]
    for path in [*rule.exclude, *(rule.amounts or {})]:
        known = names if path in (rule.amounts or {}) else ancestors(names)
        if path not in known:
            raise ConfigError("no such layer", where=path, mend=closest(path, known))
    chosen = [
        layer
        for layer in layers
        if layer.kind in rule.layers
        and (rule.output_layer or not layer.is_output)
        and not any(inside(layer.name, path) for path in rule.exclude)
        and (rule.amounts is None or layer.name in rule.amounts)
    ]
    if not chosen:
        why = f"the network has {len(layers)} layers with float weights, and none of them is chosen"
        raise ConfigError("nothing to prune", why=why, mend="check `layers`, `exclude` and the output layer")
    return chosen


def _smallest(values: Tensor, amount: float) -> Tensor:
    """True at exactly round(amount * N) of the smallest, the first ones among equals."""
    flat = values.flatten()
    count = round(amount * flat.numel())
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = flat.kthvalue(count).values
    below = flat < limit
    equals = (flat == limit).nonzero().flatten()
    below[equals[: count - int(below.sum())]] = True
    return below.view(values.shape)


def _patterned(chosen: Sequence[Weighted], sizes: Mapping[str, Tensor], n: int, m: int) -> Cut:
    masks, dense = {}, {}
    for layer in chosen:
        if layer.inputs % m:
            dense[layer.name] = layer.inputs
            continue
        rows = sizes[layer.name].movedim(layer.axis, -1)
        quads = rows.reshape(*rows.shape[:-1], -1, m)
        largest = quads.argsort(dim=-1, descending=True, stable=True)[..., :n]
        gone = torch.ones_like(quads, dtype=torch.bool).scatter_(-1, largest, False)
        masks[layer.name] = gone.reshape(rows.shape).movedim(-1, layer.axis)
    if not masks:
        why = f"no layer has a multiple of {m} input channels"
        raise ConfigError("the pattern fits nothing", where=f"{n}:{m}", why=why, mend="prune unstructured")
    return Cut(masks, dense)
