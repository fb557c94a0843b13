"""Small films made on the spot, and a predictor that answers at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.predictor import Predictor
from leadline.runtimes.base import Session

SIZE = (48, 64)
MAP = (32, 48)


class Brightness(Session):
    """Answers with the picture's brightness, in a scale of its own for each frame, plus noise that it decides."""

    def __init__(self, kind: Kind = Kind.RELATIVE_DISPARITY, fail_at: int | None = None) -> None:
        spec = InputSpec(height=MAP[0], width=MAP[1])
        super().__init__("tiny", Contract(name="tiny", input=spec, output=OutputSpec(kind=kind)))
        self.fail_at, self.runs = fail_at, 0

    precision_ran = "fp32"

    def _infer(self, values: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs - 1 == self.fail_at:
            return np.full_like(values[:, :1], np.nan)
        noise = np.sin(1e4 * values.sum(axis=1, keepdims=True))
        return np.asarray(1 + 4 * values.mean(axis=1, keepdims=True) + 0.05 * noise, np.float32)


def predictor(kind: Kind = Kind.RELATIVE_DISPARITY, fail_at: int | None = None) -> Predictor:
    return Predictor(Brightness(kind, fail_at))


def scene(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A pattern that moves a pixel a frame, with a bright block that stays."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    grey = 110 + 60 * np.sin((x + number) / 5) * np.cos(y / 7) + 20 * np.sin((x + number) / 2.3 + y / 3)
    grey[size[0] // 3 : size[0] // 2, 4:20] = 230
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def film(
    path: Path,
    count: int = 12,
    *,
    times: list[int] | None = None,
    sound: str = "",
    codec: str = "mpeg4",
    size: tuple[int, int] = SIZE,
) -> Path:
    """`count` frames, 10 a second or at `times` in milliseconds; with `sound`, a tone in that codec."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(sound, rate=8000, bit_rate=32000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(scene(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
        if track is not None:
            tone = (8000 * np.sin(np.arange(800 * count) / 5)).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            heard.sample_rate, heard.pts = 8000, 0
            for packet in [*track.encode(heard), *track.encode(None)]:
                container.mux(packet)
    return path


def pictures(path: Path) -> list[np.ndarray]:
    """All frames of a film, RGB, or 16-bit codes."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        deep = frames[0].format.name == "gray16le"
        return [frame.to_ndarray() if deep else frame.to_ndarray(format="rgb24") for frame in frames]


def times_of(path: Path) -> list[float]:
    """Presentation times, seconds."""
    import av

    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
