"""A labelling run: which items, by whom, into which store, and what became of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leadline import __version__
from leadline.data.dataset import open_dataset
from leadline.data.label_store import LabelStore, StoreInfo, picture_hash
from leadline.data.places import refuse_among_data
from leadline.errors import DataError
from leadline.labelling.on_ray import on_ray
from leadline.labelling.processes import in_processes, in_this_process
from leadline.labelling.teacher import Item
from leadline.manifest import MANIFEST, manifest_kind
from leadline.output import check_writable, output_lock, sha256_file, write_atomic
from leadline.predictor import load
from leadline.reference import load_model, zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.data.dataset import Sample
    from leadline.labelling.teacher import Job


@dataclass
class Summary:
    """What a run did.

    Args:
        store: the store's folder.
        info: what the store says about itself.
        total: items of this shard.
        before: how many of them had a label when the run began.
        items: what became of the others.
    """

    store: Path
    info: StoreInfo
    total: int
    before: int
    items: list[Item] = field(default_factory=list)

    @property
    def failed(self) -> list[Item]:
        """Items without a label."""
        return [item for item in self.items if item.error is not None]

    @property
    def repeated(self) -> int:
        """Items that took the label of an equal picture."""
        return sum(item.same_as is not None and item.error is None for item in self.items)


def label(
    job: Job,
    folder: Path,
    *,
    processes: int = 1,
    ray: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_item: Callable[[Item], None] | None = None,
) -> Summary:
    """Run a teacher over every item of a shard that has no whole label yet; a bad item is recorded, the rest go on.

    Equal pictures (pixel by pixel) are computed once, within this run and against what is in the store. Whatever was
    labelled before a kill stays, and the next run goes on from there.

    Args:
        job: what to label.
        folder: of the store; made where there is none.
        processes: run this many, one thread each; 1 works in this process.
        ray: run them on the machines of a Ray cluster, which must all see the data, the teacher and `folder` under the
            same path. `RAY_ADDRESS` names the cluster; without it one is started on this machine.
        on_start: called with the number of items to do and of those already done.
        on_item: called after each item.

    Raises:
        ModelReferenceError, DataError: the teacher or the data set cannot be opened.
        DataError: the store holds labels of other pictures under the same names.
        OutputError: `folder` lies in the data, or the store is another teacher's, or cannot be written, or another run
            works on the same shard.
        UnavailableError: Ray is not installed.
    """
    number, shards = job.shard
    refuse_among_data([job.data], folder, "labels")
    dataset = open_dataset(job.data, job.split, skip_bad=job.skip_bad)
    check_writable(folder)
    store = LabelStore.create(folder, describe(job))
    names = dataset.names()
    mine = range(number - 1, len(names), shards)
    with output_lock(folder / ".shards" / f"{number}-of-{shards}"):
        labelled = set(store.intact())
        done = [index for index in mine if names[index] in labelled]
        pending = [index for index in mine if names[index] not in labelled]
        _check_same_pictures(store, [(names[index], dataset[index]) for index in sorted({*done[:1], *done[-1:]})])
        summary = Summary(folder, store.info, len(mine), len(done))
        if on_start is not None:
            on_start(len(pending), len(done))
        run = on_ray if ray else in_processes if processes > 1 else in_this_process
        for item in run(job, store, pending, names, processes) if pending else ():
            summary.items.append(item)
            if on_item is not None:
                on_item(item)
        _share_labels(store, summary.items)
        _record_failures(store, job, summary)
    return summary


def describe(job: Job) -> StoreInfo:
    """The teacher, opened and closed again, as the store will know it.

    Raises:
        ModelReferenceError: the reference names nothing.
        ContractError: the size is not allowed.
    """
    with load(job.teacher, size=job.size) as predictor:
        contract = predictor.contract
        height, width = predictor.size or (contract.input.height, contract.input.width)
        return StoreInfo(
            teacher=job.teacher,
            teacher_name=contract.name,
            teacher_sha256=teacher_hash(job.teacher),
            kind=contract.output.kind,
            height=height,
            width=width,
            resize=contract.input.resize,
            align_corners=contract.output.align_corners,
            licence=contract.licence,
            training_data=contract.training_data,
            leadline=__version__,
        )


def teacher_hash(ref: str) -> str:
    """SHA-256 that changes with the teacher: of its manifest (which has those of all files), ONNX file or tensors."""
    path = zoo().get(ref, Path(ref))
    if manifest_kind(path) is not None:
        return sha256_file(path / MANIFEST)
    if path.suffix == ".onnx" and path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for name, tensor in load_model(ref).model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_same_pictures(store: LabelStore, samples: Sequence[tuple[str, Sample]]) -> None:
    """A store that another data set of the same names was labelled into would go unnoticed otherwise."""
    for name, sample in samples:
        if store.facts(name).picture != picture_hash(sample.image):
            why = "the picture of that name was another one when it was labelled"
            raise DataError("labels of other pictures", where=name, why=why, mend="choose another --out")


def _share_labels(store: LabelStore, items: list[Item]) -> None:
    """Give each repeated picture the label of the first one, now that all labels are written."""
    for place, item in enumerate(items):
        if item.same_as is None:
            continue
        if item.same_as in store:
            store.repeat(item.name, item.same_as)
        else:
            items[place] = Item(item.name, item.same_as, error=f"{item.name}: equal to {item.same_as}, which failed")


def _record_failures(store: LabelStore, job: Job, summary: Summary) -> None:
    path = store.folder / f"failed-{job.shard[0]}-of-{job.shard[1]}.json"
    if summary.failed:
        content = [{"name": item.name, "error": item.error} for item in summary.failed]
        write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    else:
        path.unlink(missing_ok=True)
