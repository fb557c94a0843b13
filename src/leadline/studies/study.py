"""A study: one model over runtimes, precisions and input sizes on one data set and protocol; resumable per cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.depth import Kind
from leadline.errors import ConfigError, LeadlineError
from leadline.runtimes.base import RUNTIMES, Precision, runtime
from leadline.studies.isolated import JobError, run_isolated
from leadline.studies.measurement import Accuracy, Figure, Latency, Measurement, Status
from leadline.studies.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.reference import LoadedModel
    from leadline.runtimes.base import Runtime

REFERENCE_RUNTIME, REFERENCE_PRECISION = "torch", "fp32"
WARMUP, ROUNDS = 10, 6  # runs before the timed ones; turns of candidate and reference


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Args:
        model: reference of the model.
        data: data set reference.
        split: part of it.
        protocol: by name, variants included.
        limit: at most so many pictures.
        runtimes: engines; empty takes all.
        precisions: empty takes all that an engine has.
        sizes: (height, width) of the network's input; empty takes the contract's.
        threads: of each engine.
        runs: timed runs per candidate.
        calibration: data set reference for static INT8; None calibrates on rendered scenes.
        calibration_count: pictures for static INT8.
    """

    model: str
    data: str = "rendered"
    split: str | None = None
    protocol: str = "plain"
    limit: int | None = None
    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    threads: int = 1
    runs: int = 60
    calibration: str | None = None
    calibration_count: int = 128


@dataclass(frozen=True)
class Cell:
    """One candidate of a study."""

    runtime: str
    precision: str
    size: tuple[int, int]

    @property
    def folder(self) -> str:
        """Name of its bundle's folder."""
        return f"{self.runtime}-{self.precision}-{self.size[0]}x{self.size[1]}"


@dataclass
class Outcome:
    """A finished study: rows in the order of its cells, the first of them the reference."""

    study: Study
    folder: Path
    rows: list[Measurement] = field(default_factory=list)

    @property
    def reference(self) -> Measurement:
        """The uncompressed model in PyTorch."""
        return self.rows[0]


def cells(study: Study, default: tuple[int, int]) -> list[Cell]:
    """All candidates, the reference (PyTorch FP32 at the first size) before the others.

    Args:
        study: what is compared.
        default: the contract's (height, width).

    Raises:
        ConfigError: an unknown runtime or precision.
    """
    known = {precision.value for precision in Precision}
    for precision in study.precisions:
        if precision not in known:
            raise ConfigError("unknown precision", where=precision, mend=f"known: {', '.join(sorted(known))}")
    sizes = study.sizes or (default,)
    reference = Cell(REFERENCE_RUNTIME, REFERENCE_PRECISION, sizes[0])
    found = [reference]
    for size, name in product(sizes, study.runtimes or RUNTIMES):
        for precision in runtime(name).precisions:
            cell = Cell(name, precision.value, size)
            if (not study.precisions or precision.value in study.precisions) and cell != reference:
                found.append(cell)
    return found


def run_study(
    study: Study,
    out: Path,
    on_cell: Callable[[int, int, Cell, str], None] | None = None,
) -> Outcome:
    """Measure every cell that the store does not hold yet; what is measured is never measured again.

    Args:
        study: what is compared.
        out: folder with `study.sqlite`, `bundles/` and `panel/`.
        on_cell: called with (number, of how many, cell, what is done now).

    Raises:
        LeadlineError: the reference itself cannot be measured; any other cell that fails becomes a row.
    """
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.evaluation.machine import fingerprint
    from leadline.reference import load_model

    loaded = load_model(study.model)
    default = (loaded.contract.input.height, loaded.contract.input.width)
    machine = fingerprint()
    plan = cells(study, default)
    outcome = Outcome(study, out)
    facts: dict[tuple[int, int], tuple[int, int]] = {}
    with Store(out / "study.sqlite") as store:
        for number, cell in enumerate(plan):
            key = _key(study, cell, loaded, machine)
            row = store.get(key)
            if row is None:
                tell = _teller(on_cell, number, len(plan), cell)
                if cell.size not in facts:
                    facts[cell.size] = count_macs(loaded.model, cell.size), count_parameters(loaded.model)
                macs, parameters = facts[cell.size]
                base = Measurement(
                    key=key,
                    model=study.model,
                    runtime=cell.runtime,
                    precision=cell.precision,
                    height=cell.size[0],
                    width=cell.size[1],
                    status=Status.FAILED,
                    macs=macs,
                    parameters=parameters,
                    machine=machine,
                )
                row, scores = _measure(study, cell, base, out, outcome.rows[0] if outcome.rows else None, store, tell)
                if not outcome.rows and row.status is not Status.MEASURED:
                    raise LeadlineError("the reference cannot be measured", where=cell.folder, why=row.reason)
                store.put(row, scores)
            if on_cell is not None:
                on_cell(number + 1, len(plan), cell, row.status.value)
            outcome.rows.append(row)
    return outcome


def _teller(
    on_cell: Callable[[int, int, Cell, str], None] | None, number: int, total: int, cell: Cell
) -> Callable[[str], None]:
    return lambda what: on_cell(number, total, cell, what) if on_cell is not None else None


