"""Where live pictures come from: webcams, streams, numbered pictures, raw frames on stdin, films as stand-ins."""

from __future__ import annotations

import contextlib
import glob
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.data.frames import natural
from leadline.data.video import Account, pyav, read_film
from leadline.errors import ConfigError, DataError, ImageReadError
from leadline.image import SUFFIXES, read_image
from leadline.live.flow import opencv

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "tcp", "srt")
PROTOCOLS = "crypto,http,https,httpproxy,rtp,rtsp,srt,srtp,tcp,tls,udp"  # a playlist must not name local files
MOST_PIXELS = 64_000_000
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_NUMBERED = re.compile(r"%0?(\d*)d")


@dataclass(frozen=True)
class Shot:
    """One picture and when it arrived here.

    Args:
        picture: H x W x 3 uint8 RGB.
        arrived: `time.perf_counter()` when its data had arrived, before it was decoded where that can be told.
        unix: the same in seconds since 1970.
    """

    picture: NDArray[np.uint8]
    arrived: float
    unix: float


@dataclass(frozen=True)
class Source:
    """Something that gives pictures.

    Args:
        name: as the user wrote it.
        shots: opens it and gives pictures until it ends or the event is set; tells what is worth saying.
        live: pictures come whether or not anybody is ready for them.
        ends: an end is the end; otherwise it is a loss.
    """

    name: str
    shots: Callable[[threading.Event, Callable[[str], None]], Generator[Shot]]
    live: bool
    ends: bool


def parse_source(
    text: str, *, stdin_size: tuple[int, int] | None = None, fps: float | None = None, wait_s: float = 10.0
) -> Source:
    """The source that a command line names.

    Args:
        text: webcam index or device path, URL, `-` for raw RGB on stdin, a numbered pattern (`frames-%04d.png`), glob
            or folder of pictures, or a film.
        stdin_size: (height, width) of the frames on stdin.
        fps: play films (None: as they are shown) and pictures in real time; 0 plays films at their own pace. None: as
            fast as they are taken.
        wait_s: longest wait for a connection and for data.

    Raises:
        DataError: it names nothing.
        ConfigError: stdin without a size.
        UnavailableError: PyAV or OpenCV is missing.
    """
    if text == "-":
        if stdin_size is None:
            mend = "give --stdin-size H,W; each frame is H x W x 3 bytes, RGB"
            raise ConfigError("raw frames without a size", where="-", mend=mend)
        return Source("stdin", lambda stop, say: _raw(sys.stdin.buffer, stdin_size, stop), live=True, ends=True)
    if text.isdecimal() or text.startswith("/dev/"):
        opencv()
        if not text.isdecimal() and not Path(text).exists():
            raise DataError("no such camera", where=text, mend="list them with ls /dev/video*")
        device: int | str = int(text) if text.isdecimal() else text
        return Source(text, lambda stop, say: _device(device, stop), live=True, ends=False)
    if match := _URL.match(text):
        if match[1].lower() not in SCHEMES:
            raise DataError("cannot read", where=text, why=f"{match[1]} is none of {', '.join(SCHEMES)}")
        pyav()
        return Source(_without_password(text), lambda stop, say: _stream(text, wait_s, stop), live=True, ends=False)
    return _files(text, fps)


def _files(text: str, fps: float | None) -> Source:
    path = Path(text)
    if path.is_file():
        pyav()
        return Source(text, lambda stop, say: _film(path, fps, stop, say), live=fps is not None, ends=True)
    if path.is_dir():
        found = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES]
    elif _NUMBERED.search(path.name):
        before, after = _NUMBERED.split(path.name)[0], _NUMBERED.split(path.name)[-1]
        fits = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        folder = path.parent
        found = [each for each in folder.iterdir() if fits.fullmatch(each.name)] if folder.is_dir() else []
    else:
        found = [Path(each) for each in glob.glob(text, recursive=True)]  # noqa: PTH207  may be absolute
    if not found:
        mend = "give a webcam's index, a URL, a film, a folder, or a pattern as frames-%04d.png; - is stdin"
        raise DataError("no such source", where=text, mend=mend)
    ordered = sorted(found, key=natural)
    return Source(text, lambda stop, say: _pictures(ordered, fps or None, stop, say), live=fps is not None, ends=True)


