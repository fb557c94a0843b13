"""Who may ask: Host and Origin against pages of strangers (FAULTS 47), and a token where one is wanted."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.websockets import WebSocketClose

from leadline.live.server.limits import RefusedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from leadline.live.server.metrics import Metrics

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/healthz", "/readyz", "/favicon.ico")  # and the page's own files: nothing secret is in them
ASSETS = "/assets/"
PROTOCOL, BEARER = "leadline", "bearer."  # of a WebSocket, whose headers a page cannot set
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
STOPPED = RefusedError(503, "The server was stopped before it had the answer.", "stopped", {"Retry-After": "5"})


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        hosts: names and addresses under which the server may be addressed, lower case; `*` allows any address that is
            no name, which no stranger's page can make its own.
        origins: of further pages that may ask, as `https://example.org`.
        token: that clients must show; None for none.
    """

    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()
    token: str | None = None

    def check(self, scope: Scope) -> None:
        """Pass where the request may be answered.

        Raises:
            RefusedError: 403 for a foreign Host or Origin, 401 without the token.
        """
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = found.get("host", "")
        if not self._knows(host):
            mend = "start the server with --allow-host NAME to serve under that name"
            raise RefusedError(403, f"This server does not answer to the name {host[:80]!r}; {mend}.", "host")
        origin = found.get("origin")
        if origin is not None and origin not in self.origins and not _is_same(origin, host):
            mend = "start the server with --allow-origin ORIGIN to let it"
            raise RefusedError(403, f"Pages of {origin[:80]!r} may not ask this server; {mend}.", "origin")
        path = scope["path"]
        is_open = path in OPEN or path.startswith(ASSETS) or scope.get("method") == "OPTIONS"
        if self.token is not None and not is_open and not self._shown(found):
            error = "This server wants a token: send it as `Authorization: Bearer TOKEN`."
            raise RefusedError(401, error, "token", {"WWW-Authenticate": "Bearer"})

    def _knows(self, host: str) -> bool:
        name = host_name(host)
        return name in self.hosts or ("*" in self.hosts and _is_address(name))

    def _shown(self, found: dict[str, str]) -> bool:
        assert self.token is not None
        kind, _, shown = found.get("authorization", "").partition(" ")
        tokens = [shown.strip()] if kind.lower() == "bearer" else []
        for offered in found.get("sec-websocket-protocol", "").split(","):
            if offered.strip().startswith(BEARER):
                tokens.append(_unpacked(offered.strip().removeprefix(BEARER)))
        wanted = self.token.encode()
        return any(hmac.compare_digest(token.encode("utf-8", "replace"), wanted) for token in tokens)


def default_hosts(host: str) -> tuple[str, ...]:
    """The names for a server that listens on this address: strangers' names are not among them."""
    if host in ("0.0.0.0", "::", ""):  # every address of the machine
        return (*LOOPBACK, "*", socket.gethostname().lower())
    return LOOPBACK if host in LOOPBACK else (*LOOPBACK, host.lower())


def host_name(host: str) -> str:
    """The name or address in a Host header, lower case, without port and brackets; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """Middleware around everything: checks who asks, answers refusals, counts.

    Args:
        app: what is guarded.
        access: who may ask.
        metrics: what is counted.
        routes: known paths; all others are counted as `other`.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app, self.access, self.metrics, self.routes = app, access, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["begun"] = time.perf_counter()
        counted = self._counting(scope, send) if scope["type"] == "http" else send
        try:
            self.access.check(scope)
        except RefusedError as refusal:
            self.metrics.refused.add(refusal.reason)
            answer = answer_to(refusal)
            if scope["type"] == "http":
                await answer(scope, receive, counted)
            elif "websocket.http.response" in scope.get("extensions", {}):
                await answer(scope, receive, send)
            else:
                await WebSocketClose(1008)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, counted)
        except asyncio.CancelledError:  # the server stops, and its time to finish is over
            if scope["type"] == "http" and not scope["state"].get("answered"):
                await answer_to(STOPPED)(scope, receive, counted)

    def _counting(self, scope: Scope, send: Send) -> Send:
        route = scope["path"] if scope["path"] in self.routes else "other"

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
                scope["state"]["answered"] = True
                self.metrics.requests.add(route, method, str(message["status"]))
                given = {name.lower() for name, _ in message["headers"]}
                further = [(n.encode(), v.encode()) for n, v in SAFE.items() if n.encode() not in given]
                message = {**message, "headers": [*message["headers"], *further]}
            await send(message)

        return counting


def answer_to(refusal: RefusedError) -> JSONResponse:
    """A refusal as JSON."""
    return JSONResponse({"error": refusal.error}, refusal.status, refusal.headers)


def _is_same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and bool(host)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unpacked(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return ""
