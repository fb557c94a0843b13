"""Before a recipe's first step: everything opened and checked once, and what it leaves open chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.compression import Judged
from leadline.data.dataset import Subset, open_dataset, part_of
from leadline.errors import ConfigError, UnavailableError
from leadline.evaluation.protocols import get_protocol
from leadline.evaluation.scoring import check_truth
from leadline.evaluation.splits import choose_split
from leadline.reference import load_exportable, load_model
from leadline.runtimes.base import ExportOptions, SessionOptions, refuse_precision, required
from leadline.runtimes.calibration import refuse_empty
from leadline.studies.engine_choice import runs_on
from leadline.studies.ground_truth import WITHOUT_TRUTH, choose_protocol, scenes_for
from leadline.studies.optimize import refuse_inside
from leadline.studies.recipe import OF_THE_START, checked, said_values

if TYPE_CHECKING:
    from leadline.compression import Step, Target
    from leadline.reference import LoadedModel
    from leadline.studies.recipe import Recipe

RENDERED_PICTURES = 32  # that fidelity is measured on where a recipe names nothing


@dataclass(frozen=True)
class Beginning:
    """A recipe that can be run.

    Args:
        source: the network that the first step takes.
        train: the training configuration with losses and rates filled in; empty if no step reads it.
        score: the pictures of the figures, protocol and split filled in.
        notices: what was chosen for the user, in words.
    """

    source: LoadedModel
    train: dict[str, Any]
    score: Judged
    notices: tuple[str, ...]


def begin(recipe: Recipe, out: Path) -> Beginning:
    """Open the model and look at the data, so that what cannot work is refused before any work.

    Raises:
        ConfigError: the target has no FP32, or a step trains what is none of our architectures.
        UnavailableError: the target's engine is missing, or cannot use its device.
        DataError, KindError: data cannot be read, or cannot be compared with what the network predicts.
        OutputError: `out` lies among the data.
        See `leadline.reference.load_exportable` for the rest.
    """
    source = load_exportable(recipe.model)
    refuse_precision(required(recipe.target.runtime), ExportOptions())
    _refuse_device(recipe.target)
    if recipe.target.size is not None:  # trained, judged, counted and measured at one size
        source = replace(source, contract=source.contract.at(recipe.target.size))
    for what, data in (("calibration", recipe.calibration.data), ("model", recipe.model)):
        refuse_inside(out, what, data)
    if recipe.calibration.data is not None and any("calibration" in step.needs() for step in recipe.steps):
        refuse_empty(recipe.calibration.data, recipe.calibration.split)
    for step in recipe.steps:
        _refuse_missing(step)
    for step in recipe.steps:
        step.check(source, recipe.target)
        if step.rebuilds:
            break
    train, learned = _trained(recipe, source, out)
    score, notices = _scored(recipe, source, out)
    if recipe.validation is not None:
        _check(recipe.validation, source, out)
        decides = any(one.needs_validation() for one in recipe.steps)
        if decides and _same_pictures(recipe.validation, score):
            notices.append("Steps decide on the pictures of the figures, which therefore flatter the result.")
    return Beginning(source, train, score, tuple(filter(None, (learned, *notices))))


def _refuse_device(target: Target) -> None:
    """Refuse a device that the engine cannot use here, by trying it in a process of its own."""
    if target.device == SessionOptions().device:
        return
    if why := runs_on(target.runtime, target.device):
        raise UnavailableError("no such target", where=f"{target.runtime} on {target.device}", why=why)


def _refuse_missing(step: Step) -> None:
    """Refuse a step whose files or models are not there."""
    for key, value in step:
        if isinstance(value, Path) and not value.exists():
            raise ConfigError("no such file", where=value, why=f"{key} of {step.step}")
    for reference in step.named_models():
        load_model(reference)


def _trained(recipe: Recipe, source: LoadedModel, out: Path) -> tuple[dict[str, Any], str]:
    """The training configuration as `leadline train` would complete it, and the line that says it."""
    if not recipe.train or not any("train" in one.uses for one in recipe.steps):
        return {}, ""
    if source.architecture is None:
        training = [one.step for one in recipe.steps if one.trains]
        if not training:
            return recipe.train, ""
        why = f"{training[0]} trains, and only the architectures of `leadline models` can be trained and saved"
        raise ConfigError("cannot train", where=recipe.model, why=why)
    from leadline.training.plan import plan

    given = dict(recipe.train)
    if recipe.target.size is not None:
        given.setdefault("size", list(recipe.target.size))
    chosen = plan(checked(given).model_copy(update={"model": recipe.model}), out)
    learned = f"Training: {chosen.said.rpartition('; rate ')[0]}; rate and length as each step says."
    return said_values(chosen.config, OF_THE_START), learned


def _scored(recipe: Recipe, source: LoadedModel, out: Path) -> tuple[Judged, list[str]]:
    """The pictures of the figures with protocol and split, and what was chosen there, in words."""
    if recipe.score is None:
        data, _ = scenes_for(source.contract)
        score = Judged(data=data, protocol=WITHOUT_TRUTH, limit=RENDERED_PICTURES)
        said = f"No `score`: accuracy is agreement with the source (fidelity) on {RENDERED_PICTURES} rendered pictures"
        return score, [f"{said}, and says nothing of whether the source is right."]
    wanted = recipe.score
    data, scenes = scenes_for(source.contract) if wanted.data == "rendered" else (wanted.data, "")
    split, part = choose_split(data, wanted.split)
    asked = wanted.protocol if "protocol" in wanted.model_fields_set else None
    protocol, notice = choose_protocol(data, split, asked)
    score = wanted.model_copy(update={"data": data, "split": split, "protocol": protocol})
    _check(score, source, out)
    return score, [scenes, part, notice]


def _check(judged: Judged, source: LoadedModel, out: Path) -> None:
    """Pass where the pictures exist and the protocol can compare them with the network's predictions."""
    refuse_inside(out, "data", judged.data)
    protocol = get_protocol(judged.protocol)
    protocol.alignment_for(source.contract.output.kind, source.name)
    whole = open_dataset(judged.data, judged.split)
    check_truth(Subset(whole, judged.first, judged.last).kind, protocol)


def _same_pictures(one: Judged, other: Judged) -> bool:
    """Whether two parts of one data set overlap."""
    (data, split), (others, theirs) = (part_of(each.data) for each in (one, other))
    if (data, one.split or split) != (others, other.split or theirs):
        return False
    total = len(open_dataset(one.data, one.split))
    first, second = (set(range(total)[each.first : each.last]) for each in (one, other))
    return bool(first & second)
