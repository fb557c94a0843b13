r"""What zeros are worth: accuracy, file size (as it is, and compressed) and latency of FP32, 50 %, 90 % and 2:4 zeros.

    python benchmarks/compression/zeros.py --model leadline-s-indoor --data ../shared/data/nyu --split test \
        --protocol nyu-eigen --out ../runs/zeros

Dense engines multiply by zero as slowly as by anything else (SPEC.md 7.3 point 5): the table shows it for each engine
instead of claiming a theoretical speed. Nothing is trained; `--finetune N` adds rows with N iterations on `--train`.
"""

from __future__ import annotations

from rows import Outcome, Row, arguments, cells, heading, measured, started

METRICS = ("delta1", "abs_rel", "rmse")


def rows(finetune: int) -> list[Row]:
    kinds = {
        "50 % zeros": {"amount": 0.5},
        "90 % zeros": {"amount": 0.9},
        "2:4 zeros": {"pattern": "2:4"},
    }
    plain = [Row(name, [{"step": "prune-magnitude", **how}]) for name, how in kinds.items()]
    if not finetune:
        return plain
    train = {"step": "finetune", "iterations": finetune}
    return plain + [Row(f"{row.name}, fine-tuned {finetune}", [*row.steps, train]) for row in plain]


def table(found: dict[str, list[Outcome]]) -> str:
    heads = ["engine", "network", *METRICS, "change", "MB", "MB compressed", "ms", "of FP32"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for engine, outcomes in found.items():
        for one in outcomes:
            rest = cells(one.figures, METRICS) if one.figures else [f"n/a: {one.reason}", *[""] * (len(heads) - 3)]
            lines.append(f"| {engine} | {one.row.name} | {' | '.join(rest)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runtimes", default="torch,onnxruntime,openvino")
    parser.add_argument("--finetune", type=int, default=0, help="iterations; adds a fine-tuned row to each")
    options = parser.parse_args()
    found = {engine: measured(options, engine, rows(options.finetune)) for engine in options.runtimes.split(",")}
    print(heading(options, next(iter(found.values()))) + "\n")
    print(table(found))


if __name__ == "__main__":
    started(main)
