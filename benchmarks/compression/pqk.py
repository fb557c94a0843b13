r"""A tenth of FP32's size: zeros that only an archive makes small, by PQK or step by step, beside channels removed.

    python benchmarks/compression/pqk.py --out ../runs/pqk

Sizes are shares of the FP32 parameters of the network that it starts from, or of `--whole`: `dense` has one byte for
each INT8 weight, `deflated` and `xz` are the same in archives, where zeros count; an engine unpacks them and
gains no time. The goal is 0.1 in any with at most 0.02 of delta1 lost. Three ways, each ending in INT8 training:

- `--amounts`: PQK with these shares of zeros. It prunes in INT8 arithmetic, batch norms folded.
- `--zeros`: PQK's parts one after the other. Zeros rise in float, where batch norms follow them; the pruned network
  then learns from the whole one beside the truth; INT8 training comes last and short.
- `--macs`: channels go until these shares of the MACs are left, then the same fine-tuning.

Stop it at any time (Ctrl-C): the same command goes on where it was.

One amount of PQK is 1,000 + 500 iterations in FP32 arithmetic (phase 2 runs the network twice) at 224 x 288 in batches
of 16: about 2 core-hours; a row of the others 1 to 2. `--iterations` scales all of them.
"""

from __future__ import annotations

from typing import Any

from int8_rows import METRIC, Bench, arguments, change, said
from rows import started

from leadline.compression.int8_size import int8_size
from leadline.errors import LeadlineError
from leadline.reference import load_model

GOAL_SIZE, GOAL_DROP = 0.1, 0.02


def rows(
    amounts: list[float], zeros: list[float], kept: list[float], iterations: int, rate: float, teacher: str
) -> dict[str, list[dict[str, Any]]]:
    """The networks by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for amount in amounts:
        lengths = {"iterations": iterations, "distil_iterations": iterations // 2}
        rates = {"learning_rate": rate, "distil_rate": rate / 2}
        found[f"PQK, {amount:.0%} zeros"] = [{"step": "pqk", "amount": amount, **lengths, **rates}]
    tuned = {"step": "finetune", "learning_rate": 1e-3, "teacher": teacher}
    for amount in zeros:
        rounds = {"rounds": 4, "iterations": max(1, iterations // 5), "learning_rate": 5e-4}
        found[f"{amount:.0%} zeros step by step, then QAT"] = [
            {"step": "prune-magnitude", "amount": amount, "gradual": rounds},
            {**tuned, "iterations": iterations},
            {"step": "qat", "iterations": max(1, iterations // 6)},
        ]
    for share in kept:
        found[f"{share:.0%} of the MACs by channels, then QAT"] = [
            {"step": "prune-channels", "macs": share},
            {**tuned, "iterations": 2 * iterations},
            {"step": "qat", "iterations": max(1, iterations // 3)},
        ]
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--amounts", default="0.6,0.75,0.85", help="PQK's shares of zeros")
    parser.add_argument("--zeros", default="0.75", help="shares of zeros step by step")
    parser.add_argument("--macs", default="0.4", help="shares of the MACs kept by channel pruning")
    parser.add_argument("--iterations", type=int, default=1000, help="of phase 1; phase 2 takes half as many")
    parser.add_argument(
        "--whole", help="network that sizes and changes are counted from, and the teacher; --model if absent"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak of phase 1; phase 2 takes half of it")
    options = parser.parse_args()
    bench = Bench(options)
    first = options.whole or options.model
    floating = bench.score(first)
    whole = 4 * sum(value.numel() for value in load_model(first).model.parameters())
    given = options.amounts, options.zeros, options.macs
    numbers = [[float(each) for each in text.split(",") if each] for text in given]
    print(bench.heading(floating) + "\n")
    print(f"| engine | network | {METRIC} | change | zeros | dense | deflated | xz | file, MB | goal |")
    print("|---" * 10 + "|")
    print(f"| PyTorch | {first} | {said(floating.summary()[METRIC])} | | | 1.000 | | | {whole / 1e6:.2f} | |")
    for engine in options.engine or ["onnxruntime"]:
        for name, steps in rows(*numbers, options.iterations, options.learning_rate, first).items():
            try:
                made = bench.made(engine, steps)
            except LeadlineError as error:
                print(f"| {engine} | {name} | not here: {error} |" + " |" * 7, flush=True)
                continue
            scored, size = bench.score(made.bundle), int8_size(load_model(made.network))
            moved = change(scored, floating)
            shares = {"dense": size.int8 / whole, "deflated": size.deflated / whole, "xz": size.xz / whole}
            small = next((name for name, share in shares.items() if share <= GOAL_SIZE), "")
            goal = f"met ({small})" if small and -moved.value <= GOAL_DROP else ""
            figures = [said(scored.summary()[METRIC]), said(moved, "+"), f"{size.zeros:.1%}"]
            figures += [*(f"{share:.3f}" for share in shares.values()), f"{made.size / 1e6:.2f}", goal]
            print(f"| {engine} | {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    started(main)
