"""The server: a stream of frames over a socket."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed

from leadline.live.server.limits import Limits
from serving import Running, bundle, jpeg, opened, parsed, running, stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(opened([f"tiny={folder}", f"fixed={folder}"])) as here:
        yield here


def test_a_stream_answers_with_raw_values_and_one_range(server: Running) -> None:
    with stream(server, "model=tiny") as socket:
        ranges = []
        for number in range(4):
            socket.send(jpeg(seed=7 * number))
            facts, body = parsed(socket.recv(20))
            values = np.frombuffer(body, "<f4").reshape(facts["height"], facts["width"])
            assert facts["frame"] == number
            assert facts["picture"] == {"height": 48, "width": 64}
            assert facts["unit"] == "m"
            assert facts["ms"]["network"] > 0
            ranges.append((facts["lo"], facts["hi"], *np.percentile(values, (2, 98))))
    steps = np.abs(np.diff([shown[0] for shown in ranges]))
    own = np.abs(np.diff([shown[2] for shown in ranges]))
    assert (steps <= 0.3 * own.max() + 1e-6).all()  # the shown range moves less than the frames' own


def test_a_stream_drops_frames_rather_than_fall_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = opened([f"tiny={folder}"])
    session = next(iter(models.served["tiny"].engines.values())).thread.session
    quick = session._infer
    monkeypatch.setattr(session, "_infer", lambda values: (time.sleep(0.15), quick(values))[1])
    with running(models) as here, stream(here) as socket:
        for seed in range(30):
            socket.send(jpeg(seed=seed))
            time.sleep(0.01)
        last, answers = -1, 0
        while last < 29:  # the newest frame is always answered
            last = parsed(socket.recv(20))[0]["frame"]
            answers += 1
        assert answers < 15


def test_a_stream_in_colours_made_steady(server: Running) -> None:
    pytest.importorskip("cv2")
    with stream(server, "format=color&smooth=true") as socket:
        for seed in range(3):
            socket.send(jpeg(64, 96, seed=seed))
            facts, body = parsed(socket.recv(20))
            with Image.open(io.BytesIO(body)) as image:
                assert image.size == (facts["width"], facts["height"])


def test_a_bad_frame_is_told_and_ten_end_the_stream(server: Running) -> None:
    with stream(server) as socket:
        socket.send(b"no picture")
        assert "not a picture" in json.loads(socket.recv(20))["error"]
        socket.send(jpeg())
        assert parsed(socket.recv(20))[0]["frame"] == 1
        for _ in range(10):
            socket.send(b"junk")
            assert "not a picture" in json.loads(socket.recv(20))["error"]
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(20)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1008


@pytest.mark.parametrize("query", ["model=none", "runtime=none"])
def test_a_stream_of_an_unknown_model_ends_with_the_reason(server: Running, query: str) -> None:
    with stream(server, query) as socket:
        socket.send(jpeg())
        assert "none" in json.loads(socket.recv(20))["error"]
        with pytest.raises(ConnectionClosed):
            socket.recv(20)


def test_too_many_streams(folder: Path) -> None:
    with running(opened([f"tiny={folder}"]), Limits(streams=1)) as here, stream(here) as first:
        with stream(here) as second:
            assert "too many streams" in json.loads(second.recv(20))["error"]
            with pytest.raises(ConnectionClosed) as end:
                second.recv(20)
            assert end.value.rcvd is not None
            assert end.value.rcvd.code == 1013
        first.send(jpeg())
        assert parsed(first.recv(20))[0]["frame"] == 0
