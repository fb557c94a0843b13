"""A picture that arrives: its body taken under a limit of bytes and of time, alone or as a part of a form."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from leadline.live.server.limits import GoneError, Limits, RefusedError, Room, busy, megabytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

FORM = "multipart/form-data"
PLAIN = ("application/octet-stream", "")
BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;]{1,70}))', re.IGNORECASE)


@asynccontextmanager
async def picture_of(request: Request, limits: Limits, room: Room) -> AsyncIterator[bytes]:
    """The bytes of the picture in a request; they count against the room for bodies until the block ends.

    The name that a sender gives a file is not looked at.

    Raises:
        RefusedError: 415 for a type that is no picture, 413 beyond the limit, 408 for a slow sender, 503 without
            room, 422 for a form without a file.
        GoneError: the sender went away.
    """
    kind, boundary = _media_type(request.headers.get("content-type", ""))
    held = 0
    try:
        body = bytearray()
        async for chunk in _chunks(request, limits):
            if not room.take(len(chunk)):
                raise busy("it holds too many uploads", limits.gap_s / 4)
            held += len(chunk)
            body += chunk
        if kind != FORM:
            yield bytes(body)
            return
        yield file_of_form(bytes(body), boundary)
    finally:
        room.give(held)


def _media_type(text: str) -> tuple[str, bytes]:
    kind = text.partition(";")[0].strip().lower()
    if kind == FORM:
        found = BOUNDARY.search(text)
        if found is None:
            raise RefusedError(422, "The form has no boundary in its content type.", "form")
        return FORM, (found[1] or found[2]).encode("latin-1")
    if kind.startswith("image/") or kind in PLAIN:
        return kind, b""
    taken = f"image/*, application/octet-stream or {FORM} with a file"
    raise RefusedError(415, f"The content type {kind[:80]!r} is no picture: send {taken}.", "type")


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    most = limits.upload_bytes
    too_large = RefusedError(413, f"The upload is too large: at most {megabytes(most)} are taken.", "upload")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    clock = asyncio.get_running_loop().time
    end, total = clock() + limits.body_s, 0
    while True:
        try:
            async with asyncio.timeout_at(min(clock() + limits.gap_s, end)):
                message = await request.receive()
        except TimeoutError as error:
            raise RefusedError(408, "The upload was too slow.", "slow") from error
        if message["type"] == "http.disconnect":
            raise GoneError
        total += len(message.get("body", b""))
        if total > most:
            raise too_large
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def file_of_form(body: bytes, boundary: bytes) -> bytes:
    """The first file in a multipart/form-data body (RFC 7578).

    Args:
        body: the whole of it.
        boundary: as the content type has it.

    Raises:
        RefusedError: 422, there is no file in it.
    """
    mark = b"\r\n--" + boundary
    for part in (b"\r\n" + body).split(mark)[1:-1]:
        head, gap, content = part.partition(b"\r\n\r\n")
        if gap and b"filename" in head.lower():
            return content
    raise RefusedError(422, "The form holds no file: send one part with the picture.", "form")
