"""`leadline predict`: what is written, what happens to bad pictures (FAULTS rows 1 to 12, 18, 39, 42, 43)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import leadline.batch
import leadline.saving
from leadline.cli import app
from leadline.contract import Contract, OutputSpec
from leadline.depth import Kind
from leadline.errors import OutputError
from leadline.image import read_depth_png
from leadline.saving import read_saved
from predicting import SPEC, names, picture, predict, write_model

if TYPE_CHECKING:
    from leadline.depth import Depth


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


def test_every_format_is_written_with_its_meaning(tmp_path: Path, model: str) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    result = predict(model, source, "--out", out, "--save", "png16,npy,color,pointcloud", "--fov", "90", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["kind"], content["unit"], content["done"], content["failed"]) == ("metric_depth", "m", 1, 0)
    assert names(out) == {"a.json", "a.npy", "a.ply", "a_color.png", "a_depth.png"}
    np.testing.assert_allclose(np.load(out / "a.npy"), np.full((12, 16), 2.0, np.float32), rtol=1e-5)
    np.testing.assert_array_equal(read_depth_png(out / "a_depth.png"), np.full((12, 16), 2000, np.uint16))
    with Image.open(out / "a_color.png") as colours:
        assert colours.size == (16, 12)
    assert b"element vertex 192\n" in (out / "a.ply").read_bytes()
    side = json.loads((out / "a.json").read_text())
    assert side["files"]["png16"]["scale"] == 0.001
    assert side["intrinsics"]["fx"] == pytest.approx(8.0)  # 90 degrees: half the width
    assert side["model"] == "tiny"


def test_the_real_command_prints_one_line_for_a_single_bad_picture(tmp_path: Path, model: str) -> None:
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    command = [sys.executable, "-m", "leadline", "predict", "junk.jpg", "--model", model, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: not a picture that can be read 'junk.jpg': its content is not JPEG")
    assert done.stderr.count("\n") == 1
    assert names(tmp_path / "out") == set()


def bad_pictures(folder: Path) -> dict[str, str]:
    """Broken files and what the summary must say of each."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    folder.mkdir(parents=True)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "junk.png").write_bytes(b"\x00junk" * 99)
    (folder / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "pdf.jpg").write_bytes(b"%PDF-1.7\n")
    noise.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])
    noise.save(folder / "crc.png")
    data = bytearray((folder / "crc.png").read_bytes())
    data[-20] ^= 1
    (folder / "crc.png").write_bytes(bytes(data))
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    return {
        "empty.jpg": "empty",
        "junk.png": "not a picture",
        "eps.png": "not a picture",
        "pdf.jpg": "not a picture",
        "cut.jpg": "truncated",
        "crc.png": "bad checksum",
        "bomb.png": "too large",
    }


def test_bad_pictures_are_named_and_the_rest_go_on(tmp_path: Path, model: str) -> None:
    wanted = bad_pictures(tmp_path / "in")
    for index in range(6):
        picture(tmp_path / "in" / f"good{index}.jpg")
    result = predict(model, tmp_path / "in", "--out", tmp_path / "out", "--save", "npy", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert (content["done"], content["failed"]) == (6, len(wanted))
    assert names(tmp_path / "out") == {f"good{index}.{end}" for index in range(6) for end in ("npy", "json")}
    failed = {Path(item["source"]).name: item["error"] for item in content["items"] if item["status"] == "failed"}
    assert "81000000 pixels" in failed["bomb.png"] or "9000 x 9000" in failed["bomb.png"]
    assert not [error for error in failed.values() if error.count(". ") == 0]  # each says how to mend it
    assert {name: text in failed[name] for name, text in wanted.items()} == dict.fromkeys(wanted, True)
    assert f"{len(wanted)} failed" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (7, 5)])
