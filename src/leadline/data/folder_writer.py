"""Samples to disk as the generic folder format: images/*.png, depth/*.png with 16 bits, dataset.json."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np

from leadline.depth import Kind
from leadline.errors import DataError
from leadline.output import atomic_folder
from leadline.png import png_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.data.dataset import Sample

MILLIMETRES = 1000  # stored value per metre; reaches 65.5 m
KITTI_STEPS = 256  # stored value per metre where that is too near; reaches 255.9 m
LARGEST = 65535


def write_folder(
    samples: Iterable[Sample],
    out: Path,
    *,
    name: str | None = None,
    max_depth: float | None = None,
    licence: str = "unknown",
    source: str = "",
) -> None:
    """Write samples with metric depth as a folder that `folder:` opens; complete or not at all.

    Depth is stored in millimetres where `max_depth` fits into 16 bits, else in 1/256 metre; values that do not fit
    become 0 (no measurement). Intrinsics are stated only if all pictures share them.

    Args:
        samples: read one at a time; at least one, all of one size, each with metric depth.
        out: the folder to write.
        name: of the data set; the folder's name if None.
        max_depth: metres, up to which depth is trusted; None stores millimetres and states no limit.
        licence: SPDX identifier or words.
        source: where the pictures come from.

    Raises:
        DataError: no sample, one without metric depth, or pictures of several sizes.
        OutputError: the place cannot be written.
    """
    scale = MILLIMETRES if max_depth is None or max_depth * MILLIMETRES <= LARGEST else KITTI_STEPS
    valid: list[float] = []
    cameras, sizes = set(), set()
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "depth").mkdir()
        for sample in samples:
            stored = _stored(sample, scale)
            sizes.add(stored.shape)
            if len(sizes) > 1:
                raise DataError("pictures of several sizes", where=sample.name, mend="write one folder for each size")
            stem = sample.name.replace("/", "_")
            (folder / "images" / f"{stem}.png").write_bytes(_picture_bytes(sample.image))
            (folder / "depth" / f"{stem}.png").write_bytes(png_bytes(stored))
            valid.append(float((stored > 0).mean()))
            cameras.add(sample.intrinsics)
        if not valid:
            raise DataError("no samples to write", where=out)
        ((height, width),) = sizes
        camera = cameras.pop() if len(cameras) == 1 else None
        description = {
            "name": name or out.name,
            "depth_scale": scale,
            "unit": "m",
            "kind": "metric_depth",
            "formula": "depth_m = value/depth_scale, 0 = no measurement",
            "intrinsics": {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy} if camera else None,
            "width": width,
            "height": height,
            "max_depth": max_depth,
            "count": len(valid),
            "mean_valid_fraction": round(sum(valid) / len(valid), 4),
            "source": source,
            "licence": licence,
        }
        text = json.dumps({key: value for key, value in description.items() if value is not None}, indent=1)
        (folder / "dataset.json").write_text(text + "\n", encoding="utf-8")


def _stored(sample: Sample, scale: int) -> NDArray[np.uint16]:
    if sample.depth is None or sample.depth.kind is not Kind.METRIC_DEPTH:
        raise DataError("cannot write a sample without metric depth", where=sample.name)
    steps = np.round(np.where(sample.depth.valid, sample.depth.values, 0).astype(np.float64) * scale)
    return np.where(steps <= LARGEST, steps, 0).astype(np.uint16)


def _picture_bytes(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
