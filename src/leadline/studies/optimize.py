"""Optimise: measure the candidates, recommend one within the limits, and write the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import OutputError
from leadline.evaluation.splits import choose_split
from leadline.output import check_writable, output_lock, refuse_finished
from leadline.studies.ground_truth import choose_protocol, choose_scenes
from leadline.studies.identity import refuse_other
from leadline.studies.recommend import Limits, Recommendation, recommend
from leadline.studies.running import run_study
from leadline.studies.study import REFERENCE_RUNTIME, Outcome, Study, untried

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.studies.searching import Found, Training
    from leadline.studies.study import Cell


@dataclass(frozen=True)
class Optimized:
    """What `optimize` found.

    Args:
        outcome: the rows.
        advice: the recommended row, and why.
        report: the HTML file.
        limits: the user's.
    """

    outcome: Outcome
    advice: Recommendation
    report: Path
    limits: Limits = field(default_factory=Limits)

    @property
    def bundle(self) -> Path | None:
        """The recommended bundle's folder; None where nothing keeps to the limits."""
        return self.outcome.folder / self.advice.row.bundle if self.advice.row else None


def optimize(
    model: str,
    data: str,
    *,
    protocol: str | None = None,
    out: Path | str = "runs/optimize",
    limits: Limits | None = None,
    training: Training | None = None,
    on_cell: Callable[[int, int, Cell, str], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    **options: Any,
) -> Optimized:
    """Export a model to every runtime, precision and size, measure each, and recommend one.

    With `training`, recipes make further networks of the model first, and each is a candidate as the model is.

    Args:
        model: reference.
        data: data set reference; of a bare `rendered`, the scenes that suit the model.
        protocol: by name, variants included; None takes `plain`, or `fidelity` where there is no ground truth.
        out: folder of the study; run again with the same, it continues there.
        limits: the user's; the default allows a loss of 0.01 of the primary metric.
        training: data and time for recipes; None tries none.
        on_cell: called with (number, of how many, cell, what is done now).
        on_line: takes each line of the recipes' progress.
        options: further fields of `leadline.studies.study.Study`.

    Raises:
        OutputError: `out` cannot be written, lies in a folder that is read, holds another study, or one runs there.
        DataError, KindError: the data set cannot be opened, or has nothing that `protocol` can compare with.
        LeadlineError: the uncompressed model itself cannot be measured.
    """
    from leadline.studies.report import write_report

    folder, bounds = Path(out), limits or Limits()
    for what, source in (("data", data), ("calibration", options.get("calibration")), ("model", model)):
        refuse_inside(folder, what, source)
    data, scenes = choose_scenes(data, model)
    options["split"], part = choose_split(data, options.get("split"))
    chosen, notice = choose_protocol(data, options["split"], protocol)
    check_writable(folder)
    refuse_finished(folder)
    with output_lock(folder):
        study = Study(model=model, data=data, protocol=chosen, **options)
        notices = [scenes, part, notice, *untried(study)]
        if training is not None:
            refuse_other(folder, study)  # before anything is trained
            made = _recipes(model, training, options, folder, on_line or (lambda line: None), bounds)
            study = replace(study, networks=tuple(made.networks))
            notices += [*_learned(training, data, options["split"]), *made.notices]
        outcome = replace(run_study(study, folder, on_cell), notices=tuple(filter(None, notices)))
        advice = recommend(outcome.rows, outcome.reference, bounds)
        return Optimized(outcome, advice, write_report(outcome, advice, bounds), bounds)


def _recipes(
    model: str, training: Training, options: dict[str, Any], folder: Path, say: Callable[[str], None], bounds: Limits
) -> Found:
    """Networks for the engine whose time counts: the first that is asked for, else ONNX Runtime."""
    from leadline.compression import Target
    from leadline.studies.searching import search

    engines = [name for name in options.get("runtimes", ()) if name != REFERENCE_RUNTIME] or ["onnxruntime"]
    sizes = options.get("sizes", ())
    target = Target(runtime=engines[0], threads=options.get("threads", 1), size=sizes[0] if sizes else None)
    return search(model, training, target, folder / "recipes", say, bounds)


def _learned(training: Training, data: str, split: str | None) -> list[str]:
    """A notice where the pictures of the figures are learned, too."""
    sources = [(source["data"], source.get("split")) for source in training.train.get("sources", ())]
    if (data, split) not in sources:
        return []
    return [f"Recipes learned on {data}, on which all is measured: what they made looks better than it is."]


def refuse_inside(out: Path, what: str, source: str | None) -> None:
    """Refuse to write among the files that are read.

    Args:
        out: folder that would be written.
        what: `data`, `calibration`, `model`, for the message.
        source: reference of what is read; None and names pass.

    Raises:
        OutputError: `out` is that folder, or lies inside it.
    """
    from leadline.data.dataset import FORMATS

    source = source or ""
    name, _, rest = source.partition(":")
    place = "" if name == "rendered" else (rest if name in FORMATS else source).partition("?")[0]
    if place and Path(place).is_dir() and out.resolve().is_relative_to(Path(place).resolve()):
        mend = "choose a folder outside it with --out"
        raise OutputError("refused to write into", where=out, why=f"it is the {what} folder, or inside it", mend=mend)
