"""What the tables of INT8 training share: networks made by recipes, scored in engines and in training's arithmetic."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "learning"))

from experiment import opened

from leadline.compression import Pictures, Target
from leadline.compression.qat_start import simulated
from leadline.evaluation.evaluate import Evaluation, evaluate, paired
from leadline.evaluation.machine import this_machine
from leadline.predictor import Predictor
from leadline.reference import load_model
from leadline.runtimes.base import SessionOptions, bundle_contract
from leadline.runtimes.torch_eager import open_model
from leadline.studies.recipe import Recipe, train_file
from leadline.studies.recipe_run import run_steps
from leadline.studies.recipe_start import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.evaluation.bootstrap import Interval

METRIC = "delta1"


@dataclass(frozen=True)
class Made:
    """A row: the network before it became a bundle, the bundle's folder, and its bytes."""

    network: str
    bundle: Path

    @property
    def size(self) -> int:
        """Bytes of what the engine reads."""
        return sum(file.stat().st_size for file in self.bundle.glob("model.*"))


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    options: argparse.Namespace

    def made(self, engine: str, steps: Sequence[dict[str, Any]]) -> Made:
        """Run the steps and quantise what they give; what is done already is not done again."""
        given = self.options
        batch = {} if given.batch is None else {"batch": given.batch}
        recipe = Recipe(
            model=given.model,
            train=train_file(Path(given.train)) | {"threads": given.threads} | batch,
            calibration=Pictures(data=given.calibration, split=given.calibration_split, count=given.count),
            target=Target(runtime=engine, threads=given.threads),
            steps=[*steps, {"step": "quantize"}],  # type: ignore[list-item]
        )
        results = run_steps(recipe, begin(recipe, given.out), given.out, _say)
        return Made(str(results[-2].ref), Path(str(results[-1].ref)))

    def score(self, reference: str | Path) -> Evaluation:
        """Accuracy of a model reference in its engine."""
        given = self.options
        return evaluate(str(reference), opened(given.data), given.protocol, limit=given.limit)

    def score_as_trained(self, network: str) -> Evaluation:
        """Accuracy of an INT8 network in PyTorch, as its training saw it."""
        given, loaded = self.options, load_model(network)
        contract = bundle_contract(loaded.contract, None, dynamic=False)
        session = open_model(simulated(loaded), contract, SessionOptions(threads=given.threads))
        return evaluate(Predictor(session), opened(given.data), given.protocol, limit=given.limit)

    def heading(self, scored: Evaluation) -> str:
        """What every figure belongs to."""
        given = self.options
        return (
            f"{given.model} on {given.data}, {scored.protocol.label}, n = {scored.count('scored')}; 95 % bootstrap "
            f"intervals over pictures, changes paired; one seed; {this_machine()}"
        )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that both tables have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor", help="model reference")
    parser.add_argument("--train", default="configs/leadline-s-indoor.yaml", help="training configuration (YAML)")
    parser.add_argument("--batch", type=int, default=None, help="pictures of an iteration, if not as in --train")
    parser.add_argument("--data", default="../shared/data/nyu#test", help="DATA or DATA#SPLIT of the figures")
    parser.add_argument("--protocol", default="nyu-eigen")
    parser.add_argument("--limit", type=int, default=None, help="at most so many pictures")
    parser.add_argument("--calibration", default="../shared/data/nyu", help="pictures for ranges, never those scored")
    parser.add_argument("--calibration-split", default="train")
    parser.add_argument("--count", type=int, default=100, help="calibration pictures")
    parser.add_argument("--engine", action="append", default=None, help="onnxruntime, openvino; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder; the same command goes on in it")
    return parser


def change(mine: Evaluation, theirs: Evaluation) -> Interval:
    """Paired change of the metric."""
    return paired(mine, theirs, METRIC)


def said(value: Interval, sign: str = "") -> str:
    """`0.9123 [0.9100, 0.9140]`."""
    return f"{value.value:{sign}.4f} [{value.low:{sign}.4f}, {value.high:{sign}.4f}]"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
