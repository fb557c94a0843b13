"""The camera that a photo names itself: EXIF's focal length, in pixels of the picture."""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.depth import Intrinsics

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)
EXIF_FOLDER, FOCAL_35MM, WIDTH, HEIGHT = 0x8769, 0xA405, 0xA002, 0xA003
FILM_DIAGONAL_MM = math.hypot(36, 24)  # CIPA DCG-001: the 35 mm equivalent has the same diagonal angle of view
SAME_SHAPE = 0.02  # relative difference of the sides' ratio above which the picture was cropped after it was taken


def exif_camera(
    path: Path | str | bytes, height: int, width: int, on_notice: Callable[[str], None] = _log.warning
) -> Intrinsics | None:
    """The camera by EXIF's FocalLengthIn35mmFilm: square pixels, centred.

    Args:
        path: a picture that `leadline.image.read_image` has read, or the bytes of one.
        height: of the picture as read (upright), pixels.
        width: of the picture as read, pixels.
        on_notice: takes one sentence about a focal length that no lens has; logged as a warning by default.

    Returns:
        None where the file does not say, says what no lens has, or was cropped so that its focal length holds no more.
    """
    tags = _tags(io.BytesIO(path) if isinstance(path, bytes) else Path(path))
    focal = _positive(tags.get(FOCAL_35MM))
    if focal is None:
        return None
    taken = _positive(tags.get(HEIGHT)), _positive(tags.get(WIDTH))
    if taken[0] is not None and taken[1] is not None:
        ratio = (max(taken[0], taken[1]) / min(taken[0], taken[1])) / (max(height, width) / min(height, width))
        if abs(math.log(ratio)) > SAME_SHAPE:
            return None
    pixels = focal * math.hypot(height, width) / FILM_DIAGONAL_MM
    camera = Intrinsics(pixels, pixels, width / 2, height / 2)
    if why := camera.implausible(height, width):
        name = "the picture" if isinstance(path, bytes) else path
        on_notice(f"{name}: the focal length in its EXIF data, {focal:g} mm on 35 mm film, is not used: {why}")
        return None
    return camera


def _tags(path: Path | io.BytesIO) -> dict[int, Any]:
    """The EXIF folder of the file's header; no pixel is decoded, and a damaged one counts as none."""
    from PIL import Image

    from leadline.image import FORMATS

    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            if image.format != "TIFF" and "exif" not in image.info:
                return {}
            return dict(image.getexif().get_ifd(EXIF_FOLDER))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError):
        return {}


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
