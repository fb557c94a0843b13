"""A CoreML program computed operator by operator in PyTorch: what it answers where CoreML itself cannot run.

CoreML exists on Apple's systems only. Elsewhere this is how static INT8 gets its ranges, and how an exported file is
compared with the network that it was made from. Each operator follows the MIL specification of coremltools 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from leadline.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Inputs = dict[str, Any]


def read_program(path: Path) -> Any:
    """The program of an .mlpackage with its weights, as coremltools holds it in memory (`mil.Program`)."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return load(spec, spec.specificationVersion, model.weights_dir or "")


def operators(program: Any) -> list[Any]:
    """The operators of a program in order, without constants."""
    return [each for each in program.functions["main"].operations if each.op_type != "const"]


def compute(
    program: Any, values: NDArray[np.float32], wanted: Collection[str] | None = None
) -> dict[str, NDArray[np.float32]]:
    """Run a program with one picture as its input.

    Args:
        program: a `mil.Program` without control flow.
        values: N x 3 x H x W float32.
        wanted: names of the variables to return; None for the program's outputs.

    Returns:
        Arrays by variable name; FP16 variables are rounded to FP16.

    Raises:
        UnavailableError: an operator that is not written here.
    """
    function = program.functions["main"]
    names = {each.name for each in function.outputs} if wanted is None else set(wanted)
    known: dict[str, Any] = {name: torch.from_numpy(values) for name in function.inputs}
    found = {name: values for name in names if name in known}
    for operator in operators(program):
        if operator.op_type not in OPERATORS:
            mend = "run it on a Mac"
            raise UnavailableError("no rule to compute the CoreML operator", where=operator.op_type, mend=mend)
        inputs = {name: _value(variable, known) for name, variable in operator.inputs.items() if variable is not None}
        with torch.inference_mode():
            result = OPERATORS[operator.op_type](inputs)
        for variable, value in zip(operator.outputs, result if isinstance(result, list) else [result], strict=True):
            known[variable.name] = _stored(variable, value)
            if variable.name in names:
                found[variable.name] = known[variable.name].numpy()
    return found


def _value(variable: Any, known: Mapping[str, Any]) -> Any:
    """A tensor that was computed, or a constant: arrays become float32 or integer tensors, the rest stays as it is."""
    if isinstance(variable, list | tuple):
        return [_value(each, known) for each in variable]
    if variable.name in known:
        return known[variable.name]
    value = variable.val
    if hasattr(value, "shape") and value.shape != ():
        tensor = torch.from_numpy(value)
        return tensor.float() if tensor.is_floating_point() else tensor
    return value.item() if hasattr(value, "item") else value


