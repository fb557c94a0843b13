r"""NetAdapt on an engine: speed, accuracy after the long fine-tuning, predicted against measured time, channel plan.

    python benchmarks/compression/netadapt.py --out ../runs/netadapt

adapts the packaged indoor network on ONNX Runtime, learns from and decides on NYU's official training pictures (as
`configs/leadline-s-indoor.yaml` parts them: 0 to 754 and 755 to 794), and scores on the official test pictures.
`--runtime openvino` asks another engine, `--model` and `--train` another network. Stop it at any time (Ctrl-C): the
same command goes on where it was, at the last finished proposal or the last saved state of a training.

With the options that docs/compression.md gives about 2 core-hours: three minutes for the table of pieces (kept in
OUT/latency.sqlite), 40 for 8 turns (6 to 12 proposals each, judged on 40 pictures), an hour for the 2,400 iterations
at the end. Let nothing else run beside the last part, which takes times.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rows import said, started

from leadline.compression import Judged, Target
from leadline.compression.netadapt import PLAN, SUMMARY, NetAdapt
from leadline.errors import LeadlineError
from leadline.evaluation.machine import this_machine
from leadline.studies.recipe import Recipe, train_file
from leadline.studies.recipe_run import run_recipe

if TYPE_CHECKING:
    from leadline.studies.recipe_run import Outcome

METRICS = ("delta1", "abs_rel", "rmse")


def recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the command's options make."""
    step = NetAdapt(
        resource=options.resource,
        budget=options.budget,
        ratio=options.ratio,
        decay=options.decay,
        max_iterations=options.turns,
        rule=options.rule,
        reaching=not options.any_gain,
        importance=options.importance,
        recalibrate=options.recalibrate,
        iterations=options.brief,
        shortlist=options.shortlist,
        winner_iterations=options.winner,
        final_iterations=options.final,
        learning_rate=options.learning_rate,
        final_rate=options.final_rate,
        teacher=options.teacher or None,
        table=str(options.table or options.out / "latency.sqlite"),
    )
    judged = Judged(
        data=options.validation,
        split=options.split or None,
        first=options.first,
        protocol=options.protocol,
        limit=options.judged,
    )
    return Recipe(
        model=options.model,
        train=train_file(options.train),
        validation=judged,
        score=Judged(
            data=options.score, split=options.score_split or None, protocol=options.protocol, limit=options.limit
        ),
        target=Target(runtime=options.runtime, threads=options.threads),
        steps=[step],
    )


def report(outcome: Outcome) -> str:
    """Before and after, what was predicted, and where the plan is."""
    before, after = outcome.rows
    for row in outcome.rows:
        if row.accuracy is None or row.latency is None:
            raise LeadlineError("no figures", where=row.made or row.model, why=row.reason)
    assert before.accuracy is not None
    change_of = f"change of {before.accuracy.primary}"
    lines = [
        f"{outcome.recipe.model} on {before.accuracy.data}, {before.accuracy.protocol}, n = {before.accuracy.scored}; "
        f"95 % bootstrap intervals, change paired; {before.runtime} {before.precision}, batch 1, "
        f"medians of runs in turn; {this_machine()}",
        "",
        f"| network | MACs, M | parameters, M | {' | '.join([*METRICS, change_of])} | ms | speed-up |",
        "|---" * (len(METRICS) + 6) + "|",
    ]
    for name, row in (("before", before), ("NetAdapt", after)):
        assert row.accuracy is not None
        assert row.latency is not None
        assert row.macs is not None
        assert row.parameters is not None
        figures = [said(row.accuracy.metrics.get(metric)) for metric in METRICS]
        change = said(row.accuracy.change.get(before.accuracy.primary), "+")
        speed = f"{row.latency.p50:.2f} (IQR {row.latency.iqr:.2f}) | {1 / row.latency.ratio:.2f}x"
        counts = f"{row.macs / 1e6:.1f} | {row.parameters / 1e6:.3f}"
        lines.append(f"| {name} | {counts} | {' | '.join(figures)} | {change} | {speed} |")
    return "\n".join([*lines, "", *predictions(outcome)])


def predictions(outcome: Outcome) -> list[str]:
    """The resource as predicted against what was measured, as shares of the first network's."""
    folder = outcome.results[-1].folder
    says = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    assert outcome.rows[-1].latency is not None
    measured = outcome.rows[-1].latency.ratio if says["resource"] == "latency" else says["last"] / says["first"]
    lines = [f"{says['resource']}, share of the network before: measured {measured:.3f}"]
    for key, how in (("predicted_from_start", "table alone"), ("predicted_last", "table, measured again in each turn")):
        share = says[key] / says["first"]
        lines.append(f"- predicted ({how}) {share:.3f}, {share / measured - 1:+.1%} of the measured")
    narrowed = {name: widths for name, widths in says["widths"].items() if widths[0] != widths[1]}
    lines += ["", f"{len(narrowed)} of {len(says['widths'])} groups narrower; plan: {folder / PLAN}.svg"]
    return [*lines, *(f"- {name}: {before} -> {after}" for name, (before, after) in narrowed.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor", help="model reference")
    parser.add_argument("--train", type=Path, default=Path("configs/leadline-s-indoor.yaml"), help="configuration")
    parser.add_argument("--validation", default="../shared/data/nyu", help="data set that proposals are judged on")
    parser.add_argument("--split", default="train", help="of it; empty where it has none")
    parser.add_argument("--first", type=int, default=755, help="index of its first picture used")
    parser.add_argument("--judged", type=int, default=40, help="at most so many of its pictures")
    parser.add_argument("--score", default="../shared/data/nyu", help="data set of the figures")
    parser.add_argument("--score-split", default="test")
    parser.add_argument("--limit", type=int, default=None, help="at most so many of its pictures")
    parser.add_argument("--protocol", default="nyu-eigen")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resource", default="latency", choices=["latency", "macs", "weights"])
    parser.add_argument("--budget", type=float, default=0.55, help="share of the resource to end at")
    parser.add_argument("--ratio", type=float, default=0.05, help="share of it that the first turn takes away")
    parser.add_argument("--decay", type=float, default=0.96)
    parser.add_argument("--turns", type=int, default=20, help="at most")
    parser.add_argument("--rule", default="ratio", choices=["ratio", "accuracy"])
    parser.add_argument("--any-gain", action="store_true", help="as published: also groups that miss the target alone")
    parser.add_argument("--importance", default="taylor", choices=["l1", "l2", "bn-scale", "taylor"])
    parser.add_argument("--recalibrate", type=int, default=6, help="batches of new statistics for each proposal")
    parser.add_argument("--brief", type=int, default=10, help="iterations of each proposal of the shortlist")
    parser.add_argument("--shortlist", type=int, default=4)
    parser.add_argument("--winner", type=int, default=40, help="iterations of the chosen proposal")
    parser.add_argument("--final", type=int, default=2000, help="iterations at the end")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--final-rate", type=float, default=None, help="learning rate of the end, where it differs")
    parser.add_argument("--teacher", default="", help="model reference that the end follows beside the truth")
    parser.add_argument("--table", type=Path, help="file of measured pieces; OUT/latency.sqlite where absent")
    parser.add_argument("--processes", type=int, default=1, help="proposals side by side")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each network at the end")
    parser.add_argument("--out", type=Path, required=True, help="folder; the same command goes on in it")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    made = recipe(options)
    print(report(run_recipe(made, options.out, say, processes=options.processes, runs=options.runs)))


if __name__ == "__main__":
    started(main)
