"""What the server takes: sizes, times and counts, each with the status that says no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; together they bound its memory.

    Args:
        upload_bytes: of one body or frame.
        bodies_bytes: of all bodies that are held at a time.
        pixels: of one picture, told by its header before it is decoded.
        waiting: requests for depth that are under way or queue; more get 503.
        streams: WebSockets at a time; more are closed with 1013.
        connections: open at a time; more get 503 before a byte of theirs is read.
        header_s: seconds in which a request's header must have arrived.
        body_s: seconds in which its body must have arrived.
        gap_s: seconds without a byte after which a sender is given up, or a receiver that takes nothing.
        linger_s: seconds in which what a refused sender still sends is thrown away, so that it can read the answer.
        stop_s: seconds that requests under way have to finish when the server is stopped.
    """

    upload_bytes: int = 32 << 20
    bodies_bytes: int = 256 << 20
    pixels: int = 25_000_000
    waiting: int = 16
    streams: int = 8
    connections: int = 256
    header_s: float = 10.0
    body_s: float = 60.0
    gap_s: float = 15.0
    linger_s: float = 2.0
    stop_s: float = 10.0


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        error: one sentence or two for the sender; names nothing of this machine.
        reason: one word for the metrics.
        headers: further ones of the answer.
    """

    def __init__(self, status: int, error: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.reason, self.headers = status, error, reason, dict(headers or {})


class GoneError(Exception):
    """The other side went away; there is nobody to answer."""


class Room:
    """Room for so many units of something; asked and given back on the event loop only.

    Args:
        most: units in all.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, count: int = 1) -> bool:
        """Take units, if so many are free."""
        if self.taken + count > self.most:
            return False
        self.taken += count
        return True

    def give(self, count: int = 1) -> None:
        """Give units back."""
        self.taken -= count


def busy(what: str, after_s: float) -> RefusedError:
    """503 with the seconds after which it may be tried again."""
    seconds = max(1, round(after_s))
    error = f"The server is busy: {what}. Try again in {seconds} s."
    return RefusedError(503, error, "busy", {"Retry-After": str(seconds)})


def megabytes(count: int) -> str:
    """Bytes in words: `32 MB` (of 2 to the 20th), or `512 bytes`."""
    return f"{count / (1 << 20):g} MB" if count >= 1 << 20 else f"{count} bytes"
