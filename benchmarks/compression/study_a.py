r"""The table of study A (SPEC.md 7.1) on a network of your choice, and below it what the study left as future work.

    python benchmarks/compression/study_a.py --model REF --data ../shared/data/nyu --split test \
        --protocol nyu-eigen --calibration ../shared/data/nyu#train --out ../runs/study_a

The study pruned by global L1 over Linear and Conv weights, and quantised with `quantize_dynamic` on Linear, one scale
per tensor, nothing trained. Rows are recipes; `--rows FILE.yaml` adds some: a list of {name: ..., steps: [...]}. A row
that this network or engine cannot have (dynamic INT8 without Linear layers) says why.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from rows import Outcome, Row, arguments, cells, heading, measured, started

METRICS = ("delta1", "rmse", "abs_rel")


def prune(amount: float) -> dict[str, object]:
    return {"step": "prune-magnitude", "amount": amount, "output_layer": True}


PER_TENSOR = {"step": "quantize", "precision": "int8-dynamic", "per_channel": False}
PER_CHANNEL = {"step": "quantize", "precision": "int8-dynamic", "per_channel": True}
STATIC = {"step": "quantize", "precision": "int8-static"}

# Depth Anything V2 Metric-Outdoor-Base on DDAD, i7-14700, no fine-tuning; MiB printed as MB there.
PUBLISHED = {
    "FP32": {"delta1": 0.7257, "rmse": 8.4507, "abs_rel": 0.1848, "mb": 371.93, "ms": 1214.0},
    "pruned 50 %": {"delta1": 0.3092, "rmse": 14.4092, "abs_rel": 0.6065, "mb": 371.93, "ms": 1225.8},
    "pruned 30 % + dynamic INT8": {"delta1": 0.3172, "rmse": 14.3654, "abs_rel": 0.5764, "mb": 128.98, "ms": 1179.6},
    "dynamic INT8": {"delta1": 0.4448, "rmse": 12.0005, "abs_rel": 0.3590, "mb": 128.98, "ms": 1098.5},
}
STUDY = [
    Row("pruned 50 %", [prune(0.5)]),
    Row("pruned 30 % + dynamic INT8", [prune(0.3), PER_TENSOR]),
    Row("dynamic INT8", [PER_TENSOR]),
]
FUTURE = [
    Row("dynamic INT8 per channel", [PER_CHANNEL]),
    Row("pruned 30 % + dynamic INT8 per channel", [prune(0.3), PER_CHANNEL]),
    Row("static INT8", [STATIC]),
    Row("static INT8, SmoothQuant 0.5", [{**STATIC, "smooth": 0.5}]),
    Row("static INT8, at most 0.003 lost", [{**STATIC, "max_drop": 0.003}]),
]


def trained(iterations: int) -> list[Row]:
    """Rows that need `--train`."""
    narrow = {"step": "prune-channels", "ratio": 0.3, "importance": "taylor", "iterations": iterations}
    gradual = {"rounds": 4, "iterations": max(1, iterations // 4)}
    return [
        Row("pruned 50 %, gradual", [{**prune(0.5), "gradual": gradual}]),
        Row("30 % of the channels off, fine-tuned", [narrow]),
        Row("the same + static INT8", [narrow, STATIC]),
        Row("QAT", [{"step": "qat", "iterations": iterations}, STATIC]),
    ]


def more(path: Path | None) -> list[Row]:
    listed = yaml.safe_load(path.read_text(encoding="utf-8")) if path is not None else []
    return [Row(str(one["name"]), list(one["steps"])) for one in listed]


def table(outcomes: list[Outcome]) -> str:
    heads = [
        "network",
        *METRICS,
        "change",
        "MB",
        "MB compressed",
        "ms",
        "of FP32",
        "published δ1 / RMSE / AbsRel",
        "MB, ms",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in outcomes:
        theirs = PUBLISHED.get(one.row.name)
        said = ["", ""]
        if theirs:
            said = [" / ".join(f"{theirs[m]:.4f}" for m in METRICS), f"{theirs['mb']:.2f}, {theirs['ms']:.1f}"]
        ours = cells(one.figures, METRICS) if one.figures else [f"n/a: {one.reason}", *[""] * (len(heads) - 4)]
        lines.append(f"| {one.row.name} | {' | '.join([*ours, *said])} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runtime", default="onnxruntime", help="torch is the study's engine, with files in float")
    parser.add_argument("--study-only", action="store_true", help="the study's four rows alone")
    parser.add_argument("--only", action="append", default=None, help="rows whose name holds this; may be repeated")
    parser.add_argument("--iterations", type=int, default=1000, help="of each fine-tuning, with --train")
    parser.add_argument("--rows", type=Path, default=None, help="more rows (YAML)")
    options = parser.parse_args()
    wanted = STUDY if options.study_only else [*STUDY, *FUTURE, *(trained(options.iterations) if options.train else [])]
    rows = [*wanted, *more(options.rows)]
    if options.only is not None:
        rows = [row for row in rows if any(text in row.name for text in options.only)]
    outcomes = measured(options, options.runtime, rows)
    print(f"{heading(options, outcomes)}; {options.runtime}\n")
    print(table(outcomes))


if __name__ == "__main__":
    started(main)
