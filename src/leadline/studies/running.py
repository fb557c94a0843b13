"""Running a study: exports and accuracy side by side on all cores, then speed alone, in turn with the reference."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from leadline.bundle import load_bundle
from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.isolation import TIMEOUT, Job
from leadline.evaluation.latency import compare
from leadline.output import write_atomic
from leadline.runtimes.base import ExportOptions, Precision, refuse_precision, runtime
from leadline.studies.identity import claim
from leadline.studies.isolated import JobError, run_isolated, stop_jobs
from leadline.studies.measurement import Measurement, Status
from leadline.studies.planning import Candidate, ended, plan_of
from leadline.studies.rows import finished_row
from leadline.studies.store import Store
from leadline.studies.study import CPU, Cell, Outcome, Study

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from leadline.evaluation.latency import Timing
    from leadline.studies.farm import Farm

    OnCell = Callable[[int, int, Cell, str], None]
    Answers = dict[Cell, dict[str, Any]]

WARMUP, ROUNDS = 10, 6  # runs before the timed ones; turns of candidate and reference
PATIENCE = 5.0  # seconds that an interrupted job may take to clean up


def run_study(study: Study, out: Path, on_cell: OnCell | None = None, farm: Farm | None = None) -> Outcome:
    """Measure every cell that the store does not hold yet; what is finished is never done again.

    Args:
        study: what is compared.
        out: folder with `study.sqlite`, `bundles/`, `cells/` and `panel/`.
        on_cell: called with (rows finished, of how many, cell, what is done now), from one thread.
        farm: the machines of `study.on`; None where there are none.

    Raises:
        OutputError: the folder holds another study.
        LeadlineError: the reference itself cannot be measured here; any other cell that fails becomes a row.
    """
    plan = plan_of(study, out, farm.devices if farm else None)
    claim(out, study, plan[0].weights)
    with Store(out / "study.sqlite") as store:
        held = [store.get(one.base.key) for one in plan]
        rows = {row.key: row for row in held if row is not None and not row.lost}
        todo = [one for one in plan if one.base.key not in rows]

        def tell(one: Candidate, what: str) -> None:
            if on_cell is not None:
                on_cell(len(rows), len(plan), one.cell, what)

        def finish(one: Candidate, row: Measurement, scores: dict[str, str] | None = None) -> None:
            store.put(row, scores)
            rows[row.key] = row
            tell(one, row.status.value)

        if on_cell is not None:  # so that the number of candidates is known from the start
            kept = [one for one in plan if one.base.key in rows]
            for number, one in enumerate(kept, start=1):
                on_cell(number, len(plan), one.cell, f"{rows[one.base.key].status.value} in an earlier run")
            if todo:
                tell(todo[0], "exporting and scoring")
        answers = _exported_and_scored(study, todo, farm, finish, tell)
        references = {one.cell.on: one for one in reversed(plan)}  # the first of each machine

        def record(one: Candidate, timing: Timing) -> None:
            """The row of a timed cell, compared with the reference of its own machine."""
            reference = references[one.cell.on]
            if one.base.key in rows:  # the reference of an earlier run, which only takes its turns again
                return
            answer = answers[one.cell.exported]
            first = one.base.key == reference.base.key
            theirs = None if first else store.scores(reference.base.key)
            row = finished_row(study, one, answer, timing, theirs, out, is_reference=first)
            if row.status is Status.MEASURED and not one.cell.on and one.cell.batch == 1:
                load_bundle(one.bundle).write_measurements(row.carried())
            elif row.status is not Status.MEASURED and first and not one.cell.on:
                raise LeadlineError("the reference cannot be measured", where=one.cell.folder, why=row.reason)
            finish(one, row, {scored["name"]: json.dumps(scored) for scored in answer["rows"]})

        timed = [one for one in todo if one.base.key not in rows and one.cell.exported in answers]
        if "" in references:
            here = [one for one in timed if not one.cell.on]
            _timed_here(study, references[""], here, rows, record)
        if farm is not None:
            farm.measure(study, [one for one in timed if one.cell.on], references, answers, record, finish)
        names = {row.name for row in rows.values()}
        for row in store.all():  # a machine that could not be reached had no fingerprint, and its row another key
            if row.lost and row.key not in rows and row.name in names:
                store.drop(row.key)
    return Outcome(study, out, [rows[one.base.key] for one in plan])


def _timed_here(
    study: Study,
    reference: Candidate,
    timed: Sequence[Candidate],
    rows: dict[str, Measurement],
    record: Callable[[Candidate, Timing], None],
) -> None:
    """Time this machine's cells in turn with its reference."""
    if reference.base.key in rows and rows[reference.base.key].status is not Status.MEASURED:
        why = rows[reference.base.key].reason
        raise LeadlineError("the reference cannot be measured", where=reference.cell.folder, why=why)
    if not timed:
        return
    order = [reference, *(one for one in timed if one is not reference)]
    waiting = iter(order)  # `compare` tells of each in this order
    first, *others = (job_of(study, one) for one in order)
    limit = study.timeout or TIMEOUT
    done = lambda timing: record(next(waiting), timing)  # noqa: E731
    compare(first, others, runs=study.runs, warmup=WARMUP, rounds=ROUNDS, timeout=limit, on_done=done)


