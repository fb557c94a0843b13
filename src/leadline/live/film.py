"""Depth of a film: decode and prepare, infer, smooth and draw, encode; each step in its own thread, memory flat.

The film is made in parts of CHUNK frames. Each part is on disk, whole, before the next begins; the same command goes on
behind the last of them (see `parts`), and the result is the same to the bit as that of an unbroken run.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline import __version__
from leadline.data.video import Account, read_film
from leadline.depth import Intrinsics
from leadline.errors import ConfigError, DataError, closest
from leadline.live.ahead import ahead
from leadline.live.display import DisplayRange
from leadline.live.film_files import FilmFiles, film_files
from leadline.live.flicker import FlickerMeter
from leadline.live.flow import one_thread
from leadline.live.parts import UNFINISHED, Part, Parts, Row, account_note, key_of
from leadline.live.temporal import Smoother, Smoothing
from leadline.live.view import View, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.batch import GivenCamera
    from leadline.live.flicker import Flicker
    from leadline.predictor import Predictor

FORMATS = ("mp4", "raw16", "npy")
CHUNK = 120  # frames of a part
TALLEST = 1 << 16  # rows; films are not shrunk


@dataclass(frozen=True)
class FilmOptions:
    """What is made of a film.

    Args:
        formats: of FORMATS.
        view: what the mp4 shows.
        smoothing: how the raw values are made steady; None leaves them as the network gave them.
        display: (lo, hi) of the colours for all frames; None follows the film slowly.
        camera: of the film, if given: horizontal field of view in degrees, or intrinsics in pixels of its frames.
        flicker: measure it.
        chunk: frames of a part.
    """

    formats: tuple[str, ...] = ("mp4",)
    view: View = View.SIDE
    smoothing: Smoothing | None = field(default_factory=Smoothing)
    display: tuple[float, float] | None = None
    camera: GivenCamera = None
    flicker: bool = False
    chunk: int = CHUNK


@dataclass(frozen=True)
class FilmResult:
    """What became of a film.

    Args:
        files: format to file or folder.
        frames: finished.
        expected: by the film's own word; None where it does not say.
        began: at this frame, where earlier ones were finished before.
        complete: False where it was stopped; the files then have `.partial` in their names.
        whole: False where the film is damaged or cut off: what could be decoded was predicted.
        notices: what is worth saying.
        flicker: of the raw maps, and of the smoothed ones, over the frames of this run.
    """

    files: dict[str, Path]
    frames: int
    expected: int | None
    began: int
    complete: bool
    whole: bool = True
    notices: tuple[str, ...] = ()
    flicker: tuple[Flicker, ...] = ()


@dataclass
class _Frame:
    number: int
    time: float
    picture: NDArray[np.uint8]
    prepared: NDArray[np.float32] | None
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Finished:
    row: Row
    values: NDArray[np.float32]
    drawn: NDArray[np.uint8] | None
    size: tuple[int, int]
    state: dict[str, NDArray[Any]] | None


def parse_film_formats(text: str) -> tuple[str, ...]:
    """`mp4,raw16` as a tuple without repetition.

    Raises:
        ConfigError: unknown or no format.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in FORMATS:
            raise ConfigError("unknown format to save of a film", where=name, mend=closest(name, FORMATS))
    if not names:
        raise ConfigError("nothing to save", mend=f"name at least one of {', '.join(FORMATS)}")
    return names


def predict_film(
    predictor: Predictor,
    film: Path,
    base: Path,
    options: FilmOptions,
    *,
    model: str = "",
    on_progress: Callable[[int, int | None, int], None] = lambda done, expected, began: None,
    stopped: Callable[[], bool] = lambda: False,
) -> FilmResult:
    """Predict a film, or go on where the same call ended before.

    Args:
        predictor: runs in a thread of its own.
        film: any film that FFmpeg reads.
        base: path of the results without ending.
        options: what is made of it.
        model: tells the model's weights from others (a hash); parts that another one made are not used.
        on_progress: takes the frames done, those expected in all, and the frame at which this run began.
        stopped: asked between frames; once true, what is under way is finished, and a film of it is written.

    Raises:
        DataError: missing, not a film, or without frames.
        OutputError: the disk is full, or the place holds something else.
        NumericalError: the engine returned NaN.
    """
    _check_readable(film)
    files = film_files(base, options.formats)
    files.check_replaceable()
    parts = Parts(base, key_of(film, model, _key(predictor, options)))
    done = parts.finished()
    work = _Work(predictor, film, options, done, stopped)
    began = work.start
    try:
        if not (done and done[-1].is_last):
            done = _make(work, parts, done, on_progress)
    except BaseException:
        if not any(parts.folder.glob("[0-9]*")):
            parts.remove()
        raise
    rows = [row for part in done for row in part.rows]
    if not rows:
        parts.remove()
        return FilmResult({}, 0, work.account.expected, began, complete=False)
    complete = done[-1].is_last
    written, notices = _publish(work, parts, done, files, complete)
    if complete:
        parts.remove()
    if others := parts.others():
        notices.append(f"unfinished work of another command on this film lies in {str(others[0])!r}; remove it")
    flicker = work.flicker()
    if options.flicker and not flicker:
        notices.append("no flicker: fewer than three frames of this run could be followed")
    expected = done[-1].notes["account"]["expected"] if complete else work.account.expected
    whole = bool(done[-1].notes["account"]["whole"]) if complete else True
    return FilmResult(written, len(rows), expected, began, complete, whole, tuple(notices), flicker)


