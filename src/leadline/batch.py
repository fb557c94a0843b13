"""Many pictures through one predictor: reading, inference and writing overlap."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadline.depth import Intrinsics
from leadline.errors import LeadlineError, OutputError
from leadline.image import read_image
from leadline.point_cloud import check_intrinsics
from leadline.saving import save

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from leadline.predictor import Predictor
    from leadline.sources import Item

READERS = WRITERS = 2
AHEAD = 4  # pictures read ahead of inference, and results that wait for writing

Camera = float | Intrinsics | None  # horizontal field of view in degrees, or intrinsics in pixels


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: its files, or the error that stopped it."""

    item: Item
    files: dict[str, Path] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error: LeadlineError | None = None


@dataclass(frozen=True)
class _Read:
    image: NDArray[np.uint8]
    prepared: NDArray[np.float32]
    camera: Intrinsics | None
    notices: tuple[str, ...]


def predict_batch(
    predictor: Predictor, items: Sequence[Item], formats: Collection[str], *, camera: Camera = None
) -> Iterator[Outcome]:
    """Predict and save every picture; a bad one is recorded and the rest go on.

    Args:
        predictor: runs in the calling thread.
        items: pictures and where their results go.
        formats: as `leadline.saving.save` takes them.
        camera: of all pictures.

    Yields:
        One outcome per item, in order, as soon as its files are complete.

    Raises:
        OutputError: the results cannot be written (disk full, read-only).
    """
    reading, writing = ThreadPoolExecutor(READERS), ThreadPoolExecutor(WRITERS)
    try:
        upcoming = iter(items)
        read_ahead: deque[tuple[Item, Future[_Read]]] = deque()
        unwritten: deque[Future[Outcome]] = deque()

        def read_next() -> None:
            for item in upcoming:
                read_ahead.append((item, reading.submit(_read, predictor, item, camera)))
                return

        for _ in range(AHEAD):
            read_next()
        while read_ahead:
            item, future = read_ahead.popleft()
            unwritten.append(_infer(predictor, item, future, writing, formats))
            read_next()
            while unwritten and (unwritten[0].done() or len(unwritten) > AHEAD):
                yield unwritten.popleft().result()
        while unwritten:
            yield unwritten.popleft().result()
    finally:
        reading.shutdown(cancel_futures=True)
        writing.shutdown(cancel_futures=True)


def _read(predictor: Predictor, item: Item, camera: Camera) -> _Read:
    notices: list[str] = []
    image = read_image(item.source, notices.append)
    height, width = image.shape[:2]
    intrinsics = Intrinsics.from_fov(camera, height, width) if isinstance(camera, float) else camera
    if intrinsics is not None:
        check_intrinsics(intrinsics, height, width)
    return _Read(image, predictor.contract.prepare(image, predictor.size), intrinsics, tuple(notices))


def _infer(
    predictor: Predictor, item: Item, future: Future[_Read], writing: ThreadPoolExecutor, formats: Collection[str]
) -> Future[Outcome]:
    try:
        read = future.result()
        output = predictor.session.run(read.prepared)
    except OutputError:
        raise
    except LeadlineError as error:
        failed: Future[Outcome] = Future()
        failed.set_result(Outcome(item, error=error))
        return failed
    return writing.submit(_write, predictor, item, read, output, formats)


def _write(
    predictor: Predictor, item: Item, read: _Read, output: NDArray[np.float32], formats: Collection[str]
) -> Outcome:
    contract = predictor.contract
    try:
        size = (read.image.shape[0], read.image.shape[1])
        depth = contract.restore(output, size, intrinsics=read.camera, source=str(item.source))
        files = save(depth, item.base, formats, image=read.image, model=contract.name)
    except OutputError:
        raise
    except LeadlineError as error:
        return Outcome(item, error=error, notices=read.notices)
    return Outcome(item, files, read.notices)
