"""Films to disk: pieces that are encoded one by one, and joined without encoding again, with their times and sound."""

from __future__ import annotations

import heapq
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leadline.data.video import pyav
from leadline.errors import DataError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that the wheel has
# Fast, because on two cores the encoder has to fit beside the network. CABAC and deblocking, which `ultrafast` leaves
# out, pay for themselves: on colours of depth the file is as small as that of `veryfast`, in half the time.
QUALITY = {"libx264": {"preset": "ultrafast", "crf": "20", "x264-params": "cabac=1:deblock=0,0"}}
LOSSLESS = {"level": "3", "slicecrc": "1"}
FINEST = Fraction(1, 90000)  # of time stamps where the film's own are not usable
BT709 = 1  # FFmpeg's number of the colour matrix, primaries and transfer of ITU-R BT.709
TV_RANGE = 1
NPY_HEADER = 128


class Segment:
    """Frames encoded one after another without looking ahead: packet k is frame k.

    Args:
        path: a Matroska file.
        codec: of FFmpeg.
        pixels: its pixel format: yuv420p, or gray16le.
        options: of the codec.
        container: of FFmpeg; `mp4` is written in fragments, so that what is there plays whatever happens.
    """

    def __init__(
        self, path: Path, codec: str, pixels: str, options: dict[str, str], container: str = "matroska"
    ) -> None:
        self._av = pyav()
        self._pixels, self._count = pixels, 0
        self._codec, self._options = codec, options
        flags = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"} if container == "mp4" else {}
        self._container = self._av.open(str(path), "w", format=container, options=flags)
        self._stream: Any = None
        self._convert = self._av.video.reformatter.VideoReformatter()

    def add(self, image: NDArray[np.uint8] | NDArray[np.uint16], milliseconds: int | None = None) -> None:
        """Encode the next frame.

        Args:
            image: H x W x 3 uint8 RGB, or H x W uint16; all of one size.
            milliseconds: its time, rising; its number if not given.
        """
        if self._stream is None:
            self._stream = self._begun(image.shape[0], image.shape[1])
        if self._pixels == "gray16le":
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="gray16le")
        else:
            rgb = self._av.VideoFrame.from_ndarray(_even(image), format="rgb24")
            frame = self._convert.reformat(
                rgb,
                format=self._pixels,
                dst_colorspace="ITU709",
                dst_color_range=TV_RANGE,
                interpolation="FAST_BILINEAR",
            )
        frame.pts, frame.time_base = self._count if milliseconds is None else milliseconds, Fraction(1, 1000)
        self._count += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _begun(self, height: int, width: int) -> Any:
        stream = self._container.add_stream(self._codec, rate=1000, options=self._options)
        even = self._pixels == "yuv420p"
        stream.height, stream.width = (height + height % 2, width + width % 2) if even else (height, width)
        stream.pix_fmt = self._pixels
        context = stream.codec_context
        context.time_base = Fraction(1, 1000)
        context.max_b_frames = 0  # so that packets keep the order of the frames
        if even:
            context.color_range = TV_RANGE
            context.color_primaries = context.color_trc = context.colorspace = BT709
        if self._codec == "ffv1":
            context.gop_size = 1
        context.thread_count = 1  # the pipeline keeps the other cores busy
        return stream

    def close(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self._container.close()


def film_segment(path: Path, container: str = "matroska") -> Segment:
    """Frames to look at, H.264 in 4:2:0 where the wheel has it.

    Args:
        path: the file.
        container: as of `Segment`.

    Raises:
        UnavailableError: no encoder is there.
    """
    known = pyav().codecs_available
    for codec in CODECS:
        if codec in known:
            return Segment(path, codec, "yuv420p", QUALITY.get(codec, {"qscale": "3"}), container)
    mend = "pip install --force-reinstall av, or leave mp4 out of --save"
    raise UnavailableError("no encoder for films", why=f"this PyAV has none of {', '.join(CODECS)}", mend=mend)


def raw_segment(path: Path) -> Segment:
    """Frames of 16-bit codes, lossless (FFV1)."""
    return Segment(path, "ffv1", "gray16le", LOSSLESS)


class NpyFile:
    """A NumPy file of N x h x w float32 whose N is known only at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._shape: tuple[int, int] = (0, 0)
        self._count = 0
        self._file.write(bytes(NPY_HEADER))

    def add(self, values: NDArray[np.float32]) -> None:
        """The next map, h x w float32."""
        self._shape = values.shape[0], values.shape[1]
        self._file.write(np.ascontiguousarray(values, "<f4").tobytes())
        self._count += 1

    def close(self) -> None:
        """Write the header, which says how many there are."""
        shape = (self._count, *self._shape)
        said = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little"))
        self._file.write(said.ljust(NPY_HEADER - 11) + b"\n")
        self._file.close()


class Joined(NamedTuple):
    """What became of the sound: the codec that was copied, or why not; both empty where there is none."""

    sound: str = ""
    left_out: str = ""


def join(
    segments: Sequence[Path],
    times: Sequence[float],
    out: Path,
    *,
    container: str,
    time_base: Fraction | None = None,
    sound_of: Path | None = None,
) -> Joined:
    """One film from pieces, without encoding again.

    Args:
        segments: at least one, in order.
        times: presentation time of each frame, seconds, rising.
        out: the file.
        container: `mp4` or `matroska`.
        time_base: in which the times are whole numbers, where that is known.
        sound_of: a film whose first sound track is copied as it is, up to the last frame.

    Raises:
        DataError: a piece is damaged.
    """
    av = pyav()
    base = time_base if time_base is not None and FINEST / 100 < time_base < Fraction(1, 20) else FINEST
    options = {"fflags": "+bitexact"}  # Matroska would get a random number
    if container == "mp4":
        options["movflags"] = "+faststart"
    with av.open(str(out), "w", format=container, options=options) as target:
        with av.open(str(segments[0])) as first:
            stream = target.add_stream_from_template(first.streams.video[0])
        stream.time_base = base
        source = sound = None
        told = Joined()
        if sound_of is not None:
            source = av.open(str(sound_of))
            sound = next(iter(source.streams.audio), None)
            told = _sound(sound, target)
        packets = [_pictures(av, segments, times, base, stream)]
        if source is not None and told.sound:
            track = target.add_stream_from_template(sound)
            packets.append(_copied(av, source, sound, track, times[-1] + _step(times)))
        try:
            for _, packet in heapq.merge(*packets, key=lambda entry: entry[0]):
                target.mux(packet)
        finally:
            if source is not None:
                source.close()
    return told


def _sound(sound: Any, target: Any) -> Joined:
    if sound is None:
        return Joined()
    if sound.codec_context is None:
        return Joined(left_out="sound left out: its codec is unknown here")
    name = sound.codec_context.codec.canonical_name
    if name in target.supported_codecs:
        return Joined(sound=name)
    return Joined(left_out=f"sound left out: {target.format.name} cannot hold {name}")


def _pictures(
    av: Any, segments: Sequence[Path], times: Sequence[float], base: Fraction, stream: Any
) -> Iterator[tuple[float, Any]]:
    ticks = list(_rising([round(time / base) for time in times]))
    number, last = 0, max(1, round(_step(times) / base))
    for path in segments:
        try:
            with av.open(str(path)) as segment:
                for packet in segment.demux(segment.streams.video[0]):
                    if packet.pts is None:
                        continue  # the end
                    packet.stream, packet.time_base = stream, base
                    packet.pts = packet.dts = ticks[number]
                    packet.duration = ticks[number + 1] - ticks[number] if number + 1 < len(ticks) else last
                    yield times[number], packet
                    number += 1
        except (av.error.FFmpegError, IndexError) as error:
            mend = "remove the hidden folder that holds it, and run again"
            raise DataError("a kept piece of a film is damaged", where=path, why=str(error), mend=mend) from error


def _copied(av: Any, source: Any, sound: Any, track: Any, until: float) -> Iterator[tuple[float, Any]]:
    try:
        for packet in source.demux(sound):
            if packet.dts is None or packet.pts is None:
                continue
            time = float(packet.pts * packet.time_base)
            if time > until:
                return
            packet.stream = track
            yield time, packet
    except av.error.FFmpegError:
        return  # the sound ends where the film is damaged; the pictures have said so


def _rising(ticks: Sequence[int]) -> Iterator[int]:
    last: int | None = None
    for tick in ticks:
        last = tick if last is None or tick > last else last + 1
        yield last


def _step(times: Sequence[float]) -> float:
    return times[-1] - times[-2] if len(times) > 1 else 0.04


def _even(image: NDArray[Any]) -> NDArray[np.uint8]:
    """4:2:0 has even sides; an odd one's last line is repeated."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)
