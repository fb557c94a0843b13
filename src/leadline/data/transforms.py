"""Paired augmentation: one change of camera for picture, depth and intrinsics, then colour for the picture alone.

A metric network is right for one camera only. So every training picture is seen through the network's own camera:
zoom, roll, shift and mirror are one exact change of the camera matrix, and metric depth is divided by the ratio of
the focal lengths. FastDepth's recipe (SPEC.md 1.5: scale s, depth / s, rotation, flip) is the special case of a
centred window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.dataset import Sample
from leadline.depth import Depth, Intrinsics, Kind
from leadline.image import resize

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from leadline.contract import Camera


@dataclass(frozen=True)
class Augmentation:
    """How far a training picture may be changed.

    Args:
        zoom: largest factor by which the window may shrink, at least 1.
        roll_deg: largest rotation about the optical axis, degrees.
        flip: probability of mirroring left to right, 0 to 1.
        shift: share of the free play that the window may move from the centre, 0 to 1.
        colour: brightness, contrast and saturation are drawn from 1 - colour to 1 + colour.
        gamma: exponent drawn from 1/(1 + gamma) to 1 + gamma.
        hue: per-channel gain drawn from 1 - hue to 1 + hue (white balance).
        noise: largest standard deviation of sensor noise, in 0..255.
        grey: probability of a grey picture, 0 to 1.
    """

    zoom: float = 1.5
    roll_deg: float = 5.0
    flip: float = 0.5
    shift: float = 1.0
    colour: float = 0.4
    gamma: float = 0.1
    hue: float = 0.1
    noise: float = 0.0
    grey: float = 0.0


NONE = Augmentation(zoom=1.0, roll_deg=0.0, flip=0.0, shift=0.0, colour=0.0, gamma=0.0, hue=0.0)


def shrink(sample: Sample, height: int) -> Sample:
    """The sample at `height` rows where it is taller: pictures antialiased, depth by nearest neighbour."""
    rows, cols = sample.image.shape[:2]
    if rows <= height:
        return sample
    size = (height, max(1, round(cols * height / rows)))
    camera = sample.intrinsics.resized(size[0] / rows, size[1] / cols) if sample.intrinsics else None
    depth = sample.depth
    if depth is not None:
        depth = replace(depth, values=resize(depth.values, size, "nearest"), intrinsics=camera)
    return replace(sample, image=resize(sample.image, size, "bilinear"), depth=depth, intrinsics=camera)


def view(
    sample: Sample,
    size: tuple[int, int],
    camera: Camera | None,
    rng: Generator,
    options: Augmentation = NONE,
) -> Sample:
    """The sample as the network's own camera would see it, randomly zoomed, rolled, shifted and mirrored.

    Args:
        sample: picture, depth and (optional) intrinsics.
        size: (height, width) wanted, pixels.
        camera: the camera of the network's contract; None keeps the picture's own, stretched to `size`.
        rng: source of all randomness.
        options: how far the view may change; the default changes nothing that the camera does not ask for.

    Returns:
        Picture `size` x 3 uint8 (black outside the source), the new intrinsics, and depth `size` float32 (outside: 0,
        or NaN for relative disparity).
        Metric depth is divided by (focal length of the window) / (focal length of the camera).
    """
    from PIL import Image

    height, width = sample.image.shape[:2]
    own = sample.intrinsics or _assumed(camera, height, width)
    goal_fx = camera.fx_over_width if camera else own.fx / width
    goal_fy = camera.fy_over_height if camera else own.fy / height
    least = max(own.fx / width / goal_fx, own.fy / height / goal_fy)  # the widest window that the picture fills
    zoom = least * float(rng.uniform(1.0, options.zoom))
    window_w, window_h = own.fx / (zoom * goal_fx), own.fy / (zoom * goal_fy)
    play_x, play_y = (width - window_w) / 2, (height - window_h) / 2
    left = play_x * (1 + options.shift * float(rng.uniform(-1, 1)))
    top = play_y * (1 + options.shift * float(rng.uniform(-1, 1)))
    target = Intrinsics(
        zoom * goal_fx * size[1],
        zoom * goal_fy * size[0],
        (own.cx - left) * size[1] / window_w,
        (own.cy - top) * size[0] / window_h,
    )
    roll = np.radians(float(rng.uniform(-1, 1)) * options.roll_deg)
    mirror = bool(rng.random() < options.flip)
    # target pixel -> ray -> rolled ray -> source pixel; the rows are Pillow's affine coefficients
    sine, cosine = float(np.sin(roll)), float(np.cos(roll))
    a, b = own.fx * cosine / target.fx, -own.fx * sine / target.fy
    d, e = own.fy * sine / target.fx, own.fy * cosine / target.fy
    c = own.cx - a * target.cx - b * target.cy
    f = own.cy - d * target.cx - e * target.cy
    if mirror:
        c, f = c + a * size[1], f + d * size[1]
        a, d = -a, -d
    matrix, out = (a, b, c, d, e, f), (size[1], size[0])
    affine, bilinear, nearest = Image.Transform.AFFINE, Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    image = np.asarray(Image.fromarray(sample.image).transform(out, affine, matrix, bilinear))
    seen = target.flipped(size[1]) if mirror else target
    if camera is not None:
        seen = replace(seen, fx=seen.fx / zoom, fy=seen.fy / zoom)
    depth = sample.depth
    if depth is not None:
        outside = np.nan if depth.kind is Kind.RELATIVE_DISPARITY else 0.0  # 0 is a legal relative disparity
        values = np.array(Image.fromarray(depth.values).transform(out, affine, matrix, nearest, fillcolor=outside))
        if depth.kind is Kind.METRIC_DEPTH and camera is not None:
            values /= np.float32(zoom)
        depth = Depth(values, depth.kind, seen, depth.source)
    return replace(sample, image=image, depth=depth, intrinsics=seen, pose=None)


def _assumed(camera: Camera | None, height: int, width: int) -> Intrinsics:
    """A picture of unknown camera is taken to be the network's own, or to see 60 degrees where that has none."""
    if camera is None:
        return Intrinsics.from_fov(60.0, height, width)
    return Intrinsics(camera.fx_over_width * width, camera.fy_over_height * height, width / 2, height / 2)