def test_odd_sizes_keep_their_size(tmp_path: Path, model: str, shape: tuple[int, int]) -> None:
    source = picture(tmp_path / "a.png", *shape)
    result = predict(model, source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert read_saved(tmp_path / "out" / "a.json").shape == shape


def test_odd_files_are_read_with_a_notice(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "ein Ordner ✓"
    frames = [Image.new("RGB", (6, 4), (value, value, value)) for value in (51, 250)]
    picture(folder / "x.png")
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "lies.png", format="JPEG", quality=95)
    Image.new("CMYK", (6, 4)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(folder / "turned.jpg", exif=exif)
    deep = np.full((4, 6), 51 * 257, np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    result = predict(model, folder, "--out", tmp_path / "out dir", "--save", "npy")
    assert result.exit_code == 0, result.output
    notices = [line for line in result.stderr.splitlines() if line.startswith("notice: ")]
    assert len(notices) == 2
    assert any("moving.gif: 2 frames" in notice for notice in notices)
    assert any("lies.png: the name says .png, the content is JPEG" in notice for notice in notices)
    means = {path.stem: float(np.load(path).mean()) for path in (tmp_path / "out dir").glob("*.npy")}
    for name, depth in {"moving": 2.0, "lies": 2.0, "cmyk": 10.0, "clear": 10.0, "turned": 0.0, "deep": 2.0}.items():
        assert means[name] == pytest.approx(depth, abs=0.05), name
    assert np.load(tmp_path / "out dir" / "turned.npy").shape == (6, 4)


def test_missing_directory_and_video_say_so(tmp_path: Path, model: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    for source, text in {
        "missing.jpg": "no such file",
        "empty": "no pictures in the folder",
        "*.jpg": "nothing matches",
        "clip.mp4": "cannot read the film",
    }.items():
        result = predict(model, tmp_path / source, "--out", tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert text in result.stderr
        assert source in result.stderr
        assert not (tmp_path / "out").exists() or names(tmp_path / "out") == set()


def test_names_never_collide(tmp_path: Path, model: str) -> None:
    for name in ("a/x.jpg", "b/x.png", "b/x.jpg", "b/X.bmp", "b/x_jpg.png"):
        picture(tmp_path / name)
    sources = [tmp_path / "a" / "x.jpg", tmp_path / "b", tmp_path / "b" / "*.png", tmp_path / "b" / "x.png"]
    result = predict(model, *sources, "--out", tmp_path / "out", "--save", "npy", "--json")
    assert result.exit_code == 0, result.output
    items = json.loads(result.stdout)["items"]
    assert len(items) == 5  # b/x.png and b/x_jpg.png are named twice, and predicted once
    written = [item["files"]["npy"].casefold() for item in items]
    assert len(set(written)) == 5
    assert {json.loads(Path(item["files"]["side"]).read_text())["source"] for item in items} == {
        item["source"] for item in items
    }


def test_folders_below_are_kept_below_and_outputs_are_not_read_again(tmp_path: Path, model: str) -> None:
    for name in ("in/a.png", "in/deep/a.png"):
        picture(tmp_path / name)
    out = tmp_path / "in" / "depth"
    for _ in range(2):
        result = predict(model, tmp_path / "in", "--recursive", "--out", out, "--save", "color")
        assert result.exit_code == 0, result.output
        assert names(out) == {"a.json", "a_color.png", "deep/a.json", "deep/a_color.png"}


def test_depth_maps_below_a_folder_are_no_pictures(tmp_path: Path, model: str) -> None:
    picture(tmp_path / "set" / "images" / "a.png")
    for name in ("a", "b"):
        (tmp_path / "set" / "depth").mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 16), 2000, np.uint16)).save(tmp_path / "set" / "depth" / f"{name}.png")
    maps = tmp_path / "set" / "depth"
    result = predict(model, tmp_path / "set", "--recursive", "--out", tmp_path / "out", "--save", "npy")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == {"images/a.json", "images/a.npy"}
    (notice,) = [line for line in result.stderr.splitlines() if line.startswith("notice: ")]
    assert f"2 PNG files of 16-bit grey left out as depth maps, the first {maps / 'a.png'}" in notice
    refused = predict(model, maps, "-r", "--out", tmp_path / "none")
    assert refused.exit_code == 2
    assert "only depth maps" in refused.stderr
    named = predict(model, maps / "a.png", maps / "b*.png", "-r", "--out", tmp_path / "named", "--save", "npy")
    assert named.exit_code == 0, named.output
    assert names(tmp_path / "named") == {"a.json", "a.npy", "b.json", "b.npy"}


def test_a_source_is_never_overwritten(tmp_path: Path, model: str) -> None:
    picture(tmp_path / "a.png")
    taken = picture(tmp_path / "a_depth.png").read_bytes()
    result = predict(model, tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "will not overwrite" in result.stderr
    assert (tmp_path / "a_depth.png").read_bytes() == taken


def test_an_engine_that_returns_nan_is_named(tmp_path: Path) -> None:
    broken = write_model(tmp_path / "model", operator="Log")  # the picture is black: log 0
    sources = [picture(tmp_path / f"{index}.png", grey=0) for index in range(2)]
    single = predict(str(broken), sources[0], "--out", tmp_path / "out")
    assert single.exit_code == 1
    assert "onnxruntime" in single.stderr
    assert "NaN or infinity" in single.stderr
    several = predict(str(broken), *sources, "--out", tmp_path / "out")
    assert several.exit_code == 1
    assert "2 failed" in several.stderr
    assert names(tmp_path / "out") == set()


@pytest.mark.parametrize("kind", [Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY])
def test_no_point_cloud_from_relative_values(tmp_path: Path, kind: Kind) -> None:
    relative = write_model(tmp_path / "model", kind)
    arguments = (picture(tmp_path / "a.png"), "--out", tmp_path / "out", "--save", "pointcloud")
    result = predict(str(relative), *arguments, "--fov", 60)
    assert result.exit_code == 2
    assert "unknown shift" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--save", "pointcloud"), "no camera for the point cloud"),
        (("--save", "png"), "Did you mean 'png16'"),
        (("--fov", "180"), "between 2 and 170 degrees"),
        (("--fov", "0.5"), "between 2 and 170 degrees"),
        (("--fov", "nan"), "between 2 and 170 degrees"),
        (("--intrinsics", "0.1,0.1,8,6"), "a horizontal field of view of 179 degrees"),
        (("--intrinsics", "9999,9999,8,6"), "a horizontal field of view of 0.0917 degrees"),
        (("--intrinsics", "20,1,8,6"), "fx and fy differ by more than 4 times"),
        (("--intrinsics", "nan,20,8,6"), "focal lengths must be positive"),
        (("--fov", "60", "--intrinsics", "1,1,1,1"), "two cameras"),
        (("--intrinsics", "1,2,3"), "four numbers"),
        (("--intrinsics", "0,2,3,3", "--save", "pointcloud"), "focal lengths must be positive"),
        (("--intrinsics", "50,50,99,3", "--save", "pointcloud"), "outside the picture"),
        (("--size", "32x64x3"), "not a size"),
        (("--size", "64,64"), "fixed input"),
        (("--size", "0,0"), "Use 32,64"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, model: str, arguments: tuple[str, ...], text: str) -> None:
    result = predict(model, picture(tmp_path / "a.png"), "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_dangling_link_is_a_bad_picture_and_not_passed_over(tmp_path: Path, model: str) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    for source in (tmp_path / "in", tmp_path / "in" / "*.png"):
        result = predict(model, source, "--out", tmp_path / "out", "--json")
        assert result.exit_code == 1
        content = json.loads(result.stdout)
        assert (content["done"], content["failed"]) == (1, 2)
        assert "it is a link to 'nowhere.png', which is not there" in result.stderr
        assert "loop.png" in result.stderr


@pytest.mark.parametrize("url", ["http://example.org//a.jpg", "https://example.org/a.jpg?b=*"])
def test_a_url_is_refused_as_it_was_written(tmp_path: Path, model: str, url: str) -> None:
    result = predict(model, url, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"cannot read '{url}': it is a URL" in result.stderr
    assert "Download it first" in result.stderr


def test_ctrl_c_finishes_what_is_under_way_and_says_how_much(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS row 41."""
    for index in range(40):
        picture(tmp_path / "in" / f"{index:02}.png")
    save = leadline.batch.save

    def saves_and_interrupts(depth: Depth, base: Path, *arguments: object, **options: object) -> object:
        if base.name == "03":
            os.kill(os.getpid(), signal.SIGINT)
        return save(depth, base, *arguments, **options)

    monkeypatch.setattr(leadline.batch, "save", saves_and_interrupts)
    before = signal.getsignal(signal.SIGINT)
    result = predict(model, tmp_path / "in", "--out", tmp_path / "out", "--save", "npy", "--json")
    assert signal.getsignal(signal.SIGINT) is before
    assert result.exit_code == 130
    done = json.loads(result.stdout)["done"]
    assert 4 <= done < 40
    assert f"error: interrupted: {done} of 40 pictures finished, {40 - done} left; what was written" in result.stderr
    assert names(tmp_path / "out") == {f"{index:02}.{end}" for index in range(done) for end in ("npy", "json")}


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    result = predict("leadline-nonsense", picture(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "leadline-nonsense" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_fails_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = predict("no-such-model", picture(tmp_path / "a.png"), "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr  # and not: no such model


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_fails_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    result = predict("no-such-model", picture(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        picture(tmp_path / "in" / f"{index}.png")
    write = leadline.saving.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("2"):
            raise OutputError("disk full (or over quota) while writing", where=path)
        write(path, data)

    monkeypatch.setattr(leadline.saving, "write_atomic", full)
    result = predict(model, tmp_path / "in", "--out", tmp_path / "out", "--save", "npy")
    assert result.exit_code == 2
    assert "disk full" in result.stderr
    assert {"0.npy", "0.json", "1.npy", "1.json"} <= names(tmp_path / "out")


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path, model: str) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    hold = (
        "import sys, pathlib; from leadline.output import output_lock\n"
        "with output_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = predict(model, source, "--out", out)
        holder.communicate()
    assert result.exit_code == 2
    assert str(holder.pid) in result.stderr
    assert predict(model, source, "--out", out).exit_code == 0


def test_reading_inference_and_writing_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import leadline.batch as batch
    from leadline.predictor import Predictor
    from leadline.runtimes.base import Session
    from leadline.sources import find_pictures

    nap = 0.05

    class Sleeping(Session):
        precision_ran = "fp32"

        def __init__(self) -> None:
            super().__init__("sleeping", Contract(name="s", input=SPEC, output=OutputSpec(kind=Kind.METRIC_DEPTH)))
            self.threads: set[int] = set()

        def _infer(self, values: np.ndarray) -> np.ndarray:
            self.threads.add(threading.get_ident())
            time.sleep(nap)
            return values.mean(axis=1, keepdims=True)

    read, write = batch.read_image, batch.save

    def slow(function: object) -> object:
        def wrapped(*arguments: object, **options: object) -> object:
            time.sleep(nap)
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr(batch, "read_image", slow(read))
    monkeypatch.setattr(batch, "save", slow(write))
    for index in range(20):
        picture(tmp_path / "in" / f"{index:02}.png")
    items = find_pictures([str(tmp_path / "in")], tmp_path / "out")
    session = Sleeping()
    start = time.perf_counter()
    outcomes = list(batch.predict_batch(Predictor(session), items, ("npy",)))
    seconds = time.perf_counter() - start
    assert [outcome.item for outcome in outcomes] == items
    assert session.threads == {threading.get_ident()}
    assert seconds < 0.8 * 3 * nap * len(items)  # one after the other takes at least three naps per picture


def test_replacing_the_result_of_another_picture_is_said(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for name in ("plain.jpg", "plain.png"):
        Image.new("RGB", (64, 32), (90, 90, 90)).save(tmp_path / name)

    def said(name: str) -> str:
        words = ["predict", str(tmp_path / name), "--model", str(model), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.stderr

    assert "replaces" not in said("plain.jpg")
    assert "replaces" not in said("plain.jpg")
    assert f"note: this replaces the earlier result of '{tmp_path / 'plain.jpg'}', another source" in said("plain.png")
