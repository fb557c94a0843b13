r"""What channels are worth: accuracy, MACs, parameters and latency without 10 to 50 % of the channels of every group.

    python benchmarks/compression/channels.py --model leadline-s-indoor --data '../shared/data/nyu' --split test \
        --protocol nyu-eigen --train configs/leadline-s-indoor.yaml --finetune 2000 --out ../runs/channels

Before fine-tuning, with `--recalibrate N` after batch norms took new statistics from N batches of `--train`, and with
`--finetune N` after N iterations on it. `--importance` may name several, to compare
them at equal widths; `taylor` reads batches of `--train`, `activation` the pictures of `--calibration`. `--macs` takes
shares of the MACs to keep, all groups ranked together, instead of equal shares of every group.
"""

from __future__ import annotations

from typing import Any

from rows import Outcome, Row, arguments, cells, heading, measured, started

METRICS = ("delta1", "abs_rel", "rmse")


def rows(target: str, shares: list[float], importances: list[str], after: dict[str, Any], multiple: int) -> list[Row]:
    """One row for each importance and share, and behind it one for each step that may follow."""
    what = "of the MACs kept" if target == "macs" else "of the channels removed"
    made = []
    for importance in importances:
        options: dict[str, Any] = {"importance": importance, "multiple": multiple, "min_width": multiple}
        if importance == "bn-scale":
            options["fallback"] = "l2"  # for groups with a layer that has no batch norm
        for share in shares:
            steps = [{"step": "prune-channels", target: share, **options}]
            made.append(Row(f"{share:.0%} {what}, {importance}", steps))
            name = made[-1].name
            made += [Row(f"{name}, {said}", [*steps, step]) for said, step in after.items()]
    return made


def table(found: dict[str, list[Outcome]]) -> str:
    heads = [
        "engine",
        "network",
        "MACs, M",
        "parameters, M",
        *METRICS,
        "change",
        "MB",
        "MB compressed",
        "ms",
        "of FP32",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for engine, outcomes in found.items():
        for one in outcomes:
            cost = _cost(one) if one.figures else [f"n/a: {one.reason}", ""]
            rest = cells(one.figures, METRICS) if one.figures else [""] * (len(heads) - 4)
            lines.append(f"| {engine} | {one.row.name} | {' | '.join([*cost, *rest])} |")
    return "\n".join(lines)


def _cost(one: Outcome) -> list[str]:
    assert one.figures is not None
    counts = one.figures.macs, one.figures.parameters
    return ["" if count is None else f"{count / 1e6:.2f}" for count in counts]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4,0.5", help="shares of every group's channels to remove")
    parser.add_argument("--macs", default=None, help="instead: shares of the MACs to keep, as 0.8,0.6,0.4")
    parser.add_argument("--importance", default="l2", help="l1, l2, bn-scale, taylor, activation, random")
    parser.add_argument("--finetune", type=int, default=0, help="iterations; adds a fine-tuned row to each")
    parser.add_argument("--recalibrate", type=int, default=0, help="batches; adds a row with new statistics to each")
    parser.add_argument("--multiple", type=int, default=8, help="widths are multiples of it")
    options = parser.parse_args()
    shares = [float(share) for share in (options.macs or options.ratios).split(",")]
    target = "ratio" if options.macs is None else "macs"
    after: dict[str, Any] = {}
    if options.recalibrate:
        after["recalibrated"] = {"step": "recalibrate", "batches": options.recalibrate}
    if options.finetune:
        after[f"fine-tuned {options.finetune}"] = {"step": "finetune", "iterations": options.finetune}
    wanted = rows(target, shares, options.importance.split(","), after, options.multiple)
    found = {engine: measured(options, engine, wanted) for engine in options.runtimes.split(",")}
    print(heading(options, next(iter(found.values()))) + "\n")
    print(table(found))


if __name__ == "__main__":
    started(main)
