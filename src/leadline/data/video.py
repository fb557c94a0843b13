"""Frames of a video file, upright and in order, with everything that went wrong on the way said (FAULTS rows 19 to 24).

Frames are decoded once, in order, and kept as JPEG in an unnamed temporary file: seeking in damaged or sparsely keyed
films is slow and inexact, and raw frames would fill the disk. Memory holds one offset per frame.
"""

from __future__ import annotations

import io
import logging
import math
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from leadline.errors import DataError, ImageReadError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".3gp")
QUALITY = 95  # of the kept JPEG, without colour subsampling
SURE = 0.97  # share of the frames that a duration promises below which a film counts as cut off
MAX_GAPS = 200  # damaged packets after which the rest is not tried

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilmFrame:
    """One decoded frame.

    Args:
        number: among all decoded frames of the film, from 0.
        time: presentation time, seconds; None where the file does not say.
        image: H x W x 3 uint8 RGB, upright, square pixels.
        run: number of the unbroken stretch that it belongs to; damage starts a new one.
        full: (height, width) of the upright frame before it was shrunk, square pixels.
    """

    number: int
    time: float | None
    image: NDArray[np.uint8]
    run: int
    full: tuple[int, int]


@dataclass
class Account:
    """What decoding a film came to."""

    decoded: int = 0
    expected: int | None = None  # frames that the file promises
    damaged: int = 0  # packets or frames that could not be used
    resized: int = 0  # frames of another size than the first
    left_out: int = 0  # frames of other proportions than the first
    promise_is_exact: bool = False
    rate: float | None = None  # frames a second that the file states
    time_base: Fraction | None = None  # seconds that its time stamps count

    @property
    def whole(self) -> bool:
        """Whether all that the file promises was decoded, without damage."""
        enough = (self.expected or 0) * (1.0 if self.promise_is_exact else SURE)
        return not self.damaged and self.decoded + 1 >= enough  # an edit list may hide a frame

    def complaints(self) -> list[str]:
        """What is worth saying, in sentences without a full stop."""
        said = []
        if not self.whole:
            of = "" if self.expected is None else f" of {'' if self.promise_is_exact else 'about '}{self.expected}"
            where = f", {self.damaged} damaged" if self.damaged else ""
            said.append(f"incomplete: {self.decoded}{of} frames decoded{where}; what decoded is used")
        if self.resized:
            said.append(f"the resolution changes: {self.resized} frames were resized to the first")
        if self.left_out:
            said.append(f"the proportions change: {self.left_out} frames of another shape than the first left out")
        return said


