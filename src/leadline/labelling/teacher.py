"""A teacher at work on one item after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from leadline.data.dataset import open_dataset
from leadline.data.label_store import LabelStore, picture_hash
from leadline.errors import LeadlineError, OutputError
from leadline.predictor import Predictor, load

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from leadline.data.dataset import Sample
    from leadline.depth import Depth


@dataclass(frozen=True)
class Job:
    """What to label.

    Args:
        teacher: any model reference.
        data: any data set reference: a folder of pictures, a film, a data set.
        split: a part of the data set.
        size: (height, width) of the teacher's input, pixels; the contract's where absent.
        shard: (number from 1, of how many): this run's share of the items, every n-th.
        skip_bad: leave items out that are incomplete in the data set.
    """

    teacher: str
    data: str
    split: str | None = None
    size: tuple[int, int] | None = None
    shard: tuple[int, int] = (1, 1)
    skip_bad: bool = False


@dataclass(frozen=True)
class Item:
    """What became of one picture: labelled, equal to another (`same_as`), or stopped by an error."""

    name: str
    same_as: str | None = None
    error: str | None = None
    degenerate: bool = False


class Claims(Protocol):
    """Which name computes the label of a picture: the first that asks."""

    def setdefault(self, picture: str, name: str) -> str:
        """The name that has claimed this picture, which is `name` if none had."""


class Teacher:
    """A teacher at work: reads pictures of the data set, labels those that nobody has claimed, writes the labels."""

    def __init__(self, job: Job, folder: Path, claims: Claims) -> None:
        self.dataset = open_dataset(job.data, job.split, skip_bad=job.skip_bad)
        self.names = self.dataset.names()
        self.predictor = load(job.teacher, threads=1, size=job.size)
        self.store, self.claims = LabelStore(folder), claims

    def label(self, index: int) -> Item:
        """Label one item of the data set.

        Raises:
            OutputError: the label cannot be written; no other will be either.
        """
        name = self.names[index]
        try:
            sample = self.dataset[index]
            picture = picture_hash(sample.image)
            first = self.claims.setdefault(picture, name)
            if first != name:
                return Item(name, same_as=first)
            size = sample.image.shape[0], sample.image.shape[1]
            facts = self.store.put(name, predict_compactly(self.predictor, sample), picture=picture, size=size)
        except OutputError:
            raise
        except LeadlineError as error:
            return Item(name, error=str(error))
        return Item(name, degenerate=facts.degenerate)


def predict_compactly(predictor: Predictor, sample: Sample) -> Depth:
    """The teacher's depth of a picture at the network's own resolution, or the picture's where that is smaller.

    Enlarging to the picture adds nothing that could not be added when the label is read.
    """
    contract, image = predictor.contract, sample.image
    output: NDArray[np.float32] = predictor.session.run(contract.prepare(image, predictor.size))
    height, width = output.shape[-2:]
    if height * width >= image.shape[0] * image.shape[1]:
        height, width = image.shape[:2]
    camera = sample.intrinsics
    if camera is not None:
        camera = camera.resized(height / image.shape[0], width / image.shape[1])
    return contract.restore(output, (height, width), intrinsics=camera, source=sample.name)