def _check_readable(film: Path) -> None:
    if not film.exists():
        raise DataError("no such film", where=film, mend="check the path")
    try:
        with film.open("rb"):
            pass
    except OSError as error:
        raise DataError("cannot read the film", where=film, why=error.strerror or str(error)) from error


def _key(predictor: Predictor, options: FilmOptions) -> dict[str, Any]:
    session = predictor.session
    chosen = {name: value for name, value in asdict(options).items() if name != "flicker"}
    engine = [session.engine, session.precision_ran, predictor.size]
    return {**chosen, "engine": engine, "contract": predictor.contract.model_dump_json(), "version": __version__}


class _Work:
    """The steps of one run, in the order in which a frame goes through them."""

    def __init__(
        self, predictor: Predictor, film: Path, options: FilmOptions, done: list[Part], stopped: Callable[[], bool]
    ) -> None:
        self.predictor, self.film, self.options, self.stopped = predictor, film, options, stopped
        self.kind = predictor.contract.output.kind
        self.account, self.ended = Account(), False
        self.untimed = False
        self.start = sum(len(part.rows) for part in done)
        self.last_time = done[-1].rows[-1].time if done else None
        state = done[-1].state() if done and not done[-1].is_last else {}
        self.pushed = int(state["pushed"]) if state else 0
        self.ready = deque(state["ready"]) if state else deque()
        smoothing = options.smoothing
        self.smoother = None if smoothing is None else Smoother(self.kind, smoothing)
        if smoothing is not None and state:
            self.smoother = Smoother.resumed(self.kind, smoothing, state)
        lo, hi = (float(each) for each in state["range"]) if state else (np.nan, np.nan)
        shown = (None, None) if np.isnan(lo) else (lo, hi)
        self.display = DisplayRange(options.display, lo=shown[0], hi=shown[1])
        self.meter = FlickerMeter(1 if smoothing is None else 2) if options.flicker else None

    def decoded(self) -> Generator[_Frame]:
        """Frames with their times, prepared for the network where it has not seen them yet."""
        contract, size = self.predictor.contract, self.predictor.size
        with contextlib.closing(read_film(self.film, TALLEST, self.account, self.start)) as frames:
            for frame in frames:
                if self.stopped():
                    return
                time = self._time(frame.time, frame.number)
                prepared = contract.prepare(frame.image, size) if frame.number >= self.pushed else None
                yield _Frame(frame.number, time, frame.image, prepared)
        self.ended = True

    def _time(self, stated: float | None, number: int) -> float:
        time = stated
        if time is None:
            self.untimed, time = True, number / (self.account.rate or 25.0)
        if self.last_time is not None and time <= self.last_time:
            time = self.last_time + 1e-3
        self.last_time = time
        return time

    def inferred(self, frames: Generator[_Frame]) -> Generator[_Frame]:
        """Frames with the network's raw values."""
        with contextlib.closing(frames):
            for frame in frames:
                if frame.prepared is not None:
                    output = self.predictor.session.run(frame.prepared)
                    frame.values = self._in_metres(output.reshape(output.shape[-2:]), frame.picture.shape[:2])
                    frame.prepared = None
                yield frame

    def _in_metres(self, values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """Corrected for the given camera, as `Contract.restore` does."""
        given = self.options.camera
        if given is None:
            return values
        height, width = size[:2]
        camera = given if isinstance(given, Intrinsics) else Intrinsics.from_fov(given, height, width)
        return values * np.float32(self.predictor.contract.focal_ratio((height, width), camera))

    def finished(self, frames: Generator[_Frame]) -> Generator[_Finished]:
        """Frames with steady values and their picture; the state where a part ends."""
        waiting: deque[_Frame] = deque()
        with contextlib.closing(frames):
            for frame in frames:
                waiting.append(frame)
                if frame.values is not None:
                    self.ready.extend(
                        [frame.values] if self.smoother is None else self.smoother.push(frame.picture, frame.values)
                    )
                    self.pushed = frame.number + 1
                while self.ready and waiting:
                    yield self._finish(waiting.popleft(), self.ready.popleft(), keep=True)
        if self.smoother is not None:
            self.ready.extend(self.smoother.flush())
        while self.ready and waiting:
            yield self._finish(waiting.popleft(), self.ready.popleft(), keep=False)

    def _finish(self, frame: _Frame, values: NDArray[np.float32], keep: bool) -> _Finished:
        lo, hi = self.display.update(values, self.kind)
        drawn = None
        if "mp4" in self.options.formats:
            drawn = draw(frame.picture, values, self.kind, lo, hi, self.options.view)
        if self.meter is not None and frame.values is not None:
            maps = [frame.values] if self.smoother is None else [frame.values, values]
            self.meter.push(maps, frame.picture)
        ends_part = keep and (frame.number + 1) % self.options.chunk == 0
        size = frame.picture.shape[0], frame.picture.shape[1]
        row = Row(frame.number, frame.time, lo, hi)
        return _Finished(row, values, drawn, size, self._state() if ends_part else None)

    def _state(self) -> dict[str, NDArray[Any]]:
        lo, hi = self.display.lo, self.display.hi
        return {
            "pushed": np.array(self.pushed),
            "ready": np.stack(list(self.ready)) if self.ready else np.zeros((0, 1, 1), np.float32),
            "range": np.array([np.nan if lo is None else lo, np.nan if hi is None else hi], np.float64),
            **({} if self.smoother is None else self.smoother.state()),
        }

    def flicker(self) -> tuple[Flicker, ...]:
        """Of the frames of this run, where it was asked for and there were enough."""
        return tuple((self.meter.results() or ()) if self.meter is not None else ())


def _make(
    work: _Work, parts: Parts, done: list[Part], on_progress: Callable[[int, int | None, int], None]
) -> list[Part]:
    """Run the pipeline to the film's end, or until it is stopped; the parts, of which the last may be unfinished."""
    done, count = list(done), work.start
    stream = ahead(work.finished(ahead(work.inferred(ahead(work.decoded())))))
    with one_thread(), contextlib.closing(stream):
        upcoming = next(stream, None)
        while upcoming is not None:
            whole = False
            with parts.writer(work.options.formats, work.kind) as writer:
                while upcoming is not None and not whole:
                    item, upcoming = upcoming, next(stream, None)
                    writer.notes.setdefault("size", list(item.size))
                    writer.add(item.row, item.values, item.drawn)
                    count += 1
                    whole = item.state is not None
                    on_progress(count, work.account.expected, work.start)
                last = upcoming is None and work.ended
                if last:
                    writer.notes |= {
                        "account": account_note(work.account),
                        "untimed": work.untimed,
                        "cuts": 0 if work.smoother is None else work.smoother.cuts,
                    }
                base = work.account.time_base
                writer.notes["time_base"] = None if base is None else [base.numerator, base.denominator]
                writer.seal(item.state)
            done.append(parts.keep(f"{len(done):05d}" if whole or last else UNFINISHED))
    return done


def _publish(
    work: _Work, parts: Parts, done: list[Part], files: FilmFiles, complete: bool
) -> tuple[dict[str, Path], list[str]]:
    last = done[-1].notes
    notices = list(last["account"]["said"]) if complete else []
    if work.untimed or last.get("untimed"):
        notices.append(f"no time stamps; {work.account.rate or 25.0:g} frames a second assumed")
    contract, options = work.predictor.contract, work.options
    camera = options.camera
    height, width = last["size"]
    if camera is not None and not isinstance(camera, Intrinsics):
        camera = Intrinsics.from_fov(camera, height, width)
    smoothing = options.smoothing
    aligned = work.kind.unit == "none"
    side = {
        "schema_version": 1,
        "kind": work.kind.value,
        "unit": work.kind.unit,
        "height": last["map"][0],
        "width": last["map"][1],
        "align_corners": contract.output.align_corners,
        "film": {
            "height": height,
            "width": width,
            "frames": sum(len(part.rows) for part in done),
            "expected": last["account"]["expected"] if complete else work.account.expected,
            "whole": last["account"]["whole"] if complete else None,
        },
        "complete": complete,
        "source": str(work.film),
        "model": contract.name,
        "camera": "unknown" if camera is None else "given",
        "intrinsics": None if camera is None else asdict(camera),
        "smoothing": None if smoothing is None else {**asdict(smoothing), "aligned": aligned, "cuts": last.get("cuts")},
        "display": {
            "view": str(options.view),
            "range": list(options.display) if options.display else "follows the film",
        },
    }
    return files.publish(parts.folder, done, work.film, side, notices, complete), notices