def _measure(
    study: Study,
    cell: Cell,
    base: Measurement,
    out: Path,
    reference: Measurement | None,
    store: Store,
    tell: Callable[[str], None],
) -> tuple[Measurement, dict[str, str]]:
    """One row: export, accuracy, speed and memory, each in processes of their own."""
    adapter = runtime(cell.runtime)
    state = adapter.availability()
    if not state.available:
        return _ended(base, Status.SKIPPED, f"{state.reason}; {state.install}"), {}
    bundle = out / "bundles" / cell.folder
    panel = out / "panel" / f"{cell.folder}.npz"
    panel.parent.mkdir(parents=True, exist_ok=True)
    try:
        tell("export")
        try:
            exported = _exported(study, cell, bundle)
        except JobError as error:
            refused = error.cause in ("ConfigError", "UnavailableError")
            return _ended(base, Status.SKIPPED if refused else Status.FAILED, str(error)), {}
        tell("accuracy")
        found = run_isolated(
            "evaluate",
            {
                "ref": str(bundle),
                "data": study.data,
                "split": study.split,
                "protocol": study.protocol,
                "limit": study.limit,
                "threads": study.threads,
                "reference": study.model if study.protocol.startswith("fidelity") else None,
                "panel": str(panel),
            },
            threads=study.threads,
        )
        tell("speed and memory")
        latency, memory = _speed(study, bundle, out / reference.bundle if reference is not None else None)
    except LeadlineError as error:
        return _ended(base, Status.FAILED, str(error)), {}
    scores = {row["name"]: json.dumps(row) for row in found["rows"]}
    accuracy = _accuracy(study, found, store.scores(reference.key) if reference is not None else None)
    row = base.model_copy(
        update={
            "status": Status.MEASURED,
            "precision_ran": found["precision_ran"],
            "bundle": str(bundle.relative_to(out)),
            "accuracy": accuracy,
            "latency": latency,
            "memory_mb": memory,
            "size_mb": _size_mb(bundle),
            "parity": exported["parity"],
            "notes": tuple(dict.fromkeys(found["notes"])),
        }
    )
    return row, scores


def _exported(study: Study, cell: Cell, bundle: Path) -> dict[str, Any]:
    """Export unless a sound bundle of an earlier, interrupted run is there."""
    from leadline.bundle import load_bundle

    if (bundle / "manifest.json").is_file():
        kept = load_bundle(bundle)
        return {"parity": kept.details.get("parity", {})}
    return run_isolated(
        "export",
        {
            "model": study.model,
            "runtime": cell.runtime,
            "precision": cell.precision,
            "size": list(cell.size),
            "calibration": study.calibration,
            "count": study.calibration_count,
            "out": str(bundle),
        },
        threads=0,
    )


def _accuracy(study: Study, found: dict[str, Any], reference: dict[str, str] | None) -> Accuracy:
    """The figures of an evaluation job, and their paired change against the reference's pictures."""
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.results import Evaluation, paired_differences

    rows, protocol, kind = found["rows"], get_protocol(study.protocol), Kind(found["kind"])
    metrics = {name: Figure(**values) for name, values in found["metrics"].items()}
    change: dict[str, Figure] = {}
    if reference is not None:
        ours = Evaluation("candidate", kind, study.data, protocol, rows)
        theirs = Evaluation("reference", kind, study.data, protocol, [json.loads(text) for text in reference.values()])
        change = {name: Figure(**asdict(value)) for name, value in paired_differences(ours, theirs).items()}
    states = [row["status"] for row in rows]
    return Accuracy(
        protocol=found["label"],
        data=study.data + (f"#{study.split}" if study.split else ""),
        primary=protocol.primary,
        metrics=metrics,
        change=change,
        scored=states.count("scored"),
        unmeasured=states.count("n/a"),
        failed=states.count("failed"),
        degenerate=sum(bool(row.get("degenerate")) for row in rows),
    )


def _speed(study: Study, bundle: Path, reference: Path | None) -> tuple[Latency, float]:
    """Latency in turn with the reference, and peak memory (MiB).

    Raises:
        LeadlineError: the engine crashed, hung or refused in its process.
    """
    from leadline.evaluation.isolation import Job
    from leadline.evaluation.latency import compare

    candidate = Job(str(bundle), study.threads)
    others = [] if reference is None else [candidate]
    first = candidate if reference is None else Job(str(reference), study.threads)
    timing = compare(first, others, runs=study.runs, warmup=WARMUP, rounds=ROUNDS)[-1]
    if timing.latency is None or timing.peak_mib is None:
        raise LeadlineError("no latency", where=bundle.name, why=timing.failure)
    found = timing.latency
    latency = Latency(
        p50=found.p50,
        p95=found.p95,
        p99=found.p99,
        iqr=found.iqr,
        runs=found.runs,
        warmup=found.warmup,
        threads=found.threads,
        pre=found.pre,
        post=found.post,
        reference_p50=timing.ratio.reference_p50 if timing.ratio else found.p50,
    )
    return latency, timing.peak_mib


def _size_mb(bundle: Path) -> float:
    """MB of the files that the engine reads (weights and graph, not contract, manifest or figures)."""
    paperwork = {"contract.json", "manifest.json", "measurements.json", "config.json"}
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name not in paperwork]
    return sum(path.stat().st_size for path in files) / 1e6


def _ended(base: Measurement, status: Status, reason: str) -> Measurement:
    return base.model_copy(update={"status": status, "reason": reason})


def _key(study: Study, cell: Cell, loaded: LoadedModel, machine: dict[str, Any]) -> str:
    """Hash of everything that decides a row: weights, contract, engine and version, data, protocol, machine."""
    adapter: Runtime = runtime(cell.runtime)
    facts = {
        "leadline": __version__,
        "weights": _weights_hash(loaded),
        "contract": loaded.contract.model_dump(mode="json"),
        "cell": asdict(cell),
        "engine": adapter.availability().version,
        "study": {key: value for key, value in asdict(study).items() if key not in ("runtimes", "precisions", "sizes")},
        "machine": machine,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights_hash(loaded: LoadedModel) -> str:
    """SHA-256 over names, shapes and bytes of the network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in loaded.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