def read_film(path: Path, height: int, account: Account, start: int = 0) -> Generator[FilmFrame]:
    """Decode a film from its beginning.

    Args:
        path: any file that FFmpeg reads.
        height: rows, before a film is turned upright, that taller ones are shrunk to; the width follows.
        account: filled while the frames go by.
        start: number of the first frame that is given; those before it are decoded only.

    Raises:
        UnavailableError: PyAV is not installed.
        DataError: not a film, no picture track, an unknown codec, or damage before the first frame.
    """
    av = pyav()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        mend = "copy it again; a file whose recording was cut off (no moov atom) cannot be repaired here"
        raise DataError("cannot read the film", where=path, why=_reason(error), mend=mend) from error
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise DataError("no picture track", where=path, why="the file has no video stream")
        if stream.codec_context is None:
            raise DataError("unknown codec", where=path, why="FFmpeg here cannot decode it", mend="convert it to H.264")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = max(1, (os.cpu_count() or 1) - 1)  # one core is for what takes the frames
        account.expected, account.promise_is_exact = _promised(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        account.rate, account.time_base = float(rate) if rate else None, stream.time_base
        yield from _frames(av, container, stream, path, height, account, start)


def _frames(
    av: Any, container: Any, stream: Any, path: Path, height: int, account: Account, start: int
) -> Iterator[FilmFrame]:
    first: tuple[int, int] | None = None  # rows and columns as stored
    size: tuple[int, int] | None = None
    aspect = stream.sample_aspect_ratio or Fraction(1)
    run, gap, last = 0, False, ""
    convert = av.video.reformatter.VideoReformatter()  # keeps its tables from frame to frame
    for packet in _packets(av, container, stream, account):
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            account.damaged, gap, last = account.damaged + 1, True, _reason(error)
            if account.damaged > MAX_GAPS:
                break
            continue
        for frame in frames:
            if frame.is_corrupt:
                account.damaged, gap, last = account.damaged + 1, True, "damaged frames"
                continue
            stored = frame.height, frame.width
            if first is None or size is None:
                first, size = stored, _reduced(stored, aspect, height)
            if stored != first:
                if abs(stored[0] * first[1] - stored[1] * first[0]) > 0.02 * first[0] * stored[1]:
                    account.left_out, gap = account.left_out + 1, True
                    continue
                account.resized += 1
            run, gap = run + gap, False
            if account.decoded < start:
                account.decoded += 1
                continue
            rgb = convert.reformat(frame, format="rgb24", width=size[1], height=size[0], interpolation="AREA")
            image = rgb.to_ndarray()
            turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise
            upright = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            full = first[0], round(first[1] * float(aspect))
            yield FilmFrame(account.decoded, time, upright, run, full[::-1] if turns % 2 else full)
            account.decoded += 1
    if account.decoded == 0:
        codec = stream.codec_context.name
        why = f"no frame of its {codec} stream could be decoded" + (f" ({last})" if last else "")
        raise DataError("a film without frames", where=path, why=why)


def _packets(av: Any, container: Any, stream: Any, account: Account) -> Iterator[Any]:
    """The stream's packets, until the file ends or cannot be read on."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError):
            account.damaged += 1
            return
        yield packet


def _promised(container: Any, stream: Any) -> tuple[int | None, bool]:
    """How many frames the file says it has, and whether that is a count or an estimate from its duration."""
    if stream.frames:
        return int(stream.frames), True
    rate = stream.average_rate or stream.guessed_rate
    seconds = None
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / 1e6
    return (None, False) if not rate or seconds is None else (round(seconds * float(rate)), False)


def _reduced(stored: tuple[int, int], aspect: Fraction, height: int) -> tuple[int, int]:
    """Rows and columns kept: square pixels, at most `height` rows."""
    width = stored[1] * float(aspect)
    factor = min(1.0, height / stored[0])
    return max(1, round(stored[0] * factor)), max(1, round(width * factor))


class Film:
    """A film's frames by number, decoded once when the first is asked for.

    Args:
        path: the file.
        height: rows that taller films are shrunk to.
        every: keep each `every`-th frame.
        fps: keep at most this many frames a second of presentation time; None keeps all.
    """

    def __init__(self, path: Path, height: int, every: int = 1, fps: float | None = None) -> None:
        self.path, self.height, self.every, self.fps = path, height, every, fps
        self.account = Account()
        self.full = (0, 0)  # (height, width) of its upright frames before they were shrunk
        self.kept: list[tuple[int, int]] = []  # number in the film, unbroken stretch
        self._places: list[tuple[int, int]] = []  # offset and length in the file of kept frames
        self._lock = threading.Lock()
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open file: a copy in another process decodes for itself."""
        return {**self.__dict__, "_file": None, "_lock": None, "kept": [], "_places": [], "account": Account()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def decode(self) -> None:
        """Decode and keep the frames, unless that is done.

        Raises:
            DataError: as `read_film`, `fps` without time stamps, or the disk is full.
        """
        with self._lock:
            if self._file is None:
                self._decode()

    def _decode(self) -> None:
        account, kept, places = Account(), [], []
        place, last = 0, -1
        begin: float | None = None
        file = tempfile.TemporaryFile(prefix="leadline-film-")  # noqa: SIM115  it lives as long as the film
        try:
            for frame in read_film(self.path, self.height, account):
                if self.fps is not None:
                    if frame.time is None:
                        mend = "use every=N instead"
                        raise DataError("a film without time stamps", where=self.path, why="fps needs them", mend=mend)
                    begin = frame.time if begin is None else begin
                    slot = math.floor((frame.time - begin) * self.fps + 0.01)  # time stamps are rounded
                    if slot <= last:
                        continue
                    last = slot
                elif frame.number % self.every:
                    continue
                self.full = frame.full
                data = _packed(frame.image)
                _write(file, data, self.path)
                kept.append((frame.number, frame.run))
                places.append((place, len(data)))
                place += len(data)
        except BaseException:
            file.close()
            raise
        self.account, self.kept, self._places, self._file = account, kept, places, file
        weakref.finalize(self, file.close)
        for said in account.complaints():
            _log.warning("%s: %s", self.path, said)

    def __len__(self) -> int:
        self.decode()
        return len(self.kept)

    def image(self, index: int) -> NDArray[np.uint8]:
        """H x W x 3 uint8 RGB of kept frame `index`."""
        from PIL import Image

        self.decode()
        place, length = self._places[index]
        with self._lock:
            self._file.seek(place)
            data = self._file.read(length)
        if len(data) != length:
            raise ImageReadError("a kept frame has gone", where=self.path, why="the temporary file was cut off")
        return np.array(Image.open(io.BytesIO(data), formats=("JPEG",)))


def _write(file: IO[bytes], data: bytes, film: Path) -> None:
    try:
        file.write(data)
    except OSError as error:
        mend = "free space in the temporary folder (TMPDIR), or keep fewer frames with every=N or height=N"
        raise DataError("cannot keep the frames of a film", where=film, why=_reason(error), mend=mend) from error


def _packed(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def pyav() -> Any:
    """The module `av`, silent.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        mend = "pip install 'leadline[video]'"
        raise UnavailableError("films need PyAV", why="the package `av` is missing", mend=mend) from error
    # Silent, since what is wrong is said here, once. At any level PyAV's logger waits for the interpreter's lock in the
    # threads of FFmpeg, which closing a film joins while it holds that lock.
    av.logging.set_level(None)
    return av
