"""`leadline camera`: sources, the latest picture, reconnecting (FAULTS 25, 39, 41)."""

from __future__ import annotations

import http.server
import io
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tiny_films as tiny
from leadline.errors import ConfigError, DataError
from leadline.live import capture, latest
from leadline.live.capture import Shot, parse_source
from leadline.live.latest import Latest
from tiny_sources import given, shot, shots, write_pictures

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def test_pictures_come_in_the_order_that_people_count(tmp_path: Path) -> None:
    write_pictures(tmp_path, range(8, 12))
    for text in (tmp_path / "frame-%d.png", tmp_path / "frame-*.png", tmp_path):
        found = parse_source(str(text))
        assert (found.live, found.ends) == (False, True)
        for number, picture in zip(range(8, 12), shots(found), strict=True):
            np.testing.assert_array_equal(picture, tiny.scene(number))


def test_a_bad_picture_is_left_out_and_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, range(3))
    (tmp_path / "frame-1.png").write_bytes(b"junk")
    said: list[str] = []
    found = list(parse_source(str(tmp_path)).shots(threading.Event(), said.append))
    assert len(found) == 2
    assert "frame-1.png" in said[0]


def test_raw_frames_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b"".join(tiny.scene(number).tobytes() for number in range(3)) + b"x" * 7)

    monkeypatch.setattr(sys, "stdin", Stdin)
    stream = parse_source("-", stdin_size=tiny.SIZE).shots(threading.Event(), lambda text: None)
    for number in range(3):
        np.testing.assert_array_equal(next(stream).picture, tiny.scene(number))
    with pytest.raises(DataError, match="7 of 9216 bytes"):
        next(stream)
    with pytest.raises(ConfigError, match="--stdin-size"):
        parse_source("-")


def test_a_film_plays_at_its_pace(tmp_path: Path) -> None:
    film = str(tiny.film(tmp_path / "in.mp4", 5))
    begin = time.perf_counter()
    assert len(shots(parse_source(film, fps=0.0))) == 5
    assert time.perf_counter() - begin >= 0.39  # 4 steps of 100 ms
    begin = time.perf_counter()
    assert len(shots(parse_source(film, fps=1000.0))) == 5
    assert time.perf_counter() - begin < 0.35
    assert not parse_source(film).live


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing-*.png", "no such source"),
        ("nowhere/frame-%04d.png", "no such source"),
        ("/dev/video-none", "no such camera"),
        ("file:///etc/passwd", "file is none of rtsp"),
        ("", "no such source"),
    ],
)
def test_what_is_no_source_is_said(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_source(text)


def test_a_webcam_gives_rgb_and_a_busy_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = capture.opencv()
    state = {"opened": True, "left": 2, "released": 0}

    class Camera:
        def __init__(self, device: int) -> None:
            assert device == 3

        def isOpened(self) -> bool:
            return bool(state["opened"])

        def set(self, *_: object) -> None: ...

        def grab(self) -> bool:
            state["left"] -= 1
            return state["left"] >= 0

        def retrieve(self) -> tuple[bool, np.ndarray]:
            return True, np.full((4, 6, 3), (10, 20, 30), np.uint8)  # blue, green, red

        def release(self) -> None:
            state["released"] += 1

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    stream = parse_source("3").shots(threading.Event(), lambda text: None)
    assert next(stream).picture[0, 0].tolist() == [30, 20, 10]
    next(stream)
    with pytest.raises(DataError, match=r"no more pictures.*unplugged"):
        next(stream)
    state["opened"] = False
    with pytest.raises(DataError, match="another program uses it"):
        shots(parse_source("3"))
    assert state["released"] == 2


def test_the_latest_picture_wins_and_the_rest_are_counted() -> None:
    def flood(stop: threading.Event, say: Any) -> Generator[Shot]:
        for number in range(50):
            yield shot(number)
            if number == 20:
                time.sleep(0.3)
            if number == 49:
                time.sleep(0.3)

    with Latest(given(flood), drop=True) as taken:
        time.sleep(0.15)
        first = taken.take()
        assert first is not None
        np.testing.assert_array_equal(first.picture, tiny.scene(20))
        assert taken.dropped == 20
        time.sleep(0.4)
        second = taken.take()
        assert second is not None
        np.testing.assert_array_equal(second.picture, tiny.scene(49))
        assert taken.dropped == 48
        assert taken.take() is None


def test_without_dropping_every_picture_comes() -> None:
    def some(stop: threading.Event, say: Any) -> Generator[Shot]:
        yield from (shot(number) for number in range(9))

    with Latest(given(some, live=False), drop=False) as taken:
        for number in range(9):
            time.sleep(0.005)
            got = taken.take()
            assert got is not None
            np.testing.assert_array_equal(got.picture, tiny.scene(number))
        assert taken.take() is None
        assert taken.dropped == 0


def test_a_lost_source_is_opened_again_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "FIRST_PAUSE_S", 0.01)
    opened = []

    def flaky(stop: threading.Event, say: Any) -> Generator[Shot]:
        opened.append(time.monotonic())
        if len(opened) in (1, 4):
            yield shot(len(opened))
        raise DataError("lost the stream", where="x", why="it ended")

    said: list[str] = []
    with Latest(given(flaky, ends=False), drop=False, retries=3, say=said.append) as taken:
        assert taken.take() is not None
        assert taken.take() is not None
        with pytest.raises(DataError, match=r"lost the stream.*gave up after 3 more attempts"):
            taken.take()
    assert len(opened) == 7  # 1; 2, 3, 4 (which gives a picture, so that counting begins anew); 5, 6, 7
    assert taken.reopened == 6
    pauses = np.diff(opened)
    assert pauses[4] > 0.015  # twice the first
    assert "trying again in 0.01 s (1 of 3)" in said[0]


def test_a_silent_source_is_given_up() -> None:
    def silent(stop: threading.Event, say: Any) -> Generator[Shot]:
        stop.wait(30)
        yield shot()

    begin = time.monotonic()
    with Latest(given(silent), drop=True, wait_s=-1.5) as taken, pytest.raises(DataError, match="silent"):
        taken.take()
    assert time.monotonic() - begin < 5


class Server:
    """Motion JPEG over HTTP, some pictures for each connection; `port` stays the same when it comes back."""

    def __init__(self, pictures: int, port: int = 0) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(pictures):
                    jpeg = io.BytesIO()
                    Image.fromarray(tiny.scene(number)).save(jpeg, "JPEG")
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")
                    time.sleep(0.02)

            def log_message(self, *_: object) -> None: ...

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_network_camera_that_stops_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "FIRST_PAUSE_S", 0.1)
    server, said = Server(10), []
    url = f"http://user:secret@127.0.0.1:{server.port}/video"
    source = parse_source(url, wait_s=3)
    assert "secret" not in source.name
    with Latest(source, drop=False, retries=4, say=said.append) as taken:
        before = [taken.take() for _ in range(5)]
        assert all(each is not None and np.abs(each.picture.astype(int) - tiny.scene(3)).mean() < 60 for each in before)
        server.stop()
        time.sleep(0.3)
        again = Server(8, server.port)
        found = [taken.take() for _ in range(8)]
        again.stop()
        with pytest.raises(DataError, match="gave up after 4 more attempts"):
            list(iter(taken.take, None))
    assert all(each is not None for each in found)
    assert taken.reopened >= 5
    assert any("trying again in" in text for text in said)
    assert not any("secret" in text for text in said)
