"""A server in a thread of this process, on a free port, with the tiny network."""

from __future__ import annotations

import io
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image
from websockets.sync.client import connect

from leadline.checkpoint import save_checkpoint
from leadline.live.server.app import create_app
from leadline.live.server.batching import Batching
from leadline.live.server.guard import Access
from leadline.live.server.limits import Limits
from leadline.live.server.models import Models
from leadline.live.server.opening import wanted_models
from leadline.live.server.running import Server, address_of, listen, server_for
from tiny_models import cnn, exported

HEAD = {"Content-Type": "image/jpeg"}


def bundle(folder: Path) -> Path:
    """A copy of the tiny network's bundle, which the test may change."""
    target = folder / "bundle"
    shutil.copytree(exported("cnn", "onnxruntime", "fp32").folder, target)
    return target


def checkpoint(folder: Path) -> Path:
    """The tiny network as a checkpoint, which takes no export."""
    target, model = folder / "checkpoint", cnn()
    assert model.architecture is not None
    assert model.config is not None
    save_checkpoint(target, model.model, architecture=model.architecture, config=model.config, contract=model.contract)
    return target


def jpeg(height: int = 48, width: int = 64, seed: int = 0, form: str = "JPEG", **options: object) -> bytes:
    """A picture file with smooth content."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin((x + 3 * seed) / (5 + band)) * np.cos(y / (6 + band)) for band in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


def opened(refs: list[str], batching: Batching | None = None, said: list[str] | None = None) -> Models:
    """Models that are open."""
    models = Models(batching or Batching(), (said if said is not None else []).append)
    models.open(wanted_models(refs, ["torch"], 1))
    return models


class Running:
    """A server that answers."""

    def __init__(self, app: FastAPI, server: Server, address: str) -> None:
        self.app, self.server, self.address = app, server, address
        self.host, self.port = httpx.URL(address).host, int(httpx.URL(address).port or 0)
        self.client = httpx.Client(base_url=address, timeout=30)


@contextmanager
def running(models: Models, limits: Limits | None = None, access: Access | None = None) -> Iterator[Running]:
    """A server, until the block ends."""
    limits, ready = limits or Limits(), threading.Event()
    app = create_app(models, limits, access, reload_s=0.1)
    server = server_for(app, limits, ready.set)
    listening = listen("127.0.0.1", 0)
    address = address_of(listening)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    assert ready.wait(20)
    here = Running(app, server, address)
    try:
        yield here
    finally:
        here.client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(server: Running, data: bytes | None = None, **query: object):
    """The answer to a picture that is asked about."""
    return server.client.post("v1/depth", content=jpeg() if data is None else data, params=query, headers=HEAD)


def stream(server: Running, query: str = "", **options: Any):
    """A socket for frames."""
    return connect(f"ws://127.0.0.1:{server.port}/v1/stream?{query}", **options)


def parsed(message: bytes | str) -> tuple[dict, bytes]:
    """What a frame's answer says of itself, and its values or picture."""
    assert isinstance(message, bytes), message
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def wait_until(condition, seconds: float = 20.0) -> None:
    """Fail where it does not come to hold."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "still not"
        time.sleep(0.02)
