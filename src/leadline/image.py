"""Pictures in and out: read safely, resize by a stated rule, write raw depth and its colours."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leadline.colors import colorize
from leadline.errors import ForeignFormatError, ImageReadError
from leadline.png import SIGNATURE, damage, png_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from PIL import Image as PillowImage

__all__ = [
    "SUFFIXES",
    "Interpolation",
    "colorize",
    "decode_image",
    "png_bytes",
    "read_depth_png",
    "read_image",
    "resize",
    "rgb_array",
    "write_png16",
]

Interpolation = Literal["nearest", "bilinear", "bicubic"]

MAX_PIXELS = 80_000_000  # below Pillow's own warning (89 million), so that ours speaks first
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_AGAIN = "copy it again from where it came"
_log = logging.getLogger(__name__)


def read_image(path: Path | str, on_notice: Callable[[str], None] = _log.warning) -> NDArray[np.uint8]:
    """Read a picture as the eye sees it: upright by its EXIF orientation, RGB.

    Grey and palette pictures, CMYK and YCbCr become RGB; transparency is laid over white; 16-bit grey is divided by
    257, 16 bits per colour are reduced to their upper 8 with a notice. Of several frames or pages the first is taken,
    with a notice. The format is found from the content, never from the name.

    Args:
        path: a JPEG, PNG, WebP, BMP, TIFF, GIF or PPM file of at most MAX_PIXELS pixels.
        on_notice: takes one sentence about anything that the reader decided; logged as a warning by default.

    Returns:
        H x W x 3 uint8 RGB, 0..255, writable.

    Raises:
        ImageReadError: missing, a directory, unreadable, empty, damaged, truncated, too large, or another format.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), path, on_notice=on_notice)


def decode_image(
    data: bytes, source: Path, *, max_pixels: int = MAX_PIXELS, on_notice: Callable[[str], None] = _log.warning
) -> NDArray[np.uint8]:
    """The picture that a file of these bytes holds, as `read_image` gives it.

    Args:
        data: the whole file.
        source: what messages call it.
        max_pixels: more are refused before they are decoded; at most MAX_PIXELS.
        on_notice: as for `read_image`.

    Raises:
        ForeignFormatError: the bytes are no picture of a known format.
        ImageReadError: empty, damaged, truncated or too large.
    """
    if not data:
        raise _empty(source)
    with _decoding(source, max_pixels), _open(source, data, tuple(FORMATS), max_pixels) as image:
        for notice in _notices(source, image, data):
            on_notice(f"{source}: {notice}")
        return rgb_array(image, str(source))


def read_depth_png(path: Path | str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read the raw integers of a depth file; nothing is scaled or turned.

    Args:
        path: a grey PNG with 8 or 16 bits.

    Returns:
        H x W uint8 or uint16, as stored.

    Raises:
        ImageReadError: as `read_image`, and for a PNG with colour.
    """
    path = Path(path)
    data = _read_bytes(path)
    with _decoding(path), _open(path, data, ("PNG",)) as image:
        image.load()
        if image.mode not in ("L", "I;16", "I;16B", "I"):
            why = f"it holds colours (mode {image.mode}), not one value per pixel"
            raise ImageReadError("not a depth file", where=path, why=why, mend="give a grey PNG of 8 or 16 bits")
        return np.array(image, np.uint8) if image.mode == "L" else np.array(image, np.uint16)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            kind = "it is a directory" if path.is_dir() else "it is not a regular file"
            raise ImageReadError("cannot read the picture", where=path, why=kind)
        data = path.read_bytes()
    except FileNotFoundError as error:
        if path.is_symlink():
            why = f"it is a link to {str(path.readlink())!r}, which is not there"
            raise ImageReadError("no such file", where=path, why=why, mend="mend or remove the link") from error
        raise ImageReadError("no such file", where=path, mend="check the path") from error
    except PermissionError as error:
        why = "permission denied"
        raise ImageReadError("cannot read the picture", where=path, why=why, mend=f"chmod u+r {path}") from error
    except (OSError, ValueError) as error:
        raise ImageReadError("cannot read the picture", where=path, why=str(error)) from error
    if not data:
        raise _empty(path)
    return data


def _empty(path: Path) -> ImageReadError:
    return ImageReadError("cannot read the picture", where=path, why="the file is empty (0 bytes)", mend=_AGAIN)


@contextmanager
def _decoding(path: Path, most: int = MAX_PIXELS) -> Iterator[None]:
    """Pillow's many ways to fail on a damaged file, as one typed error."""
    from PIL import Image

    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))  # Pillow refuses far larger ones before it tells their sides
        raise _too_large(path, f"{pixels[0]} pixels" if pixels else str(error), most) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError) as error:
        raise ImageReadError("cannot read the picture", where=path, why=f"damaged: {error}", mend=_AGAIN) from error


def _too_large(path: Path, size: str, most: int = MAX_PIXELS) -> ImageReadError:
    why = f"{size}; at most {most} pixels are read"
    return ImageReadError("the picture is too large", where=path, why=why, mend="make it smaller")


def _open(path: Path, data: bytes, formats: tuple[str, ...], max_pixels: int = MAX_PIXELS) -> PillowImage.Image:
    from PIL import Image, UnidentifiedImageError

    if data.startswith(SIGNATURE) and (why := damage(data)) is not None:
        raise ImageReadError("cannot read the picture", where=path, why=why, mend=_AGAIN)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        why = f"its content is not {', '.join(formats)}, or its header is damaged"
        mend = "save it as PNG or JPEG"
        raise ForeignFormatError("not a picture that can be read", where=path, why=why, mend=mend) from error
    if image.width * image.height > max_pixels:
        raise _too_large(path, f"{image.width} x {image.height}", max_pixels)
    return image


