"""Depth on disk: raw values, colours and point clouds, with a side file that says what the numbers mean."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leadline.colors import color_indices, colorize, display_range, palette
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, closest
from leadline.image import read_depth_png
from leadline.output import write_atomic
from leadline.png import png_bytes
from leadline.point_cloud import ply_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

ENDINGS = {"png16": "_depth.png", "npy": ".npy", "color": "_color.png", "pointcloud": ".ply"}
SIDE_ENDING = ".json"
_CODES = 65535
_METRIC_STEPS = (0.001, 1 / 256)  # millimetres; then KITTI's step, up to 255 m


@dataclass(frozen=True)
class Camera:
    """The camera of one picture, and where it comes from.

    Args:
        intrinsics: in pixels of the picture; None where nothing is known.
        origin: `given` by the user, read from `exif`, `assumed` to be that of training, or `unknown`.
    """

    intrinsics: Intrinsics | None
    origin: Literal["given", "exif", "assumed", "unknown"]

    @classmethod
    def of(cls, intrinsics: Intrinsics | None) -> Camera:
        """A camera that the user gave, or none."""
        return cls(intrinsics, "unknown" if intrinsics is None else "given")


def parse_formats(text: str) -> tuple[str, ...]:
    """`png16,npy,...` as a tuple without repetition.

    Raises:
        ConfigError: unknown or no format.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in ENDINGS:
            raise ConfigError("unknown format to save", where=name, mend=closest(name, ENDINGS))
    if not names:
        raise ConfigError("nothing to save", mend=f"name at least one of {', '.join(ENDINGS)}")
    return names


def output_paths(base: Path, formats: Collection[str]) -> list[Path]:
    """Every file that `save` writes for `base` (a path without ending), the side file last."""
    return [_with(base, ENDINGS[name]) for name in formats] + [_with(base, SIDE_ENDING)]


def save(
    depth: Depth,
    base: Path,
    formats: Collection[str],
    *,
    image: NDArray[np.uint8] | None = None,
    model: str = "",
    camera: Camera | None = None,
) -> dict[str, Path]:
    """Write a depth map in the wanted formats and its side file `<base>.json`, each atomically.

    Args:
        depth: H x W.
        base: path without ending.
        formats: of `png16` (raw values in steps, 0 = not valid), `npy` (raw float32), `color`, `pointcloud`.
        image: the picture, H x W x 3 uint8 RGB, for the colours of the point cloud.
        model: name of the network, for the side file.
        camera: what was taken for the picture's camera and why; None: the depth's own, as given.

    Returns:
        Format (and `side`) to the file written.

    Raises:
        OutputError: the files cannot be written.
        KindError, DataError: a point cloud from a kind with an unknown shift, or without camera.
    """
    files: dict[str, Path] = {}
    notes: dict[str, Any] = {}
    for name in formats:
        files[name] = _with(base, ENDINGS[name])
        data, note = _encoded(name, depth, image)
        notes[name] = {"file": files[name].name, **note}
        write_atomic(files[name], data)
    files["side"] = _with(base, SIDE_ENDING)
    write_atomic(files["side"], _side(depth, model, camera or Camera.of(depth.intrinsics), notes))
    return files


def replaced(results: Iterable[tuple[Path, Path]]) -> str:
    """What saving would replace of other pictures, in words; empty where it replaces nothing or a picture's own.

    Args:
        results: each picture with the path, without ending, of its result.
    """
    lost = []
    for source, base in results:
        side = _with(base, SIDE_ENDING)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no earlier result, or a foreign file
            earlier = str(json.loads(side.read_bytes())["source"])
            if earlier and os.path.realpath(earlier) != os.path.realpath(source):
                lost.append(earlier)
    if not lost:
        return ""
    results_of = "the earlier result" if len(lost) == 1 else f"{len(lost)} earlier results, the first"
    return f"this replaces {results_of} of {lost[0]!r}, another picture; --out DIR keeps both"