def _stored(variable: Any, value: Tensor) -> Tensor:
    from coremltools.converters.mil.mil import types

    return value.half().float() if variable.dtype == types.fp16 else value


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _padded(inputs: Inputs, kernel: list[int], *, fill: float = 0.0) -> Tensor:
    """The input with the borders that `pad_type` asks for."""
    x, kind = inputs["x"], str(inputs.get("pad_type", "valid"))
    strides, dilations = _ints(inputs.get("strides", (1, 1))), _ints(inputs.get("dilations", (1, 1)))
    if kind == "valid":
        return x  # type: ignore[no-any-return]
    if kind == "custom":
        top, bottom, left, right = _ints(inputs["pad"])
    else:  # same: as many outputs as inputs over the stride, rounded up
        needed = [
            max(0, (-(-side // s) - 1) * s + (k - 1) * d + 1 - side)
            for side, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        before = [n // 2 if kind == "same" else n - n // 2 for n in needed]
        (top, left), (bottom, right) = before, [n - b for n, b in zip(needed, before, strict=True)]
    return F.pad(x, (left, right, top, bottom), value=fill)


def _conv(inputs: Inputs) -> Tensor:
    weight = inputs["weight"]
    return F.conv2d(
        _padded(inputs, list(weight.shape[2:])),
        weight,
        inputs.get("bias"),
        _ints(inputs.get("strides", (1, 1))),
        0,
        _ints(inputs.get("dilations", (1, 1))),
        int(inputs.get("groups", 1)),
    )


def _conv_transpose(inputs: Inputs) -> Tensor:
    strides, groups = _ints(inputs.get("strides", (1, 1))), int(inputs.get("groups", 1))
    whole = F.conv_transpose2d(inputs["x"], inputs["weight"], inputs.get("bias"), strides, groups=groups)
    if str(inputs.get("pad_type", "valid")) == "valid":
        return whole
    top, bottom, left, right = _ints(inputs["pad"])
    return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]


def _pool(inputs: Inputs, *, largest: bool) -> Tensor:
    kernel, strides = _ints(inputs["kernel_sizes"]), _ints(inputs.get("strides", (1, 1)))
    ceil = bool(inputs.get("ceil_mode", False))
    if largest:
        return F.max_pool2d(_padded(inputs, kernel, fill=float("-inf")), kernel, strides, ceil_mode=ceil)
    total = F.avg_pool2d(_padded(inputs, kernel), kernel, strides, ceil_mode=ceil)
    if not inputs.get("exclude_padding_from_average", False):
        return total
    ones = inputs | {"x": torch.ones_like(inputs["x"])}
    return total / F.avg_pool2d(_padded(ones, kernel), kernel, strides, ceil_mode=ceil)


def _upsample(inputs: Inputs, mode: str) -> Tensor:
    x = inputs["x"]
    factors = float(inputs["scale_factor_height"]), float(inputs["scale_factor_width"])
    size = [int(side * factor + 1e-4) for side, factor in zip(x.shape[2:], factors, strict=True)]
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=bool(inputs["align_corners"]))


def _slice(inputs: Inputs) -> Tensor:
    x, rank = inputs["x"], inputs["x"].ndim
    begin, end = _ints(inputs["begin"]), _ints(inputs["end"])
    masks = {key: inputs.get(key) for key in ("begin_mask", "end_mask", "squeeze_mask")}
    masked = {key: [False] * rank if value is None else list(value) for key, value in masks.items()}
    steps = _ints(inputs["stride"]) if inputs.get("stride") is not None else [1] * rank
    squeezed = []
    for axis in range(rank):
        side = x.shape[axis]
        first = 0 if masked["begin_mask"][axis] else begin[axis] + side * (begin[axis] < 0)
        last = side if masked["end_mask"][axis] else end[axis] + side * (end[axis] < 0)
        if masked["squeeze_mask"][axis]:
            last = first + 1
            squeezed.append(axis)
        x = x.index_select(axis, torch.arange(first, min(last, side), steps[axis]))
    for axis in reversed(squeezed):
        x = x.squeeze(axis)
    return x  # type: ignore[no-any-return]


def _pad(inputs: Inputs) -> Tensor:
    """`pad` holds (before, after) of the last axes in order; PyTorch wants the last axis first."""
    pairs = _ints(inputs["pad"])
    turned = [side for axis in range(len(pairs) - 2, -1, -2) for side in pairs[axis : axis + 2]]
    mode, x = str(inputs.get("mode", "constant")), inputs["x"]
    if mode == "constant":
        return F.pad(x, turned, value=float(inputs.get("constant_val", 0.0)))
    while len(turned) > 4:  # reflecting and replicating take the picture's two axes only
        turned = turned[:-2]
    return F.pad(x, turned, mode=mode)


def _split(inputs: Inputs) -> list[Tensor]:
    x, axis, sizes = inputs["x"], int(inputs["axis"]), inputs.get("split_sizes")
    parts = x.shape[axis] // int(inputs["num_splits"]) if sizes is None else _ints(sizes)
    return list(torch.split(x, parts, axis))


def _quantize(inputs: Inputs) -> Tensor:
    low, high = (-128, 127) if str(inputs["output_dtype"]) == "int8" else (0, 255)
    zero = inputs.get("zero_point")
    steps = torch.round(inputs["input"] / _per_axis(inputs, "scale")) + (0 if zero is None else float(zero))
    return steps.clamp(low, high)


def _dequantize(inputs: Inputs) -> Tensor:
    zero = inputs.get("zero_point")
    centred = inputs["input"] - (0 if zero is None else _per_axis(inputs, "zero_point"))
    return centred * _per_axis(inputs, "scale")  # type: ignore[no-any-return]


def _per_axis(inputs: Inputs, name: str) -> Any:
    value = inputs[name]
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return float(value)
    shape = [1] * inputs["input"].ndim
    shape[int(inputs["axis"])] = -1
    return value.float().reshape(shape)


def _affine_weight(inputs: Inputs) -> Tensor:
    weight, axis = inputs["quantized_data"].float(), int(inputs["axis"])
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale, zero = (torch.as_tensor(inputs[key]).float() for key in ("scale", "zero_point"))
    if scale.ndim:
        scale = scale.reshape(shape)
    if zero.ndim:
        zero = zero.reshape(shape)
    return (weight - zero) * scale  # type: ignore[no-any-return]


def _palette_weight(inputs: Inputs) -> Tensor:
    """Indices are packed bit by bit, the lowest bit of a byte first."""
    from coremltools.optimize import _utils as packing

    lut, shape = inputs["lut"], _ints(inputs["shape"])
    bits = (len(lut) - 1).bit_length()
    indices = packing.restore_elements_from_packed_bits(inputs["indices"].numpy(), bits, _product(shape))
    return lut[torch.from_numpy(indices.astype("int64"))].reshape(shape)  # type: ignore[no-any-return]


def _product(values: list[int]) -> int:
    total = 1
    for value in values:
        total *= value
    return total


def _gelu(inputs: Inputs) -> Tensor:
    return F.gelu(inputs["x"], approximate="none" if str(inputs.get("mode", "EXACT")) == "EXACT" else "tanh")


def _matmul(inputs: Inputs) -> Tensor:
    x, y = (inputs[key].mT if inputs.get(f"transpose_{key}", False) else inputs[key] for key in "xy")
    return torch.matmul(x, y)


def _layer_norm(inputs: Inputs) -> Tensor:
    axes = _ints(inputs["axes"])
    shape = [inputs["x"].shape[axis] for axis in axes]
    return F.layer_norm(inputs["x"], shape, inputs.get("gamma"), inputs.get("beta"), float(inputs["epsilon"]))


def _squeeze(inputs: Inputs) -> Tensor:
    x = inputs["x"]
    axes = [axis % x.ndim for axis in _ints(inputs["axes"])] if "axes" in inputs else range(x.ndim)
    return x.reshape([side for axis, side in enumerate(x.shape) if axis not in axes or side != 1])  # type: ignore[no-any-return]


def _expand(inputs: Inputs) -> Tensor:
    x = inputs["x"]
    for axis in sorted(_ints(inputs["axes"])):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _reduce(of: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: of(inputs["x"], _ints(inputs["axes"]), bool(inputs.get("keep_dims", False)))


def _x(of: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: of(inputs["x"])


def _xy(of: Callable[[Any, Any], Any]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: of(torch.as_tensor(inputs["x"]), inputs["y"])


def _gather(inputs: Inputs) -> Tensor:
    x, indices, axis = inputs["x"], torch.as_tensor(inputs["indices"]).long(), int(inputs.get("axis", 0))
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])  # type: ignore[no-any-return]


OPERATORS: dict[str, Callable[[Inputs], Any]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda i: F.linear(i["x"], i["weight"], i.get("bias")),
    "matmul": _matmul,
    "max_pool": lambda i: _pool(i, largest=True),
    "avg_pool": lambda i: _pool(i, largest=False),
    "upsample_nearest_neighbor": lambda i: _upsample(i, "nearest"),
    "upsample_bilinear": lambda i: _upsample(i, "bilinear"),
    "relu": _x(torch.relu),
    "relu6": _x(F.relu6),
    "sigmoid": _x(torch.sigmoid),
    "tanh": _x(torch.tanh),
    "exp": _x(torch.exp),
    "log": lambda i: torch.log(i["x"] + float(i.get("epsilon", 0.0))),
    "sqrt": _x(torch.sqrt),
    "softplus": _x(F.softplus),
    "silu": _x(F.silu),
    "identity": _x(torch.clone),
    "cast": lambda i: i["x"],
    "elu": lambda i: F.elu(i["x"], float(i.get("alpha", 1.0))),
    "leaky_relu": lambda i: F.leaky_relu(i["x"], float(i.get("alpha", 0.01))),
    "clip": lambda i: i["x"].clamp(float(i["alpha"]), float(i["beta"])),
    "gelu": _gelu,
    "softmax": lambda i: torch.softmax(i["x"], int(i.get("axis", -1))),
    "layer_norm": _layer_norm,
    "add": _xy(torch.add),
    "sub": _xy(torch.sub),
    "mul": _xy(torch.mul),
    "real_div": _xy(torch.div),
    "pow": _xy(torch.pow),
    "maximum": lambda i: torch.maximum(*(torch.as_tensor(i[key]).float() for key in "xy")),
    "minimum": lambda i: torch.minimum(*(torch.as_tensor(i[key]).float() for key in "xy")),
    "reshape": lambda i: i["x"].reshape(_ints(i["shape"])),
    "transpose": lambda i: i["x"].permute(_ints(i["perm"])).contiguous(),
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "concat": lambda i: torch.cat(i["values"], int(i["axis"])),
    "pad": _pad,
    "slice_by_index": _slice,
    "split": _split,
    "tile": lambda i: i["x"].repeat(_ints(i["reps"])),
    "gather": _gather,
    "reduce_mean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": _affine_weight,
    "constexpr_lut_to_dense": _palette_weight,
}
