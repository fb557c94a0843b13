"""`leadline predict FILM`: what is written, going on after interruptions, damaged films (FAULTS 19 to 24, 39 to 43)."""

from __future__ import annotations

import csv
import errno
import json
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import leadline.live.writers
import tiny_datasets
import tiny_films as tiny
from leadline.cli import app
from leadline.data import video
from leadline.depth import Kind
from leadline.errors import DataError, NumericalError, OutputError
from leadline.live import parts
from leadline.live.ahead import ahead
from leadline.live.film import FilmOptions, FilmResult, predict_film
from leadline.live.temporal import Smoothing
from leadline.live.view import View, draw
from predicting import write_model

if TYPE_CHECKING:
    from collections.abc import Generator


ALL = FilmOptions(formats=("mp4", "raw16", "npy"), chunk=4)
RAW = replace(ALL, formats=("npy",), smoothing=None)


def maps(base: Path, ending: str = "") -> np.ndarray:
    folder = base.with_name(f"{base.name}{ending}_depth_npy")
    return np.concatenate([np.load(path) for path in sorted(folder.glob("0*.npy"))])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- what is written


def test_every_format_holds_the_frames_and_says_what_they_mean(tmp_path: Path) -> None:
    film, base = tiny.film(tmp_path / "in.mp4", 10, sound="aac"), tmp_path / "out" / "in"
    result = predict_film(tiny.predictor(), film, base, ALL)
    assert (result.frames, result.expected, result.began, result.complete, result.notices) == (10, 10, 0, True, ())
    assert names(base.parent) == {"in.json", "in_depth.mp4", "in_depth.mkv", "in_depth_npy", "in_frames.csv"}
    side = json.loads((tmp_path / "out" / "in.json").read_text())
    assert (side["kind"], side["unit"], side["height"], side["width"]) == ("relative_disparity", "none", 32, 48)
    assert side["film"] == {"height": 48, "width": 64, "frames": 10, "expected": 10, "whole": True}
    assert (side["smoothing"]["before"], side["smoothing"]["aligned"], side["complete"]) == (2, True, True)
    raw = maps(base)
    assert (raw.shape, raw.dtype) == ((10, 32, 48), np.float32)
    with (tmp_path / "out" / "in_frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    for codes, values, row in zip(tiny.pictures(base.with_name("in_depth.mkv")), raw, rows, strict=True):
        step = float(row["scale"])
        np.testing.assert_allclose(step * codes + float(row["offset"]), values, atol=0.51 * step + 1e-6)
    shown = tiny.pictures(base.with_name("in_depth.mp4"))
    assert (len(shown), shown[0].shape) == (10, (48, 128, 3))
    last = rows[-1]
    wanted = draw(tiny.scene(9), raw[9], Kind.RELATIVE_DISPARITY, float(last["lo"]), float(last["hi"]), "side")
    assert np.abs(shown[9].astype(int) - wanted).mean() < 6  # lossy, in the right colours


def test_without_smoothing_values_are_the_networks_own(tmp_path: Path) -> None:
    film, base = tiny.film(tmp_path / "in.mp4", 5), tmp_path / "in"
    predictor = tiny.predictor()
    predict_film(predictor, film, base, RAW)
    own = [predictor.session.run(predictor.contract.prepare(each))[0, 0] for each in tiny.pictures(film)]
    np.testing.assert_allclose(maps(base), own, atol=0.11)  # FFmpeg's two ways to RGB differ by a grey level
    assert json.loads((tmp_path / "in.json").read_text())["smoothing"] is None
    assert names(tmp_path) == {"in.mp4", "in.json", "in_depth_npy", "in_frames.csv"}


def test_metres_are_corrected_for_a_given_camera(tmp_path: Path) -> None:
    from leadline.contract import Camera

    film = tiny.film(tmp_path / "in.mp4", 2)
    values = []
    for name, fov in (("wide", 90.0), ("long", 53.13010235)):  # tan of the half angle: 1 and 0.5
        predictor = tiny.predictor(Kind.METRIC_DEPTH)
        contract = predictor.contract
        spec = contract.input.model_copy(update={"camera": Camera(fx_over_width=0.5, fy_over_height=2 / 3)})
        predictor.session.contract = contract.model_copy(update={"input": spec})
        predict_film(predictor, film, tmp_path / name, replace(RAW, camera=fov))
        values.append(maps(tmp_path / name))
    np.testing.assert_allclose(values[1], 2 * values[0], rtol=1e-4)


def test_times_and_sound_are_kept(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1300, 1310, 1320]
    film = tiny.film(tmp_path / "in.mkv", 8, times=times, sound="aac")
    for formats in ("mp4", "raw16"):
        predict_film(tiny.predictor(), film, tmp_path / formats, replace(ALL, formats=(formats,)))
    for path in (tmp_path / "mp4_depth.mp4", tmp_path / "raw16_depth.mkv"):
        np.testing.assert_allclose(tiny.times_of(path), np.array(times) / 1000, atol=1e-6)
    with av.open(str(film)) as before, av.open(str(tmp_path / "mp4_depth.mp4")) as after:
        wanted = [bytes(packet) for packet in before.demux(audio=0) if packet.pts is not None]
        assert [bytes(packet) for packet in after.demux(audio=0) if packet.pts is not None] == wanted
        assert len(wanted) > 3


def test_sound_that_mp4_cannot_hold_is_said(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.avi", 4, sound="wmav2")
    result = predict_film(tiny.predictor(), film, tmp_path / "in", FilmOptions())
    assert any("sound left out: mp4 cannot hold wmav2" in notice for notice in result.notices)
    with av.open(str(tmp_path / "in_depth.mp4")) as container:
        assert not container.streams.audio


@pytest.mark.parametrize(("view", "size"), [("depth", (48, 64)), ("side", (96, 64)), ("overlay", (48, 64))])
def test_a_turned_film_comes_out_upright(tmp_path: Path, view: str, size: tuple[int, int]) -> None:
    film = tiny.film(tmp_path / "in.mp4", 3, size=(64, 48))
    data = bytearray(film.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)
    film.write_bytes(data)
    predict_film(tiny.predictor(), film, tmp_path / "in", replace(FilmOptions(), view=View(view)))
    shown = tiny.pictures(tmp_path / "in_depth.mp4")[0]
    assert shown.shape[:2] == ((48, 128) if view == "side" else size)
    with av.open(str(tmp_path / "in_depth.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_flicker_of_a_film_that_is_too_short_is_said(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.mp4", 2)
    result = predict_film(tiny.predictor(), film, tmp_path / "in", replace(RAW, flicker=True))
    assert result.flicker == ()
    assert result.notices == ("no flicker: fewer than three frames of this run could be followed",)


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.mkv", 3, size=(45, 63), codec="ffv1")
    predict_film(tiny.predictor(), film, tmp_path / "in", replace(FilmOptions(), view=View.OVERLAY))
    assert tiny.pictures(tmp_path / "in_depth.mp4")[0].shape == (46, 64, 3)


# ---------------------------------------------------------------- interruptions


def run_until(count: int, film: Path, base: Path, options: FilmOptions) -> FilmResult:
    """Stop when `count` frames were decoded in this run."""
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > count

    return predict_film(tiny.predictor(), film, base, options, stopped=stopped)


@pytest.mark.parametrize("smoothing", [None, Smoothing(), Smoothing(before=1, after=3)])
def test_going_on_gives_the_same_bits(tmp_path: Path, smoothing: Smoothing | None) -> None:
    film, options = tiny.film(tmp_path / "in.mp4", 23, sound="aac"), replace(ALL, smoothing=smoothing)
    whole, again = tmp_path / "whole" / "in", tmp_path / "again" / "in"
    predict_film(tiny.predictor(), film, whole, options)
    began = []
    for count in (2, 10, 11):
        result = run_until(count, film, again, options)
        assert not result.complete
        began.append(result.began)
        partial = tiny.pictures(again.with_name("in.partial_depth.mp4"))
        assert len(partial) == result.frames == len(maps(again, ".partial")) < 23
        assert json.loads(again.with_name("in.partial.json").read_text())["complete"] is False
        assert not again.with_name("in_depth.mp4").exists()
    finished = predict_film(tiny.predictor(), film, again, options)
    assert finished.complete
    assert began[:2] == [0, 0]
    assert 4 <= began[2] < finished.began
    assert names(again.parent) == names(whole.parent)
    for path in whole.parent.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again.parent / path.relative_to(whole.parent)).read_bytes(), path.name


def test_a_cut_at_the_end_of_a_part_is_gone_on_from_alike(tmp_path: Path) -> None:
    """At a cut the smoother gives several maps at once, some of which belong to the next part."""
    film = tmp_path / "in.mkv"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *tiny.SIZE, "yuv420p"
        random = np.random.default_rng(0)
        for number in range(14):
            image = tiny.scene(number) if number < 6 else random.integers(0, 255, (*tiny.SIZE, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    options = replace(ALL, formats=("npy",), chunk=5)
    predict_film(tiny.predictor(), film, tmp_path / "whole", options)
    assert json.loads((tmp_path / "whole.json").read_text())["smoothing"]["cuts"] > 0
    assert run_until(7, film, tmp_path / "again", options).frames == 7
    assert predict_film(tiny.predictor(), film, tmp_path / "again", options).began == 5
    np.testing.assert_array_equal(maps(tmp_path / "again"), maps(tmp_path / "whole"))


def test_parts_of_other_options_are_not_used(tmp_path: Path) -> None:
    film, base = tiny.film(tmp_path / "in.mp4", 16), tmp_path / "out" / "in"
    run_until(11, film, base, ALL)
    other = predict_film(tiny.predictor(), film, base, replace(ALL, view=View.DEPTH))
    assert other.began == 0
    assert any("unfinished work of another command" in notice for notice in other.notices)
    assert predict_film(tiny.predictor(), film, base, ALL).began >= 8


def command(model: Path, film: Path, out: Path) -> list[str]:
    words = ["predict", film, "--out", out, "--model", model, "--threads", 1, "--save", "mp4,npy"]
    return [sys.executable, "-m", "leadline", *map(str, words)]


def start_and_signal(command: list[str], out: Path, number: int, part: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(out.glob(f".in.parts-*/{part}")):
        time.sleep(0.005)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_killed_and_interrupted_the_command_goes_on(tmp_path: Path) -> None:
    model, film = write_model(tmp_path / "model"), tiny.film(tmp_path / "in.mp4", 500, sound="aac")
    out, whole = tmp_path / "out", tmp_path / "whole"
    killed = start_and_signal(command(model, film, out), out, signal.SIGKILL, "00000")
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "in_depth.mp4").exists()
    stopped = start_and_signal(command(model, film, out), out, signal.SIGINT, "00001")
    assert stopped.returncode == 130, stopped.stderr
    assert "The same command goes on" in stopped.stderr
    assert "of about 500 frames finished" in stopped.stderr
    assert len(tiny.pictures(out / "in.partial_depth.mp4")) > 240
    last = subprocess.run(command(model, film, out), capture_output=True, text=True, timeout=100, check=False)
    assert last.returncode == 0, last.stderr
    subprocess.run(command(model, film, whole), check=True, capture_output=True, timeout=100)
    assert names(out) == names(whole)
    for name in ("in_depth.mp4", "in_frames.csv", "in_depth_npy/00004.npy"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


# ---------------------------------------------------------------- what goes wrong


def test_faults_of_films_are_said(tmp_path: Path) -> None:
    good = tiny.film(tmp_path / "good.mp4", 10).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: good.find(b"moov") - 4])
    (tmp_path / "junk.mp4").write_bytes(b"not a film" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    for name, says in {"cut": "moov", "junk": "cannot read", "empty": "cannot read", "none": "no such film"}.items():
        with pytest.raises(DataError, match=says):
            predict_film(tiny.predictor(), tmp_path / f"{name}.mp4", tmp_path / "out" / name, FilmOptions())
    with pytest.raises(DataError, match="cannot read the film"):
        predict_film(tiny.predictor(), tmp_path / "folder.mp4", tmp_path / "out" / "folder", FilmOptions())
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == set()


def test_a_film_without_frames_leaves_nothing(tmp_path: Path) -> None:
    film = tmp_path / "in.avi"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *tiny.SIZE, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match="without frames"):
        predict_film(tiny.predictor(), film, tmp_path / "out" / "in", FilmOptions())
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == set()


def test_a_cut_off_film_keeps_what_decoded_and_says_how_much(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.mkv", 60)
    film.write_bytes(film.read_bytes()[: int(0.4 * film.stat().st_size)])
    result = predict_film(tiny.predictor(), film, tmp_path / "in", RAW)
    assert 5 < result.frames < 40
    assert any(notice.startswith(f"incomplete: {result.frames} of about 60 frames") for notice in result.notices)
    side = json.loads((tmp_path / "in.json").read_text())
    assert side["notices"] == list(result.notices)
    assert side["film"]["expected"] == 60
    assert (result.complete, result.whole, side["complete"], side["film"]["whole"]) == (True, False, True, False)
    told = CliRunner().invoke(
        app, ["predict", str(film), "-o", str(tmp_path / "out"), "-m", str(write_model(tmp_path))]
    )
    assert told.exit_code == 1
    assert "1 of 1 films damaged or cut off" in told.stderr


def test_opencv_leaves_the_cores_to_the_steps_of_a_film_and_is_as_before_afterwards(tmp_path: Path) -> None:
    before, seen = cv2.getNumThreads(), []
    cv2.setNumThreads(2)
    try:
        film = tiny.film(tmp_path / "in.mp4", 3)
        predict_film(
            tiny.predictor(), film, tmp_path / "in", RAW, on_progress=lambda *_: seen.append(cv2.getNumThreads())
        )
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
    assert set(seen) == {1}


def test_ffmpeg_may_say_nothing_since_its_threads_would_wait_for_ours() -> None:
    video.pyav()
    assert av.logging.get_level() is None


def test_a_film_is_known_by_its_first_bytes_where_it_has_no_ending(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.mp4", 3)
    bare = film.rename(tmp_path / "in")
    model = str(write_model(tmp_path))
    told = CliRunner().invoke(app, ["predict", str(bare), "-o", str(tmp_path / "out"), "-m", model])
    assert told.exit_code == 0, told.output
    assert "3 frames" in told.output
    folder = tmp_path / "films"
    folder.mkdir()
    bare.rename(folder / "a.mp4")
    refused = CliRunner().invoke(app, ["predict", str(folder), "-o", str(tmp_path / "out"), "-m", model])
    assert refused.exit_code == 2
    assert "it holds 1 film: name them" in refused.stderr.lower()


def test_parts_that_were_made_otherwise_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tiny.film(tmp_path / "in.mp4", 3)
    before = parts.key_of(film, "model", {})
    monkeypatch.setattr(parts, "MADE", parts.MADE + 1)
    assert parts.key_of(film, "model", {}) != before


def test_another_size_in_the_stream_and_no_time_stamps(tmp_path: Path) -> None:
    film = tiny_datasets.changing_film(tmp_path / "in.mpg")
    result = predict_film(tiny.predictor(), film, tmp_path / "in", replace(FilmOptions(), view=View.DEPTH))
    assert any("the resolution changes" in notice for notice in result.notices)
    assert {each.shape for each in tiny.pictures(tmp_path / "in_depth.mp4")} == {(64, 96, 3)}
    assert (np.diff(tiny.times_of(tmp_path / "in_depth.mp4")) > 0).all()


def test_a_full_disk_leaves_the_old_film_and_the_finished_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film, base = tiny.film(tmp_path / "in.mp4", 20), tmp_path / "out" / "in"
    predict_film(tiny.predictor(), film, base, replace(ALL, formats=("mp4",), view=View.DEPTH))
    old = base.with_name("in_depth.mp4").read_bytes()
    add, count = leadline.live.writers.Segment.add, 0

    def full(self: Any, image: np.ndarray) -> None:
        nonlocal count
        count += 1
        if count > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, image)

    monkeypatch.setattr(leadline.live.writers.Segment, "add", full)
    with pytest.raises(OutputError, match="disk full"):
        predict_film(tiny.predictor(), film, base, replace(ALL, formats=("mp4",)))
    assert base.with_name("in_depth.mp4").read_bytes() == old
    monkeypatch.undo()
    assert predict_film(tiny.predictor(), film, base, replace(ALL, formats=("mp4",))).began == 8


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    film = tiny.film(tmp_path / "in.mp4", 3)
    (tmp_path / "a_depth.mp4").write_bytes(b"precious")
    (tmp_path / "b_depth_npy").mkdir()
    (tmp_path / "b_depth_npy" / "mine.txt").write_text("precious")
    (tmp_path / "c.json").write_text("{}")
    for name in "abc":
        with pytest.raises(OutputError, match="will not replace"):
            predict_film(tiny.predictor(), film, tmp_path / name, ALL)
    for _ in range(2):  # its own it does
        predict_film(tiny.predictor(), film, tmp_path / "d", ALL)


def test_nan_names_the_engine_and_the_finished_parts_stay(tmp_path: Path) -> None:
    film, base = tiny.film(tmp_path / "in.mp4", 12), tmp_path / "in"
    with pytest.raises(NumericalError, match="tiny"):
        predict_film(tiny.predictor(fail_at=7), film, base, RAW)
    assert predict_film(tiny.predictor(), film, base, RAW).began == 4


# ---------------------------------------------------------------- the pipeline


def test_steps_run_ahead_but_not_far_and_hand_on_their_errors() -> None:
    made = []

    def numbers() -> Generator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
            raise ValueError("the end")
        finally:
            made.append(-1)

    stream = ahead(numbers(), room=3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert 2 <= len(made) <= 5
    stream.close()
    assert made[-1] == -1
    with pytest.raises(ValueError, match="the end"):
        list(ahead(ahead(numbers())))
