"""`example.py` in a bundle: a picture to depth with the engine, numpy and Pillow, and nothing of Leadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leadline.bundle import Bundle
    from leadline.runtimes.base import Runtime

TEMPLATE = '''\
"""Depth of a picture without Leadline: python example.py picture.jpg depth.npy

{name}, {engine} {precision}, input {height}x{width}. It gives {kind}.{camera}
Needs: pip install numpy pillow {packages}
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
if len(sys.argv) != 3:
    print("usage: python example.py picture.jpg depth.npy", file=sys.stderr)
    sys.exit(2)

{infer}
{grid}

picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{shrink}
values = small{order} * np.array({gain}, np.float32) + np.array({offset}, np.float32)
depth = infer(np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32))[0, 0]
{enlarge}
np.save(sys.argv[2], depth)
print(f"{{sys.argv[2]}}: {{depth.shape}}, {{depth.min():.4g}} to {{depth.max():.4g}}")
'''

GRID = '''

def grid(n, m, cubic=False, corners=False):
    """m x n weights: m values between n ones, without smoothing."""
    at = np.arange(m) * ((n - 1) / max(m - 1, 1)) if corners else (np.arange(m) + 0.5) * (n / m) - 0.5
    at, out = at if cubic else at.clip(0, n - 1), np.zeros((m, n), np.float32)
    for tap in (-1, 0, 1, 2) if cubic else (0, 1):
        index = np.floor(at) + tap
        x = np.abs(at - index)
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) * (x < 2)
        weight = np.where(x <= 1, 1.25 * x**3 - 2.25 * x**2 + 1, far) if cubic else 1 - x
        np.add.at(out, (np.arange(m), index.clip(0, n - 1).astype(int)), weight)
    return out'''

SMOOTHED = "small = np.asarray(picture.resize(({width}, {height}), Image.Resampling.{method}), np.float32)"
PLAIN = """\
rows, columns = grid(picture.height, {height}{cubic}), grid(picture.width, {width}{cubic})
small = np.einsum("ij,jkc,lk->ilc", rows, np.asarray(picture, np.float32), columns, optimize=True)"""
ENLARGED = "depth = np.asarray(Image.fromarray(depth).resize(picture.size, Image.Resampling.BILINEAR))"
ON_CORNERS = """\
h, w = depth.shape
depth = grid(h, picture.height, corners=True) @ depth @ grid(w, picture.width, corners=True).T"""


def example_code(adapter: Runtime, bundle: Bundle) -> str:
    """The text of a bundle's `example.py`: the contract's numbers and the engine's own lines.

    Args:
        adapter: the engine.
        bundle: whose files it reads; pictures are stretched to the bundle's size.

    Returns:
        Empty where the engine needs Leadline to run a bundle.
    """
    infer = adapter.example(bundle).strip()
    if not infer:
        return ""
    contract, (height, width) = bundle.contract, bundle.size
    spec, output = contract.input, contract.output
    cubic = spec.interpolation == "bicubic"
    shape = {"height": height, "width": width}
    if spec.antialias or spec.interpolation == "nearest":
        shrink = SMOOTHED.format(**shape, method=spec.interpolation.upper())
    else:
        shrink = PLAIN.format(**shape, cubic=", cubic=True" if cubic else "")
    enlarge = ON_CORNERS if output.align_corners else ENLARGED
    camera = ""
    if spec.camera is not None:
        seen = f"{spec.camera.fx_over_width:.4g} picture widths"
        camera = f"\nMetres are right for a camera whose focal length is {seen}; others: times theirs over that."
    return TEMPLATE.format(
        name=contract.name,
        engine=adapter.name,
        precision=bundle.precision,
        **shape,
        kind=f"{output.kind.value.replace('_', ' ')}{' in metres' if output.kind.value == 'metric_depth' else ''}",
        camera=camera,
        packages=adapter.packages,
        infer=infer,
        shrink=shrink,
        order="[:, :, ::-1]" if spec.channels == "bgr" else "",
        gain=[gain for gain, _ in contract.affine],
        offset=[offset for _, offset in contract.affine],
        grid=GRID if "grid(" in shrink + enlarge else "",
        enlarge=enlarge,
    )