def _device(device: int | str, stop: threading.Event) -> Generator[Shot]:
    cv2 = opencv()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong is said here, once
    camera = cv2.VideoCapture(device)
    try:
        if not camera.isOpened():
            why = "it is not there, or another program uses it"
            raise DataError(
                "cannot open the camera", where=str(device), why=why, mend="close other programs that use it"
            )
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while not stop.is_set():
            if not camera.grab():
                raise DataError("the camera gives no more pictures", where=str(device), why="unplugged?")
            arrived = time.perf_counter()
            there, picture = camera.retrieve()
            if there and picture is not None:
                yield Shot(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), arrived, time.time())
    finally:
        camera.release()


def _stream(url: str, wait_s: float, stop: threading.Event) -> Generator[Shot]:
    av = pyav()
    options = {"protocol_whitelist": PROTOCOLS, "fflags": "nobuffer", "flags": "low_delay"}
    if url.lower().startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # cameras behind firewalls; those that know UDP alone follow
    name = _without_password(url)
    try:
        with av.open(url, timeout=(wait_s, wait_s), options=options) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise DataError("no pictures in the stream", where=name)
            for packet in container.demux(stream):
                arrived, unix = time.perf_counter(), time.time()
                with contextlib.suppress(av.error.InvalidDataError):  # a damaged packet; the next may be whole
                    for frame in packet.decode():
                        yield Shot(frame.to_ndarray(format="rgb24"), arrived, unix)
                if stop.is_set():
                    return
    except (av.error.FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError("lost the stream", where=name, why=why) from error
    raise DataError("lost the stream", where=name, why="it ended")


def _film(path: Path, fps: float | None, stop: threading.Event, say: Callable[[str], None]) -> Generator[Shot]:
    """A film; with `fps` 0 at its own pace, with another at that one."""
    begin: float | None = None
    account = Account()
    for frame in read_film(path, 1 << 16, account):
        if fps is not None:
            stated = frame.number / fps if fps else frame.time if frame.time is not None else frame.number / 25
            begin = time.perf_counter() - stated if begin is None else begin
            stop.wait(max(0.0, begin + stated - time.perf_counter()))
        if stop.is_set():
            return
        yield Shot(frame.image, time.perf_counter(), time.time())
    for said in account.complaints():
        say(f"{path}: {said}")


def _pictures(
    paths: list[Path], fps: float | None, stop: threading.Event, say: Callable[[str], None]
) -> Generator[Shot]:
    begin = time.perf_counter()
    for number, path in enumerate(paths):
        if fps:
            stop.wait(max(0.0, begin + number / fps - time.perf_counter()))
        if stop.is_set():
            return
        arrived, unix = time.perf_counter(), time.time()
        try:
            picture = read_image(path, say)
        except ImageReadError as error:
            say(f"left out: {error}")
            continue
        yield Shot(picture, arrived, unix)


def _raw(file: Any, size: tuple[int, int], stop: threading.Event) -> Generator[Shot]:
    height, width = size
    if not 0 < height * width <= MOST_PIXELS:
        raise ConfigError(
            "impossible size", where=f"--stdin-size {height},{width}", why=f"at most {MOST_PIXELS} pixels"
        )
    file = getattr(file, "raw", file)  # the buffer's lock, held while waiting, would hold up the program's end
    while not stop.is_set():
        picture = np.empty((height, width, 3), np.uint8)
        room, filled = memoryview(picture.data).cast("B"), 0
        while filled < len(room) and (count := file.readinto(room[filled:])):
            filled += count
        if filled < len(room):
            if filled:
                why = f"{filled} of {len(room)} bytes of the last frame"
                raise DataError("stdin ended within a frame", why=why, mend="check --stdin-size H,W and rgb24")
            return
        yield Shot(picture, time.perf_counter(), time.time())


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def fitted(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture at (height, width) `size`."""
    cv2: Any = opencv()
    resized: NDArray[np.uint8] = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return resized
