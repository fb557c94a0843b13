"""`leadline data`: check data sets, render scenes, list the formats."""

from __future__ import annotations

import json as json_module
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import Json, Out, parse_size
from leadline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadline.data.check import Report
    from leadline.data.dataset import Dataset, Offset, Sample
    from leadline.training.doctor import Finding

EXAMPLES = (
    "leadline data list",
    "leadline data render --out scenes --count 4 --size 96,128",
    "leadline data check scenes",
)
SHOWN = 20  # problems in the table; --json lists them all

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Check data sets before they cost a training run; render scenes; list the formats.",
)
Reference = Annotated[str, typer.Argument(metavar="DATA", help="A folder or file, or FORMAT:PATH; see `data list`.")]
Split = Annotated[
    Optional[str],  # noqa: UP045  typer reads the annotation at run time
    typer.Option("--split", metavar="NAME", help="Part of the data set; the format's default if not given."),
]


def _ending(*examples: str) -> str:
    return "\n\n".join(["Examples:", *examples])


@app.command(
    "check",
    epilog=_ending(
        "leadline data check rendered:room --limit 4",
        "leadline data check scenes --json",
        "leadline data check rendered:street,count=1,sequence=4 --frames -1,1",
    ),
)
def check_command(
    reference: Reference,
    *,
    split: Split = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", metavar="N", min=1, help="Read the first N samples only."),
    ] = None,
    frames: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--frames", metavar="N,M", help="Will it do for self-supervision from these frames, as in -1,1?"),
    ] = None,
    json: Json = False,
) -> None:
    """Read every sample and say what is wrong: missing partners, damaged files, sizes, units, ranges, cameras.

    With --frames also what would spoil self-supervision: motion, cameras, texture, exposure. Ends with 1 where anything
    is wrong, else with 0.
    """
    from leadline.data.check import check
    from leadline.data.dataset import open_dataset

    offsets = _offsets(frames)
    dataset = open_dataset(reference, split, skip_bad=True)
    report = _with_progress(dataset, limit, check)
    findings = _examined(dataset, offsets) if offsets else []
    if json:
        found = {"findings": [asdict(finding) for finding in findings]} if offsets else {}
        typer.echo(json_module.dumps(_as_json(dataset, reference, split, report) | found, indent=2))
    else:
        _print_report(dataset, report)
        if offsets:
            _print_findings(findings, offsets)
    if report.problems or findings:
        raise typer.Exit(1)


def _offsets(text: str | None) -> list[Offset]:
    """The offsets of `-1,1,stereo`."""
    offsets: list[Offset] = []
    for part in (text or "").split(","):
        word = part.strip()
        if word == "stereo":
            offsets.append("stereo")
        elif word.lstrip("+-").isdigit() and int(word):
            offsets.append(int(word))
        elif text is not None:
            mend = "steps along the sequence or `stereo`, as in --frames -1,1"
            raise ConfigError("not a list of frames", where=f"--frames {text}", mend=mend)
    return offsets


def _examined(dataset: Dataset, offsets: list[Offset]) -> list[Finding]:
    from leadline.training.doctor import clips_of, examine

    return examine(clips_of(dataset, offsets))


def _print_findings(findings: list[Finding], offsets: list[Offset]) -> None:
    wanted = ",".join(str(offset) for offset in offsets)
    if not findings:
        typer.echo(f"self-supervision from frames {wanted}: nothing against it")
        return
    typer.echo(f"self-supervision from frames {wanted}:")
    for finding in findings:
        typer.echo(f"  {finding}")


def _with_progress(dataset: Dataset, limit: int | None, check: Any) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task(dataset.name, total=None)
        report: Report = check(dataset, limit, lambda done, total: bar.update(task, completed=done, total=total))
    return report


def _as_json(dataset: Dataset, reference: str, split: str | None, report: Report) -> dict[str, Any]:
    return {
        "reference": reference,
        "split": split,
        "format": dataset.format,
        "name": dataset.name,
        "kind": dataset.kind.value if report.with_depth else None,
        "unit": dataset.kind.unit if report.with_depth else None,
        "max_depth": dataset.max_depth,
        "licence": dataset.licence,
        "samples": report.samples,
        "read": report.read,
        "sizes": [{"height": h, "width": w, "count": n} for (h, w), n in report.sizes.most_common()],
        "with_depth": report.with_depth,
        "with_intrinsics": report.with_intrinsics,
        "depth": {
            "min": report.low,
            "median": report.median,
            "max": report.high,
            "measured": report.measured,
            "beyond_max_depth": report.beyond,
            "infinite": report.infinite,
            "negative": report.negative,
        },
        "problems": [
            {"item": problem.item, "what": problem.what, "mend": problem.mend, "fatal": problem.fatal}
            for problem in report.problems
        ],
    }


