"""What each source of a run teaches: depth, a teacher's labels, or the frames around its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.data.dataset import FORMATS, open_dataset
from leadline.data.label_store import LabelStore
from leadline.data.places import PSEUDO
from leadline.errors import DataError, LeadlineError
from leadline.sources import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from leadline.data.dataset import Dataset, Sample
    from leadline.depth import Kind
    from leadline.training.config import Source, TrainConfig

LABELS = "labels"  # folder of a run that holds what its teacher said
FRAMES = [-1, 1]  # the neighbours that self-supervision sees where nothing else is said


@dataclass(frozen=True)
class Lesson:
    """What one source teaches.

    Args:
        source: with its `labels` or `frames` filled in.
        kind: of its depth or labels; None where only its frames teach, or nothing had to be known.
        words: of what, for people.
        unlabelled: pictures that a teacher labels first, into the source's store; 0 where the number is not known.
            None where there is nothing to label.
    """

    source: Source
    kind: Kind | None
    words: str
    unlabelled: int | None = None


def lessons_of(config: TrainConfig, out: Path, teacher: str | None, answer: Kind | None) -> list[Lesson]:
    """What the sources of a run teach; where the configuration does not say it, the first pictures are looked at.

    Args:
        config: the run.
        out: its folder.
        teacher: reference of the model that labels pictures without depth.
        answer: the teacher's kind.

    Raises:
        DataError: pictures without depth and without a teacher, or frames without a camera.
    """
    settled = "objectives" in config.model_fields_set
    wanted = settled and any(objective.needs_frames for objective in config.objectives)
    nothing_else = settled and all(objective.needs_frames for objective in config.objectives)
    lessons: list[Lesson] = []
    for source in config.sources:
        if source.labels is not None:
            words = f"labels of {short_name(source.data)}"
            lessons.append(Lesson(source, LabelStore(Path(source.labels)).info.kind, words))
        elif source.frames:
            lessons.append(Lesson(source, None, f"frames of {short_name(source.data)}"))
        elif settled and not teacher and not _only_frames(source.data):
            around = source.model_copy(update={"frames": FRAMES}) if nothing_else else source
            lessons.append(Lesson(around, None, f"{'frames of ' if nothing_else else ''}{short_name(source.data)}"))
        else:
            number = sum(lesson.unlabelled is not None for lesson in lessons) + 1
            store = out / (LABELS if number == 1 else f"{LABELS}-{number}")
            lessons.append(_lesson(source, store, teacher, answer, wanted or not settled, config.skip_bad))
    return lessons


def _lesson(
    source: Source, store: Path, teacher: str | None, answer: Kind | None, film: bool, skip_bad: bool
) -> Lesson:
    """What a source teaches whose configuration does not say it: found by its first readable picture."""
    dataset: Dataset | None = None
    sample: Sample | None = None
    known = _only_frames(source.data) and (teacher or _states_camera(source.data))
    if not known:  # a film is decoded when it is opened: only where something is to be found out
        dataset, sample = _first(source, skip_bad)
    if dataset is not None and (sample is None or sample.depth is not None):
        kind = dataset.kind if sample is None or sample.depth is None else sample.depth.kind
        what = "labels" if source.data.startswith(PSEUDO) else "depth"
        return Lesson(source, kind, f"{what} of {short_name(source.data)} ({kind})")
    if teacher:
        words = f"labels of {teacher} for {short_name(source.data)} ({answer})"
        labelled = source.model_copy(update={"labels": str(store)})
        return Lesson(labelled, answer, words, 0 if dataset is None else len(dataset))
    if not (_only_frames(source.data) and film):
        frames = source.data if _only_frames(source.data) else f"frames:{source.data}"
        mend = f"let a model label them: --teacher REF; or, of a moving camera, learn from {_with_camera(frames)}"
        if _only_frames(source.data):
            mend = "let a model label them: --teacher REF; or add --loss photometric --loss smoothness"
        raise DataError("pictures without depth", where=source.data, why="nothing says how deep they are", mend=mend)
    if sample is not None and sample.intrinsics is None:
        mend = f"say its horizontal field of view, as in {_with_camera(source.data)}, or write an intrinsics.txt"
        mend += " (fx fy cx cy) beside the pictures; or let a model label them: --teacher REF"
        why = "self-supervision must know the camera"
        raise DataError("frames without a camera", where=source.data, why=why, mend=mend)
    return Lesson(source.model_copy(update={"frames": FRAMES}), None, f"frames of {short_name(source.data)}")


def _first(source: Source, skip_bad: bool) -> tuple[Dataset, Sample | None]:
    """The data set, and its first picture that can be read."""
    dataset = open_dataset(source.data, source.split, skip_bad=skip_bad)
    for index in range(len(dataset))[source.first : source.last]:
        try:
            return dataset, dataset[index]
        except LeadlineError as error:
            if not skip_bad:
                where = dataset.names()[index]
                mend = "mend or remove it, or leave what is damaged out with --skip-bad"
                raise DataError("cannot use a training sample", where=where, why=str(error), mend=mend) from error
    return dataset, None


def _only_frames(reference: str) -> bool:
    """True for films and for what is named `frames:`; their pictures have no depth."""
    name = reference.partition(":")[0]
    if name in FORMATS:
        return name == "frames"
    path = Path(reference.partition("?")[0])
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _states_camera(reference: str) -> bool:
    return re.search(r"[?&](fov|fx)=", reference) is not None


def _with_camera(reference: str) -> str:
    return f"--data '{reference}{'&' if '?' in reference else '?'}fov=60'"


def short_name(reference: str) -> str:
    """A data set's name in a line: the path's last part."""
    name, colon, rest = reference.partition(":")
    path = rest if colon and name in FORMATS and name != "rendered" else reference
    return Path(path.partition("?")[0].partition(",")[0]).name or reference
