"""Serve this folder at http://localhost:8000, or at another port: `python serve.py 8001`.

Nothing but Python is needed. Unlike `python -m http.server` it isolates the page by two headers, so that WebAssembly
gets its threads at once, and it listens on this machine only.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of this folder with the isolating headers and the right types, whatever the system's registry says."""

    extensions_map = {  # noqa: RUF012 - declared so by its base
        **SimpleHTTPRequestHandler.extensions_map,
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add the headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each file."""


def main() -> None:
    """Serve until Ctrl-C."""
    try:
        port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(Path(__file__).parent)))
    except (ValueError, OverflowError, OSError) as error:
        sys.exit(f"cannot serve: {error}. Give another port: python serve.py 8001")
    print(f"http://localhost:{server.server_port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
