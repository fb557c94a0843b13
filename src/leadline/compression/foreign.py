"""Networks that are not ours: channels of any `torch.nn.Module`, arithmetic of any ONNX vision model.

torch-pruning finds the groups of channels, from one forward pass. The result is an ordinary module that exports and
trains, but no configuration rebuilds it, so it is no checkpoint. (Zeros of either: `leadline.compression.zeros`.)
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from leadline.compression.weighted import output_layers
from leadline.errors import ConfigError, UnavailableError, closest, one_line
from leadline.runtimes.base import CALIBRATIONS, ExportOptions, Precision, check_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

ForeignImportance = Literal["l1", "l2", "random"]
NARROW = ("fp16", "int8-weights", "int8-dynamic", "int8-static")
OPTIONS = ("method", "percentile", "per_channel", "symmetric", "equalise", "bias_correction", "smooth", "exclude")


def prune_module(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    importance: ForeignImportance = "l2",
    *,
    multiple: int = 1,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """A copy of a network without the weakest channels of every group of layers that must lose the same ones.

    Args:
        model: any network that runs on `example`; may return tensors in tuples, lists and dicts.
        example: an input.
        ratio: share of each group's channels to remove, above 0 and below 1; at least one stays.
        importance: `l1` or `l2` norm of the weights that produce a channel, over all producers; `random`, seeded.
        multiple: remaining widths are multiples of it; a group too narrow for that stays whole.
        exclude: paths of layers, or of modules that hold them, whose output channels stay; those of the layers that
            make the network's outputs stay always.
        seed: of `random`.

    Returns:
        The narrower network, in the source's mode.

    Raises:
        UnavailableError: torch-pruning is not installed.
        ConfigError: a wrong ratio, an unknown layer, nothing that can be removed, or a network whose layers cannot be
            followed (one that runs layers which its outputs do not depend on).
    """
    try:
        import torch_pruning
    except ImportError as error:
        mend = 'install it: pip install "leadline[prune]"'
        raise UnavailableError("cannot prune this module", why="torch-pruning is not installed", mend=mend) from error
    if not 0 < ratio < 1:
        raise ConfigError("bad ratio", where=ratio, mend="give a share above 0 and below 1")
    pruned = copy.deepcopy(model)
    names = dict(pruned.named_modules())
    for path in exclude:
        if path not in names:
            raise ConfigError("no such layer", where=path, mend=closest(path, names))
    whole = {id(names[path]) for path in output_layers(model, example)}
    whole |= {id(module) for path in exclude for module in names[path].modules()}
    training, learned = pruned.training, {name: value.requires_grad for name, value in pruned.named_parameters()}
    pruned.requires_grad_()  # torch-pruning follows gradients
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(pruned.eval(), example_inputs=example)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.ConvTranspose2d, nn.Linear]):
        producers = [item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)]
        if any(id(module) in whole for module in producers):
            continue
        gone = _weakest(group, graph, ratio, multiple, importance, generator)
        if gone:
            chosen.append((group[0].dep.target.module, group[0].dep.handler, gone))
    if not chosen:
        raise ConfigError("nothing to remove", where=type(model).__name__, why=f"no group is wide enough at {ratio:g}")
    for module, handler, gone in chosen:  # all were ranked before any of them changes another's weights
        graph.get_pruning_group(module, handler, gone).prune()
    for name, value in pruned.named_parameters():
        value.requires_grad_(learned[name])
    _check_runs(pruned, example)
    return pruned.train(training)


def quantize_onnx(
    proto: onnx.ModelProto, precision: str = "int8-static", inputs: Sequence[NDArray[np.float32]] = (), **options: Any
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A copy of an ONNX network in narrower arithmetic, as ONNX Runtime runs it.

    Args:
        proto: a float network of one picture, N x 3 x H x W, with any outputs.
        precision: fp16, int8-weights, int8-dynamic or int8-static.
        inputs: what the network usually sees, as it takes it; static INT8 finds its ranges on them.
        options: `OPTIONS`, with the meaning that they have in `leadline.runtimes.options.ExportOptions`.

    Returns:
        The network, and what was done: the number of quantised layers, how ranges were found, ...

    Raises:
        ConfigError: an unknown precision or option, options that contradict each other, nothing that can be brought to
            the precision, or no inputs for static INT8.
        NumericalError: NaN or infinity during calibration, or a weight that FP16 cannot hold.
    """
    from leadline.runtimes.onnx_runtime import narrowed

    if precision not in NARROW:
        raise ConfigError("unknown precision", where=precision, mend=f"known: {', '.join(NARROW)}")
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ConfigError("unknown option", where=unknown[0], mend=closest(unknown[0], OPTIONS))
    if "percentile" in options:  # alone it is the method, as of the step
        options = {"method": "percentile", **options}
    if (method := options.get("method", CALIBRATIONS[0])) not in CALIBRATIONS:
        raise ConfigError("unknown method", where=method, mend=closest(method, CALIBRATIONS))
    asked = ExportOptions(precision=Precision(precision), calibration=_checked(proto, inputs), **options)
    check_options(asked)
    copied = type(proto)()
    copied.CopyFrom(proto)
    return narrowed(copied, asked, name=proto.graph.name or "the network")


