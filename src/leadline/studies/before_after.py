"""Figures before and after each step of a recipe: parameters, MACs, size, accuracy, latency and memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.bundle import load_bundle
from leadline.errors import LeadlineError
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.evaluation.machine import fingerprint
from leadline.manifest import write_measurements
from leadline.output import write_atomic
from leadline.reference import load_exportable
from leadline.runtimes.base import Precision, required
from leadline.runtimes.onnx_source import OnnxNetwork
from leadline.studies.figures import accuracy_of, engine_files, latency_of, packed_mb
from leadline.studies.isolated import JobError, run_isolated
from leadline.studies.measurement import Measurement, Status
from leadline.studies.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.compression import Judged, Target
    from leadline.evaluation.latency import Timing
    from leadline.studies.results import Result

STORE = "recipe.sqlite"
RUNS, WARMUP, ROUNDS = 60, 10, 6  # timed runs of each result; runs before them; turns with the source


def measure(
    results: Sequence[Result],
    score: Judged,
    target: Target,
    out: Path,
    say: Callable[[str], None],
    *,
    runs: int = RUNS,
) -> list[Measurement]:
    """The figures of each result; those of an earlier run are taken as they are.

    A network is exported to the target's engine in FP32, a bundle is taken as it is; accuracy and speed are of that
    file. Accuracy is compared with the source's on the same pictures, speed in the same rounds, in turn.

    Args:
        results: the source first.
        score: the pictures, protocol filled in.
        target: engine, threads, input size.
        out: folder of the recipe, which holds the store.
        say: takes each line of progress.
        runs: timed runs of each.

    Raises:
        LeadlineError: the source itself cannot be measured; any other result that fails becomes a row.
    """
    machine = fingerprint()
    source = results[0]
    with Store(out / STORE) as store:
        bases = [_base(one, results, score, target, machine, runs) for one in results]
        rows = {base.key: row for base in bases if (row := store.get(base.key)) is not None}
        todo = [(one, base) for one, base in zip(results, bases, strict=True) if base.key not in rows]
        if not todo:
            return [rows[base.key] for base in bases]
        answers: dict[str, dict[str, Any]] = {}
        for one, base in todo:
            say(f"measuring {one.label}: accuracy under {score.protocol} on {score.data}")
            try:
                answers[base.key] = _scored(one, base, source, score, target)
            except JobError as error:
                refused = error.cause in ("ConfigError", "UnavailableError")
                rows[base.key] = _ended(base, Status.SKIPPED if refused else Status.FAILED, str(error))
                _refuse_without(source, one, rows[base.key])
        timed = {str(_engine(one, base)): (one, base) for one, base in zip(results, bases, strict=True)}

        def record(timing: Timing) -> None:
            one, base = timed[timing.ref]
            if base.key in rows:  # the source of an earlier run, which only takes its turns again
                return
            theirs = None if one is source else store.scores(bases[0].key)
            rows[base.key] = row = _row(one, base, answers[base.key], timing, score, theirs, out)
            _refuse_without(source, one, row)
            if row.status is Status.MEASURED:
                if one.bundle or one.checkpoint:
                    write_measurements(Path(one.ref), row.carried())
                store.put(row, {scored["name"]: json.dumps(scored) for scored in answers[base.key]["rows"]})

        turns = [(source, bases[0]), *(pair for pair in todo if pair[1].key in answers and pair[0] is not source)]
        say(f"measuring speed on {target.runtime}, {len(turns) - 1} in turn with the source")
        first, *jobs = (
            Job(str(_engine(one, base)), target.threads, target.options_of(base.runtime).device) for one, base in turns
        )
        compare(first, jobs, runs=runs, warmup=WARMUP, rounds=ROUNDS, on_done=record)
    return [rows[base.key] for base in bases]


def _base(
    one: Result, results: Sequence[Result], score: Judged, target: Target, machine: dict[str, Any], runs: int
) -> Measurement:
    """The row with everything that is known beforehand, status failed."""
    bundle = load_bundle(Path(one.ref)) if one.bundle else None
    network = load_exportable(results[one.number - 1 if one.bundle else one.number].ref)  # a bundle has its source's
    contract = network.contract.input
    size = bundle.size if bundle else target.size or (contract.height, contract.width)
    engine = bundle.runtime if bundle else target.runtime
    facts = {
        "leadline": __version__,
        "number": one.number,
        "result": one.key,
        "source": results[0].key,
        "score": score.model_dump(mode="json"),
        "target": target.model_dump(mode="json"),
        "engine": required(engine).availability().version,
        "runs": runs,
        "machine": machine,
    }
    return Measurement(
        key=hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest(),
        model=one.label,
        runtime=engine,
        precision=bundle.precision if bundle else Precision.FP32.value,
        height=size[0],
        width=size[1],
        status=Status.FAILED,
        macs=None if isinstance(network.model, OnnxNetwork) else count_macs(network.model, size),
        parameters=None if isinstance(network.model, OnnxNetwork) else count_parameters(network.model),
        machine=machine,
    )


def _scored(one: Result, base: Measurement, source: Result, score: Judged, target: Target) -> dict[str, Any]:
    """Export and accuracy, in a process of their own, unless an interrupted run has done so."""
    path = one.folder / f"score-{base.key[:8]}.json"
    engine = _engine(one, base)
    exported = (engine / "manifest.json").is_file()
    if exported:
        load_bundle(engine)  # sound, or an error
        if path.is_file():
            answer: dict[str, Any] = json.loads(path.read_bytes())
            return answer
    threads = max(1, target.threads)
    evaluation = {
        "ref": str(engine),
        "data": score.data,
        "split": score.split,
        "first": score.first,
        "last": score.last,
        "protocol": score.protocol,
        "limit": score.limit,
        "threads": threads,
        "device": target.options_of(base.runtime).device,
        "reference": source.ref if score.protocol.startswith("fidelity") else None,
    }
    if exported:
        answer = run_isolated("evaluate", evaluation, threads=threads)
    else:
        export = {
            "model": one.ref,
            "runtime": base.runtime,
            "precision": base.precision,
            "size": [base.height, base.width],
            "calibration": None,
            "count": 0,
            "out": str(engine),
        }
        orders = {"export_order": export, "evaluate_order": evaluation}
        answer = run_isolated("export_and_evaluate", orders, threads=threads)
    answer.setdefault("parity", load_bundle(engine).details.get("parity", {}))
    write_atomic(path, json.dumps(answer).encode())
    return answer


def _row(
    one: Result,
    base: Measurement,
    answer: dict[str, Any],
    timing: Timing,
    score: Judged,
    reference: dict[str, str] | None,
    out: Path,
) -> Measurement:
    """The finished row; `reference` holds the source's figures per picture, None for itself."""
    if timing.latency is None or timing.peak_mib is None:
        return _ended(base, Status.FAILED, timing.failure)
    files = engine_files(Path(one.ref) if one.checkpoint or one.bundle else _engine(one, base))
    data = score.data + (f"#{score.split}" if score.split else "")
    figures = {
        "status": Status.MEASURED,
        "precision_ran": answer["precision_ran"],
        "bundle": str(_engine(one, base).relative_to(out)),
        "accuracy": accuracy_of(answer, score.protocol, data, reference),
        "latency": latency_of(timing),
        "memory_mb": timing.peak_mib,
        "size_mb": sum(path.stat().st_size for path in files) / 1e6,
        "packed_mb": packed_mb(files),
        "parity": answer["parity"],
        "notes": tuple(dict.fromkeys([*answer["notes"], *timing.cautions])),
    }
    return base.model_copy(update=figures)


def _engine(one: Result, base: Measurement) -> Path:
    """The bundle that is measured: the result itself, or its FP32 export to the target."""
    return Path(one.ref) if one.bundle else one.folder / f"{base.runtime}-{base.precision}-{base.height}x{base.width}"


def _refuse_without(source: Result, one: Result, row: Measurement) -> None:
    """Without the source's figures no other says anything."""
    if one is source and row.status is not Status.MEASURED:
        mend = "the results of the steps are kept; measure with another `target`"
        raise LeadlineError("the source cannot be measured", where=source.ref, why=row.reason, mend=mend)


def _ended(base: Measurement, status: Status, reason: str) -> Measurement:
    return base.model_copy(update={"status": status, "reason": reason})
