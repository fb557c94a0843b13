r"""Every quantisation after training that the engines here have, against the same engine's FP32.

    python benchmarks/compression/ptq.py --model leadline-s-indoor --data '../shared/data/nyu#test' \
        --protocol nyu-eigen --calibration ../shared/data/nyu --calibration-split train --out ../runs/ptq

Stop it at any time (Ctrl-C): the same command goes on where it was. A variant that the network or the engine cannot
have is a row that says why. `--only TEXT` (may be given again) takes the variants whose name holds TEXT. Passes no
judgement by itself; a row that meets the goal (size <= 0.27, time <= 0.5, delta1 drop <= 0.003) is marked.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "learning"))

from experiment import opened, started

from leadline.bundle import Bundle, load_bundle
from leadline.cli.options import parse_size
from leadline.data.dataset import Dataset
from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.evaluate import Evaluation, evaluate, paired
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.evaluation.machine import this_machine
from leadline.manifest import manifest_kind
from leadline.output import write_atomic
from leadline.predictor import Predictor
from leadline.reference import LoadedModel, load_exportable
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, runtime
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.export import export_bundle

GOAL = {"size": 0.27, "time": 0.5, "drop": 0.003}
WARMUP, ROUNDS = 5, 10


@dataclass(frozen=True)
class Variant:
    """One way to quantise: its name and what it changes of the usual options."""

    name: str
    changes: dict[str, Any]

    @property
    def static(self) -> bool:
        """Whether it needs calibration pictures."""
        return self.changes["precision"] is Precision.INT8_STATIC


def static(name: str, **changes: Any) -> Variant:
    return Variant(f"static, {name}", {"precision": Precision.INT8_STATIC, **changes})


PLAIN = [Variant(name, {"precision": Precision(name)}) for name in ("bf16", "fp16", "int8-weights", "int8-dynamic")]
VARIANTS = [
    *PLAIN,
    Variant("int8-weights, per tensor", {"precision": Precision.INT8_WEIGHTS, "per_channel": False}),
    Variant("int8-dynamic, per tensor", {"precision": Precision.INT8_DYNAMIC, "per_channel": False}),
    static("minmax"),
    static("minmax, symmetric", symmetric=True),
    static("minmax, per tensor", per_channel=False),
    *[static(f"percentile {p}", method="percentile", percentile=p) for p in (99.9, 99.99, 99.999, 99.9999)],
    static("entropy", method="entropy"),
    static("mse", method="mse"),
    static("minmax, bias correction", bias_correction=True),
    static("mse, bias correction", method="mse", bias_correction=True),
    static("percentile 99.99, bias correction", method="percentile", bias_correction=True),
    static("minmax, equalised", equalise=True),
    static("minmax, per tensor, equalised", per_channel=False, equalise=True),
    static("minmax, per tensor, equalised, bias correction", per_channel=False, equalise=True, bias_correction=True),
    static("minmax, SmoothQuant 0.5", smooth=0.5),
    static("minmax, SmoothQuant 0.75", smooth=0.75),
    static("mse, SmoothQuant 0.5, bias correction", method="mse", smooth=0.5, bias_correction=True),
]


@dataclass
class Bench:
    """What all variants share."""

    loaded: LoadedModel
    data: Dataset
    protocol: str
    limit: int | None
    inputs: list[Any]
    size: tuple[int, int] | None
    threads: int
    runs: int
    out: Path

    def measured(self, engine: str, variant: Variant) -> dict[str, Any]:
        """A variant's rows, size and time, from an earlier run where it holds them."""
        folder = self.out / engine / variant.name.replace(" ", "-").replace(",", "")
        answer = folder.with_suffix(folder.suffix + ".json")
        if answer.is_file():
            kept: dict[str, Any] = json.loads(answer.read_bytes())
            return kept
        print(f"{engine}: {variant.name}", file=sys.stderr, flush=True)
        try:
            found = self._measure(engine, variant, folder)
        except LeadlineError as error:
            return {"refused": str(error)}  # asked again next time: an engine may have been installed
        write_atomic(answer, json.dumps(found).encode())
        return found

    def _measure(self, engine: str, variant: Variant, folder: Path) -> dict[str, Any]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        bundle = self._bundle(engine, variant, folder)
        with Predictor(runtime(engine).open(bundle, SessionOptions(threads=self.threads))) as predictor:
            ran = predictor.session.precision_ran
            scored = evaluate(predictor, self.data, self.protocol, limit=self.limit, name=variant.name)
        found = {"rows": scored.rows, "bytes": bundle.size_bytes, "ran": ran}
        reference = folder.with_name("fp32")
        if folder != reference:
            jobs = [Job(str(each), self.threads) for each in (reference, folder)]
            _, timing = compare(jobs[0], jobs[1:], runs=self.runs, warmup=WARMUP, rounds=ROUNDS)
            found |= {"ratio": asdict(timing.ratio) if timing.ratio else None, "failure": timing.failure}
            found["ms"] = timing.latency.p50 if timing.latency else None
        return found

    def _bundle(self, engine: str, variant: Variant, folder: Path) -> Bundle:
        if manifest_kind(folder) == "bundle":
            return load_bundle(folder)
        options = ExportOptions(size=self.size, cache=self.out / "graphs", **variant.changes)
        options = replace(options, calibration=self.inputs) if variant.static else options
        return export_bundle(self.loaded, engine, options, folder)

    def table(self, engines: list[str], variants: list[Variant]) -> str:
        """Markdown, one row per engine and variant, the engine's FP32 first."""
        lines = ["| engine | variant | δ1 | change of δ1 | size | time | ms | computes in | goal |", "|---" * 9 + "|"]
        for engine in engines:
            first = self.measured(engine, Variant("fp32", {"precision": Precision.FP32}))
            if "refused" in first:
                lines.append(f"| {engine} | fp32 | {first['refused']} |" + " |" * 6)
                continue
            lines.append(self._row(engine, "fp32", first, first))
            lines += [self._row(engine, each.name, self.measured(engine, each), first) for each in variants]
        return "\n".join(lines)

    def _row(self, engine: str, name: str, found: dict[str, Any], first: dict[str, Any]) -> str:
        if "refused" in found:
            return f"| {engine} | {name} | not here: {found['refused']} |" + " |" * 6
        mine, theirs = (self._evaluation(one["rows"]) for one in (found, first))
        metric = mine.protocol.primary
        delta1, change = mine.summary()[metric], paired(mine, theirs, metric)
        size = found["bytes"] / first["bytes"]
        time = found.get("ratio") or {}
        ratio = f"{time['value']:.2f} [{time['low']:.2f}, {time['high']:.2f}]" if time else found.get("failure", "")
        fits = time and size <= GOAL["size"] and time["value"] <= GOAL["time"] and -change.value <= GOAL["drop"]
        cells = [engine, name, f"{delta1.value:.4f}"]
        cells.append("" if found is first else f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]")
        cells += [f"{size:.3f}", ratio, f"{found['ms']:.1f}" if found.get("ms") else "", found["ran"]]
        return "| " + " | ".join([*cells, "met" if fits else ""]) + " |"

    def _evaluation(self, rows: list[dict[str, Any]]) -> Evaluation:
        from leadline.evaluation.protocols import get_protocol

        protocol = get_protocol(self.protocol).for_data(self.data.max_depth)
        return Evaluation("variant", self.loaded.contract.output.kind, self.data.name, protocol, rows)


