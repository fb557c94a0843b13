r"""What quantisation-aware training brings back of what static INT8 loses, in two engines.

    python benchmarks/compression/qat.py --out ../runs/qat

Float, PTQ (ranges from calibration), QAT with fixed ranges and QAT with learned steps (LSQ) of the packaged indoor
network, on NYU's official test pictures. `as trained` is the accuracy of the same INT8 network in PyTorch, with
training's own rounding: its difference from the engines is the last column. Stop it at any time (Ctrl-C): the same
command goes on where it was.

A tenth of the network's 3,000 iterations for each of the two trainings, FP32 in batches of 16 at 224 x 288, 3.8 s each
on one core: about a third of a core-hour for each, and as much for the scoring.
"""

from __future__ import annotations

from typing import Any

from int8_rows import METRIC, Bench, arguments, change, said
from rows import started

RECOVERED = 0.5  # of what PTQ lost


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--iterations", type=int, default=None, help="of each training; a tenth of the network's")
    parser.add_argument("--rate", type=float, default=None, help="peak learning rate; a hundredth of the network's")
    options = parser.parse_args()
    schedule = {"iterations": options.iterations, "learning_rate": options.rate}
    schedule = {key: value for key, value in schedule.items() if value is not None}
    rows: dict[str, list[dict[str, Any]]] = {
        "PTQ": [],
        "QAT": [{"step": "qat", **schedule}],
        "QAT, learned steps": [{"step": "qat", "ranges": "learned", **schedule}],
    }
    bench = Bench(options)
    floating = bench.score(options.model)
    print(bench.heading(floating) + "\n")
    print(f"| engine | network | {METRIC} | change | of PTQ's loss recovered | file, MB | engine - as trained |")
    print("|---" * 7 + "|")
    print(f"| PyTorch | float | {said(floating.summary()[METRIC])} | | | | |")
    for engine in options.engine or ["onnxruntime", "openvino"]:
        lost = 0.0
        for name, steps in rows.items():
            made = bench.made(engine, steps)
            scored = bench.score(made.bundle)
            moved = change(scored, floating)
            lost = -moved.value if not steps else lost
            share = f"{1 + moved.value / lost:.0%}" if steps and lost > 0 else ""
            share += " (goal met)" if steps and lost > 0 and 1 + moved.value / lost >= RECOVERED else ""
            apart = said(change(scored, bench.score_as_trained(made.network)), "+") if steps else ""
            figures = [said(scored.summary()[METRIC]), said(moved, "+"), share, f"{made.size / 1e6:.2f}", apart]
            print(f"| {engine} | {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    started(main)
