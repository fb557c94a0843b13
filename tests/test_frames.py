"""Sequences from folders and films: their order, their camera, and what is said about damage (FAULTS rows 19 to 24)."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_datasets as tiny
from leadline.data.dataset import open_dataset
from leadline.depth import Intrinsics
from leadline.errors import DataError, UnavailableError


def film(path: Path, count: int = 60, codec: str = "mpeg4", rate: int = 10) -> Path:
    return tiny.film(path, count=count, codec=codec, rate=rate)


# ---------------------------------------------------------------- folders


def test_frames_follow_one_another_as_people_count(tmp_path: Path) -> None:
    for name in ("img10", "img9", "img1", "img2"):
        tiny.picture(tmp_path / f"{name}.png", 8, 12)
    data = open_dataset(f"frames:{tmp_path}")
    assert data.names() == ["img1", "img2", "img9", "img10"]
    assert data.with_neighbours([-1, 1]) == [1, 2]
    assert data.neighbour_name(2, 1) == "img10"
    assert data.neighbour_name(2, 2) is None
    assert data.neighbour_name(2, "stereo") is None


def test_each_folder_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    for place in ("b/1", "b/2", "a/deep/1", "a/deep/2", "a/deep/3"):
        tiny.picture(tmp_path / f"{place}.png", 8, 12)
    data = open_dataset(f"frames:{tmp_path}")
    assert data.names() == ["a/deep/1", "a/deep/2", "a/deep/3", "b/1", "b/2"]
    assert data.with_neighbours([-1, 1]) == [1]
    assert data.with_neighbours([1]) == [0, 1, 3]
    neighbour = data.neighbour(3, 1)
    assert neighbour is not None
    assert np.array_equal(neighbour.image, data[4].image)
    assert data.neighbour(4, 1) is None


def test_every_thins_each_sequence(tmp_path: Path) -> None:
    for place in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        tiny.picture(tmp_path / f"{place}.png", 8, 12)
    assert open_dataset(f"frames:{tmp_path}?every=2").names() == ["a/1", "a/3", "b/1", "b/3"]


def test_a_field_of_view_is_horizontal(tmp_path: Path) -> None:
    tiny.picture(tmp_path / "1.png", 40, 60)
    camera = open_dataset(f"frames:{tmp_path}?fov=90")[0].intrinsics
    assert camera is not None
    assert (camera.fx, camera.fy) == pytest.approx((30, 30))  # half the width / tan 45 degrees
    assert (camera.cx, camera.cy) == (30, 20)


def test_the_camera_may_lie_beside_the_pictures(tmp_path: Path) -> None:
    for place in ("a/1", "b/1", "c/1"):
        tiny.picture(tmp_path / f"{place}.png", 40, 60)
    (tmp_path / "intrinsics.txt").write_text("50 51 31 19  # fx fy cx cy\n")
    (tmp_path / "a" / "intrinsics.txt").write_text("70 0 29\n0 71 21\n0 0 1\n")
    (tmp_path / "b" / "dataset.json").write_text(
        '{"width": 60, "height": 40, "intrinsics": {"fx": 80, "fy": 81, "cx": 30, "cy": 20}, "note": 1}'
    )
    cameras = [sample.intrinsics for sample in open_dataset(f"frames:{tmp_path}")]
    assert cameras == [Intrinsics(70, 71, 29, 21), Intrinsics(80, 81, 30, 20), Intrinsics(50, 51, 31, 19)]
    stated = open_dataset(f"frames:{tmp_path}?fx=9&fy=8&cx=7&cy=6")
    assert {sample.intrinsics for sample in stated} == {Intrinsics(9, 8, 7, 6)}


def test_without_a_camera_frames_are_still_pictures(tmp_path: Path) -> None:
    tiny.picture(tmp_path / "1.png", 8, 12)
    assert open_dataset(f"frames:{tmp_path}")[0].intrinsics is None


@pytest.mark.parametrize(
    ("text", "says"),
    [("50 51 31", "3 numbers"), ("a b c d", "could not convert"), ("50 9 31 0 51 19 0 0 1", "without skew")],
)
def test_a_malformed_camera_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    tiny.picture(tmp_path / "1.png", 40, 60)
    (tmp_path / "intrinsics.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        open_dataset(f"frames:{tmp_path}")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?fov=0", "from 1 to 179"),
        ("?fov=wide", "from 1 to 179"),
        ("?fov=nan", "from 1 to 179"),
        ("?every=1.5", "whole number"),
        ("?fv=60", "did you mean 'f"),
        ("?fx=50&fy=50", "give fx, fy, cx and cy"),
        ("?fov=60&fx=50", "two cameras"),
        ("?every=2&fps=5", "give one of them"),
        ("?fx=50&fy=50&cx=99&cy=20", "do not fit"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, query: str, says: str) -> None:
    tiny.picture(tmp_path / "1.png", 40, 60)
    with pytest.raises(DataError, match="(?i)" + says):
        open_dataset(f"frames:{tmp_path}{query}")[0]


def test_intrinsics_for_another_size_are_refused(tmp_path: Path) -> None:
    tiny.picture(tmp_path / "1.png", 40, 60)
    says = '{"width": 120, "height": 80, "intrinsics": {"fx": 80, "fy": 81, "cx": 30, "cy": 20}}'
    (tmp_path / "dataset.json").write_text(says)
    with pytest.raises(DataError, match="80x120, the picture is 40x60"):
        open_dataset(f"frames:{tmp_path}")[0]


def test_nothing_to_read_and_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("nothing")
    with pytest.raises(DataError, match="no frames"):
        open_dataset(f"frames:{tmp_path}")
    tiny.picture(tmp_path / "1.png", 8, 8)
    with pytest.raises(DataError, match="no splits"):
        open_dataset(f"frames:{tmp_path}", "train")


# ---------------------------------------------------------------- films


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx")])
def test_a_film_gives_its_frames_in_order(tmp_path: Path, name: str, codec: str) -> None:
    data = open_dataset(f"{film(tmp_path / name, 12, codec)}?fov=90")
    assert data.format == "frames"
    assert len(data) == 12
    assert data.problems() == []
    assert data.names()[7] == f"{name}/000007"
    assert data.with_neighbours([-1, 1]) == list(range(1, 11))
    for index in (11, 0, 7):  # random access
        sample = data[index]
        assert sample.image.shape == (64, 96, 3)
        assert abs(float(sample.image[20:, 8:40].mean()) - tiny.shade(index)) < 6
    camera = data[0].intrinsics
    assert camera is not None
    assert camera.fx == pytest.approx(48)


def test_a_tall_film_is_kept_smaller_with_its_camera(tmp_path: Path) -> None:
    data = open_dataset(f"frames:{film(tmp_path / 'a.mp4', 3)}?fx=80&fy=82&cx=50&cy=30&height=32")
    sample = data[1]
    assert sample.image.shape == (32, 48, 3)
    assert sample.intrinsics == Intrinsics(40, 41, 25, 15)


def test_films_are_thinned_by_number_or_by_time(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 30, rate=10)
    numbers = [int(name[-6:]) for name in open_dataset(f"{path}?every=7").names()]
    assert numbers == [0, 7, 14, 21, 28]
    numbers = [int(name[-6:]) for name in open_dataset(f"{path}?fps=5").names()]
    assert numbers == list(range(0, 30, 2))


def test_a_folder_of_films_has_a_sequence_each(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4"):
        film(tmp_path / name, 3)
    data = open_dataset(f"frames:{tmp_path}?fov=60")
    assert data.names() == [f"{name}/{number:06d}" for name in ("a.mp4", "b.mp4") for number in range(3)]
    assert data.with_neighbours([-1, 1]) == [1, 4]


def test_the_rotation_flag_is_applied_once(tmp_path: Path) -> None:
    """A phone held upright: the file says to turn a quarter clockwise, so its upper left corner goes right."""
    path = film(tmp_path / "a.mp4", 4)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and ids, layer and volume: then the matrix
    assert struct.unpack(">9i", data[at : at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data)
    sample = open_dataset(f"{path}?fov=90")[2]
    assert sample.image.shape == (96, 64, 3)
    red = sample.image[..., 0].astype(int) - sample.image[..., 1]
    assert red[:6, -6:].mean() > 150
    assert abs(red[:6, :6].mean()) < 40
    assert sample.intrinsics is not None
    assert (sample.intrinsics.cx, sample.intrinsics.cy) == (32, 48)


def test_an_mp4_without_its_index_is_an_error(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 10)
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"moov") - 4])
    with pytest.raises(DataError, match="moov"):
        open_dataset(f"{path}?fov=60")


@pytest.mark.parametrize("content", [b"", b"not a film at all" * 20])
def test_what_is_no_film_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the film"):
        open_dataset(str(path))


def test_damage_in_the_middle_keeps_what_decoded_and_breaks_the_sequence(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 60)
    data = bytearray(path.read_bytes())
    start, end = data.find(b"mdat"), data.find(b"moov")
    middle = (start + end) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    frames = open_dataset(f"{path}?fov=60")
    assert 30 < len(frames) < 60
    (problem,) = frames.problems()
    assert not problem.fatal
    assert f"{len(frames)} of 60 frames decoded" in problem.what
    unbroken = frames.with_neighbours([-1, 1])
    assert len(unbroken) < len(frames) - 2
    for index in unbroken:
        numbers = [int(str(frames.neighbour_name(index, step))[-6:]) for step in (-1, 1)]
        assert numbers[1] - numbers[0] == 2


def test_a_cut_off_mkv_keeps_what_decoded_and_says_how_much(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", 60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    frames = open_dataset(f"{path}?fov=60")
    assert 5 < len(frames) < 40
    assert f"{len(frames)} of about 60 frames" in frames.problems()[0].what


def test_a_film_without_pictures_is_an_error(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(DataError, match="no picture track"):
        open_dataset(str(tmp_path / "sound.mkv"))


def test_frames_of_another_size_or_shape_are_counted() -> None:
    from leadline.data.video import Account

    said = Account(decoded=9, expected=10, promise_is_exact=True, resized=4, left_out=2).complaints()
    assert said == [
        "the resolution changes: 4 frames were resized to the first",
        "the proportions change: 2 frames of another shape than the first left out",
    ]


def test_a_change_of_resolution_in_the_stream(tmp_path: Path) -> None:
    path = tiny.changing_film(tmp_path / "a.mpg")
    frames = open_dataset(f"{path}?fov=60")
    assert {sample.image.shape for sample in frames} == {(64, 96, 3)}
    assert any("resolution changes" in problem.what for problem in frames.problems())
    assert not any(problem.fatal for problem in frames.problems())


def test_without_pyav_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnavailableError, match=r"leadline\[video\]"):
        open_dataset(str(path))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", 2)

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("leadline.data.video.tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match=r"No space left.*every=N"):
        open_dataset(str(path))


def test_a_picture_folder_stays_a_folder_unless_named(tmp_path: Path) -> None:
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    assert open_dataset(str(tmp_path)).format == "folder"
