"""`leadline train`: train a depth network from a YAML file, flags, or both."""

# ruff: noqa: UP045  typer reads the annotations at run time, and needs Optional

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import Json, Size, SkipBad, parse_part, parse_size

if TYPE_CHECKING:
    from leadline.training.plan import Plan

MANY, LABELLERS = 64, 8  # pictures that are worth several labelling processes, and how many of those

SHOWN = ("abs_rel", "rmse", "delta1")  # of a validation; log.csv has all its figures

HELP = """Train a depth network, or go on with one: pictures with depth, pictures alone, films.

Losses and rate follow the data and the start, and are said before training.
Run the same line again and it continues exactly where it was. The result,
OUT/checkpoint, is a model for every other verb."""

EXAMPLES = (
    "leadline train --model leadline-s-indoor --data PAIRS --out runs/a",
    "leadline train --model random:leadline-xs --data PHOTOS --teacher leadline-s-indoor --out runs/b",
    "leadline train --model lite-mono-tiny --data 'frames:FILM.mp4?fov=60' --out runs/c",
    "leadline train configs/leadline-s-indoor.yaml --out runs/d --iterations 4000 --set learning_rate=5e-4",
    "torchrun --standalone --nproc-per-node 2 -m leadline train configs/leadline-s-indoor.yaml --out runs/e",
)