def _checked(proto: onnx.ModelProto, inputs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The inputs, if the network takes each of them and they show it anything."""
    import numpy as np

    held = {tensor.name for tensor in proto.graph.initializer}
    given = next(each for each in proto.graph.input if each.name not in held)
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]  # 0 where it is open
    for index, each in enumerate(inputs):
        found = each.shape if isinstance(each, np.ndarray) and each.dtype == np.float32 else ()
        fits = len(found) == len(shape) and found[:1] == (1,)
        if not fits or any(wanted not in (0, side) for side, wanted in zip(found, shape, strict=True)):
            sides = " x ".join(str(side or "any") for side in shape)
            why = f"the network takes float32 arrays of {sides}, one picture each"
            raise ConfigError("not an input of the network", where=f"inputs[{index}]", why=why)
    if inputs and all(float(np.ptp(each)) == 0 for each in inputs):
        raise ConfigError("inputs of one value", where="inputs", why="they show no activation that pictures have")
    return list(inputs)


def _check_runs(pruned: nn.Module, example: Tensor) -> None:
    try:
        with torch.no_grad():
            pruned(example)
    except RuntimeError as error:
        mend = "name the layers that do not fit under `exclude`"
        why = one_line(error)
        raise ConfigError("the pruned network does not run", where=type(pruned).__name__, why=why, mend=mend) from error


def _weakest(
    group: Any, graph: Any, ratio: float, multiple: int, importance: str, generator: torch.Generator
) -> list[int]:
    """Indices, in the group's first layer, of the channels to remove.

    Grouped convolutions and group norms lose the same channels from each of their groups.
    """
    width = len(group[0].idxs)
    parts = math.lcm(*(_divisions(item.dep.target.module) for item in group))
    if width % parts:
        return []
    values = _norms(group, graph, width, importance, generator).reshape(parts, -1).sum(dim=0)
    each = width // parts
    allowed = [kept for kept in range(1, each + 1) if kept * parts % multiple == 0]
    if not allowed:
        return []
    kept = min(allowed, key=lambda count: (abs(count - each * (1 - ratio)), -count))
    weakest = values.argsort(stable=True)[: each - kept].sort().values
    return [part * each + int(index) for part in range(parts) for index in weakest]


def _norms(group: Any, graph: Any, width: int, importance: str, generator: torch.Generator) -> Tensor:
    """Score of each channel of the group's first layer, over all full layers that produce the same ones."""
    values = torch.zeros(width, dtype=torch.float64)
    if importance == "random":
        return torch.rand(width, generator=generator, dtype=torch.float64)
    for item in group:
        module = item.dep.target.module
        if not graph.is_out_channel_pruning_fn(item.dep.handler) or not _is_full(module):
            continue
        rows = module.weight.detach().double().cpu()
        rows = (rows.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else rows).flatten(1)
        power = rows.abs().sum(dim=1) if importance == "l1" else rows.square().sum(dim=1)
        for own, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is not None:
                values[root] += power[own]
    return values


def _is_full(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return module.groups == 1 or (module.groups < module.out_channels and isinstance(module, nn.Conv2d))
    return isinstance(module, nn.Linear)


def _divisions(module: nn.Module) -> int:
    """Into how many groups of its own a layer divides its channels."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return 1 if module.groups == module.out_channels else module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1
