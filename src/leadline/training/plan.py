"""What a run learns from and how, where the configuration leaves it open: chosen from the data, said in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from leadline.depth import Kind
from leadline.errors import ConfigError, KindError
from leadline.reference import fresh_variant
from leadline.training.config import METRIC, TrainConfig
from leadline.training.fit import CONFIG, STATE
from leadline.training.lessons import lessons_of
from leadline.training.metres import common_camera
from leadline.training.objectives.distillation import MedianCentred
from leadline.training.objectives.self_supervised import Photometric, PoseOptions, Smoothness
from leadline.training.objectives.supervised import GradientMatching, ScaleShiftInvariant
from leadline.training.paths import refuse_data_folder
from leadline.training.run import read_for, starting_point

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from leadline.training.fit import Start
    from leadline.training.lessons import Lesson
    from leadline.training.objectives import Term

FINE_TUNING_RATE = 3e-4  # a third of the rate of fresh weights; 1e-4 learned too little in 100 iterations
CAREFUL_RATE = 1e-4  # of trained transformers, and of trained weights that go on with a fresh pose network
VIDEO_RATE = 5e-4  # of fresh weights, and of the pose network: at 1e-4 it took twice as long to see the motion
VIT_ENCODER = 0.1  # a trained Depth Anything's encoder beside its decoder
ADOPTED = (
    "objectives",
    "learning_rate",
    "auxiliary_rate",
    "encoder_factor",
    "camera",
)  # by a run begun before
METRIC_LOSSES = ("l1", "berhu", "silog")  # see metres alone
RELATIVE = {"kind": "relative_disparity", "head": "softplus", "start_depth": 1.0}  # FastDepth's family, any picture


@dataclass(frozen=True)
class Plan:
    """A complete run: its configuration, its start, what is labelled first, and one line that says all this."""

    config: TrainConfig
    start: Start
    said: str
    lessons: tuple[Lesson, ...]


def plan(config: TrainConfig, out: Path, teacher: str | None = None) -> Plan:
    """Choose what the configuration leaves open, from what the data and the network are.

    - pictures with depth: silog and gradient for metres, ssi and gradient for relative kinds;
    - pictures without depth, with a teacher: its labels into `out/labels`, then the same by the teacher's kind;
    - films and frames without depth: photometric and smoothness from the frames before and after, and a small pose
      network;
    - a smaller learning rate where the start has trained weights;
    - the camera of the pictures, where all have one, for a network in metres whose contract names none.

    What the configuration says is kept, and so is what the run in `out` was begun with.

    Args:
        config: the run; `model_fields_set` tells what was said.
        out: folder of the run.
        teacher: reference of the model that labels pictures without depth.

    Raises:
        DataError: pictures without depth and without a teacher, or frames without a camera.
        KindError: the network's kind cannot learn from what there is; the message names the ways out.
        ConfigError: the teacher has nothing to label; or see `starting_point`.
    """
    refuse_data_folder(config, out)
    start = starting_point(config)
    answer = _kind_of(teacher) if teacher else None
    lessons = lessons_of(config, out, teacher, answer)
    if teacher and not any(lesson.unlabelled is not None for lesson in lessons):
        mend = "leave --teacher out, or label with `leadline pseudo-label` and train on pseudo:PICTURES,STORE"
        raise ConfigError("nothing to label", where=f"--teacher {teacher}", why="all data has depth", mend=mend)
    config = config.model_copy(update={"sources": [lesson.source for lesson in lessons]})
    said = config.model_fields_set - {"sources"}
    if _learns_relative(config, start, lessons):
        config = config.model_copy(update={"network": {**RELATIVE, **config.network}})
        start = starting_point(config)
    chosen: dict[str, Any] = {}
    if "objectives" in said:
        _check_given(config, lessons)
    else:
        terms = _from_frames(lessons)
        kind = read_for(terms, start).contract.output.kind
        chosen["objectives"] = terms + _from_depth(config.model, kind, lessons)
    chosen |= _rates(config.model_copy(update=chosen), start)
    if teacher:
        chosen["training_data"] = [_origin(lesson, teacher) for lesson in lessons]
    begun = _begun(out)
    camera_said = ""
    if not begun and "camera" not in said and _lacks_camera(start):
        metric = [lesson.source for lesson in lessons if lesson.kind in (None, Kind.METRIC_DEPTH)]
        chosen["camera"], camera_said = common_camera(metric, skip_bad=config.skip_bad)
    config = config.model_copy(update={key: value for key, value in (chosen | begun).items() if key not in said})
    line = _said(config, start, lessons, chosen="learning_rate" not in said and not begun)
    read = read_for(config.objectives, start)
    read_said = ""
    if read is not start:
        read_said = f"its {start.contract.output.kind} is read as {read.contract.output.kind}, as frames know no shift"
    return Plan(config, read, "; ".join(filter(None, (line, read_said, camera_said))), tuple(lessons))


def trained(model: str) -> bool:
    """True where a reference names trained weights, False for a variant, whose weights are fresh."""
    return fresh_variant(model) is None


def _lacks_camera(start: Start) -> bool:
    """Whether metres are predicted, and for a camera that nothing names."""
    return start.contract.output.kind is Kind.METRIC_DEPTH and start.contract.input.camera is None


def _kind_of(reference: str) -> Kind:
    from leadline.predictor import load

    with load(reference, threads=1) as predictor:
        return predictor.contract.output.kind


def _origin(lesson: Lesson, teacher: str) -> str:
    """What the contract says of a source: labels carry what their teacher knew."""
    return lesson.source.data if lesson.unlabelled is None else f"{lesson.source.data}, labelled by {teacher}"


def _learns_relative(config: TrainConfig, start: Start, lessons: Sequence[Lesson]) -> bool:
    """Whether fresh weights of FastDepth's family are to become a relative network, as nothing here is in metres."""
    fresh = start.architecture == "fastdepth" and not trained(config.model) and "kind" not in config.network
    if not fresh or "objectives" in config.model_fields_set or any(lesson.source.frames for lesson in lessons):
        return False
    return {lesson.kind for lesson in lessons} <= {Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY}


