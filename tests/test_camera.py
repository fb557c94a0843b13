"""`leadline camera`: sources, dropping, latency, reconnecting, recording (FAULTS 25, 39, 41)."""

from __future__ import annotations

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tiny_films as tiny
from leadline.cli import app
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, OutputError, UnavailableError
from leadline.live import capture, latest
from leadline.live.camera import Latencies, LiveFrame, LiveOptions, run_live
from leadline.live.capture import Shot, Source, parse_source
from leadline.live.latest import Latest
from leadline.live.recording import Recording
from leadline.live.screens import Terminal, Window, half_blocks, ppm
from test_predict_cli import write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from typer.testing import Result


def shots(source: Source) -> list[np.ndarray]:
    return [shot.picture for shot in source.shots(threading.Event(), lambda text: None)]


def given(make: Callable[[threading.Event, Any], Generator[Shot]], *, live: bool = True, ends: bool = True) -> Source:
    return Source("test", make, live=live, ends=ends)


def shot(number: int = 0) -> Shot:
    return Shot(tiny.scene(number), time.perf_counter(), time.time())


def write_pictures(folder: Path, numbers: Iterator[int] | range, ending: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(tiny.scene(number)).save(folder / f"frame-{number}{ending}")


# ---------------------------------------------------------------- sources


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


# ---------------------------------------------------------------- the latest picture


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


# ---------------------------------------------------------------- the loop


def run(count: int = 8, **options: Any) -> tuple[Any, list[LiveFrame]]:
    figures: list[LiveFrame] = []

    def some(stop: threading.Event, say: Any) -> Generator[Shot]:
        yield from (shot(number) for number in range(count))

    with Latest(given(some), drop=False) as taken:
        result = run_live(
            tiny.predictor(Kind.METRIC_DEPTH),
            taken,
            options.pop("live", LiveOptions()),
            on_frame=lambda frame, _: figures.append(frame),
            **options,
        )
    return result, figures


def test_figures_of_each_frame() -> None:
    begin = time.time()
    result, figures = run()
    assert (result.frames, result.dropped, len(figures)) == (8, 0, 8)
    assert [figure.frame for figure in figures] == list(range(8))
    for figure in figures:
        assert begin <= figure.time <= time.time()
        assert 0 < figure.latency_ms < 60_000
        assert figure.low is not None
        assert figure.high is not None
        assert figure.median is not None
        assert 1 < figure.low < figure.median < figure.high < 5.1
    assert "8 frames" in result.status()
    assert "ms p95" in result.status()


def test_it_ends_after_frames_and_when_the_window_is_closed() -> None:
    class Screen:
        closed = False
        shown = 0

        def show(self, picture: np.ndarray, status: str) -> None:
            assert picture.shape == (48, 128, 3)
            self.shown += 1
            self.closed = self.shown == 3

    assert run(live=LiveOptions(frames=5))[0].frames == 5
    screen = Screen()
    assert run(screen=screen)[0].frames == screen.shown == 3


def test_a_recording_has_the_times_at_which_pictures_came(tmp_path: Path) -> None:
    with Recording(tmp_path / "deep" / "out.mp4") as recording:
        assert not (tmp_path / "deep").exists()
        for number, seconds in enumerate((100.0, 100.04, 100.5, 100.5001)):
            recording.add(tiny.scene(number), seconds)
    np.testing.assert_allclose(tiny.times_of(recording.path), (0, 0.04, 0.5, 0.501), atol=1e-6)
    with pytest.raises(OutputError, match="it is there already"):
        Recording(recording.path)
    with pytest.raises(ConfigError, match="End the name in"):
        Recording(tmp_path / "out.gif")


def test_a_recording_plays_though_the_source_was_lost(tmp_path: Path) -> None:
    def lost(stop: threading.Event, say: Any) -> Generator[Shot]:
        yield from (shot(number) for number in range(5))
        raise DataError("the camera gives no more pictures", where="0", why="unplugged?")

    with (
        pytest.raises(DataError, match="unplugged"),
        Recording(tmp_path / "out.mp4") as recording,
        Latest(given(lost, ends=False), drop=False, retries=0) as taken,
    ):
        run_live(tiny.predictor(), taken, LiveOptions(), recording=recording)
    assert len(tiny.pictures(tmp_path / "out.mp4")) == 5


def test_another_resolution_is_brought_to_the_first(tmp_path: Path) -> None:
    said: list[str] = []

    def two_sizes(stop: threading.Event, say: Any) -> Generator[Shot]:
        for number in range(6):
            picture = tiny.scene(number, (48, 64) if number < 3 else (96, 128))
            yield Shot(picture, time.perf_counter(), time.time())

    with Recording(tmp_path / "out.mp4") as recording, Latest(given(two_sizes), drop=False) as taken:
        result = run_live(tiny.predictor(), taken, LiveOptions(), recording=recording, say=said.append)
    assert (result.frames, result.resized, len(said)) == (6, 3, 1)
    assert {each.shape for each in tiny.pictures(tmp_path / "out.mp4")} == {(48, 128, 3)}


def test_latency_quantiles() -> None:
    meter = Latencies()
    assert meter.quantile(0.5) is None
    for ms in range(1, 1001):
        meter.add(ms / 10)
    assert meter.quantile(0.5) == pytest.approx(50, rel=0.02)
    assert meter.quantile(0.95) == pytest.approx(95, rel=0.02)
    meter.add(0.0)
    meter.add(1e12)
    assert meter.total == 1002


# ---------------------------------------------------------------- screens


def test_half_blocks_are_two_pixels_each() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0], picture[1, 1] = (255, 0, 0), (0, 0, 255)
    (line,) = half_blocks(picture, 2, 1)
    assert line == "\x1b[38;2;255;0;0;48;2;0;0;0m▀\x1b[38;2;0;0;0;48;2;0;0;255m▀\x1b[0m"
    lines = half_blocks(np.zeros((480, 640, 3), np.uint8), 80, 100)
    assert (len(lines), lines[0].count("▀")) == (30, 80)  # 4:3
    lines = half_blocks(np.zeros((480, 640, 3), np.uint8), 200, 24)
    assert (len(lines), lines[0].count("▀")) == (24, 64)


