"""Teachers on the machines of a Ray cluster, each an actor with one core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadline.labelling.processes import pieces
from leadline.labelling.teacher import Teacher
from leadline.ray_cluster import cluster, result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from leadline.data.label_store import LabelStore
    from leadline.labelling.teacher import Item, Job


def on_ray(job: Job, store: LabelStore, pending: Sequence[int], names: Sequence[str], processes: int) -> Iterator[Item]:
    """By actors of a cluster, in any order; one per core where `processes` is 1.

    Raises:
        UnavailableError: Ray is not installed.
        ProcessError: an actor died.
        OutputError: a label cannot be written.
    """
    with cluster("--ray") as ray:
        claims = ray.remote(num_cpus=0)(_SharedClaims).remote(store.pictures())
        worker = ray.remote(num_cpus=1)(_RayTeacher)
        count = min(processes if processes > 1 else int(ray.cluster_resources().get("CPU", 1)), len(pending))
        idle = [worker.remote(job, store.folder.resolve(), claims) for _ in range(count)]
        waiting, busy = iter(pieces(pending)), {}
        for teacher in idle:
            if (piece := next(waiting, None)) is not None:
                busy[teacher.label.remote(piece)] = teacher
        while busy:
            (finished,), _ = ray.wait(list(busy), num_returns=1)
            teacher = busy.pop(finished)
            yield from result(ray, finished)
            if (piece := next(waiting, None)) is not None:
                busy[teacher.label.remote(piece)] = teacher


class _SharedClaims:
    """`Claims` as a Ray actor."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self.known = dict(known)

    def setdefault(self, picture: str, name: str) -> str:
        return self.known.setdefault(picture, name)


class _RayTeacher:
    """`Teacher` as a Ray actor."""

    def __init__(self, job: Job, folder: Path, claims: Any) -> None:
        import ray
        import torch

        class Asking:
            def setdefault(self, picture: str, name: str) -> str:
                return str(ray.get(claims.setdefault.remote(picture, name)))

        torch.set_num_threads(1)
        self.teacher = Teacher(job, folder, Asking())

    def label(self, indices: Sequence[int]) -> list[Item]:
        return [self.teacher.label(index) for index in indices]
