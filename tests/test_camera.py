"""`leadline camera`: its loop, screens, recording and command (FAULTS 25, 39, 41)."""

from __future__ import annotations

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
from leadline.live.camera import Latencies, LiveFrame, LiveOptions, run_live
from leadline.live.capture import Shot
from leadline.live.latest import Latest
from leadline.live.recording import Recording
from leadline.live.screens import Terminal, Window, half_blocks, ppm
from predicting import write_model
from tiny_sources import given, shot, write_pictures

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from typer.testing import Result


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
