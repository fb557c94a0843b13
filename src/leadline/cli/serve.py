"""`leadline serve`: depth over HTTP and WebSocket, with a page."""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from leadline.cli.options import References
from leadline.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from leadline.live.server.models import Models

HELP = """Serve depth over HTTP and WebSocket, and a page to look at it.

Models are named by their reference, or by NAME=REF. The page is at /, the interface at /openapi.json. The server
listens on this machine only unless --host says otherwise; then give a token. A bundle or checkpoint whose folder is
replaced is opened anew: the old one answers until the new one has proven itself, and stays where it does not.

Ctrl-C or SIGTERM finishes what is under way; a second Ctrl-C ends at once. Exit status 1 says that something was cut
off."""

EXAMPLES = (
    "leadline serve",
    "leadline serve leadline-s indoor=leadline-s-indoor --runtime openvino --runtime onnxruntime",
    "leadline serve runs/int8 --host 0.0.0.0 --token-file token.txt",
)
INSTALL = "pip install 'leadline[server]'"
SHORTEST_TOKEN = 8


def command(
    refs: References,
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any free one.")] = 8000,
    runtime: Annotated[
        Optional[list[str]],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--runtime", metavar="NAME", help="Engine, several times for a choice; the fastest if not given."),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--threads", "-t", min=0, max=256, help="Threads of an engine; all cores but one if not given."),
    ] = None,
    token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--token", envvar="LEADLINE_TOKEN", help="Clients must show it; LEADLINE_TOKEN keeps it secret."),
    ] = None,
    token_file: Annotated[
        Optional[typer.FileText],  # noqa: UP045
        typer.Option("--token-file", help="File whose first line is the token."),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--allow-host", metavar="NAME", help="A further name of this server, as behind a proxy."),
    ] = None,
    allow_origin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--allow-origin", metavar="ORIGIN", help="A page of elsewhere that may ask: https://example.org"),
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=1, max=10_000, help="Requests that may wait; more get 503 and Retry-After.")
    ] = 16,
    max_upload: Annotated[float, typer.Option("--max-upload", min=0.01, max=1024, help="Of one upload, MB.")] = 32,
    max_pixels: Annotated[float, typer.Option("--max-pixels", min=0.01, max=80, help="Of one picture, millions.")] = 25,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, max=3600, help="Seconds in which an upload must have arrived.")
    ] = 60,
    batch_window: Annotated[
        float,
        typer.Option("--batch-window", min=0, max=1000, help="Milliseconds to wait for pictures to join a run."),
    ] = 0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request on stderr.")] = False,
) -> None:
    """Serve depth over HTTP and WebSocket."""
    _require()
    from leadline.live.server.app import create_app
    from leadline.live.server.batching import Batching
    from leadline.live.server.guard import LOOPBACK, Access, default_hosts
    from leadline.live.server.limits import Limits
    from leadline.live.server.models import Models
    from leadline.live.server.opening import AUTOMATIC, OWN, wanted_models
    from leadline.live.server.running import address_of, listen, serve, server_for

    shown = _token(token, token_file)
    if threads is None:
        threads = max(
            1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) - 1
        )
    wanted = wanted_models(refs, runtime or [AUTOMATIC], threads)
    for each in wanted:
        if runtime and each.runtimes == (OWN,):
            _say(f"note: {each.name} runs in the engine that its file was made for; --runtime is for the others")
    limits = Limits(
        upload_bytes=round(max_upload * (1 << 20)),
        bodies_bytes=max(256 << 20, round(2 * max_upload * (1 << 20))),
        pixels=round(max_pixels * 1e6),
        waiting=queue,
        body_s=timeout,
        header_s=min(10.0, timeout),
        gap_s=min(15.0, timeout),
    )
    hosts = (*default_hosts(host), *(name.lower() for name in allow_host or ()))
    access = Access(hosts, tuple(origin.rstrip("/") for origin in allow_origin or ()), shown)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # uvicorn's and ours, on stderr
    listening = listen(host, port)
    try:
        models = Models(Batching(batch_window / 1e3), _say)
        models.open(wanted)
    except BaseException:
        listening.close()
        raise
    address = address_of(listening)
    if host not in LOOPBACK and shown is None:
        _say("note: whoever reaches this machine may use the server: give --token, or stay on 127.0.0.1")

    def started() -> None:
        _tell(models, address, shown)

    app = create_app(models, limits, access)
    status = serve(server_for(app, limits, started, access_log=access_log), listening)
    _say("stopped" if status == 0 else "stopped; some requests were cut off")
    if status:
        raise typer.Exit(status)


def _require() -> None:
    for package in ("fastapi", "uvicorn", "websockets"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError("the server is not available", why=f"{package} is missing", mend=f"run {INSTALL}")


def _token(token: str | None, file: typer.FileText | None) -> str | None:
    if token is not None and file is not None:
        raise ConfigError("two tokens", where="--token and --token-file", mend="give one of them")
    if file is not None:
        token = file.readline().strip()
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        why = f"it needs {SHORTEST_TOKEN} or more letters, digits and signs without spaces"
        mend = "make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ConfigError("not a token", why=why, mend=mend)
    return token


def _tell(models: Models, address: str, token: str | None) -> None:
    """What is served where, on stdout."""
    from leadline.live.server.models import described

    for name, served in models.served.items():
        typer.echo(f"{name}: {described(served)}")
        for opened in served.engines.values():
            for note in opened.notes:
                _say(f"note: {name}: {note}")
    # What stands behind # stays in the browser and is in no request; a log, which others may read, does not get it.
    behind = ""
    if token is not None and sys.stdout.isatty():
        behind = "#token=" + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    typer.echo(f"serving at {address}{behind}  (Ctrl-C stops)")
    if token is not None and not behind:
        typer.echo("the page asks for the token; programs send it as Authorization: Bearer TOKEN")


def _say(text: str) -> None:
    typer.echo(text, err=True)