def test_the_terminal_is_left_as_it_was() -> None:
    out = io.StringIO()
    with Terminal(out) as terminal:
        terminal.show(tiny.scene(0), "12 frames")
        assert not terminal.closed
    text = out.getvalue()
    assert text.startswith("\x1b[?1049h\x1b[?25l")
    assert text.endswith("\x1b[?25h\x1b[?1049l")
    assert "12 frames" in text


def test_a_window_without_a_display_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UnavailableError, match="--show terminal"):
        Window("x")
    assert np.asarray(Image.open(io.BytesIO(ppm(tiny.scene(1))))).tolist() == tiny.scene(1).tolist()


# ---------------------------------------------------------------- the network


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


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def camera(model: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["camera", *map(str, arguments), "--model", str(model), "--threads", "1"])


def test_a_line_of_json_for_each_frame_and_a_recording(tmp_path: Path, model: Path) -> None:
    film, record = tiny.film(tmp_path / "in.mp4", 7), tmp_path / "depth.mp4"
    result = camera(model, film, "--json", "--record", record, "--view", "overlay", "--range", "0,10")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(7))
    assert set(lines[0]) == {"frame", "time", "latency_ms", "dropped", "median", "low", "high", "centre"}
    assert "7 frames" in result.stderr
    assert str(record) in result.stderr
    assert tiny.pictures(record)[0].shape == (48, 64, 3)
    again = camera(model, film, "--record", record)
    assert again.exit_code == 2
    assert "it is there already" in again.stderr


def test_pictures_in_real_time_are_dropped_where_they_come_too_fast(tmp_path: Path, model: Path) -> None:
    write_pictures(tmp_path / "in", range(30))
    result = camera(model, tmp_path / "in" / "frame-%d.png", "--fps", "1000", "--show", "none", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) + lines[-1]["dropped"] == 30
    every = camera(model, tmp_path / "in" / "frame-%d.png", "--fps", "1000", "--no-drop", "--json", "--frames", "20")
    assert len(every.stdout.splitlines()) == 20


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.mp4",), "no such source"),
        (("-",), "--stdin-size"),
        (("in", "--show", "windwo"), "Did you mean 'window'"),
        (("in", "--show", "terminal"), "stdout is no terminal"),
        (("in", "--show", "terminal", "--json"), "both write to stdout"),
        (("in", "--view", "both"), "no such view"),
        (("http://127.0.0.1:9/none", "--retries", "0", "--timeout", "2"), "--retries is 0"),
    ],
)
def test_wrong_words_are_explained(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "in", range(2))
    result = camera(model, *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr


def test_raw_frames_through_a_pipe_until_ctrl_c(tmp_path: Path, model: Path) -> None:
    record = tmp_path / "out.mp4"
    words = ["camera", "-", "--stdin-size", "48,64", "--json", "--record", record, "--model", model, "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "leadline", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DISPLAY": ""},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = 0
    for number in range(12):
        process.stdin.write(tiny.scene(number).tobytes())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["frame"] == number
        seen += 1
    process.send_signal(signal.SIGINT)  # while the source waits for more
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert b"Fatal" not in errors
    assert len(tiny.pictures(record)) == seen == 12
