"""From what export, accuracy and timing said to the finished row of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadline.studies.figures import accuracy_of, engine_files, latency_of, packed_mb
from leadline.studies.floor import floor_share
from leadline.studies.measurement import Status
from leadline.studies.planning import SPARSE, ended

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from leadline.evaluation.latency import Timing
    from leadline.studies.measurement import Measurement
    from leadline.studies.planning import Candidate
    from leadline.studies.study import Study


def finished_row(
    study: Study,
    one: Candidate,
    answer: Mapping[str, Any],
    timing: Timing,
    reference: dict[str, str] | None,
    out: Path,
    *,
    is_reference: bool,
) -> Measurement:
    """The row of a cell that was timed; a failure of its engine is a row without figures.

    Args:
        study: what is compared.
        one: the cell.
        answer: what export and accuracy said.
        timing: what its process said.
        reference: the reference's figures per picture, None for itself.
        out: the study's folder.
        is_reference: the cell is what its machine's others are compared with.
    """
    if timing.latency is None or timing.peak_mib is None:
        return ended(one.base, Status.FAILED, timing.failure)
    if timing.ratio is None and not is_reference:
        why = "the reference ended while this was timed, so that there is nothing to compare with; run it again"
        return ended(one.base, Status.FAILED, why, lost=True)
    ran = timing.precision_ran if one.cell.on else answer["precision_ran"]
    files = engine_files(one.bundle)
    sparse = one.base.zeros >= SPARSE
    figures = {
        "status": Status.MEASURED,
        "precision_ran": ran,
        "bundle": str(one.bundle.relative_to(out)),
        "accuracy": accuracy_of(dict(answer), study.protocol, data_of(study), reference),
        "latency": latency_of(timing),
        "floor_share": floor_share(one, timing.latency, ran),
        "memory_mb": timing.peak_mib,
        "device_mb": timing.device_mib,
        "size_mb": sum(path.stat().st_size for path in files) / 1e6,
        "packed_mb": packed_mb(files) if sparse else None,
        "parity": answer["parity"],
        "notes": tuple(dict.fromkeys([*one.base.notes, *answer["notes"], *remarks(one, answer), *timing.cautions])),
    }
    return one.base.model_copy(update=figures)


def data_of(study: Study) -> str:
    """The data set with its part, for people."""
    return study.data + (f"#{study.split}" if study.split else "")


def remarks(one: Candidate, answer: Mapping[str, Any]) -> list[str]:
    """What the reader of a row must know beyond its figures."""
    found = []
    if one.cell.batch > 1 and answer.get("one_by_one"):
        found.append("the file takes one picture at a time: a batch is a loop over it")
    if one.base.zeros >= SPARSE:
        found.append(
            f"{one.base.zeros:.0%} of the weights are zero: the engine computes and stores them like any others; "
            "MACs count them, the packed size is what they save"
        )
    if one.cell.on and "scored_on" not in answer:
        found.append("accuracy was measured on the machine that leads the study, with the same bundle")
    return found
