"""Frames over a WebSocket: JPEG in, depth out; the newest frame is taken and older ones are dropped."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from leadline.colors import color_indices, palette
from leadline.depth import Depth
from leadline.errors import LeadlineError, NumericalError
from leadline.live.display import DisplayRange
from leadline.live.server.guard import PROTOCOL
from leadline.live.server.limits import Limits, RefusedError
from leadline.live.server.predicting import Hands, infer, prepare, restored
from leadline.live.temporal import Smoother, Smoothing
from leadline.png import png_bytes

if TYPE_CHECKING:
    from leadline.live.server.metrics import Metrics
    from leadline.live.server.models import Models, Opened
    from leadline.live.server.predicting import Prepared

IDLE_S = 60.0  # without a frame
MOST_BAD = 10  # frames in a row that cannot be read
POLICY, TOO_MANY, UNREADABLE, FAULT = 1008, 1013, 1007, 1011  # RFC 6455 section 7.4, IANA


class StreamFormat(StrEnum):
    """What a stream's answers hold."""

    RAW = "raw"
    COLOR = "color"


@dataclass(frozen=True)
class StreamOptions:
    """What a client asks of a stream."""

    model: str | None = None
    runtime: str | None = None
    format: StreamFormat = StreamFormat.RAW
    fov: float | None = None
    smooth: bool = False


@dataclass
class _Newest:
    """One place for a frame: a newer one takes it from an older one that nobody has fetched."""

    count: int = 0
    dropped: int = 0
    frame: tuple[int, bytes, float] | None = None
    has_one: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, data: bytes) -> None:
        if self.frame is not None:
            self.dropped += 1
        self.frame = (self.count, data, time.perf_counter())
        self.count += 1
        self.has_one.set()

    async def take(self) -> tuple[int, bytes, float]:
        await self.has_one.wait()
        assert self.frame is not None
        frame, self.frame = self.frame, None
        self.has_one.clear()
        return frame


class Stream:
    """One accepted WebSocket.

    Args:
        socket: of it.
        options: what the client asks.
        models: to pick from, for each frame anew, so that a reload reaches a running stream.
        hands: decode frames.
        limits: of the server.
        metrics: of the server.
    """

    def __init__(
        self, socket: WebSocket, options: StreamOptions, models: Models, hands: Hands, limits: Limits, metrics: Metrics
    ) -> None:
        self.socket, self.options, self.models = socket, options, models
        self.hands, self.limits, self.metrics = hands, limits, metrics
        self.newest, self.range = _Newest(), DisplayRange()
        self.smoother: Smoother | None = None
        self.bad = 0

    async def run(self) -> None:
        """Serve until the client leaves, sends nothing, or sends what cannot be read."""
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._answer())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, TimeoutError):
            pass
        except RefusedError as refusal:
            self.metrics.refused.add(refusal.reason)
            await close(self.socket, POLICY, refusal.error)
        except NumericalError as error:
            await close(self.socket, FAULT, str(error))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.metrics.frames.add("received", amount=self.newest.count)
            self.metrics.frames.add("dropped", amount=self.newest.dropped)

    async def _receive(self) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            data = message.get("bytes")
            if data is None:
                raise RefusedError(422, "Frames are binary messages, each a JPEG or another picture.", "frame")
            if len(data) > self.limits.upload_bytes:
                raise RefusedError(413, "The frame is too large.", "upload")
            self.newest.put(data)

    async def _answer(self) -> None:
        while True:
            number, data, arrived = await self.newest.take()
            _, opened = self.models.pick(self.options.model, self.options.runtime)
            try:
                with opened.used():
                    message = await self._depth(opened, number, data, arrived)
                self.bad = 0
            except NumericalError:
                raise
            except LeadlineError as error:
                self.bad += 1
                self.metrics.frames.add("unreadable")
                if self.bad >= MOST_BAD:
                    raise RefusedError(422, f"{MOST_BAD} frames in a row: {error}", "frame") from error
                await self._send(json.dumps({"frame": number, "error": str(error)}))
                continue
            await self._send(message)
            self.metrics.frames.add("answered")

    async def _send(self, message: str | bytes) -> None:
        async with asyncio.timeout(self.limits.gap_s):
            await (self.socket.send_text(message) if isinstance(message, str) else self.socket.send_bytes(message))

    async def _depth(self, opened: Opened, number: int, data: bytes, arrived: float) -> bytes:
        options, contract, pixels = self.options, opened.contract, self.hands.pixels
        prepared, before = await self.hands.do(
            lambda: prepare(data, contract, options.fov, pixels, keep=options.smooth)
        )
        ran = await infer(opened, prepared, self.metrics)
        size = (ran.output.shape[2], ran.output.shape[3])
        (depth, lo, hi, body), after = await self.hands.do(
            lambda: self._finished(restored(ran, prepared, contract, size), prepared)
        )
        facts: dict[str, Any] = {
            "frame": number,
            "dropped": self.newest.dropped,
            "model": opened.name,
            "runtime": opened.runtime,
            "kind": depth.kind.value,
            "unit": depth.unit,
            "camera": prepared.camera.origin,
            "fov": prepared.fov,
            "height": depth.shape[0],
            "width": depth.shape[1],
            "picture": {"height": prepared.size[0], "width": prepared.size[1]},
            "lo": lo,
            "hi": hi,
            "ms": {
                "before": round(before, 2),
                "wait": round(1e3 * ran.waited_s, 2),
                "network": round(1e3 * ran.took_s, 2),
                "after": round(after, 2),
                "total": round(1e3 * (time.perf_counter() - arrived), 2),
            },
        }
        head = json.dumps(facts, allow_nan=False).encode()
        return struct.pack("<I", len(head)) + head + body

    def _finished(self, depth: Depth, prepared: Prepared) -> tuple[Depth, float, float, bytes]:
        """Steady over time where that was asked for, with its display range, as bytes."""
        if self.options.smooth and prepared.picture is not None:
            if self.smoother is None or self.smoother.kind is not depth.kind:
                self.smoother = Smoother(depth.kind, Smoothing.causal())
            (steady,) = self.smoother.push(prepared.picture, depth.values)
            depth = Depth(steady, depth.kind)
        lo, hi = self.range.update(depth.values, depth.kind)
        if self.options.format is StreamFormat.COLOR:
            return depth, lo, hi, png_bytes(color_indices(depth, lo, hi), palette())
        return depth, lo, hi, np.ascontiguousarray(depth.values, "<f4").tobytes()


async def accept(socket: WebSocket) -> None:
    """Accept with our protocol's name where the client offers it."""
    offered = [part.strip() for part in socket.headers.get("sec-websocket-protocol", "").split(",")]
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)


async def close(socket: WebSocket, code: int, reason: str) -> None:
    """Say why, as a message and in the close frame, which holds 123 bytes at most."""
    await socket.send_text(json.dumps({"error": reason}))
    await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
