"""The page and its files, all in memory: no name that a client sends ever becomes a path (FAULTS 48)."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from leadline.colors import palette
from leadline.runtimes.web import PAGE as SHARED

PAGE = Path(__file__).parents[1] / "web"
# Modules that the page of the browser's bundle has as well; they are kept there.
TAKEN = ("colors.js", "contract.js", "page.js", "resize.js", "source.js")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class Pages:
    """Files of the page by name."""

    def __init__(self) -> None:
        places = [*sorted(PAGE.iterdir()), *(SHARED / name for name in TAKEN)]
        self.files = {path.name: path.read_bytes() for path in places if path.suffix in TYPES}
        self.files["palette.json"] = json.dumps(palette().tolist()).encode()

    def answer(self, name: str) -> Response:
        """A file with its type and policy, or 404."""
        data = self.files.get(name)
        if data is None:
            return PlainTextResponse("not found", 404)
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(data, headers=headers, media_type=TYPES[Path(name).suffix])
