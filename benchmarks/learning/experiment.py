"""What the experiments of this folder share: train one run to its end, score it, print figures with their intervals.

Each experiment is one command. Stop it at any time (Ctrl-C): the same command goes on where it was.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from leadline.data.dataset import Dataset, Subset, open_dataset
from leadline.errors import LeadlineError
from leadline.evaluation.evaluate import Evaluation, evaluate, paired
from leadline.training.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from leadline.evaluation.bootstrap import Interval
    from leadline.training.config import TrainConfig
    from leadline.training.log import Progress

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta1")


def started(main: Callable[[], None]) -> None:
    """Run a script's main function; a user's fault is one line and exit status 2, as of the command."""
    try:
        main()
    except LeadlineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def trained(config: TrainConfig, out: Path) -> Path:
    """Train to the end and return the checkpoint; leaves the program where the run was interrupted."""

    def show(step: Progress) -> None:
        if step.iteration % 50 == 0 or step.iteration == step.iterations:
            line = f"{out.name} {step.iteration}/{step.iterations} loss {step.loss:.4f} {step.seconds:.2f} s"
            print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(config.threads or torch.get_num_threads())
    result, checkpoint = run(config, out, show)
    for notice in result.notices:
        print(f"{out.name}: {notice}", file=sys.stderr)
    if result.interrupted:
        print(f"{out.name}: interrupted after {result.iteration} iterations; run the same command again")
        raise SystemExit(130)
    return checkpoint


def opened(reference: str) -> Dataset:
    """A data set from DATA, DATA#SPLIT, or either with [FIRST:LAST] behind it."""
    text, first, last = reference, 0, None
    if text.endswith("]") and "[" in text:
        text, _, span = text[:-1].rpartition("[")
        begin, _, end = span.partition(":")
        first, last = int(begin or 0), int(end) if end else None
    data, _, split = text.partition("#")
    dataset = open_dataset(data, split or None)
    return dataset if (first, last) == (0, None) else Subset(dataset, first, last)


def table(rows: Sequence[tuple[str, Evaluation]], metrics: Sequence[str] = METRICS) -> str:
    """Markdown: each evaluation's figures with 95 % intervals over the pictures, and AbsRel's paired change.

    The change is against the first row, over the pictures that both scored.
    """
    _, first = rows[0]
    lines = ["| network | pictures | " + " | ".join(metrics) + " | change of abs_rel | degenerate |"]
    lines.append("|---" * (len(metrics) + 4) + "|")
    for name, one in rows:
        figures = one.summary()
        cells = [said(figures[metric]) if metric in figures else "n/a" for metric in metrics]
        change = "" if one is first else said(paired(one, first, "abs_rel"), sign="+")
        counts = f"{one.count('degenerate')} of {one.count('scored')}"
        lines.append(f"| {name} | {one.count('scored')} | " + " | ".join(cells) + f" | {change} | {counts} |")
    return "\n".join(lines)


def said(value: Interval, sign: str = "") -> str:
    """`0.123 [0.110, 0.140]`."""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


__all__ = ["METRICS", "Evaluation", "evaluate", "opened", "said", "started", "table", "trained"]