def _check_given(config: TrainConfig, lessons: Sequence[Lesson]) -> None:
    """Losses in metres alone would be 0 for ever on data without metres."""
    kinds = {lesson.kind for lesson in lessons}
    losses = [objective.loss for objective in config.objectives]
    if None not in kinds and Kind.METRIC_DEPTH not in kinds and all(loss in METRIC_LOSSES for loss in losses):
        why = f"there is only {', '.join(sorted(str(kind) for kind in kinds))} to learn from"
        raise KindError("losses in metres", where=", ".join(losses), why=why, mend="use --loss ssi --loss gradient=0.5")


def _from_frames(lessons: Sequence[Lesson]) -> list[Term]:
    """The losses of films and frames, none where there are none."""
    films = [lesson.source for lesson in lessons if lesson.source.frames]
    if not films:
        return []
    eyes = all(offset == "stereo" for film in films for offset in film.frames)
    return [Photometric(pose=PoseOptions(network="small"), poses="known" if eyes else "learned"), Smoothness()]


def _from_depth(model: str, kind: Kind, lessons: Sequence[Lesson]) -> list[Term]:
    """The losses that fit the network's kind and the depth that there is to learn from."""
    kinds = {lesson.kind for lesson in lessons if lesson.kind is not None}
    _check_kinds(model, kind, kinds, films=any(lesson.source.frames for lesson in lessons))
    terms: list[Term] = []
    if kinds and kind is Kind.METRIC_DEPTH:
        terms += METRIC
        terms += [ScaleShiftInvariant(weight=0.3)] if len(kinds) > 1 else []
    elif kinds and kind is Kind.SCALED_DISPARITY and Kind.RELATIVE_DISPARITY not in kinds:
        terms += [MedianCentred(), GradientMatching(weight=0.5)]  # forgives a scale and, unlike ssi, no shift
    elif kinds:
        terms += [ScaleShiftInvariant(), GradientMatching(weight=0.5)]
    return terms


def _check_kinds(model: str, kind: Kind, kinds: set[Kind], *, films: bool) -> None:
    if Kind.RELATIVE_DEPTH in kinds:
        why = "its unknown shift forbids a disparity"
        raise KindError("relative depth cannot be a target", why=why, mend="give metric depth or relative disparity")
    if films and kind not in (Kind.SCALED_DISPARITY, Kind.METRIC_DEPTH):
        shift = "which may be negative" if kind is Kind.RELATIVE_DISPARITY else "whose unknown shift leaves no geometry"
        why = f"it predicts {kind}, {shift}"
        mend = "start at scaled disparity (lite-mono-tiny) or metres (random:leadline-s), or distil: --teacher REF"
        raise KindError("self-supervision cannot start at", where=model, why=why, mend=mend)
    if kinds and kind is Kind.METRIC_DEPTH and Kind.METRIC_DEPTH not in kinds:
        why = f"nothing here is in metres, only {', '.join(sorted(kinds))}, and its metres would drift"
        mend = "add data or a teacher in metres, start at a network of relative disparity, or insist with --loss ssi"
        raise KindError("cannot go on with the metres of", where=model, why=why, mend=mend)


def _rates(config: TrainConfig, start: Start) -> dict[str, Any]:
    """Learning rates by whether the weights are trained, and by what is learned."""
    video = any(objective.needs_frames for objective in config.objectives)
    if not trained(config.model):
        return {"learning_rate": VIDEO_RATE, "auxiliary_rate": 1.0} if video else {}
    if start.architecture == "depth-anything-v2":
        return {"learning_rate": CAREFUL_RATE, "encoder_factor": VIT_ENCODER}
    return {"learning_rate": CAREFUL_RATE if video else FINE_TUNING_RATE}


def _begun(out: Path) -> dict[str, Any]:
    """What the run that `out` holds was begun with."""
    if not (out / STATE).is_file() or not (out / CONFIG).is_file():
        return {}
    try:
        stored = TrainConfig.model_validate(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the saved state itself says what must agree
    return {key: getattr(stored, key) for key in ADOPTED}


def _said(config: TrainConfig, start: Start, lessons: Sequence[Lesson], *, chosen: bool) -> str:
    """The plan in one line; `chosen` where the learning rate was, here."""
    weights = "trained" if trained(config.model) else "fresh weights"
    if config.imagenet or config.truncate_from:
        weights = f"weights cut from {config.truncate_from}" if config.truncate_from else "encoder of ImageNet"
    taught = [lesson.words for lesson in lessons[:3]] + ([f"{len(lessons) - 3} more"] if len(lessons) > 3 else [])
    losses = [
        objective.loss if objective.weight == 1 else f"{objective.weight:g} {objective.loss}"
        for objective in config.objectives
    ]
    rate = f"rate {config.learning_rate:g}"
    if chosen and trained(config.model):
        film = any(objective.needs_frames for objective in config.objectives)
        fresh = VIDEO_RATE if film else TrainConfig.model_fields["learning_rate"].default
        rate += f", as the weights are trained (fresh ones: {fresh:g})"
    if config.iterations <= config.warmup:
        rate += f", still rising when the run ends (warmup {config.warmup} of {config.iterations} iterations)"
    kind = start.contract.output.kind
    return f"{config.model} ({weights}, {kind}) learns from {', '.join(taught)}; loss {' + '.join(losses)}; {rate}"
