"""Pictures in: FAULTS rows 1 to 12, with files that are made here and broken here."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from leadline.errors import ImageReadError
from leadline.image import MAX_PIXELS, read_depth_png, read_image, rgb_array, write_png16
from leadline.png import damage, png_bytes

if TYPE_CHECKING:
    from pathlib import Path


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) * 2], 2).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(values: np.ndarray, colour_type: int) -> bytes:
    """An independent 16-bit PNG writer, filter 0."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").tobytes()
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif", "ppm"])
def test_lossless_formats_come_back_unchanged(tmp_path: Path, ending: str) -> None:
    path = saved(
        tmp_path / f"a.{ending}", Image.fromarray(gradient()), **({"lossless": True} if ending == "webp" else {})
    )
    pixels = read_image(path, pytest.fail)
    np.testing.assert_array_equal(pixels, gradient())
    assert pixels.flags.writeable


@pytest.mark.parametrize("ending", ["jpg", "gif"])
def test_lossy_formats_come_close(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(np.full((8, 9, 3), 120, np.uint8)))
    assert np.abs(read_image(path).astype(int) - 120).max() <= 2


@pytest.mark.parametrize("content", [b"", b"junk", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7\n", b"\0" * 5000])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match="empty" if not content else "not a picture that can be read") as caught:
        read_image(tmp_path / "a.jpg")
    assert "a.jpg" in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "bmp", "ppm"])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageReadError, match=r"a\."):
        read_image(path)


def test_a_jpeg_whose_last_lines_are_missing_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(gradient(200, 200)), quality=95)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageReadError, match="truncated"):
        read_image(path)


def test_every_flipped_byte_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(6, 6)))
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(ImageReadError):
            read_image(path)


def test_a_bad_checksum_of_the_pixel_data_names_the_chunk(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()))
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    data[at + 4 + length] ^= 0xFF  # the checksum itself; the pixels are whole
    path.write_bytes(bytes(data))
    with pytest.raises(ImageReadError, match="bad checksum in chunk IDAT"):
        read_image(path)


def test_sixteen_bit_colour_is_reduced_with_a_notice(tmp_path: Path) -> None:
    deep = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1000
    (tmp_path / "a.png").write_bytes(deep_png(deep, 2))
    notices: list[str] = []
    pixels = read_image(tmp_path / "a.png", notices.append)
    np.testing.assert_allclose(pixels, deep / 257, atol=1)
    assert len(notices) == 1
    assert "16 bits per colour" in notices[0]


