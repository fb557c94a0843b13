"""Many pictures through one predictor: reading, inference and writing overlap."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadline.depth import Intrinsics
from leadline.errors import DataError, LeadlineError, OutputError
from leadline.exif import exif_camera
from leadline.image import read_image
from leadline.point_cloud import check_intrinsics
from leadline.saving import Camera, in_space, save

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from leadline.occupancy import Slice
    from leadline.predictor import Predictor
    from leadline.sources import Item

READERS = WRITERS = 2
AHEAD = 4  # pictures read ahead of inference, and results that wait for writing

GivenCamera = float | Intrinsics | None  # horizontal field of view in degrees, or intrinsics in pixels


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: its files, or the error that stopped it."""

    item: Item
    files: dict[str, Path] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error: LeadlineError | None = None
    camera: Camera | None = None


@dataclass(frozen=True)
class _Read:
    image: NDArray[np.uint8]
    prepared: NDArray[np.float32]
    camera: Camera
    notices: tuple[str, ...]


def predict_batch(
    predictor: Predictor,
    items: Sequence[Item],
    formats: Collection[str],
    *,
    camera: GivenCamera = None,
    part: Slice | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Predict and save every picture; a bad one is recorded and the rest go on.

    The camera of a picture is the given one, else that of its EXIF data, else that of training (for metric networks
    that name it), which only the side file mentions.

    Args:
        predictor: runs in the calling thread.
        items: pictures and where their results go.
        formats: as `leadline.saving.save` takes them.
        camera: of all pictures.
        part: of the scene, for `occupancy`; None for the defaults.
        stopped: asked before each inference; once true, only what has been inferred is still written.

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
                read_ahead.append((item, reading.submit(_read, predictor, item, camera, formats)))
                return

        for _ in range(AHEAD):
            read_next()
        while read_ahead and not stopped():
            item, future = read_ahead.popleft()
            unwritten.append(_infer(predictor, item, future, writing, formats, part))
            read_next()
            while unwritten and (unwritten[0].done() or len(unwritten) > AHEAD):
                yield unwritten.popleft().result()
        while unwritten:
            yield unwritten.popleft().result()
    finally:
        reading.shutdown(cancel_futures=True)
        writing.shutdown(cancel_futures=True)


def _read(predictor: Predictor, item: Item, given: GivenCamera, formats: Collection[str]) -> _Read:
    notices: list[str] = []
    image = read_image(item.source, notices.append)
    camera = _camera(predictor, item, (image.shape[0], image.shape[1]), given, notices.append)
    if (wanted := in_space(formats)) and camera.origin not in ("given", "exif"):
        why = "neither given nor in the picture's EXIF data"
        mend = "give --fov DEG or --intrinsics FX,FY,CX,CY"
        raise DataError(f"no camera for the {wanted} of", where=item.source, why=why, mend=mend)
    return _Read(image, predictor.contract.prepare(image, predictor.size), camera, tuple(notices))


def _camera(
    predictor: Predictor, item: Item, size: tuple[int, int], given: GivenCamera, on_notice: Callable[[str], None]
) -> Camera:
    if isinstance(given, Intrinsics):
        check_intrinsics(given, *size)
        return Camera.of(given)
    if given is not None:
        return Camera.of(Intrinsics.from_fov(given, *size))
    written = exif_camera(item.source, *size, on_notice)
    if written is not None:
        return Camera(written, "exif")
    assumed = predictor.contract.assumed_camera(*size)
    return Camera(assumed, "assumed" if assumed is not None else "unknown")


def _infer(
    predictor: Predictor,
    item: Item,
    future: Future[_Read],
    writing: ThreadPoolExecutor,
    formats: Collection[str],
    part: Slice | None,
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
    return writing.submit(_write, predictor, item, read, output, formats, part)


def _write(
    predictor: Predictor,
    item: Item,
    read: _Read,
    output: NDArray[np.float32],
    formats: Collection[str],
    part: Slice | None,
) -> Outcome:
    contract = predictor.contract
    try:
        size = (read.image.shape[0], read.image.shape[1])
        known = read.camera.intrinsics if read.camera.origin != "assumed" else None
        depth = contract.restore(output, size, intrinsics=known, source=str(item.source))
        files = save(depth, item.base, formats, image=read.image, model=contract.name, camera=read.camera, part=part)
    except OutputError:
        raise
    except LeadlineError as error:
        return Outcome(item, error=error, notices=read.notices)
    return Outcome(item, files, read.notices, camera=read.camera)