def _print_report(dataset: Dataset, report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, title=f"{escape(dataset.name)} ({dataset.format})", title_justify="left")
    unit = f" {dataset.kind.unit}" if dataset.kind.unit != "none" else ""
    sizes = [f"{h}x{w}: {n}" for (h, w), n in report.sizes.most_common(5)]
    if len(report.sizes) > 5:
        sizes.append(f"and {len(report.sizes) - 5} other sizes")
    rows = {
        "samples": f"{report.samples}, {report.read} read without a fault",
        "sizes (height x width)": ", ".join(sizes) or "-",
        "depth": f"{report.with_depth} samples, {dataset.kind}" if report.with_depth else "none",
        "cameras": f"{report.with_intrinsics} samples",
        "licence": escape(dataset.licence),
    }
    if report.low is not None:
        rows["range"] = f"{report.low:.4g} to {report.high:.4g}{unit}, median {report.median:.4g}{unit}"
        rows["measured"] = f"{report.measured:.2%} of the pixels"
        if dataset.max_depth:
            rows["beyond max_depth"] = f"{report.beyond:.2%} of the measured pixels above {dataset.max_depth:g}{unit}"
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console(soft_wrap=True)
    console.print(table)
    if not report.problems:
        console.print("no problems")
        return
    console.print(f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}:")
    for problem in report.problems[:SHOWN]:
        mend = f" ({problem.mend})" if problem.mend and problem.mend.lower() not in problem.what.lower() else ""
        console.print(f"  {escape(problem.item)}: {escape(problem.what + mend)}", highlight=False)
    if len(report.problems) > SHOWN:
        console.print(f"  and {len(report.problems) - SHOWN} more; --json lists them all")


@app.command(
    "render",
    epilog=_ending(
        "leadline data render --out scenes --count 4 --size 96,128",
        "leadline data render --out drive --scene street --count 4 --size 96,320 --fov 81 --seed 7",
    ),
)
def render_command(
    *,
    out: Out = Path("scenes"),
    scene: Annotated[str, typer.Option("--scene", metavar="NAME", help="room or street.")] = "room",
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="How many pictures.")] = 16,
    size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--size", metavar="H,W", help="Height,width of the pictures in pixels."),
    ] = None,
    fov: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--fov", metavar="DEG", help="One camera for all: its horizontal field of view, degrees."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, val or test: disjoint scenes.")
    ] = "test",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Draw scenes with exact depth and write them as a folder data set."""
    from leadline.data.folder_writer import write_folder
    from leadline.data.rendered import DEFAULT_SIZE, SCENES, Format
    from leadline.errors import closest

    if scene not in SCENES:
        raise ConfigError("no such scene", where=f"--scene {scene}", mend=closest(scene, SCENES))
    height, width = parse_size(size) or DEFAULT_SIZE[scene]
    options = f"{scene},count={count},height={height},width={width},seed={seed}"
    if fov is not None:
        if not 10 <= fov <= 150:
            raise ConfigError("impossible field of view", where=f"--fov {fov:g}", why="it must lie between 10 and 150")
        over_width = 0.5 / math.tan(math.radians(fov) / 2)
        options += f",fx={over_width},fy={over_width * width / height}"
    dataset = Format.open(options, split)
    name = f"{dataset.name}-{split}-{seed}"
    source = f"{dataset.source}: rendered:{options}, split {split}"
    write_folder(_drawn(dataset), out, name=name, max_depth=dataset.max_depth, licence=dataset.licence, source=source)
    typer.echo(f"wrote {len(dataset)} pictures with depth to {out}")


def _drawn(dataset: Dataset) -> Iterator[Sample]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bar:
        yield from bar.track(dataset, total=len(dataset), description="drawing")


@app.command("list", epilog=_ending("leadline data list"))
def list_command(*, json: Json = False) -> None:
    """List the formats that a data set may have."""
    import importlib
    import inspect

    from leadline.data.dataset import FORMATS

    rows = []
    for name, module_name in FORMATS.items():
        module = importlib.import_module(module_name)
        summary = inspect.cleandoc(module.Format.__doc__ or module.__doc__ or "")
        rows.append({"format": name, "what": " ".join(summary.split()).replace("`", "")})
    if json:
        typer.echo(json_module.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("format", Column("what it reads", overflow="fold"), show_lines=True)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