def _with(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _encoded(name: str, depth: Depth, image: NDArray[np.uint8] | None) -> tuple[bytes, dict[str, Any]]:
    if name == "png16":
        codes, scale, offset = to_codes(depth)
        note = {"scale": scale, "offset": offset, "invalid": 0, "formula": "value = scale * code + offset"}
        return png_bytes(codes), note
    if name == "npy":
        buffer = io.BytesIO()
        np.save(buffer, depth.values, allow_pickle=False)
        return buffer.getvalue(), {"scale": 1.0, "offset": 0.0}
    if name == "color":
        lo, hi = display_range(depth)
        note = {"lo": lo, "hi": hi, "near": "bright", "invalid": "black"}
        return png_bytes(color_indices(depth, lo, hi), palette()), note
    if image is None:
        image = colorize(depth)
    return ply_bytes(depth, image), {"axes": "x right, y down, z forward"}


def to_codes(depth: Depth) -> tuple[NDArray[np.uint16], float, float]:
    """Values as 16-bit codes: (codes, scale, offset) with value = scale * code + offset; code 0 is not valid.

    Metric depth is in millimetres up to 65 m, in 1/256 m up to 255 m, and in 1/65535 of its maximum beyond; the other
    kinds spread their range over the codes 1 to 65535.
    """
    valid = depth.valid
    if not valid.any():
        return np.zeros(depth.shape, np.uint16), 1.0, 0.0
    top = float(depth.values.max(where=valid, initial=-np.inf))
    if depth.kind is Kind.METRIC_DEPTH:
        scale = next((step for step in _METRIC_STEPS if top <= step * _CODES), top / _CODES)
        offset = 0.0
    else:
        bottom = float(depth.values.min(where=valid, initial=np.inf))
        scale = (top - bottom) / (_CODES - 1) or 1.0
        offset = bottom - scale
    codes = np.where(valid, depth.values, np.float32(offset))
    codes -= np.float32(offset)
    codes *= np.float32(1 / scale)
    np.clip(np.rint(codes, out=codes), 1, _CODES, out=codes)
    return np.where(valid, codes, 0).astype(np.uint16), scale, offset


def _side(depth: Depth, model: str, camera: Camera, files: dict[str, Any]) -> bytes:
    values = depth.values[depth.valid]
    content = {
        "schema_version": 1,
        "kind": depth.kind.value,
        "unit": depth.unit,
        "height": depth.shape[0],
        "width": depth.shape[1],
        "minimum": float(values.min()) if values.size else None,
        "maximum": float(values.max()) if values.size else None,
        "degenerate": depth.is_degenerate,
        "source": depth.source,
        "model": model,
        "camera": camera.origin,
        "intrinsics": asdict(camera.intrinsics) if camera.intrinsics else None,
        "files": files,
    }
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_saved(side: Path) -> Depth:
    """Read back what `save` wrote, from `npy` where it is there and from `png16` otherwise.

    Args:
        side: the side file, `<base>.json`.

    Raises:
        DataError: the side file is damaged, or neither format lies beside it.
        ImageReadError: the PNG is damaged.
    """
    try:
        content = json.loads(side.read_bytes())
        kind, files, camera = Kind(content["kind"]), content["files"], content["intrinsics"]
        known = camera and content.get("camera") != "assumed"  # an assumption is no knowledge
        intrinsics = Intrinsics(**camera) if known else None
        if "npy" in files:
            values = np.load(side.with_name(Path(files["npy"]["file"]).name), allow_pickle=False)
        else:
            note = files["png16"]
            codes = read_depth_png(side.with_name(Path(note["file"]).name))
            values = np.where(codes == 0, np.nan, codes * float(note["scale"]) + float(note["offset"]))
            if kind is not Kind.RELATIVE_DISPARITY:
                values = np.nan_to_num(values, nan=0.0)
        return Depth(values.astype(np.float32), kind, intrinsics, content["source"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("cannot read the saved depth", where=side, why=f"{type(error).__name__}: {error}") from error
