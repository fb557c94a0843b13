"""The ablation of study C (SPEC.md 5): five networks at equal budget, what each change buys, beside what was published.

    python benchmarks/learning/ablation.py --teacher leadline-s --out runs/ablation

`configs/ablation.yaml` says what all five share; this file says how each differs. The teacher (any model reference that
says disparity or depth) first labels the film into OUT/labels; then the five are trained in turn. The same command goes
on where it was stopped. `--only pseudo` trains one of them, `--iterations` changes the budget of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constant_shape import best_constant
from experiment import evaluate, opened, started, table, trained
from torch import Tensor, nn

from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.evaluation.machine import this_machine
from leadline.evaluation.protocols import get_protocol
from leadline.labelling import Job, label
from leadline.models.outputs import outputs
from leadline.reference import load_model
from leadline.training.config import TrainConfig, load_config

if TYPE_CHECKING:
    from leadline.evaluation.evaluate import Evaluation

CONFIG = Path(__file__).parents[2] / "configs" / "ablation.yaml"
PUBLISHED_SIZE = (192, 640)  # of the multiply-accumulates in the published table
LABEL_L1 = {"loss": "median-centred", "weight": 0.1, "reading": "median-scale"}
CHAMFER = {"loss": "chamfer", "weight": 0.1}
# name: network, further objectives, published G multiply-accumulates, AbsRel and delta1 (SPEC.md 5.5)
ROWS: dict[str, tuple[str, list[dict[str, Any]], tuple[float, float, float]]] = {
    "baseline": ("lite-mono", [], (5.032, 0.107, 0.888)),
    "attention": ("lite-mono-attention", [], (5.033, 0.106, 0.889)),
    "pseudo": ("lite-mono", [LABEL_L1], (5.032, 0.107, 0.883)),
    "fixed-bins": ("lite-mono-fixed-bins", [], (5.694, 0.109, 0.888)),
    "adaptive": ("lite-mono-adaptive-bins", [LABEL_L1, CHAMFER], (8.675, 0.106, 0.886)),
}


class AllMaps(nn.Module):
    """A network with every map that training computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """All maps, finest first."""
        return outputs(self.model, x).maps


def configuration(name: str, base: TrainConfig, labels: Path) -> TrainConfig:
    """One row: what all share, with its own network and objectives, and labels where these need them."""
    model, further, _ = ROWS[name]
    says = base.model_dump(mode="json") | {"model": model, "name": f"ablation-{name}"}
    says["objectives"] = [*says["objectives"], *further]
    if further:
        says["sources"] = [{**source, "labels": str(labels)} for source in says["sources"]]
    return TrainConfig.model_validate(says)


def labelled(base: TrainConfig, teacher: str, folder: Path) -> None:
    """What the teacher says about every picture of the film; whatever was labelled before stays."""
    source = base.sources[0]
    summary = label(Job(teacher, source.data, source.split), folder)
    if summary.failed:
        raise SystemExit(f"{len(summary.failed)} pictures without a label, the first: {summary.failed[0].error}")
    print(f"{len(summary.items)} labelled by {summary.info.teacher_name}, {summary.before} before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="model reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=list(ROWS))
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--score", default="kitti-raw:../shared/data/kitti_raw#depth", metavar="DATA")
    parser.add_argument("--protocol", default="kitti-eigen/median")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    changes = {"threads": options.threads} | ({"iterations": options.iterations} if options.iterations else {})
    base = load_config(CONFIG, changes)
    names = options.only or list(ROWS)
    if any(ROWS[name][1] for name in names):
        labelled(base, options.teacher, options.out / "labels")
    dataset, protocol = opened(options.score), get_protocol(options.protocol)
    best, _ = best_constant(dataset, protocol.label)
    scored: list[tuple[str, Evaluation]] = []
    lines = [
        "",
        "G multiply-accumulates at 192x640; training computes three maps, and the published counts are of those",
        "",
    ]
    lines += ["| network | parameters | G MACs | with all maps | published: G MACs, AbsRel, delta1 |"]
    lines += ["|---|---|---|---|---|"]
    for name in names:
        checkpoint = trained(configuration(name, base, options.out / "labels"), options.out / name)
        scored.append((name, evaluate(str(checkpoint), dataset, protocol)))
        model, published = load_model(str(checkpoint)).model, ROWS[name][2]
        used, trained_with = (count_macs(each, PUBLISHED_SIZE) / 1e9 for each in (model, AllMaps(model)))
        said = f"{published[0]:.3f}, {published[1]:.3f}, {published[2]:.3f}"
        lines.append(f"| {name} | {count_parameters(model):,} | {used:.3f} | {trained_with:.3f} | {said} |")
    print(f"{this_machine()}; each {base.iterations} iterations of {base.batch}, one seed, teacher {options.teacher}")
    print(f"{options.score}, {protocol.label}; 95 % intervals over the pictures, changes against the first row\n")
    print(table([*scored, (f"constant map ({best.model})", best)]), *lines, sep="\n")


if __name__ == "__main__":
    started(main)
