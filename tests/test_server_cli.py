"""`leadline serve`: its link, its start, its end, a taken port."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from leadline.cli import serve
from leadline.live.server.limits import Limits
from serving import HEAD, Running, ask, bundle, jpeg, opened, parsed, running, stream, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(opened([f"tiny={folder}", f"fixed={folder}"])) as here:
        yield here


def start(*arguments: object, folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "leadline", "serve", f"tiny={folder}", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    described = process.stdout.readline()
    assert described.startswith("tiny: metric_depth, input 64 x 96 (height x width), onnxruntime fp32"), described
    line = process.stdout.readline()
    return process, line.split()[2]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_link_with_the_token_is_for_terminals(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    models: Any = SimpleNamespace(served={})
    serve._tell(models, "http://127.0.0.1:1/", "correct-horse")
    said = capsys.readouterr().out
    assert ("http://127.0.0.1:1/#token=Y29ycmVjdC1ob3JzZQ " in said) is terminal
    assert ("the page asks for the token" in said) is not terminal


def test_the_command_serves_and_stops_gracefully(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("correct-horse\n")
    process, address = start("--token-file", secret, folder=folder)
    try:
        root = address
        assert "#" not in address  # what is no terminal may be a log, which others read
        head = {"Authorization": "Bearer correct-horse", **HEAD}
        assert httpx.post(f"{root}v1/depth", content=jpeg(), headers=head, timeout=30).status_code == 200
        # a request that is under way when the signal comes is still answered
        parts, statuses = threading.Event(), []

        def slowly() -> Iterator[bytes]:
            yield jpeg()[:100]
            parts.set()
            time.sleep(0.6)
            yield jpeg()[100:]

        def ask_slowly() -> None:
            statuses.append(httpx.post(f"{root}v1/depth", content=slowly(), headers=head, timeout=30).status_code)

        asking = threading.Thread(target=ask_slowly)
        asking.start()
        assert parts.wait(20)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        asking.join(30)
        assert statuses == [200]
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "stopped\n"  # no access log, no traceback
    finally:
        process.kill()
        process.communicate()


def test_stopping_ends_streams_and_gives_the_slow_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = opened([f"tiny={folder}"])
    session = next(iter(models.served["tiny"].engines.values())).thread.session
    quick = session._infer
    with running(models, Limits(stop_s=1.0)) as here, stream(here) as socket:
        socket.send(jpeg())
        assert parsed(socket.recv(20))[0]["frame"] == 0
        monkeypatch.setattr(session, "_infer", lambda values: (time.sleep(3), quick(values))[1])
        statuses: list[object] = []

        def ask_in_vain() -> None:
            try:
                statuses.append(ask(here).status_code)
            except httpx.HTTPError as error:
                statuses.append(type(error))

        asking = threading.Thread(target=ask_in_vain)
        asking.start()
        wait_until(lambda: here.app.state.leadline.waiting.taken == 1)
        begun = time.monotonic()
        here.server.should_exit = True
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(20)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1012  # the service restarts
        asking.join(20)
        assert time.monotonic() - begun < 3
        assert statuses == [503]
        wait_until(lambda: here.server.was_cut)


def test_a_taken_port_is_said_in_one_line(folder: Path, server: Running) -> None:
    from typer.testing import CliRunner

    from leadline.cli import app

    result = CliRunner().invoke(app, ["serve", f"tiny={folder}", "--port", str(server.port)])
    assert result.exit_code == 2
    assert "cannot listen at" in result.output
