"""A connection that cannot be kept open for nothing: time-outs that uvicorn itself does not have (FAULTS 46).

Slow bodies are given up in `arriving`; here it is slow headers, receivers that take nothing, and senders that go on
after they were refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from leadline.live.server.limits import Limits

if TYPE_CHECKING:
    import asyncio

SLOWEST = 1024  # bytes a second that a receiver must take


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn with limits of time and number."""

    limits: ClassVar[Limits] = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header, or refuse one connection too many."""
        self._real = transport
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._is_lingering = False
        super().connection_made(cast("asyncio.Transport", _ClosesGently(transport, self)))
        if len(self.connections) > self.limits.connections:
            self._answer(503, "The server has too many connections. Try again in 5 s.", retry_after=5)
        else:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        self._stop_header_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a refused sender are thrown away."""
        if self._is_lingering or self._real.is_closing():
            return
        if self._header_timer is None and not self._is_answering():
            self._await_header()
        super().data_received(data)
        if self._is_answering():
            self._stop_header_timer()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand over to the WebSocket's own protocol."""
        self._stop_header_timer()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as JSON."""
        self._answer(400, "That was no valid HTTP request.")

    def on_response_complete(self) -> None:
        """End the connection where the sender has not finished: nobody reads the rest."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self._real.is_closing():
            self.linger()

    def pause_writing(self) -> None:
        """The receiver is slower than we are: watch whether it takes anything."""
        super().pause_writing()
        if self._send_timer is None:
            self._watch_receiver(self._real.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has taken enough."""
        self._stop_send_timer()
        super().resume_writing()

    @property
    def is_unread(self) -> bool:
        """Whether the sender is still in the midst of a body."""
        return self.conn.their_state is h11.SEND_BODY and not self._is_lingering

    def linger(self) -> None:
        """Close our side, and throw away what comes for a while: closing at once would destroy the answer."""
        self._is_lingering = True
        self._stop_header_timer()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self._real.can_write_eof():
            self._real.write_eof()
        self.loop.call_later(self.limits.linger_s, self._real.close)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self._is_answering() and not self._real.is_closing():
            self._answer(408, "The request's header was too slow.")

    def _watch_receiver(self, before: int) -> None:
        def look() -> None:
            left = self._real.get_write_buffer_size()
            if before - left < SLOWEST * self.limits.gap_s:
                self._real.abort()
            else:
                self._watch_receiver(left)

        self._send_timer = self.loop.call_later(self.limits.gap_s, look)

    def _answer(self, status: int, error: str, retry_after: int | None = None) -> None:
        """Write an answer past the application, and close."""
        body = json.dumps({"error": error}).encode()
        lines = [f"HTTP/1.1 {status} ", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += ["Connection: close"] + ([f"Retry-After: {retry_after}"] if retry_after else [])
        self._real.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        self.linger()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


class _ClosesGently:
    """A transport whose `close` lets a sender that is not finished read the answer first."""

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._transport, self._protocol = transport, protocol

    def close(self) -> None:
        if self._protocol.is_unread and not self._transport.is_closing():
            self._protocol.linger()
        else:
            self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def protocol_with(limits: Limits) -> type[GuardedProtocol]:
    """The protocol with these limits, as uvicorn takes it."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})
