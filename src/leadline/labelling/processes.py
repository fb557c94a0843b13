"""Where the teachers run: in this process, or in several of this machine."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from leadline.errors import ProcessError
from leadline.labelling.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from leadline.data.label_store import LabelStore
    from leadline.labelling.teacher import Claims, Item, Job

PIECE = 4  # items that a process takes at a time: few, so that all end together


def in_this_process(
    job: Job, store: LabelStore, pending: Sequence[int], names: Sequence[str], processes: int
) -> Iterator[Item]:
    """One after the other, here."""
    teacher = Teacher(job, store.folder, store.pictures())
    for index in pending:
        yield teacher.label(index)


def in_processes(
    job: Job, store: LabelStore, pending: Sequence[int], names: Sequence[str], processes: int
) -> Iterator[Item]:
    """By spawned processes of one thread each, in any order.

    Raises:
        ProcessError: a process died; the message names an item.
        OutputError: a label cannot be written.
    """
    from multiprocessing import get_context
    from multiprocessing.managers import SyncManager

    spawn = get_context("spawn")
    manager = SyncManager(ctx=spawn)
    manager.start(end_with_parent)
    with manager:
        claims = manager.dict(store.pictures())
        arguments = (job, store.folder, claims)
        with ProcessPoolExecutor(processes, spawn, initializer=_open_teacher, initargs=arguments) as pool:
            waiting = {pool.submit(_label_piece, piece): piece for piece in pieces(pending)}
            try:
                for future in as_completed(list(waiting)):
                    yield from future.result()
                    waiting.pop(future)
            except BrokenProcessPool as error:
                first = names[min(index for piece in waiting.values() for index in piece)]
                why = f"while labelling from {first!r} on; perhaps out of memory"
                mend = "run it again, it continues; use fewer --processes"
                raise ProcessError("a labelling process died", where=job.data, why=why, mend=mend) from error
            finally:
                pool.shutdown(cancel_futures=True)


_teacher: Teacher | None = None  # of a pool's process


def _open_teacher(job: Job, folder: Path, claims: Claims) -> None:
    import torch

    global _teacher  # noqa: PLW0603  a pool hands its tasks nothing else that lives as long as the process
    end_with_parent()
    torch.set_num_threads(1)
    _teacher = Teacher(job, folder, claims)


def end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it was killed: a pool's processes would wait for it for ever."""
    import multiprocessing
    import os
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="leadline-parent").start()


def _label_piece(indices: Sequence[int]) -> list[Item]:
    assert _teacher is not None
    return [_teacher.label(index) for index in indices]


def pieces(pending: Sequence[int]) -> list[Sequence[int]]:
    """Items cut into what a process takes at a time."""
    return [pending[first : first + PIECE] for first in range(0, len(pending), PIECE)]
