"""Proposals of NetAdapt: each narrows one group, is adapted for a short time and judged, wherever a core is free."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.checkpoint import save_checkpoint
from leadline.compression.base import Judged, Place, Target
from leadline.compression.graph import groups, keep
from leadline.compression.importance import scores, strongest
from leadline.compression.judging import judge
from leadline.compression.recalibrate import recalibrated
from leadline.compression.tuning import tune
from leadline.errors import (
    ConfigError,
    DataError,
    NumericalError,
    ProcessError,
    closest,
)
from leadline.evaluation.metrics import HIGHER_IS_BETTER
from leadline.labelling.processes import end_with_parent
from leadline.output import write_atomic
from leadline.ray_cluster import cluster, result
from leadline.reference import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from leadline.evaluation.evaluate import Evaluation
    from leadline.reference import LoadedModel

RESULT, CHECKPOINT, TRAINING = "result.json", "checkpoint", "training"
METRICS = ("delta1", "disp_delta1", "agreement")  # the first that the protocol counts, where none is named


@dataclass(frozen=True)
class Task:
    """A proposal, in plain values that any process can take.

    Args:
        folder: of its result; what is there already is not done again.
        network: checkpoint of the network before.
        group: to be narrowed; none leaves the network as it is.
        width: channels that stay.
        changes: of the training configuration; None adapts nothing.
        train: the recipe's training configuration.
        validation: the recipe's.
        target: the recipe's.
        metric: that decides; None takes the first of METRICS that there is.
        reference: model that counts as truth under `fidelity`.
        ranking: file of `save_tensors`, scores by group, by which channels are chosen; joint L2 norms where absent.
        pictures: file of `save_tensors`, batches whose statistics the batch norms of a narrowed network take.
    """

    folder: Path
    network: Path
    group: str
    width: int
    changes: dict[str, Any] | None
    train: dict[str, Any]
    validation: Judged
    target: Target
    metric: str | None = None
    reference: str | None = None
    ranking: Path | None = None
    pictures: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its accuracy (larger is better), or why there is none."""

    folder: Path
    accuracy: float | None
    failure: str = ""


def work(task: Task, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Narrow, adapt, save and judge; called again after a kill, it goes on.

    Raises:
        LeadlineError: data or options are wrong. A network that computes NaN is an outcome.
    """
    if (task.folder / RESULT).is_file():
        return _outcome(task.folder)
    network = load_model(str(task.network))
    if task.group:
        network = narrow(network, task.group, task.width, task.ranking)
        if task.pictures is not None:
            network = recalibrated(network, _read(task.pictures).values())
    place = Place(task.folder, task.train, task.validation, target=task.target, say=say)
    try:
        if task.changes is not None:
            network = tune(network, place, task.changes, folder=task.folder / TRAINING)
        save(network, task.folder / CHECKPOINT)
        evaluation = judge(network.model, network.contract, place, reference=task.reference)
        says: dict[str, Any] = {"accuracy": accuracy(evaluation, task.metric)}
    except NumericalError as error:
        says = {"accuracy": None, "failure": str(error)}
    shutil.rmtree(task.folder / TRAINING, ignore_errors=True)
    write_atomic(task.folder / RESULT, json.dumps({"group": task.group, "width": task.width, **says}).encode())
    return _outcome(task.folder)


def narrow(network: LoadedModel, group: str, width: int, ranking: Path | None = None) -> LoadedModel:
    """Keep the channels of a group that matter most: by a file of scores, else those with the largest joint L2 norm.

    Raises:
        ConfigError: there is no such group, or it has not so many channels.
    """
    known = {each.name: each for each in groups(network)}
    if group not in known:
        raise ConfigError("no such group of channels", where=group, mend=closest(group, known))
    values = scores(network, known[group]) if ranking is None else _read(ranking)[group]
    return keep(network, {group: strongest(known[group], values, width)})


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write what the proposals of a turn share: the scores of every group's channels, or batches by their number."""
    from safetensors.torch import save as serialised

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, serialised({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def save(network: LoadedModel, folder: Path) -> None:
    """Write a network of the loop as a checkpoint."""
    assert network.architecture is not None
    assert network.config is not None
    save_checkpoint(
        folder,
        network.model,
        architecture=network.architecture,
        config=network.config,
        contract=network.contract,
        lineage=network.lineage,
    )


def accuracy(evaluation: Evaluation, metric: str | None) -> float:
    """One figure of an evaluation, its sign such that larger is better.

    Raises:
        ConfigError: the protocol has no such metric.
        DataError: no picture was scored.
    """
    figures = evaluation.summary()
    if not figures:
        why = evaluation.failed[0]["reason"] if evaluation.failed else "no picture has ground truth"
        raise DataError("nothing to decide on", where=evaluation.data, why=str(why))
    metric = metric or next((name for name in METRICS if name in figures), next(iter(figures)))
    if metric not in figures:
        raise ConfigError("no such metric", where=metric, why=evaluation.label, mend=closest(metric, figures))
    value = float(figures[metric].value)
    return value if metric in HIGHER_IS_BETTER else -value


def in_this_process(tasks: Sequence[Task], processes: int) -> Iterator[Outcome]:
    """One after the other, here."""
    for task in tasks:
        yield work(task)


def in_processes(tasks: Sequence[Task], processes: int) -> Iterator[Outcome]:
    """By spawned processes of one thread each, in any order.

    Raises:
        ProcessError: a process died; the message names a proposal.
    """
    import multiprocessing

    before = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), spawn, initializer=_single_threaded) as pool:
        waiting = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(list(waiting)):
                yield future.result()
                waiting.pop(future)
        except BrokenProcessPool as error:
            names = ", ".join(sorted(task.folder.name for task in waiting.values())[:3])
            mend = "run it again, it continues; use fewer processes"
            raise ProcessError("a process died", where=names, why="perhaps out of memory", mend=mend) from error
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()  # a training saves its state before it ends
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(tasks: Sequence[Task], processes: int) -> Iterator[Outcome]:
    """As tasks of a Ray cluster with one core each, in any order; its machines must see the same folders.

    Raises:
        UnavailableError: Ray is not installed.
        ProcessError: a process died.
    """
    with cluster("`ray`") as ray:
        remote = ray.remote(num_cpus=1)(_on_one_core)
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            (finished,), waiting = ray.wait(waiting, num_returns=1)
            yield result(ray, finished)


def _single_threaded() -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)


def _on_one_core(task: Task) -> Outcome:
    import torch

    torch.set_num_threads(1)
    return work(task)


def _outcome(folder: Path) -> Outcome:
    try:
        says = json.loads((folder / RESULT).read_bytes())
        return Outcome(folder, says["accuracy"], says.get("failure", ""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "remove this folder; the proposal is then made again"
        raise DataError("unreadable proposal", where=folder, why=str(error), mend=mend) from error
