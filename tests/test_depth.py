"""Depth, its kinds and cameras; its colours, files and points."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from leadline.colors import color_indices, colorize, display_range, palette
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, KindError
from leadline.point_cloud import check_intrinsics, ply_bytes, points
from leadline.saving import parse_formats, read_saved, save, to_codes

if TYPE_CHECKING:
    from pathlib import Path

CAMERA = Intrinsics(50.0, 60.0, 4.0, 3.0)


def metric(values: object) -> Depth:
    return Depth(np.array(values, np.float32), Kind.METRIC_DEPTH)


maps = arrays(np.float32, (4, 5), elements=st.floats(0.25, 60, width=32))


def test_the_kind_decides_what_is_valid() -> None:
    values = np.array([[0, -1, 2, np.nan, np.inf]], np.float32)
    assert Depth(values, Kind.METRIC_DEPTH).valid.tolist() == [[False, False, True, False, False]]
    assert Depth(values, Kind.RELATIVE_DISPARITY).valid.tolist() == [[True, True, True, False, False]]


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.zeros((1, 2, 2), np.float32), np.zeros(3, np.float32)])
def test_only_float32_maps_are_depth(values: np.ndarray) -> None:
    with pytest.raises(KindError, match="float32 H x W"):
        Depth(values, Kind.METRIC_DEPTH)


@settings(deadline=None)
@given(maps)
def test_disparity_is_the_inverse_and_back(values: np.ndarray) -> None:
    disparity = metric(values).to_disparity()
    assert disparity.kind is Kind.SCALED_DISPARITY
    np.testing.assert_allclose(disparity.values, 1 / values, rtol=1e-6)
    back = disparity.to_metric(1.0)
    assert back.kind is Kind.METRIC_DEPTH
    np.testing.assert_allclose(back.values, values, rtol=1e-5)


def test_conversions_that_would_guess_are_refused() -> None:
    for kind in (Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY):
        with pytest.raises(KindError, match="cannot invert"):
            Depth(np.ones((2, 2), np.float32), kind).to_disparity()
    with pytest.raises(KindError, match="already metric"):
        metric([[1.0]]).to_metric(2.0)


def test_an_aligned_relative_map_becomes_metric() -> None:
    relative = Depth(np.array([[1.0, 3.0]], np.float32), Kind.RELATIVE_DEPTH)
    np.testing.assert_allclose(relative.to_metric(2.0, 0.5).values, [[2.5, 6.5]])
    disparity = Depth(np.array([[1.0, 0.0]], np.float32), Kind.RELATIVE_DISPARITY)
    np.testing.assert_allclose(disparity.to_metric(0.25, 0.25).values, [[2.0, 4.0]])


def test_constant_and_empty_maps_are_degenerate() -> None:
    assert metric([[2.0, 2.0]]).is_degenerate
    assert Depth(np.full((2, 2), np.nan, np.float32), Kind.METRIC_DEPTH).is_degenerate
    assert not metric([[2.0, 2.1]]).is_degenerate


def test_intrinsics_follow_the_picture() -> None:
    camera = Intrinsics(500, 520, 320, 240)
    assert camera.resized(0.5, 0.25) == Intrinsics(125, 260, 80, 120)
    assert camera.cropped(10, 20) == Intrinsics(500, 520, 300, 230)
    assert camera.flipped(640) == camera
    assert Intrinsics(1, 1, 100, 0).flipped(640).cx == 540
    wide = Intrinsics.from_fov(90, 480, 640)
    assert (wide.fx, wide.cx, wide.cy) == (pytest.approx(320), 320, 240)


@pytest.mark.parametrize("camera", [Intrinsics(0, 1, 1, 1), Intrinsics(1, -1, 1, 1), Intrinsics(1, 1, 9, 1)])
def test_impossible_cameras_are_refused(camera: Intrinsics) -> None:
    with pytest.raises(DataError, match="impossible intrinsics"):
        check_intrinsics(camera, 6, 8)


def test_the_colour_scale_rises_evenly_in_lightness() -> None:
    table = palette().astype(float) / 255
    assert palette()[0].tolist() == [0, 0, 0]
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    luminance = (linear @ [0.2126, 0.7152, 0.0722])[1:]
    lightness = 116 * np.cbrt(luminance) - 16
    steps = np.diff(lightness[::16])  # CIE L* is another measure than the one that the table is made by
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.min()


@pytest.mark.parametrize("kind", list(Kind))
def test_near_is_bright_for_every_kind(kind: Kind) -> None:
    values = np.linspace(1, 10, 100, dtype=np.float32)[None]
    brightness = colorize(Depth(values, kind), 1, 10)[0].sum(axis=1, dtype=int)
    nearest, farthest = (-1, 0) if kind.is_disparity else (0, -1)
    assert brightness[nearest] > brightness[50] > brightness[farthest] > 0


def test_one_scale_serves_several_maps() -> None:
    a, b = metric([[1.0, 5.0]]), metric([[5.0, 9.0]])
    np.testing.assert_array_equal(colorize(a, 1, 9)[0, 1], colorize(b, 1, 9)[0, 0])
    np.testing.assert_array_equal(colorize(metric([[100.0]]), 1, 9), colorize(metric([[9.0]]), 1, 9))


def test_invalid_is_black_and_constant_is_not() -> None:
    picture = colorize(metric([[0.0, 2.0, np.nan]]))
    assert picture[0, 0].tolist() == picture[0, 2].tolist() == [0, 0, 0]
    assert picture[0, 1].sum() > 0
    assert color_indices(metric([[2.0]]), 2, 2).tolist() == [[128]]
    assert colorize(metric([[0.0]])).tolist() == [[[0, 0, 0]]]


def test_colours_leave_the_values_alone_and_outliers_do_not_spoil_them() -> None:
    values = np.linspace(1, 2, 1000, dtype=np.float32).reshape(10, 100)
    values[0, 0] = 1e6
    depth = metric(values.copy())
    colorize(depth)
    np.testing.assert_array_equal(depth.values, values)
    assert display_range(depth)[1] < 2.1
    with pytest.raises(ConfigError, match="upside down"):
        colorize(depth, 3, 1)


@settings(deadline=None, max_examples=40)
@given(maps, st.sampled_from(list(Kind)))
def test_codes_hold_the_values_to_half_a_step(values: np.ndarray, kind: Kind) -> None:
    values = values.copy()
    values[0, 0] = np.nan
    codes, scale, offset = to_codes(Depth(values, kind))
    assert codes[0, 0] == 0
    assert (codes.ravel()[1:] > 0).all()
    np.testing.assert_allclose(codes.ravel()[1:] * scale + offset, values.ravel()[1:], atol=0.51 * scale + 1e-5)


@pytest.mark.parametrize(("top", "scale"), [(10.0, 0.001), (65.0, 0.001), (80.0, 1 / 256), (1000.0, 1000 / 65535)])
def test_metric_codes_are_millimetres_where_they_fit(top: float, scale: float) -> None:
    codes, got, offset = to_codes(metric([[1.0, top, 0.0]]))
    assert (got, offset) == (pytest.approx(scale), 0.0)
    assert codes[0, 0] == round(1 / scale)
    assert codes[0, 2] == 0


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("formats", [("png16",), ("npy",), ("png16", "npy", "color")])
def test_saved_files_say_what_they_are_and_come_back(tmp_path: Path, kind: Kind, formats: tuple[str, ...]) -> None:
    values = np.linspace(0.5, 7, 20, dtype=np.float32).reshape(4, 5)
    depth = Depth(values, kind, CAMERA, "ä b.jpg")
    files = save(depth, tmp_path / "a.b", formats, model="some-model")
    side = json.loads(files["side"].read_text(encoding="utf-8"))
    assert (side["kind"], side["unit"], side["model"], side["source"]) == (kind, kind.unit, "some-model", "ä b.jpg")
    assert side["intrinsics"] == {"fx": 50.0, "fy": 60.0, "cx": 4.0, "cy": 3.0}
    assert set(side["files"]) == set(formats)
    back = read_saved(files["side"])
    assert (back.kind, back.intrinsics, back.source) == (kind, CAMERA, "ä b.jpg")
    np.testing.assert_allclose(back.values, values, atol=0 if "npy" in formats else 6e-4)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}


def test_the_saved_picture_is_the_colorized_one(tmp_path: Path) -> None:
    depth = metric(np.linspace(0, 7, 20).reshape(4, 5))
    files = save(depth, tmp_path / "a", ("color",))
    saved = np.asarray(Image.open(files["color"]).convert("RGB"))
    np.testing.assert_array_equal(saved, colorize(depth))


def test_a_damaged_side_file_is_a_typed_error(tmp_path: Path) -> None:
    files = save(metric([[1.0]]), tmp_path / "a", ("npy",))
    for content in ("", "[]", '{"kind": "metric_depth"}', '{"kind": "guess"}'):
        files["side"].write_text(content)
        with pytest.raises(DataError, match="cannot read the saved depth"):
            read_saved(files["side"])


def test_points_follow_the_pinhole() -> None:
    depth = Depth(np.full((6, 8), 2.0, np.float32), Kind.METRIC_DEPTH, CAMERA)
    cloud = points(depth)
    np.testing.assert_allclose(cloud[0, 0], [(0.5 - 4) * 2 / 50, (0.5 - 3) * 2 / 60, 2], rtol=1e-6)
    disparity = Depth(np.full((6, 8), 0.5, np.float32), Kind.SCALED_DISPARITY, CAMERA)
    np.testing.assert_allclose(points(disparity), cloud, rtol=1e-6)


@pytest.mark.parametrize("kind", [Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY])
def test_no_points_from_a_kind_with_an_unknown_shift(kind: Kind) -> None:
    with pytest.raises(KindError, match="unknown shift"):
        points(Depth(np.ones((6, 8), np.float32), kind, CAMERA))


def test_points_need_a_camera() -> None:
    with pytest.raises(DataError, match="--fov"):
        points(metric([[1.0]]))


def test_ply_holds_the_valid_points_with_their_colours() -> None:
    depth = Depth(np.array([[2.0, 0.0], [4.0, np.nan]], np.float32), Kind.METRIC_DEPTH, Intrinsics(1, 1, 1, 1))
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    data = ply_bytes(depth, image)
    header, body = data.split(b"end_header\n")
    assert b"element vertex 2\n" in header
    assert b"unit: metres" in header
    record = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "u1", 3)])
    first, second = np.frombuffer(io.BytesIO(body).read(), record)
    assert (first["x"], first["y"], first["z"]) == (-1.0, -1.0, 2.0)
    assert (second["x"], second["y"], second["z"]) == (-2.0, 2.0, 4.0)
    assert (first["rgb"].tolist(), second["rgb"].tolist()) == ([0, 1, 2], [6, 7, 8])


def test_formats_are_checked() -> None:
    assert parse_formats("npy, png16,npy") == ("npy", "png16")
    with pytest.raises(ConfigError, match="Did you mean 'png16'"):
        parse_formats("png")
    with pytest.raises(ConfigError, match="nothing to save"):
        parse_formats(" , ")
