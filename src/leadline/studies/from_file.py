"""Carrying out a study's file: engine chosen, cells measured here or on the farm, one report per machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.evaluation.splits import choose_split
from leadline.output import check_writable, output_lock, refuse_finished
from leadline.studies.engine_choice import first_available
from leadline.studies.farm import Farm
from leadline.studies.ground_truth import choose_protocol, choose_scenes
from leadline.studies.measurement import Status
from leadline.studies.optimize import Optimized, refuse_inside
from leadline.studies.recommend import recommend
from leadline.studies.running import run_study
from leadline.studies.study import HERE, Study, cells, untried
from leadline.studies.study_file import said_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.studies.engine_choice import Choice
    from leadline.studies.farm import Link
    from leadline.studies.study import Cell, Outcome
    from leadline.studies.study_file import StudyFile


@dataclass(frozen=True)
class Studied:
    """What a study found.

    Args:
        outcome: all rows, of all machines.
        machines: by name (empty for this one) what to ship there, and the report.
        lost: machines whose reference has no figures, with the reason.
    """

    outcome: Outcome
    machines: dict[str, Optimized]
    lost: dict[str, str]


def carry_out(
    file: StudyFile,
    out: Path,
    *,
    place: Path | None = None,
    on_cell: Callable[[int, int, Cell, str], None] | None = None,
    link: Callable[[], Link] | None = None,
) -> Studied:
    """Measure every cell of a study that is not measured yet, and write the reports.

    Args:
        file: what is compared.
        out: folder of the study; run again with the same, it continues there.
        place: of the file, for messages.
        on_cell: called with (number, of how many, cell, what is done now).
        link: opens the way to the device farm; called only where the study names machines of it.

    Raises:
        OutputError: `out` cannot be written, lies in a folder that is read, holds another study, or one runs there.
        DataError, KindError: the data set cannot be opened, or has nothing that the protocol can compare with.
        ContractError: a size that the network does not take.
        ConfigError: no engine of the list can be used, or there is no such device.
        UnavailableError: there is no device farm.
        LeadlineError: the uncompressed model itself cannot be measured here.
    """
    from leadline.studies.report import write_report

    for what, source in (("data", file.data), ("calibration", file.calibration), ("model", file.model)):
        refuse_inside(out, what, source)
    check_writable(out)
    refuse_finished(out)
    data, scenes = choose_scenes(file.data, file.model)
    split, part = choose_split(data, file.split)
    protocol, notice = choose_protocol(data, split, file.protocol)
    with ExitStack() as held:
        held.enter_context(output_lock(out))
        away = [name for name in dict.fromkeys(file.machines) if name != HERE]
        farm = None
        if away and link is not None:
            farm = Farm(link(), away)
            held.callback(farm.link.close)
            farm.greet()
        with said_in(place, "runtime"):
            choice = _chosen(file, farm)
        study = Study(
            model=file.model,
            data=data,
            split=split,
            protocol=protocol,
            limit=file.limit,
            runtimes=(choice.entry,) if choice else file.runtimes,
            precisions=file.precisions,
            sizes=file.sizes,
            threads=file.threads,
            runs=file.runs,
            calibration=file.calibration,
            calibration_count=file.calibration_count,
            batches=file.batches,
            devices=file.devices,
            on=tuple(dict.fromkeys(file.machines)),
            reference_device=choice.reference_device if choice else "",
            both_alignments=file.alignments == "both",
            timeout=file.timeout,
        )
        terms = _checked(study, file.terms, place)
        said = [scenes, part, notice, terms, choice.sentence if choice else "", *untried(study), _batches(study)]
        outcome = replace(run_study(study, out, on_cell, farm), notices=tuple(filter(None, said)))
        machines, lost = {}, {}
        for name in dict.fromkeys(row.on for row in outcome.rows):
            part_of = outcome.on(name)
            if part_of.reference.status is not Status.MEASURED:
                lost[name] = part_of.reference.reason
                continue
            advice = recommend(part_of.rows, part_of.reference, file.bounds)
            page = f"report-{name}.html" if name else "report.html"
            report = write_report(part_of, advice, file.bounds, page, "leadline study")
            machines[name] = Optimized(part_of, advice, report, file.bounds)
        return Studied(outcome, machines, lost)


def _chosen(file: StudyFile, farm: Farm | None) -> Choice | None:
    if not file.runtime:
        return None
    devices = () if farm is None or HERE in file.machines else tuple(farm.devices.values())
    return first_available(file.runtime, file.precisions, devices)


def _checked(study: Study, terms: str, place: Path | None) -> str:
    """Refuse sizes and names that cannot be, before any work; returns the terms of the weights in a sentence."""
    from leadline.reference import load_model

    contract = load_model(study.model).contract
    for size in study.sizes:
        with said_in(place, "sizes"):
            contract.checked_size(size)
    cells(study, contract)
    said = terms or ("" if contract.licence == "unknown" else contract.licence)
    return f"Terms of the weights of {contract.name}: {said}." if said else ""


def _batches(study: Study) -> str:
    if study.batch == 1:
        return ""
    return (
        "One file per engine, precision and size serves all batches; accuracy is of one picture at a time and measured "
        "once for all of them."
    )