def test_sixteen_bit_grey_is_scaled_and_does_not_saturate(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 20).astype(np.uint16).reshape(4, 5)
    (tmp_path / "a.png").write_bytes(deep_png(deep, 0))
    saved(tmp_path / "a.tif", Image.fromarray(deep))
    (tmp_path / "a.pgm").write_bytes(b"P5 5 4 65535\n" + deep.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        pixels = read_image(tmp_path / name)
        np.testing.assert_array_equal(pixels, np.round(deep / 257).astype(np.uint8)[:, :, None].repeat(3, 2))


def test_thirty_two_bit_values_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((3, 3), np.float32)))
    with pytest.raises(ImageReadError, match=r"a\.tif.*32 bits"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_every_opaque_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
    path = saved(tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"), grey)
    pixels = read_image(path)
    assert pixels.shape == (4, 6, 3)
    assert pixels.min() >= 253


@pytest.mark.parametrize(("mode", "alpha"), [("RGBA", 0), ("RGBA", 128), ("RGBA", 255), ("LA", 0), ("LA", 128)])
def test_transparency_lies_over_white(tmp_path: Path, mode: str, alpha: int) -> None:
    black = Image.new("RGBA", (3, 2), (0, 0, 0, alpha)).convert(mode)
    pixels = read_image(saved(tmp_path / "a.png", black))
    np.testing.assert_allclose(pixels, 255 - alpha, atol=1)


def test_a_transparent_palette_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([10, 20, 30] + [0] * 765)
    pixels = read_image(saved(tmp_path / "a.png", picture, transparency=0))
    np.testing.assert_array_equal(pixels, 255)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied_exactly_once(tmp_path: Path, ending: str) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # left half white; orientation 6 says: turn by 90 degrees clockwise, so it becomes the top
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(stored), exif=exif)
    pixels = read_image(path)
    assert pixels.shape == (32, 16, 3)
    assert pixels[:14].min() > 200
    assert pixels[18:].max() < 55


def test_depth_files_are_never_turned_or_scaled(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    path = saved(tmp_path / "d.png", Image.fromarray(values), exif=exif)
    depth = read_depth_png(path)
    assert depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, values)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_colour_png_is_no_depth_file(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "d.png", Image.fromarray(gradient()).convert(mode))
    with pytest.raises(ImageReadError, match="not a depth file"):
        read_depth_png(path)


def test_a_jpeg_is_no_depth_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.jpg", Image.new("L", (4, 4)))
    with pytest.raises(ImageReadError, match="not PNG"):
        read_depth_png(path)


@pytest.mark.parametrize(("ending", "frames"), [("gif", 3), ("tif", 2), ("png", 2)])
def test_only_the_first_frame_is_used_and_said(tmp_path: Path, ending: str, frames: int) -> None:
    pages = [Image.new("RGB", (5, 4), (250 - 80 * index, 0, 0)) for index in range(frames)]
    path = saved(tmp_path / f"a.{ending}", pages[0], save_all=True, append_images=pages[1:])
    notices: list[str] = []
    pixels = read_image(path, notices.append)
    assert abs(int(pixels[0, 0, 0]) - 250) <= 2
    assert [f"{frames} frames or pages" in notice for notice in notices] == [True]


def test_a_name_that_contradicts_the_content_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(gradient()).save(path, format="JPEG")
    notices: list[str] = []
    assert read_image(path, notices.append).shape == (24, 32, 3)
    assert "the content is JPEG" in notices[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9000, 20000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((side // 8 + 1) * side), 9)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(ImageReadError, match=f"too large.*{MAX_PIXELS}"):
        read_image(tmp_path / "bomb.png")


def test_directory_missing_and_unreadable_have_their_own_messages(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="it is a directory"):
        read_image(tmp_path)
    with pytest.raises(ImageReadError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageReadError, match="no such file"):
        read_depth_png(tmp_path / "missing.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_permission_denied(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    path.chmod(0)
    with pytest.raises(ImageReadError, match="permission denied"):
        read_image(path)


def test_permission_denied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2)))

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", denied)
    with pytest.raises(ImageReadError, match="permission denied"):
        read_image(path)


def test_unicode_and_spaces_in_a_path_work(tmp_path: Path) -> None:
    folder = tmp_path / "Größe 深度"
    folder.mkdir()
    path = saved(folder / "ein Bild ✓.png", Image.fromarray(gradient()))
    np.testing.assert_array_equal(read_image(str(path)), gradient())


def test_a_pillow_picture_is_taken_as_a_file_is() -> None:
    np.testing.assert_array_equal(rgb_array(Image.fromarray(gradient())), gradient())


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=60)
@given(shapes.flatmap(lambda shape: arrays(np.uint16, shape)))
def test_sixteen_bit_png_round_trip(values: np.ndarray) -> None:
    data = png_bytes(values)
    assert damage(data) is None
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data)), np.uint16), values)


@settings(deadline=None, max_examples=40)
@given(shapes.flatmap(lambda shape: arrays(np.uint8, (*shape, 3))))
def test_colour_png_round_trip(values: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(values)))), values)


def test_png16_file_round_trip(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [65535, 40000, 7]], np.uint16)
    write_png16(tmp_path / "d.png", values)
    np.testing.assert_array_equal(read_depth_png(tmp_path / "d.png"), values)
