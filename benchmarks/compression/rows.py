"""What the tables of this folder share: rows are recipes, given as data; each is run, kept and measured, then printed.

Stop a command at any time (Ctrl-C): the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.machine import this_machine
from leadline.studies.measurement import Status
from leadline.studies.recipe import Recipe, train_file
from leadline.studies.recipe_run import run_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.studies.measurement import Figure, Measurement


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, the steps that make it, and what somebody published for it."""

    name: str
    steps: list[dict[str, Any]]
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a row: its figures, or why there are none."""

    row: Row
    figures: Measurement | None
    reason: str = ""


def started(main: Callable[[], None]) -> None:
    """Run a script's main function; a user's fault is one line and exit status 2, as of the command."""
    try:
        main()
    except LeadlineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every table has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor", help="model reference")
    parser.add_argument("--data", default="rendered", help="data set of the figures")
    parser.add_argument("--split", default=None)
    parser.add_argument("--protocol", default="plain")
    parser.add_argument("--limit", type=int, default=None, help="at most so many pictures")
    parser.add_argument("--validation", default=None, help="data set that steps decide on, as DATA or DATA#SPLIT")
    parser.add_argument("--first", type=int, default=0, help="index of its first picture that is used")
    parser.add_argument("--calibration", default=None, help="pictures for static INT8, as DATA or DATA#SPLIT")
    parser.add_argument("--train", default=None, help="training configuration (YAML) of the steps that train")
    parser.add_argument("--runs", type=int, default=60, help="timed runs of each row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder; the same command goes on in it")
    return parser


def recipe(options: argparse.Namespace, runtime: str, steps: Sequence[dict[str, Any]]) -> Recipe:
    """The recipe of one row.

    Raises:
        ConfigError: an unknown step or option.
    """
    values: dict[str, Any] = {
        "model": options.model,
        "score": {
            "data": options.data,
            "split": options.split,
            "protocol": options.protocol,
            "limit": options.limit,
        },
        "target": {"runtime": runtime, "threads": options.threads},
        "steps": list(steps),
    }
    for name in ("validation", "calibration"):
        if (given := getattr(options, name)) is not None:
            data, _, split = given.partition("#")
            values[name] = {"data": data, "split": split or None}
            if name == "validation":
                values[name] |= {"protocol": options.protocol, "first": options.first}
    if options.train is not None:
        values["train"] = train_file(Path(options.train)) | {"threads": options.threads}
    return Recipe.model_validate(values)


def measured(options: argparse.Namespace, runtime: str, rows: Sequence[Row]) -> list[Outcome]:
    """The unchanged network, then every row; one that cannot be made has its reason, and the others go on."""
    outcomes: list[Outcome] = []
    source: Measurement | None = None
    for row in rows:
        print(f"{runtime}: {row.name}", file=sys.stderr, flush=True)
        try:
            found = run_recipe(recipe(options, runtime, row.steps), options.out, _say, runs=options.runs)
        except LeadlineError as error:
            outcomes.append(Outcome(row, None, str(error)))
            continue
        source = source or found.rows[0]
        last = found.rows[-1]
        good = last.status is Status.MEASURED
        outcomes.append(Outcome(row, last if good else None, last.reason))
    if source is None:
        reasons = "; ".join(f"{one.row.name}: {one.reason}" for one in outcomes)
        raise ConfigError("no row could be made", where=options.model, why=reasons)
    return [Outcome(Row("FP32", []), source), *outcomes]


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def heading(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> str:
    """Model, data, protocol, pictures, machine: what every figure below belongs to."""
    accuracy = next(one.figures.accuracy for one in outcomes if one.figures is not None)
    assert accuracy is not None
    return (
        f"{options.model} on {accuracy.data}, {accuracy.protocol}, n = {accuracy.scored}; 95 % bootstrap intervals, "
        f"changes paired; batch 1, {options.threads} thread, medians of {options.runs} runs in turn with FP32; "
        f"{this_machine()}"
    )


def said(figure: Figure | None, sign: str = "") -> str:
    """`0.123 [0.110, 0.140]`."""
    if figure is None:
        return ""
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def cells(figures: Measurement, metrics: Sequence[str]) -> list[str]:
    """Metrics, the paired change of the primary one, MB, packed MB, ms, ratio to FP32."""
    assert figures.accuracy is not None
    assert figures.latency is not None
    accuracy, latency = figures.accuracy, figures.latency
    return [
        *(said(accuracy.metrics.get(metric)) for metric in metrics),
        said(accuracy.change.get(accuracy.primary), "+"),
        f"{figures.size_mb:.2f}",
        "" if figures.packed_mb is None else f"{figures.packed_mb:.2f}",
        f"{latency.p50:.1f} (IQR {latency.iqr:.1f})",
        f"{latency.ratio:.2f}",
    ]