def jitter(image: NDArray[np.uint8], rng: Generator, options: Augmentation) -> NDArray[np.uint8]:
    """Random brightness, contrast, saturation (in random order), gamma, white balance, grey and noise.

    Args:
        image: H x W x 3 uint8.
        rng: source of all randomness.
        options: the ranges.
    """
    pixels: NDArray[np.float32] = image.astype(np.float32)
    factors = rng.uniform(1 - options.colour, 1 + options.colour, 3)
    grey_weights = np.array([0.299, 0.587, 0.114], np.float32)
    for step in rng.permutation(3):
        if step == 0:
            pixels *= np.float32(factors[0])
        elif step == 1:
            mean = np.float32((pixels @ grey_weights).mean())
            pixels = (pixels - mean) * np.float32(factors[1]) + mean
        else:
            grey = (pixels @ grey_weights)[..., None]
            pixels = (pixels - grey) * np.float32(factors[2]) + grey
        np.clip(pixels, 0, 255, out=pixels)
    if options.hue:
        pixels *= rng.uniform(1 - options.hue, 1 + options.hue, 3).astype(np.float32)
        np.clip(pixels, 0, 255, out=pixels)
    if options.gamma:
        exponent = np.float32((1 + options.gamma) ** float(rng.uniform(-1, 1)))
        pixels = np.float32(255) * np.power(pixels / np.float32(255), exponent)
    if options.grey and rng.random() < options.grey:
        pixels = np.repeat((pixels @ grey_weights)[..., None], 3, axis=2)
    if options.noise:
        pixels += rng.normal(0, rng.uniform(0, options.noise), pixels.shape).astype(np.float32)
    np.clip(pixels + np.float32(0.5), 0, 255, out=pixels)
    return pixels.astype(np.uint8)
