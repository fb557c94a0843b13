"""Which precisions a study tries where none is named: those that may bring time, for this network on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.runtimes.base import runtime
from leadline.runtimes.options import WIDENS_FP16, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

SMALL_ALONE = (Precision.INT8_WEIGHTS, Precision.PALETTISED)
LINEAR = 0.25  # share of its weights in Linear layers from which on a network gains by dynamic INT8
BF16_SETS = ("avx512_bf16", "amx_bf16", "bf16")


def untried(
    engine: str, precision: Precision, device: str = "", *, linear: float = 1.0, sets: Sequence[str] | None = None
) -> str:
    """Why a precision is tried only where it is named; empty where it is tried anyway.

    Args:
        engine: that would compute in it.
        precision: one that the engine has.
        device: of the engine; empty for the CPU.
        linear: share of the network's weights that lie in Linear layers.
        sets: instruction sets of the CPU; None where they are not known.
    """
    on_cpu = device.lower() in ("", "cpu")
    if precision in SMALL_ALONE:
        return "size and no time"
    if precision is Precision.INT8_DYNAMIC and linear < LINEAR:
        return "engines quantise Linear layers alone so, and this network is of convolutions"
    if precision is Precision.FP16 and on_cpu and engine in WIDENS_FP16:
        return "a CPU computes it in FP32: half the size and no time"
    if precision is Precision.BF16 and on_cpu and sets is not None and not any(one in BF16_SETS for one in sets):
        return "this CPU has no BF16 arithmetic"
    return ""


def usual_precisions(
    engine: str, device: str = "", *, linear: float = 1.0, sets: Sequence[str] | None = None
) -> list[Precision]:
    """What an engine is tried with where no precision is named; arguments are those of `untried`."""
    return [one for one in runtime(engine).precisions if not untried(engine, one, device, linear=linear, sets=sets)]


def left_out(engines: Iterable[tuple[str, str]], *, linear: float, sets: Sequence[str] | None) -> str:
    """A notice of what was not tried and why; empty where everything was.

    Args:
        engines: (name, device) of those that are tried.
        linear: of the network, as for `untried`.
        sets: of the machine, likewise.
    """
    found: dict[str, list[str]] = {}
    for engine, device in engines:
        for precision in runtime(engine).precisions:
            if reason := untried(engine, precision, device, linear=linear, sets=sets):
                named = found.setdefault(reason, [])
                named += [precision.value] if precision.value not in named else []
    said = [f"{', '.join(names)} ({reason})" for reason, names in found.items()]
    return f"Precisions that were not tried everywhere: {'; '.join(said)}. Name them to try them." if said else ""


def linear_share(model: nn.Module) -> float:
    """Share of a network's weights that lie in Linear layers, 0 to 1."""
    from torch import nn

    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    inside = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return inside / weights if weights else 0.0
