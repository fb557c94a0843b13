"""Study A's distillation (SPEC.md 7.1): two students of one teacher at equal budget, and the mistake in its figures.

    python benchmarks/learning/distillation_study.py --teacher leadline-s --out runs/distillation

The students are a MobileNetV2 network and a reduced Depth Anything (192 wide, 4 blocks), both from random weights. The
teacher labels the photos into OUT/labels; the last 200 photos are no training data. Three tables:

1. against measured depth, after the alignment that relative disparity needs: what the students know;
2. against the teacher's labels of the 200 photos, number by number without alignment, as the study scored: its losses
   leave scale and shift free, so such an error says nothing about the student;
3. the proof: each student's output divided by 1000. The losses and the aligned figures are the same, and the unaligned
   error is the mean of the truth itself (the study's 5.8877 against a mean of 5.8907). The evaluation flags it.

The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from experiment import evaluate, opened, started, table, trained

from leadline.data.dataset import Dataset, Sample, Subset, open_dataset
from leadline.depth import Depth, Intrinsics, Kind
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.evaluation.machine import this_machine
from leadline.evaluation.protocols import get_protocol
from leadline.labelling import Job, label
from leadline.predictor import Predictor, load
from leadline.reference import load_model
from leadline.training.config import TrainConfig, load_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIG = Path(__file__).parents[2] / "configs" / "distillation.yaml"
RELATIVE = {"kind": "relative_disparity", "head": "softplus", "start_depth": 1.0}
STUDENTS = {"mobilenet-v2": ("fastdepth-mobilenet-v2", RELATIVE), "reduced-da": ("depth-anything-v2-mini", {})}
UNALIGNED = ("mae", "rmse", "abs_rel", "delta1")
TINY = 1e-3


class Numbers:
    """A network whose numbers are taken as they are, times a factor: the study's reading of relative disparity."""

    def __init__(self, predictor: Predictor, factor: float = 1.0, kind: Kind = Kind.METRIC_DEPTH) -> None:
        self.predictor, self.factor, self.kind = predictor, np.float32(factor), kind
        unbounded = {"kind": kind, "minimum": None, "maximum": None}
        output = predictor.contract.output.model_copy(update=unbounded)
        self.contract = predictor.contract.model_copy(update={"output": output})

    def predict(self, image: NDArray[np.uint8], intrinsics: Intrinsics | None = None) -> Depth:
        """The network's values times the factor, under the kind that is claimed."""
        found = self.predictor.predict(image)
        return replace(found, values=found.values * self.factor, kind=self.kind, source=self.contract.name)


class LabelsAsNumbers(Subset):
    """A teacher's labels, taken as if they had a unit."""

    def __init__(self, whole: Dataset, first: int) -> None:
        super().__init__(whole, first)
        self.kind, self.max_depth = Kind.METRIC_DEPTH, 1e6

    def __getitem__(self, index: int) -> Sample:
        """Picture and label."""
        sample = super().__getitem__(index)
        assert sample.depth is not None
        values = np.nan_to_num(sample.depth.values)
        return replace(sample, depth=replace(sample.depth, values=values, kind=Kind.METRIC_DEPTH), intrinsics=None)


def configuration(name: str, base: TrainConfig, labels: Path) -> TrainConfig:
    """A student's run: the shared configuration with its network, and the teacher's labels."""
    model, network = STUDENTS[name]
    says = base.model_dump(mode="json") | {"model": model, "network": network, "name": f"distilled-{name}"}
    says["sources"] = [{**source, "labels": str(labels)} for source in says["sources"]]
    return TrainConfig.model_validate(says)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="model reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", default="../shared/data/nyu#test", metavar="DATA", help="with measured depth")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    changes = {"threads": options.threads} | ({"iterations": options.iterations} if options.iterations else {})
    base = load_config(CONFIG, changes)
    source, labels = base.sources[0], options.out / "labels"
    summary = label(Job(options.teacher, source.data, source.split), labels)
    if summary.failed:
        raise SystemExit(f"{len(summary.failed)} photos without a label, the first: {summary.failed[0].error}")
    folders = {name: trained(configuration(name, base, labels), options.out / name) for name in STUDENTS}

    measured = opened(options.score)
    photos = LabelsAsNumbers(open_dataset(f"pseudo:{source.data},{labels}"), source.last or 0)
    aligned, numbers = get_protocol("zero-shot-disparity"), get_protocol("plain")
    with load(options.teacher) as teacher:
        kind = teacher.contract.output.kind
        rows = [("teacher", evaluate(teacher, measured, aligned))]
    by_number, tiny = [], []
    print(f"{this_machine()}; each {base.iterations} iterations of {base.batch}, one seed, teacher {options.teacher}")
    for name, folder in folders.items():
        model = load_model(str(folder)).model
        macs = count_macs(model, (base.size or (224, 224))) / 1e9
        print(f"{name}: {count_parameters(model):,} parameters, {macs:.3f} G multiply-accumulates")
        with load(str(folder)) as student:
            rows.append((name, evaluate(student, measured, aligned)))
            divided = Numbers(student, TINY, student.contract.output.kind)
            rows.append((f"{name} / 1000", evaluate(divided, measured, aligned)))
            by_number.append((name, evaluate(Numbers(student), photos, numbers)))
            tiny.append((f"{name} / 1000", evaluate(Numbers(student, TINY), photos, numbers)))
    mean = np.mean([sample.depth.values[sample.depth.valid].mean() for sample in photos if sample.depth is not None])
    print(f"\n1. {options.score}, {aligned.label}\n\n{table(rows)}")
    print(f"\n2. {len(photos)} photos, the teacher's numbers ({kind}, mean {mean:.4f}), no alignment\n")
    print(table(by_number, UNALIGNED))
    print("\n3. the same, outputs divided by 1000\n")
    print(table(tiny, UNALIGNED))


if __name__ == "__main__":
    started(main)
