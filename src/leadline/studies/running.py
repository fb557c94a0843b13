"""Running a study: exports and accuracy side by side on all cores, then speed alone, in turn with the reference."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadline.bundle import load_bundle
from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.output import write_atomic
from leadline.runtimes.base import ExportOptions, Precision, refuse_precision, runtime
from leadline.studies.figures import accuracy_of, engine_mb, latency_of
from leadline.studies.isolated import JobError, run_isolated, stop_jobs
from leadline.studies.measurement import Measurement, Status
from leadline.studies.store import Store
from leadline.studies.study import Cell, Outcome, Study, cell_key, cells

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from leadline.evaluation.latency import Timing

    OnCell = Callable[[int, int, Cell, str], None]

WARMUP, ROUNDS = 10, 6  # runs before the timed ones; turns of candidate and reference
PATIENCE = 5.0  # seconds that an interrupted job may take to clean up


@dataclass(frozen=True)
class _Candidate:
    """A cell on its way to a row.

    Args:
        cell: what it is.
        base: the row with everything that is known beforehand, status failed.
        bundle: folder of the export.
        answer: file that keeps what export and accuracy said, should the study be interrupted before the speed.
        panel: file for the depth maps of the report.
    """

    cell: Cell
    base: Measurement
    bundle: Path
    answer: Path
    panel: Path


def run_study(study: Study, out: Path, on_cell: OnCell | None = None) -> Outcome:
    """Measure every cell that the store does not hold yet; what is finished is never done again.

    Args:
        study: what is compared.
        out: folder with `study.sqlite`, `bundles/`, `cells/` and `panel/`.
        on_cell: called with (rows finished, of how many, cell, what is done now), from one thread.

    Raises:
        LeadlineError: the reference itself cannot be measured; any other cell that fails becomes a row.
    """
    with Store(out / "study.sqlite") as store:
        plan = _candidates(study, out)
        rows = {one.base.key: row for one in plan if (row := store.get(one.base.key)) is not None}
        todo = [one for one in plan if one.base.key not in rows]

        def tell(one: _Candidate, what: str) -> None:
            if on_cell is not None:
                on_cell(len(rows), len(plan), one.cell, what)

        def finish(one: _Candidate, row: Measurement, scores: dict[str, str] | None = None) -> None:
            store.put(row, scores)
            rows[row.key] = row
            tell(one, row.status.value)

        if on_cell is not None:  # so that the number of candidates is known from the start
            kept = [one for one in plan if one.base.key in rows]
            for number, one in enumerate(kept, start=1):
                on_cell(number, len(plan), one.cell, f"{rows[one.base.key].status.value} in an earlier run")
            if todo:
                tell(todo[0], "exporting and scoring")
        answers = _exported_and_scored(study, todo, finish, tell)
        reference = plan[0]
        if reference.base.key in rows and rows[reference.base.key].status is not Status.MEASURED:
            why = rows[reference.base.key].reason
            raise LeadlineError("the reference cannot be measured", where=reference.cell.folder, why=why)
        by_bundle = {str(one.bundle): one for one in plan}

        def record(timing: Timing) -> None:
            one = by_bundle[timing.ref]
            if one.base.key in rows:  # the reference of an earlier run, which only takes its turns again
                return
            answer = answers[one.base.key]
            theirs = None if one is reference else store.scores(reference.base.key)
            row = _row(study, one, answer, timing, theirs, out)
            if row.status is Status.MEASURED:
                load_bundle(one.bundle).write_measurements(row.carried())
            elif one is reference:
                raise LeadlineError("the reference cannot be measured", where=one.cell.folder, why=row.reason)
            finish(one, row, {scored["name"]: json.dumps(scored) for scored in answer["rows"]})

        others = [one for one in plan if one.base.key in answers and one is not reference]
        if answers:
            jobs = [Job(str(one.bundle), study.threads) for one in (reference, *others)]
            compare(jobs[0], jobs[1:], runs=study.runs, warmup=WARMUP, rounds=ROUNDS, on_done=record)
    return Outcome(study, out, [rows[one.base.key] for one in plan])


def _candidates(study: Study, out: Path) -> list[_Candidate]:
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.evaluation.machine import fingerprint
    from leadline.evaluation.protocols import get_protocol
    from leadline.reference import load_model

    loaded = load_model(study.model)
    get_protocol(study.protocol).alignment_for(loaded.contract.output.kind, study.model)  # refused before any export
    machine = fingerprint()
    plan = cells(study, loaded.contract)
    networks = {"": loaded} | {made: load_model(folder) for made, folder in study.networks}
    macs = {place: count_macs(networks[place[0]].model, place[1]) for place in {(one.made, one.size) for one in plan}}
    found = []
    for cell in plan:
        key = cell_key(study, cell, networks[cell.made], machine)
        base = Measurement(
            key=key,
            model=study.model,
            made=cell.made,
            runtime=cell.runtime,
            precision=cell.precision,
            height=cell.size[0],
            width=cell.size[1],
            status=Status.FAILED,
            macs=macs[cell.made, cell.size],
            parameters=count_parameters(networks[cell.made].model),
            machine=machine,
        )
        name = f"{cell.folder}-{key[:8]}"
        paths = (out / "bundles" / name, out / "cells" / f"{name}.json", out / "panel" / f"{cell.folder}.npz")
        found.append(_Candidate(cell, base, *paths))
    return found


def _exported_and_scored(
    study: Study,
    todo: list[_Candidate],
    finish: Callable[[_Candidate, Measurement], None],
    tell: Callable[[_Candidate, str], None],
) -> dict[str, dict[str, Any]]:
    """What export and accuracy said, by key; a cell that fails here is finished as a row without figures."""
    answers: dict[str, dict[str, Any]] = {}
    runnable = []
    for one in todo:
        if reason := _cannot(one.cell):
            finish(one, _ended(one.base, Status.SKIPPED, reason))
        else:
            runnable.append(one)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        pending = {pool.submit(_prepare, study, one): one for one in runnable}
        try:
            for future in as_completed(pending):
                one = pending[future]
                try:
                    answers[one.base.key] = future.result()
                    tell(one, "exported and scored")
                except JobError as error:
                    refused = error.cause in ("ConfigError", "UnavailableError")
                    finish(one, _ended(one.base, Status.SKIPPED if refused else Status.FAILED, str(error)))
        except BaseException:  # above all Ctrl-C: the jobs end too, or the command would seem to hang
            pool.shutdown(wait=False, cancel_futures=True)
            stopped = time.monotonic()
            while not all(future.done() for future in pending):
                stop_jobs(kill=time.monotonic() - stopped > PATIENCE)
                time.sleep(0.05)
            raise
    return answers


def _cannot(cell: Cell) -> str:
    """Why a cell cannot be tried here; empty where it can."""
    adapter = runtime(cell.runtime)
    try:
        refuse_precision(adapter, ExportOptions(Precision(cell.precision)))
    except ConfigError as error:
        return str(error)
    state = adapter.availability()
    return state.export_only if state.available else f"{state.reason}; {state.install}"


def _prepare(study: Study, one: _Candidate) -> dict[str, Any]:
    """Export and score one cell in processes of their own, unless an interrupted run has done so."""
    if one.answer.is_file() and (one.bundle / "manifest.json").is_file():
        load_bundle(one.bundle)  # sound, or an error
        answer: dict[str, Any] = json.loads(one.answer.read_bytes())
        return answer
    one.panel.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, study.threads)
    order = {
        "model": dict(study.networks).get(one.cell.made, study.model),
        "runtime": one.cell.runtime,
        "precision": one.cell.precision,
        "size": list(one.cell.size),
        "calibration": study.calibration,
        "count": study.calibration_count,
        "out": str(one.bundle),
    }
    exported = run_isolated("export", order, threads=threads)
    order = {
        "ref": str(one.bundle),
        "data": study.data,
        "split": study.split,
        "protocol": study.protocol,
        "limit": study.limit,
        "threads": threads,
        "reference": study.model if study.protocol.startswith("fidelity") else None,
        "panel": str(one.panel),
    }
    answer = exported | run_isolated("evaluate", order, threads=threads)
    write_atomic(one.answer, json.dumps(answer).encode())
    return answer


def _row(
    study: Study, one: _Candidate, answer: dict[str, Any], timing: Timing, reference: dict[str, str] | None, out: Path
) -> Measurement:
    """The finished row of a cell; `reference` holds the reference's figures per picture, None for itself."""
    if timing.latency is None or timing.peak_mib is None:
        return _ended(one.base, Status.FAILED, timing.failure)
    data = study.data + (f"#{study.split}" if study.split else "")
    figures = {
        "status": Status.MEASURED,
        "precision_ran": answer["precision_ran"],
        "bundle": str(one.bundle.relative_to(out)),
        "accuracy": accuracy_of(answer, study.protocol, data, reference),
        "latency": latency_of(timing),
        "memory_mb": timing.peak_mib,
        "size_mb": engine_mb(one.bundle),
        "parity": answer["parity"],
        "notes": tuple(dict.fromkeys(answer["notes"])),
    }
    return one.base.model_copy(update=figures)


def _ended(base: Measurement, status: Status, reason: str) -> Measurement:
    return base.model_copy(update={"status": status, "reason": reason})