def job_of(study: Study, one: Candidate) -> Job:
    """What the process that times a cell opens."""
    return Job(str(one.bundle), study.threads, device=one.cell.device or CPU, batch=one.cell.batch)


def _exported_and_scored(
    study: Study,
    todo: list[Candidate],
    farm: Farm | None,
    finish: Callable[[Candidate, Measurement], None],
    tell: Callable[[Candidate, str], None],
) -> Answers:
    """What export and accuracy said, once for all batches and machines; a cell that fails here is finished."""
    answers: Answers = {}
    sharing: dict[Cell, list[Candidate]] = {}
    for one in todo:
        reason = _cannot(one.cell)
        lost = ""
        if one.cell.on:
            assert farm is not None
            reason, lost = reason or farm.lacks(one.cell), farm.unreachable(one.cell.on)
        if lost:
            finish(one, ended(one.base, Status.FAILED, lost, lost=True))
        elif reason:
            finish(one, ended(one.base, Status.SKIPPED, reason))
        else:
            sharing.setdefault(one.cell.exported, []).append(one)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        pending = {pool.submit(_prepare, study, those[0]): those for those in sharing.values()}
        try:
            for future in as_completed(pending):
                those = pending[future]
                try:
                    answers[those[0].cell.exported] = future.result()
                    tell(those[0], "exported and scored")
                except JobError as error:
                    refused = error.cause in ("ConfigError", "UnavailableError")
                    for one in those:
                        finish(one, ended(one.base, Status.SKIPPED if refused else Status.FAILED, str(error)))
        except BaseException:  # above all Ctrl-C: the jobs end too, or the command would seem to hang
            pool.shutdown(wait=False, cancel_futures=True)
            stopped = time.monotonic()
            while not all(future.done() for future in pending):
                stop_jobs(kill=time.monotonic() - stopped > PATIENCE)
                time.sleep(0.05)
            raise
    return answers


def _cannot(cell: Cell) -> str:
    """Why a cell cannot be tried from here; empty where it can."""
    adapter = runtime(cell.runtime)
    try:
        refuse_precision(adapter, ExportOptions(Precision(cell.precision)))
    except ConfigError as error:
        return str(error)
    state = adapter.availability()
    if not state.available:
        return f"{state.reason}; {state.install}"
    return "" if cell.on else state.export_only


def _prepare(study: Study, one: Candidate) -> dict[str, Any]:
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
        "batch": study.batch,
        "calibration": study.calibration,
        "count": study.calibration_count,
        "out": str(one.bundle),
    }
    limit = {} if study.timeout is None else {"timeout": study.timeout}
    if runtime(one.cell.runtime).availability().export_only:  # the machine that can run it scores it
        answer = run_isolated("export", order, threads=threads, **limit)
    else:
        scoring = scoring_order(study, one.cell) | {"ref": str(one.bundle), "panel": str(one.panel)}
        both = {"export_order": order, "evaluate_order": scoring}
        answer = run_isolated("export_and_evaluate", both, threads=threads, **limit)
    write_atomic(one.answer, json.dumps(answer).encode())
    return answer


def scoring_order(study: Study, cell: Cell) -> dict[str, Any]:
    """The order for a cell's accuracy, but for the place of its bundle."""
    return {
        "data": study.data,
        "split": study.split,
        "protocol": study.protocol,
        "limit": study.limit,
        "threads": max(1, study.threads),
        "reference": study.model if study.protocol.startswith("fidelity") else None,
        "device": cell.device,
        "both": study.both_alignments,
    }
