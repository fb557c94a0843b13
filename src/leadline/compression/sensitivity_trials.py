"""What a sensitivity analysis changes: one part of a network at a time, and back again."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from leadline.compression.weighted import Weighted, ancestors, inside, module_layers
from leadline.compression.zeros import Rule, cut
from leadline.errors import ConfigError, closest
from leadline.runtimes.calibration import calibration_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from leadline.compression.base import Place
    from leadline.compression.sensitivity import Change, SensitivityKind
    from leadline.reference import LoadedModel

ACTIVATION_BITS = 8
CALIBRATION = 16  # pictures; the ranges of activations hardly grow after that
Range = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """What is changed at once: a layer, a block of layers, or a group of channels."""

    name: str
    scope: Literal["layer", "block"]
    layers: tuple[str, ...]
    weights: int


@dataclass(frozen=True)
class Trial:
    """One change of one part."""

    part: Part
    change: Change
    value: float

    @property
    def key(self) -> tuple[str, str, str, float]:
        """As of its row."""
        return self.part.scope, self.part.name, self.change, self.value


def parts_of(source: LoadedModel, kind: SensitivityKind, only: Sequence[str], blocks: bool) -> list[Part]:
    """Layers and blocks, or groups of channels, in the order of the network.

    Raises:
        ConfigError: an unknown layer in `only`, or nothing to analyse.
    """
    if kind == "channels":
        from leadline.compression.graph import groups

        parts = [Part(g.name, "layer", g.producers, g.width * g.kernels) for g in groups(source)]
    else:
        layers = module_layers(source.model, None)
        parts = [Part(layer.name, "layer", (layer.name,), layer.weight.numel()) for layer in layers]
        if blocks:
            parts += _blocks(layers)
    known = ancestors([part.name for part in parts])
    for path in only:
        if path not in known:
            raise ConfigError("no such layer", where=path, mend=closest(path, known))
    chosen = [part for part in parts if not only or any(inside(part.name, path) for path in only)]
    if not chosen:
        raise ConfigError("nothing to analyse", where=source.name, why="it has no convolution and no linear layer")
    return chosen


def _blocks(layers: Sequence[Weighted]) -> list[Part]:
    """Each layer belongs to the smallest module around it that holds two layers; two of its own make a block."""
    names = [layer.name for layer in layers]
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    found: dict[str, list[str]] = {}
    for name in names:
        path = name.rpartition(".")[0]
        while path and sum(inside(each, path) for each in names) < 2:
            path = path.rpartition(".")[0]
        found.setdefault(path, []).append(name)
    return [
        Part(path, "block", tuple(members), sum(sizes[each] for each in members))
        for path, members in found.items()
        if path and 1 < len(members) < len(names)
    ]


class Bench:
    """The network that is changed and put back, trial by trial."""

    def __init__(self, source: LoadedModel, place: Place, kind: SensitivityKind, data: str, split: str | None) -> None:
        self._source = source
        self._model = copy.deepcopy(source.model).eval()
        self._layers = {layer.name: layer for layer in module_layers(self._model, None)}
        self._ranges: dict[str, Range] = {}
        self._undo = ExitStack()
        if kind == "bits":
            said = place.calibration
            chosen, part = (said.data, said.split) if said.data is not None else (data, split)
            count = min(said.count, CALIBRATION)
            inputs = calibration_inputs(chosen, source.contract, place.target.size, count, split=part)
            self._ranges = input_ranges(self._model, [torch.from_numpy(each) for each in inputs])

    def changed(self, trial: Trial) -> nn.Module:
        """The network with one change, until `restore`."""
        if trial.change == "channels":
            return _narrowed(self._source, trial)
        for name in trial.part.layers:
            if trial.change == "activations":
                module = self._model.get_submodule(name)
                low, high = self._ranges.get(name, (0.0, 0.0))
                handle = module.register_forward_pre_hook(_rounding(low, high))
                self._undo.callback(handle.remove)
            else:
                self._undo.enter_context(_replaced(self._layers[name], trial))
        return self._model

    def restore(self) -> None:
        """Undo the change."""
        self._undo.close()


@contextmanager
def _replaced(layer: Weighted, trial: Trial) -> Iterator[None]:
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        if trial.change == "zeros":
            rule = Rule(trial.value, scope="layer", output_layer=True)
            layer.weight.masked_fill_(cut([layer], rule).masks[layer.name], 0.0)
        else:
            outputs = 1 - layer.axis  # weights have inputs and outputs on their first two axes
            layer.weight.copy_(rounded_weights(kept, int(trial.value), outputs))
    try:
        yield
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


def rounded_weights(weight: Tensor, bits: int, axis: int) -> Tensor:
    """Weights on 2^bits - 1 levels symmetric about 0, one scale per channel of `axis`: largest |w| / (2^(bits-1) - 1).

    Args:
        weight: float32.
        bits: 2 or more.
        axis: of the output channels.
    """
    most = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(dim=[k for k in range(weight.ndim) if k != axis])
    scale = torch.where(largest > 0, largest / most, 1.0)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -most, most)


def rounded_input(values: Tensor, low: float, high: float) -> Tensor:
    """Activations on 256 levels from `low` to `high`, widened so that 0 is one of them; beyond, they are clipped."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**ACTIVATION_BITS - 1
    scale = (high - low) / levels
    if scale < torch.finfo(torch.float32).tiny:  # a constant activation, which is 0
        return values.clamp(low, high)
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, levels)


def _rounding(low: float, high: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded_input(inputs[0], low, high), *inputs[1:])

    return hook


def input_ranges(model: nn.Module, pictures: Sequence[Tensor]) -> dict[str, Range]:
    """Smallest and largest input of each convolution and linear layer over pictures, by module path."""
    found: dict[str, Range] = {}

    def looking(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = (float(end) for end in torch.aminmax(inputs[0].detach()))
            before = found.get(name, (low, high))
            found[name] = min(low, before[0]), max(high, before[1])

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for layer in module_layers(model, None):
            handle = model.get_submodule(layer.name).register_forward_pre_hook(looking(layer.name))
            stack.callback(handle.remove)
        for picture in pictures:
            model(picture)
    return found


def _narrowed(source: LoadedModel, trial: Trial) -> nn.Module:
    """The network without the weakest channels of one group, at least one bundle of them left."""
    from leadline.compression.graph import groups, keep
    from leadline.compression.importance import scores, strongest

    group = next(each for each in groups(source) if each.name == trial.part.name)
    bundles = max(1, round((1 - trial.value) * group.width / group.multiple))
    chosen = strongest(group, scores(source, group), bundles * group.multiple)
    return keep(source, {group.name: chosen}).model
