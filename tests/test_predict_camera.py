"""`leadline predict`: the camera that metres depend on, given, in the photo, or assumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import leadline
from leadline.contract import Camera
from leadline.saving import read_saved
from predicting import SPEC, picture, predict, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def metric_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Learned a camera of 90 degrees: its focal length is half the width, and two thirds of a 4:3 picture's height."""
    spec = SPEC.model_copy(update={"camera": Camera(fx_over_width=0.5, fy_over_height=2 / 3)})
    return str(write_model(tmp_path_factory.mktemp("metric"), spec=spec))


def photo(path: Path, **exif: int) -> Path:
    """A grey JPEG of 12 x 16 pixels with entries of the EXIF folder."""
    tags = Image.Exif()
    tags.get_ifd(0x8769).update(
        {{"focal35": 0xA405, "width": 0xA002, "height": 0xA003}[key]: exif[key] for key in exif}
    )
    Image.fromarray(np.full((12, 16, 3), 51, np.uint8)).save(path, exif=tags, quality=95)
    return path


def side(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    return {"camera": content["camera"], "fx": content["intrinsics"] and content["intrinsics"]["fx"]}


def test_an_assumed_camera_is_said_once_and_written(tmp_path: Path, metric_model: str) -> None:
    sources = [picture(tmp_path / f"{index}.png") for index in range(3)]
    result = predict(metric_model, *sources, "--out", tmp_path / "out", "--save", "npy")
    assert result.exit_code == 0, result.output
    (note,) = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert "camera of 3 of 3 pictures not known" in note
    assert "90 degrees wide and 74 high" in note  # 2 atan(1/2 / (2/3)) = 73.7
    assert "--fov DEG or --intrinsics" in note
    assert side(tmp_path / "out" / "0.json") == {"camera": "assumed", "fx": pytest.approx(8.0)}
    assert read_saved(tmp_path / "out" / "0.json").intrinsics is None  # an assumption is no knowledge
    given = predict(metric_model, sources[0], "--out", tmp_path / "out", "--save", "npy", "--fov", 90)
    assert "note:" not in given.stderr
    assert side(tmp_path / "out" / "0.json") == {"camera": "given", "fx": pytest.approx(8.0)}


def test_the_assumed_camera_has_square_pixels(tmp_path: Path, metric_model: str) -> None:
    """A portrait of the proportions of training, turned: its camera is the same one, turned."""
    upright = picture(tmp_path / "upright.png", 16, 12)
    result = predict(metric_model, upright, "--out", tmp_path / "out", "--save", "npy")
    assert "74 degrees wide and 90 high" in result.stderr
    content = json.loads((tmp_path / "out" / "upright.json").read_text())["intrinsics"]
    assert (content["fx"], content["fy"]) == pytest.approx((8.0, 8.0))
    plain = np.load(tmp_path / "out" / "upright.npy")
    predict(metric_model, upright, "--intrinsics", "8,8,6,8", "--out", tmp_path / "given", "--save", "npy")
    np.testing.assert_allclose(np.load(tmp_path / "given" / "upright.npy"), plain, rtol=1e-6)  # right for that camera
    both = predict(metric_model, upright, picture(tmp_path / "a.png"), "--out", tmp_path / "both", "--save", "npy")
    assert "74 to 90 degrees wide and 74 to 90 high" in both.stderr


def test_a_model_without_camera_says_nothing_of_it(tmp_path: Path, model: str) -> None:
    result = predict(model, picture(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert side(tmp_path / "out" / "a.json") == {"camera": "unknown", "fx": None}


def test_a_camera_that_corrects_nothing_is_said(tmp_path: Path, model: str) -> None:
    source, out = picture(tmp_path / "a.png"), ("--out", tmp_path / "out", "--save", "npy")
    for camera in (("--fov", 30), ("--intrinsics", "16,16,8,6")):
        result = predict(model, source, *out, *camera)
        assert result.exit_code == 0, result.output
        assert "the metres of 1 of 1 pictures are not corrected for their camera" in result.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), 2.0)
    assert "not corrected" in predict(model, photo(tmp_path / "b.jpg", focal35=26), *out).stderr


def test_the_focal_length_of_a_photo_is_used_and_a_flag_outranks_it(tmp_path: Path, metric_model: str) -> None:
    source, out = photo(tmp_path / "a.jpg", focal35=26, width=4000, height=3000), tmp_path / "out"
    result = predict(metric_model, source, "--out", out, "--save", "npy,pointcloud", "--json")
    assert result.exit_code == 0, result.output
    assert "camera of 1 of 1 pictures from the focal length in their EXIF data" in result.stderr
    assert json.loads(result.stdout)["items"][0]["camera"] == "exif"
    focal = 26 * 20 / np.hypot(36, 24)  # the diagonal of 12 x 16 is 20 pixels, that of film 43.27 mm
    assert side(out / "a.json") == {"camera": "exif", "fx": pytest.approx(focal)}
    np.testing.assert_allclose(np.load(out / "a.npy"), 2.0 * focal / 8, rtol=0.02)
    with leadline.load(metric_model) as predictor:
        np.testing.assert_array_equal(predictor.predict(source).values, np.load(out / "a.npy"))
    predict(metric_model, source, "--out", out, "--save", "npy", "--fov", 90)
    assert side(out / "a.json") == {"camera": "given", "fx": pytest.approx(8.0)}
    np.testing.assert_allclose(np.load(out / "a.npy"), 2.0, rtol=0.02)


@pytest.mark.parametrize("exif", [{}, {"focal35": 0}, {"focal35": 26, "width": 4000, "height": 4000}])
def test_a_focal_length_that_does_not_hold_is_not_used(tmp_path: Path, metric_model: str, exif: dict[str, int]) -> None:
    """Unknown (0), or of the picture before it was cropped."""
    result = predict(metric_model, photo(tmp_path / "a.jpg", **exif), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert side(tmp_path / "out" / "a.json")["camera"] == "assumed"


@pytest.mark.parametrize("focal", [1, 65000])
def test_a_focal_length_that_no_lens_has_is_not_used_and_said(
    tmp_path: Path, metric_model: str, focal: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = photo(tmp_path / "a.jpg", focal35=focal)
    result = predict(metric_model, source, "--out", tmp_path / "out", "--save", "npy")
    assert result.exit_code == 0, result.output
    assert side(tmp_path / "out" / "a.json") == {"camera": "assumed", "fx": pytest.approx(8.0)}
    assert f"EXIF data, {focal} mm on 35 mm film, is not used" in result.stderr
    with leadline.load(metric_model) as predictor:
        assert predictor.predict(source).intrinsics is None
    assert "is not used" in caplog.text
