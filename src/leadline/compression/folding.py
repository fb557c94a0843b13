"""Batch normalisation folded into the convolution before it, the network's graph, names and configuration unchanged.

The convolution takes the scale into its weight; the batch norm stays as an addition of a bias: weight 1, mean 0,
variance 1 - eps. So the result is a checkpoint of the same architecture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from leadline.compression.tracing import NORM, WEIGHTED, Traced, aten, parameter, weight_of
from leadline.errors import UnavailableError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import Graph, Node


@dataclass(frozen=True)
class Pair:
    """A convolution and the batch norm that alone reads it, by the names of their tensors.

    Args:
        weight: of the convolution.
        bias: of the convolution, if it has one.
        norm: the batch norm's module path.
        eps: of the batch norm.
        axis: of the weight's output channels.
        groups: of the convolution.
    """

    weight: str
    bias: str | None
    norm: str
    eps: float
    axis: int
    groups: int


def fold(model: nn.Module, traced: Traced) -> nn.Module:
    """A copy of the network that computes the same in eval mode, with every batch norm after a convolution folded.

    Batch norms that follow anything else stay as they are.

    Args:
        model: N x 3 x H x W to N x 1 x H x W.
        traced: its operations at any one size.

    Raises:
        UnavailableError: a batch norm without scale and bias follows a convolution.
    """
    folded = copy.deepcopy(model).eval()
    state = folded.state_dict()
    with torch.no_grad():
        for pair in pairs(traced.graph.graph):
            _fold(pair, state)
    return folded


def pairs(graph: Graph) -> list[Pair]:
    """Each batch norm that alone reads a convolution, in the order of the network.

    Raises:
        UnavailableError: one of them has no scale and bias.
    """
    found = []
    for node in graph.nodes:
        source = folds(node)
        if source is None:
            continue
        bias = parameter(node.args[2])
        if bias is None or parameter(node.args[1]) is None:
            mend = "make it affine"
            raise UnavailableError("cannot fold a batch norm without scale and bias", where=source.name, mend=mend)
        weight = weight_of(source)
        assert weight is not None
        groups = _groups(source)
        own = parameter(source.args[2]) if len(source.args) > 2 else None
        found.append(
            Pair(weight, own, bias.removesuffix(".bias"), float(node.args[7]), WEIGHTED[source.target], groups)
        )
    return found


def folds(node: Node) -> Node | None:
    """The convolution that a batch norm can be folded into; None for any other node."""
    if node.target is not NORM:
        return None
    source = node.args[0]
    convolutions: tuple[Any, ...] = (aten.conv2d.default, aten.conv_transpose2d.input)
    foldable = source.target in convolutions  # type: ignore[union-attr]
    return source if foldable and weight_of(source) and len(source.users) == 1 else None  # type: ignore


def _groups(node: Node) -> int:
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]  # of both operations


def _fold(pair: Pair, state: dict[str, Tensor]) -> None:
    weight, norm = state[pair.weight], pair.norm
    gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + pair.eps)
    shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    if pair.bias is not None:
        shift += state[pair.bias] * gain
        state[pair.bias].zero_()
    if pair.axis == 0:
        weight *= gain.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # inputs x outputs of one group
        by_group = weight.view(pair.groups, -1, *weight.shape[1:])
        by_group *= gain.reshape(pair.groups, 1, -1, *[1] * (weight.ndim - 2))
    state[f"{norm}.bias"].copy_(shift)
    settle_norm(state, norm, pair.eps)


def settle_norm(state: dict[str, Tensor], norm: str, eps: float) -> None:
    """Make a batch norm add its bias and nothing else, exactly: variance + eps is 1 in float32."""
    state[f"{norm}.weight"].fill_(1.0)
    state[f"{norm}.running_mean"].zero_()
    variance = torch.tensor(1.0 - eps)
    for _ in range(4):
        if variance + eps == 1:
            break
        variance = torch.nextafter(variance, 1 - (variance + eps - 1).sign())
    state[f"{norm}.running_var"].copy_(variance)
