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
        jitter: probability that a picture's colours are changed at all, 0 to 1 (monodepth2: 0.5).
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
    jitter: float = 1.0


GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
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


@dataclass(frozen=True)
class Change:
    """One change of camera, the same for every frame of an item.

    A point p of the old camera lies at `turn @ p` for the new one, all lengths divided by `shrinking`.

    Args:
        size: (height, width) of the new picture, pixels.
        window: the new camera before mirroring; true to the scene's proportions.
        roll: rotation about the optical axis, radians.
        mirror: left and right are exchanged.
        shrinking: the factor that metric depth and lengths are divided by; 1 without a camera of the network's own.
    """

    size: tuple[int, int]
    window: Intrinsics
    roll: float
    mirror: bool
    shrinking: float

    @property
    def intrinsics(self) -> Intrinsics:
        """The new picture's camera for depth and lengths divided by `shrinking`: a similar scene, seen alike."""
        return self.window.flipped(self.size[1]) if self.mirror else self.window

    @property
    def turn(self) -> NDArray[np.float64]:
        """3 x 3: from the old camera's directions to the new one's; its determinant is -1 where mirrored."""
        sine, cosine = np.sin(self.roll), np.cos(self.roll)
        rotated = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        turned: NDArray[np.float64] = np.diag([-1.0 if self.mirror else 1.0, 1.0, 1.0]) @ rotated
        return turned

    def pose(self, relative: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a pose from one old camera to another (4 x 4, metres) becomes between the new ones.

        Mirroring conjugates it by diag(-1, 1, 1), rolling by the rotation; the translation shrinks with the depth.
        """
        turn, out = self.turn, np.eye(4)
        out[:3, :3] = turn @ relative[:3, :3] @ turn.T
        out[:3, 3] = turn @ relative[:3, 3] / self.shrinking
        return out


def draw_change(
    sample: Sample,
    size: tuple[int, int],
    camera: Camera | None,
    rng: Generator,
    options: Augmentation = NONE,
    keep_aspect: bool = False,
) -> Change:
    """A random change of `sample`'s camera; arguments as for `view`."""
    height, width = sample.image.shape[:2]
    own = sample.intrinsics or _assumed(camera, height, width)
    scale = min(height / size[0], width / size[1])
    shape = (scale * size[0], scale * size[1]) if keep_aspect else (height, width)  # of the widest window
    goal_fx = camera.fx_over_width if camera else own.fx / shape[1]
    goal_fy = camera.fy_over_height if camera else own.fy / shape[0]
    least = max(own.fx / width / goal_fx, own.fy / height / goal_fy)  # the widest window that the picture fills
    zoom = least * float(rng.uniform(1.0, options.zoom))
    window_w, window_h = own.fx / (zoom * goal_fx), own.fy / (zoom * goal_fy)
    play_x, play_y = (width - window_w) / 2, (height - window_h) / 2
    left = play_x * (1 + options.shift * float(rng.uniform(-1, 1)))
    top = play_y * (1 + options.shift * float(rng.uniform(-1, 1)))
    window = Intrinsics(
        zoom * goal_fx * size[1],
        zoom * goal_fy * size[0],
        (own.cx - left) * size[1] / window_w,
        (own.cy - top) * size[0] / window_h,
    )
    roll = float(np.radians(float(rng.uniform(-1, 1)) * options.roll_deg))
    return Change(size, window, roll, bool(rng.random() < options.flip), zoom if camera else 1.0)


def apply_change(sample: Sample, change: Change, camera: Camera | None) -> Sample:
    """The sample through the changed camera; returns as `view`."""
    from PIL import Image

    height, width = sample.image.shape[:2]
    own, target, size = sample.intrinsics or _assumed(camera, height, width), change.window, change.size
    # target pixel -> ray -> rolled ray -> source pixel; the rows are Pillow's affine coefficients
    sine, cosine = float(np.sin(change.roll)), float(np.cos(change.roll))
    a, b = own.fx * cosine / target.fx, -own.fx * sine / target.fy
    d, e = own.fy * sine / target.fx, own.fy * cosine / target.fy
    c = own.cx - a * target.cx - b * target.cy
    f = own.cy - d * target.cx - e * target.cy
    if change.mirror:
        c, f = c + a * size[1], f + d * size[1]
        a, d = -a, -d
    matrix, out = (a, b, c, d, e, f), (size[1], size[0])
    affine, bilinear, nearest = Image.Transform.AFFINE, Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    image = np.asarray(Image.fromarray(sample.image).transform(out, affine, matrix, bilinear))
    seen = change.intrinsics
    if camera is not None:
        seen = replace(seen, fx=seen.fx / change.shrinking, fy=seen.fy / change.shrinking)
    depth = sample.depth
    if depth is not None:
        outside = np.nan if depth.kind is Kind.RELATIVE_DISPARITY else 0.0  # 0 is a legal relative disparity
        values = np.array(Image.fromarray(depth.values).transform(out, affine, matrix, nearest, fillcolor=outside))
        if depth.kind is Kind.METRIC_DEPTH and camera is not None:
            values /= np.float32(change.shrinking)
        depth = Depth(values, depth.kind, seen, depth.source)
    return replace(sample, image=image, depth=depth, intrinsics=seen, pose=None)


def view(
    sample: Sample,
    size: tuple[int, int],
    camera: Camera | None,
    rng: Generator,
    options: Augmentation = NONE,
    keep_aspect: bool = False,
) -> Sample:
    """The sample as the network's own camera would see it, randomly zoomed, rolled, shifted and mirrored.

    Args:
        sample: picture, depth and (optional) intrinsics.
        size: (height, width) wanted, pixels.
        camera: the camera of the network's contract; None keeps the picture's own.
        rng: source of all randomness.
        options: how far the view may change; the default changes nothing that the camera does not ask for.
        keep_aspect: without a camera, cut the window to the shape of `size` instead of stretching the picture to it.

    Returns:
        Picture `size` x 3 uint8 (black outside the source), the new intrinsics, and depth `size` float32 (outside: 0,
        or NaN for relative disparity).
        Metric depth is divided by (focal length of the window) / (focal length of the camera).
    """
    return apply_change(sample, draw_change(sample, size, camera, rng, options, keep_aspect), camera)


def _assumed(camera: Camera | None, height: int, width: int) -> Intrinsics:
    """A picture of unknown camera is taken to be the network's own, or to see 60 degrees where that has none."""
    if camera is None:
        return Intrinsics.from_fov(60.0, height, width)
    return Intrinsics(camera.fx_over_width * width, camera.fy_over_height * height, width / 2, height / 2)


@dataclass(frozen=True)
class Colours:
    """One random change of colour; see `jitter`."""

    factors: tuple[float, float, float]  # brightness, contrast, saturation
    order: tuple[int, ...]
    gains: NDArray[np.float64] | None
    exponent: float | None
    grey: bool
    noise: float  # standard deviation, in 0..255

    def apply(self, image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
        """The picture (H x W x 3 uint8) in these colours; the noise is drawn anew."""
        pixels: NDArray[np.float32] = image.astype(np.float32)
        for step in self.order:
            factor = np.float32(self.factors[step])
            if step == 0:
                pixels *= factor
            elif step == 1:
                mean = np.float32((pixels @ GREY).mean())
                pixels = (pixels - mean) * factor + mean
            else:
                grey = (pixels @ GREY)[..., None]
                pixels = (pixels - grey) * factor + grey
            np.clip(pixels, 0, 255, out=pixels)
        if self.gains is not None:
            pixels *= self.gains.astype(np.float32)
            np.clip(pixels, 0, 255, out=pixels)
        if self.exponent is not None:
            pixels = np.float32(255) * np.power(pixels / np.float32(255), np.float32(self.exponent))
        if self.grey:
            pixels = np.repeat((pixels @ GREY)[..., None], 3, axis=2)
        if self.noise:
            pixels += rng.normal(0, self.noise, pixels.shape).astype(np.float32)
        np.clip(pixels + np.float32(0.5), 0, 255, out=pixels)
        return pixels.astype(np.uint8)


def draw_colours(rng: Generator, options: Augmentation) -> Colours:
    """Random brightness, contrast, saturation (in random order), gamma, white balance, grey and noise."""
    if options.jitter < 1 and rng.random() >= options.jitter:
        return Colours(factors=(1.0, 1.0, 1.0), order=(), gains=None, exponent=None, grey=False, noise=0.0)
    brightness, contrast, saturation = (float(x) for x in rng.uniform(1 - options.colour, 1 + options.colour, 3))
    return Colours(
        factors=(brightness, contrast, saturation),
        order=tuple(int(step) for step in rng.permutation(3)),
        gains=rng.uniform(1 - options.hue, 1 + options.hue, 3) if options.hue else None,
        exponent=(1 + options.gamma) ** float(rng.uniform(-1, 1)) if options.gamma else None,
        grey=bool(options.grey and rng.random() < options.grey),
        noise=float(rng.uniform(0, options.noise)) if options.noise else 0.0,
    )


def jitter(image: NDArray[np.uint8], rng: Generator, options: Augmentation) -> NDArray[np.uint8]:
    """The picture in random colours.

    Args:
        image: H x W x 3 uint8.
        rng: source of all randomness.
        options: the ranges.
    """
    return draw_colours(rng, options).apply(image, rng)
