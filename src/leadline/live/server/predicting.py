"""From the bytes of a picture to its depth: decoded and answered in a pool, inferred in the engine's own thread."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from leadline.depth import Intrinsics
from leadline.exif import exif_camera
from leadline.image import MAX_PIXELS, decode_image
from leadline.saving import Camera

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from leadline.contract import Contract
    from leadline.depth import Depth
    from leadline.live.server.batching import Ran
    from leadline.live.server.metrics import Metrics
    from leadline.live.server.models import Opened

SOURCE = Path("the upload")  # what messages call a picture; its sender's name for it is never used
T = TypeVar("T")
READERS = 2  # decoding and encoding leave Python's lock for most of their time


@dataclass(frozen=True)
class Prepared:
    """A decoded picture, ready for the network.

    Args:
        values: 1 x 3 x h x w float32.
        size: (height, width) of the picture, pixels.
        camera: of the picture, and where it comes from.
        notices: what the reader decided.
        picture: H x W x 3 uint8 RGB, where it is still needed.
    """

    values: NDArray[np.float32]
    size: tuple[int, int]
    camera: Camera
    notices: tuple[str, ...] = ()
    picture: NDArray[np.uint8] | None = None

    @property
    def fov(self) -> float | None:
        """Horizontal field of view of the camera, degrees; None where it is unknown."""
        camera = self.camera.intrinsics
        return None if camera is None else round(2 * math.degrees(math.atan(0.5 * self.size[1] / camera.fx)), 3)


@dataclass(frozen=True)
class Times:
    """Milliseconds of one picture's way."""

    before: float
    wait: float
    network: float
    after: float

    def header(self) -> str:
        """As a Server-Timing header."""
        parts = (("before", self.before), ("wait", self.wait), ("network", self.network), ("after", self.after))
        return ", ".join(f"{name};dur={value:.2f}" for name, value in parts)


class Hands:
    """The threads that decode and encode.

    Args:
        pixels: most in one picture.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = min(pixels, MAX_PIXELS)
        self.pool = ThreadPoolExecutor(READERS, "pictures")

    async def do(self, work: Callable[[], T]) -> tuple[T, float]:
        """Run work in the pool; its result and its milliseconds."""

        def timed() -> tuple[T, float]:
            begun = time.perf_counter()
            result = work()
            return result, 1e3 * (time.perf_counter() - begun)

        return await asyncio.get_running_loop().run_in_executor(self.pool, timed)

    def close(self) -> None:
        """Let the threads end."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def prepare(data: bytes, contract: Contract, fov: float | None, pixels: int, *, keep: bool = False) -> Prepared:
    """Decode a picture and prepare it.

    Args:
        data: a whole file.
        contract: of the network.
        fov: horizontal field of view of its camera, degrees; None: EXIF's, else that of training.
        pixels: most that are decoded.
        keep: whether the decoded picture is needed later.

    Raises:
        ImageReadError: it cannot be read.
    """
    notices: list[str] = []
    picture = decode_image(data, SOURCE, max_pixels=pixels, on_notice=notices.append)
    size = (picture.shape[0], picture.shape[1])
    return Prepared(
        contract.prepare(picture), size, _camera(data, contract, fov, size), tuple(notices), picture if keep else None
    )


def _camera(data: bytes, contract: Contract, fov: float | None, size: tuple[int, int]) -> Camera:
    if fov is not None:
        return Camera.of(Intrinsics.from_fov(fov, *size))
    if (written := exif_camera(data, *size, on_notice=lambda text: None)) is not None:
        return Camera(written, "exif")
    assumed = contract.assumed_camera(*size)
    return Camera(assumed, "assumed" if assumed is not None else "unknown")


async def infer(opened: Opened, prepared: Prepared, metrics: Metrics) -> Ran:
    """The network's output for a prepared picture; a cancelled wait takes the picture out of the queue."""
    ran = await asyncio.wrap_future(opened.thread.run(prepared.values))
    name = opened.name, opened.runtime
    metrics.wait_s.add(ran.waited_s, *name)
    metrics.network_s.add(ran.took_s / ran.joined, *name)
    metrics.joined.add(ran.joined, *name)
    return ran


def restored(ran: Ran, prepared: Prepared, contract: Contract, size: tuple[int, int]) -> Depth:
    """Raw depth at (height, width) `size`, with metres corrected for a known camera."""
    known = prepared.camera.intrinsics if prepared.camera.origin != "assumed" else None
    if known is not None:
        known = known.resized(size[0] / prepared.size[0], size[1] / prepared.size[1])
    return contract.restore(ran.output, size, intrinsics=known, source="")


def result_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """The picture's (height, width), or that of its shape whose longer side is `max_side`; never larger."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))