def command(
    config: Annotated[Optional[Path], typer.Argument(metavar="[CONFIG]", help="YAML file; flags override it.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; run again, it continues.")] = Path(
        "runs/train"
    ),
    model: Annotated[Optional[str], typer.Option("--model", "-m", help="Variant, or reference to start from.")] = None,
    data: Annotated[Optional[list[str]], typer.Option("--data", "-d", help="DATA or DATA#SPLIT; repeatable.")] = None,
    teacher: Annotated[
        Optional[str],
        typer.Option("--teacher", metavar="REF", help="Label pictures without depth first, by this model."),
    ] = None,
    loss: Annotated[
        Optional[list[str]],
        typer.Option(
            "--loss", help="l1, silog, ssi, gradient, ..., with =WEIGHT if not 1; repeat. Default: by the data."
        ),
    ] = None,
    iterations: Annotated[Optional[int], typer.Option(min=1, help="Length of the run.")] = None,
    batch: Annotated[Optional[int], typer.Option(min=2, help="Pictures of each iteration.")] = None,
    size: Size = None,
    learning_rate: Annotated[
        Optional[float], typer.Option(help="Peak rate of the decoder; smaller by default for trained weights.")
    ] = None,
    device: Annotated[Optional[str], typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    precision: Annotated[Optional[str], typer.Option(help="fp32, bf16 or fp16.")] = None,
    threads: Annotated[Optional[int], typer.Option("--threads", "-t", min=0, help="0: PyTorch chooses.")] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Of every random choice.")] = None,
    changes: Annotated[Optional[list[str]], typer.Option("--set", help="KEY=VALUE (YAML) for any other key.")] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Train a depth network."""
    import yaml

    from leadline.errors import ConfigError
    from leadline.output import check_writable
    from leadline.training.config import load_config

    flags: dict[str, Any] = {
        "model": model,
        "sources": [parse_part(reference) for reference in data] if data else None,
        "objectives": [_objective(text) for text in loss] if loss else None,
        "iterations": iterations,
        "batch": batch,
        "size": parse_size(size),
        "learning_rate": learning_rate,
        "device": device,
        "precision": precision,
        "threads": threads,
        "seed": seed,
        "skip_bad": skip_bad or None,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError("--set needs KEY=VALUE", where=change, mend="as in --set ema=0.99")
        first, dot, rest = key.partition(".")
        if dot:
            mend = f"give the whole mapping: --set '{first}={{{rest}: {value}}}'"
            raise ConfigError("--set reaches keys of the first level", where=change, mend=mend)
        flags[key] = yaml.safe_load(value)
    if config is None and "model" not in flags:
        mend = "give --model REF (`leadline models`): its weights are where training starts"
        raise ConfigError("no model to train", mend=mend)
    settings = load_config(config, flags)
    check_writable(out)
    from leadline.training.plan import plan
    from leadline.training.run import run

    chosen = plan(settings, out, teacher)
    if not as_json and os.environ.get("RANK", "0") == "0":
        print(chosen.said, file=sys.stderr, flush=True)
    unlabelled = _label(chosen, out, teacher) if teacher else {}
    settings = chosen.config
    with _Display(quiet=as_json) as display:
        result, folder = run(settings, out, display.show, start=chosen.start)
    result.skipped |= unlabelled
    if not result.leads:  # torchrun started several: one speaks
        raise typer.Exit(130 if result.interrupted else 1 if result.skipped else 0)
    facts = {
        "checkpoint": str(folder),
        "iterations": result.iteration,
        "interrupted": result.interrupted,
        "waiting": result.waiting,
        "unpaired": result.unpaired,
        "skipped": result.skipped,
    }
    if as_json:
        print(json.dumps(facts))
    else:
        print(_ending(result, settings.iterations, folder))
        for notice in result.notices:
            print(notice, file=sys.stderr)
        for name, why in (result.unpaired | result.skipped).items():
            print(f"left out {name}: {why}", file=sys.stderr)
    if result.interrupted:
        raise typer.Exit(130)
    if result.skipped:
        raise typer.Exit(1)


def _label(chosen: Plan, out: Path, teacher: str) -> dict[str, str]:
    """Label what has no depth; returns the pictures that could not be, with the reason.

    Raises:
        ConfigError: several processes would label the same.
        DataError: pictures that cannot be labelled, and are not to be left out.
    """
    import torch

    from leadline.cli.pseudo_label import run as label
    from leadline.errors import ConfigError, DataError
    from leadline.labelling import Job
    from leadline.training.team import launched

    failed: dict[str, str] = {}
    for source, pictures in ((each.source, each.unlabelled) for each in chosen.lessons if each.unlabelled is not None):
        store = Path(str(source.labels))
        if launched():
            mend = f"run `leadline pseudo-label {teacher} '{source.data}' --out {store}`, then train on "
            mend += f"--data 'pseudo:{source.data},{store}'"
            raise ConfigError("one process labels", where="--teacher", why="torchrun started several", mend=mend)
        cores = chosen.config.threads or os.cpu_count() or 1
        job = Job(teacher, source.data, source.split, skip_bad=chosen.config.skip_bad)
        threads = torch.get_num_threads()
        summary = label(job, store, min(cores, LABELLERS) if pictures >= MANY else 1, False)
        torch.set_num_threads(threads)  # a teacher in this process takes one, training as many as there are
        bad = {item.name: str(item.error) for item in summary.failed}
        new = len(summary.items) - len(bad)
        terms = summary.info.licence
        terms = f"; its licence, {terms}, may bind the result" if terms not in ("", "unknown") else ""
        print(f"{new} labelled, {summary.before} before -> {store}{terms}", file=sys.stderr, flush=True)
        if bad and not chosen.config.skip_bad:
            why = f"{len(bad)} of {summary.total}, the first: {next(iter(bad.values()))}"
            mend = "mend or remove them, or leave them out with --skip-bad"
            raise DataError("pictures that cannot be labelled", where=source.data, why=why, mend=mend)
        failed |= bad
    return failed


def _ending(result: Any, iterations: int, folder: Path) -> str:
    """The run's last line."""
    from leadline.training.team import launched

    if result.begun >= iterations:
        begun = f"{result.begun} iterations were done before, {iterations} are asked for: nothing was trained."
        return f"{begun} Checkpoint: {folder}"
    waiting = f"{result.waiting:.0%} of the time waiting for data"
    if not result.interrupted:
        return f"{result.iteration} iterations, done, {waiting}. Checkpoint: {folder}"
    command = shlex.join(["leadline", *sys.argv[1:]])
    again = "the same torchrun command" if launched() else f"the same command again: {command}"
    rest = f"To go on to {iterations}, run {again}"
    return f"{result.iteration} iterations, interrupted, {waiting}. Checkpoint: {folder}. {rest}"


def _objective(text: str) -> dict[str, Any]:
    from leadline.errors import ConfigError

    name, equals, weight = text.partition("=")
    try:
        return {"loss": name, "weight": float(weight)} if equals else {"loss": name}
    except ValueError as error:
        raise ConfigError("not a weight", where=text, mend="as in --loss silog=1 --loss gradient=0.5") from error


class _Display:
    """A live table of the run on stderr; plain lines where stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.quiet = quiet
        self.live: Any = None
        self.validation: dict[str, float] = {}
        self.waiting = self.seconds = self.loss = 0.0

    def __enter__(self) -> _Display:
        if not self.quiet and self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.__exit__(None, None, None)

    def show(self, step: Any) -> None:
        """Take in one iteration."""
        if self.quiet:
            return
        if not self.seconds and step.iteration > 1:
            self.console.print(f"goes on after {step.iteration - 1} iterations", highlight=False)
        keep = 0.95 if step.iteration > 1 and self.seconds else 0.0
        self.loss = keep * self.loss + (1 - keep) * step.loss
        self.seconds = keep * self.seconds + (1 - keep) * step.seconds / max(1 - step.waiting, 1e-3)
        self.waiting = keep * self.waiting + (1 - keep) * step.waiting
        self.validation = step.validation or self.validation
        for finding in step.findings:
            self.console.print(f"doctor, iteration {step.iteration}: {finding}", markup=False, highlight=False)
        if self.live is not None:
            self.live.update(self._table(step))
        elif step.iteration % 50 == 0 or step.iteration == step.iterations or step.validation:
            figures = " ".join(f"{key} {step.validation[key]:.4g}" for key in SHOWN if key in step.validation)
            line = f"{step.iteration}/{step.iterations} loss {self.loss:.4f} {self.seconds:.2f} s/it {figures}"
            print(line, file=sys.stderr, flush=True)

    def _table(self, step: Any) -> Any:
        from rich.table import Table

        table = Table(show_header=False, box=None)
        left = (step.iterations - step.iteration) * self.seconds
        table.add_row("iteration", f"{step.iteration} of {step.iterations}, {left / 60:.0f} min left")
        table.add_row("loss", f"{self.loss:.4f}   " + "  ".join(f"{k} {v:.4f}" for k, v in step.terms.items()))
        table.add_row("rate", f"{step.rate:.3f} of the peak")
        table.add_row("speed", f"{self.seconds:.2f} s/iteration, {self.waiting:.0%} of it waiting for data")
        if self.validation:
            shown = (f"{key} {self.validation[key]:.4g}" for key in SHOWN if key in self.validation)
            table.add_row("validation", "  ".join(shown))
        return table
