"""Depth on disk: raw values, colours, points, meshes and maps, with a side file that says what the numbers mean."""

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
from leadline.mesh import MOST_OBLIQUE_DEG, MOST_RATIO, mesh_bytes
from leadline.occupancy import Slice, explained, map_files, occupancy, require_metres
from leadline.output import write_atomic
from leadline.png import png_bytes
from leadline.point_cloud import pcd_bytes, ply_bytes, require_points

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

# where a format has several files, the first names the others
ENDINGS = {
    "png16": ("_depth.png",),
    "npy": (".npy",),
    "color": ("_color.png",),
    "pointcloud": (".ply",),
    "pcd": (".pcd",),
    "mesh": ("_mesh.ply",),
    "occupancy": ("_map.yaml", "_map.pgm"),
}
_SPATIAL = {"pointcloud": "point cloud", "pcd": "point cloud", "mesh": "mesh", "occupancy": "occupancy map"}
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


def in_space(formats: Collection[str]) -> str:
    """What these formats need a camera for, in words; empty where none does."""
    return next((_SPATIAL[name] for name in formats if name in _SPATIAL), "")


def require_kind(kind: Kind, formats: Collection[str]) -> None:
    """Pass where all these formats can be made of values of this kind.

    Raises:
        KindError: points or a mesh from a kind with an unknown shift, or a map in metres from values that are none.
    """
    for name in formats:
        if name == "occupancy":
            require_metres(kind)
        elif name in _SPATIAL:
            require_points(kind, _SPATIAL[name])


def output_paths(base: Path, formats: Collection[str]) -> list[Path]:
    """Every file that `save` writes for `base` (a path without ending), the side file last."""
    return [_with(base, ending) for name in formats for ending in ENDINGS[name]] + [_with(base, SIDE_ENDING)]


def save(
    depth: Depth,
    base: Path,
    formats: Collection[str],
    *,
    image: NDArray[np.uint8] | None = None,
    model: str = "",
    camera: Camera | None = None,
    part: Slice | None = None,
) -> dict[str, Path]:
    """Write a depth map in the wanted formats and its side file `<base>.json`, each atomically.

    Args:
        depth: H x W.
        base: path without ending.
        formats: of `png16` (raw values in steps, 0 = not valid), `npy` (raw float32), `color`, `pointcloud` (PLY),
            `pcd`, `mesh` (PLY) and `occupancy` (a map as ROS reads it: YAML and PGM).
        image: the picture, H x W x 3 uint8 RGB, for the colours of points and mesh.
        model: name of the network, for the side file.
        camera: what was taken for the picture's camera and why; None: the depth's own, as given.
        part: of the scene, for `occupancy`; None for the defaults.

    Returns:
        Format (and `side`) to the file written.

    Raises:
        OutputError: the files cannot be written.
        KindError, DataError: points, a mesh or a map from a kind that gives none, or without camera.
    """
    files: dict[str, Path] = {}
    notes: dict[str, Any] = {}
    for name in formats:
        paths = [_with(base, ending) for ending in ENDINGS[name]]
        contents: tuple[bytes, ...]
        files[name] = paths[0]
        if name == "occupancy":
            part = part or Slice()
            contents, note = map_files(occupancy(depth, part), part, paths[1].name), explained(part)
        else:
            data, note = _encoded(name, depth, image)
            contents = (data,)
        notes[name] = {"file": files[name].name, **note}
        for path, content in reversed(list(zip(paths, contents, strict=True))):
            write_atomic(path, content)
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
    return f"this replaces {results_of} of {lost[0]!r}, another source; --out DIR keeps both"


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
    axes = {"axes": "x right, y down, z forward"}
    if name == "mesh":
        rule = {"most_depth_ratio": MOST_RATIO, "most_degrees_from_normal": MOST_OBLIQUE_DEG}
        return mesh_bytes(depth, image), {**axes, "triangles": rule}
    return (pcd_bytes if name == "pcd" else ply_bytes)(depth, image), axes


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