def _same_table(given: argparse.Namespace) -> None:
    """Refuse to mix figures of other pictures, sizes or threads into the table that lies in --out."""
    free = ("out", "only", "engine")
    settings = json.dumps({key: value for key, value in vars(given).items() if key not in free}).encode()
    path = given.out / "settings.json"
    if path.is_file() and path.read_bytes() != settings:
        why, mend = "it holds a table with other settings", "give another --out"
        raise ConfigError("cannot go on in", where=given.out, why=why, mend=mend)
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor", help="model reference or ONNX file")
    parser.add_argument("--data", required=True, help="DATA, DATA#SPLIT, either with [FIRST:LAST] behind it")
    parser.add_argument("--protocol", default="nyu-eigen")
    parser.add_argument("--limit", type=int, default=None, help="at most so many pictures, spread evenly")
    parser.add_argument("--calibration", default=None, help="data set or folder; rendered scenes where absent")
    parser.add_argument("--calibration-split", default=None)
    parser.add_argument("--count", type=int, default=100, help="calibration pictures")
    parser.add_argument("--engine", action="append", default=None, help="onnxruntime, openvino, torch; may be repeated")
    parser.add_argument("--only", action="append", default=None, help="variants whose name holds this; may be repeated")
    parser.add_argument("--size", default=None, help="H,W of the input; the model's own where absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each, in turn with FP32")
    parser.add_argument("--out", type=Path, required=True, help="keeps bundles and figures; the same again goes on")
    given = parser.parse_args()
    loaded = load_exportable(given.model)
    size = parse_size(given.size)
    variants = [one for one in VARIANTS if given.only is None or any(text in one.name for text in given.only)]
    _same_table(given)
    split = given.calibration_split
    inputs = calibration_inputs(given.calibration, loaded.contract, size, given.count, split=split)
    data = opened(given.data)
    bench = Bench(loaded, data, given.protocol, given.limit, inputs, size, given.threads, given.runs, given.out)
    made = bench.table(given.engine or ["onnxruntime", "openvino"], variants)
    pictures = min(len(data), given.limit or len(data))
    print(f"{given.model}, {pictures} pictures of {given.data} ({given.protocol}), {len(inputs)} to calibrate with,")
    print(
        f"{given.threads} threads, {given.runs} runs in turn with the same engine's FP32 [quartiles], {this_machine()}"
    )
    print()
    print(made)


if __name__ == "__main__":
    started(main)