def _notices(path: Path, image: PillowImage.Image, data: bytes) -> Iterator[str]:
    name = "JPEG" if image.format == "MPO" else str(image.format)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and suffix not in FORMATS[name]:
        yield f"the name says {suffix}, the content is {name}; read as {name}"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further pictures of an MPO are previews
        yield f"{frames} frames or pages; only the first is used"
    if _bits_per_colour(image, data) > 8:
        yield "16 bits per colour reduced to 8"


def _bits_per_colour(image: PillowImage.Image, data: bytes) -> int:
    """Bits that the file has per channel where Pillow delivers 8 of them without a word; 8 otherwise."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return 8
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2", {}).get(258, (8,))))
    return 8


def rgb_array(image: PillowImage.Image, source: str = "") -> NDArray[np.uint8]:
    """A Pillow picture as `read_image` gives it: upright, RGB, transparency laid over white.

    Args:
        image: of any mode with at most 16 bits per channel.
        source: where it came from, for messages.

    Returns:
        H x W x 3 uint8 RGB, writable.

    Raises:
        ImageReadError: values of 32 bits, which have no range that could be shown.
    """
    from PIL import Image, ImageOps

    image.load()  # first: Pillow turns a TIFF here and drops its orientation, so that it is not turned twice
    is_deep_grey = image.mode == "I" and image.format == "PPM"  # Pillow's mode for a PGM of 16 bits
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or is_deep_grey:
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.stack([grey, grey, grey], axis=2)
    if image.mode in ("I", "F"):
        why = f"values of 32 bits (mode {image.mode}) have no range that could be shown"
        raise ImageReadError("not a picture", where=source or None, why=why, mend="save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, pixels)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def write_png16(path: Path | str, values: NDArray[np.uint16]) -> None:
    """Write H x W uint16 as a grey PNG that `read_depth_png` reads back unchanged."""
    Path(path).write_bytes(png_bytes(values))


def resize(
    values: NDArray[Any],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    *,
    antialias: bool = True,
    align_corners: bool = False,
) -> NDArray[Any]:
    """Resize a picture or a map.

    Args:
        values: H x W x 3 uint8, or H x W float32.
        size: (height, width) wanted, pixels.
        interpolation: how values between pixels are made.
        antialias: widen the kernel when shrinking (Pillow's rule); without it, OpenCV's and torch's plain rule.
        align_corners: map the centres of the corner pixels onto each other; only without antialiasing.

    Returns:
        The same dtype where Pillow does it (antialias, or nearest); float32 in the input's range otherwise.
    """
    from PIL import Image

    height, width = values.shape[:2]
    if (height, width) == tuple(size):
        return values
    if interpolation == "nearest":
        rows = np.minimum((np.arange(size[0]) + 0.5) * (height / size[0]), height - 1).astype(np.intp)
        cols = np.minimum((np.arange(size[1]) + 0.5) * (width / size[1]), width - 1).astype(np.intp)
        return np.asarray(values[rows[:, None], cols[None, :]])
    if antialias and not align_corners:
        # A map that only grows has nothing to smooth: the taps below are Pillow's to some units in the last place (it
        # adds in double precision), in half the time, since Pillow's result must be copied out three times.
        smooth = values.dtype == np.float32 and values.ndim == 2 and interpolation == "bilinear"
        if smooth and height <= size[0] and width <= size[1]:
            wide = _apply_taps(values, *_taps(width, size[1], "bilinear", False), axis=1)
            return _apply_taps(wide, *_taps(height, size[0], "bilinear", False), axis=0)
        method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
        return np.array(Image.fromarray(values).resize((size[1], size[0]), method))
    shrunk = _apply_taps(values.astype(np.float32), *_taps(height, size[0], interpolation, align_corners), axis=0)
    return _apply_taps(shrunk, *_taps(width, size[1], interpolation, align_corners), axis=1)


@lru_cache(maxsize=64)
def _taps(
    source: int, target: int, interpolation: str, align_corners: bool
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each output position the source indices (target x taps) and their weights, edges replicated."""
    if align_corners:  # a single output pixel is the first one, as in torch
        centre = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        centre = (np.arange(target) + 0.5) * (source / target) - 0.5
        if interpolation == "bilinear":
            centre = np.clip(centre, 0, source - 1)
    left = np.floor(centre).astype(np.intp)
    fraction = centre - left
    if interpolation == "bilinear":
        offsets = np.array([0, 1])
        weights = np.stack([1 - fraction, fraction], axis=1)
    else:
        offsets = np.array([-1, 0, 1, 2])
        weights = _cubic(np.abs(fraction[:, None] - offsets[None, :]))
    return np.clip(left[:, None] + offsets[None, :], 0, source - 1), weights.astype(np.float32)


def _cubic(x: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    """Keys' cubic kernel with OpenCV's and torch's a = -0.75."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _apply_taps(
    values: NDArray[np.float32], index: NDArray[np.intp], weights: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    shape = [1] * values.ndim
    shape[axis] = -1
    taps = np.ascontiguousarray(weights.T)  # a weight beside the next one, for the processor's vectors
    out = values.take(index[:, 0], axis=axis)
    out *= taps[0].reshape(shape)
    for tap in range(1, index.shape[1]):
        term = values.take(index[:, tap], axis=axis)
        term *= taps[tap].reshape(shape)
        out += term
    return out
