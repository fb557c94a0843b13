"""The server as a process: its address, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from leadline.errors import ConfigError
from leadline.live.server.connection import protocol_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fastapi import FastAPI

    from leadline.live.server.limits import Limits

PING_S = 20.0  # after which a WebSocket must have answered


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken, not this machine's, or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        mend = "choose another with --port, or --port 0 for a free one"
        why = error.strerror or str(error)
        raise ConfigError("cannot listen at", where=f"{host}:{port}", why=why, mend=mend) from error


def address_of(listening: socket.socket) -> str:
    """`http://127.0.0.1:8000/`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def server_for(app: FastAPI, limits: Limits, on_start: Callable[[], None], *, access_log: bool = False) -> Server:
    """Uvicorn with our limits, ready for `run`.

    Args:
        app: the application.
        limits: of time.
        on_start: called once the server takes requests.
        access_log: log every request on stderr.
    """
    config = uvicorn.Config(
        app,
        http=protocol_with(limits),
        ws="websockets-sansio",
        ws_max_size=limits.upload_bytes,
        ws_per_message_deflate=False,  # frames are compressed already
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        lifespan="on",
        log_config=None,
        log_level=logging.INFO if access_log else logging.ERROR,
        access_log=access_log,
        timeout_keep_alive=max(1, round(limits.header_s)),
        timeout_graceful_shutdown=max(1, round(limits.stop_s)),
        server_header=False,
    )
    return Server(config, on_start)


def serve(server: Server, listening: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; then finish what is under way within the limit. A second SIGINT ends at once.

    Args:
        server: of `server_for`.
        listening: of `listen`.

    Returns:
        0 where all that was under way was finished, 1 where some was cut off.
    """
    with _harmless_signals():  # uvicorn sends itself the signal again after its end
        server.run([listening])
    return 1 if server.was_cut else 0


class Server(uvicorn.Server):
    """Says when it takes requests, and whether it cut some off."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_start, self.was_cut = on_start, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the sockets and say so."""
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, or cut it off."""
        cutting = asyncio.get_running_loop().call_later(self.config.timeout_graceful_shutdown or 0, self._note)
        await super().shutdown(sockets)
        cutting.cancel()

    def _note(self) -> None:
        self.was_cut = bool(self.server_state.tasks)


@contextmanager
def _harmless_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
