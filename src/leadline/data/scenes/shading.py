"""From hits to a picture: texture, light with true shadows, corner darkening, haze, sky and the faults of a camera.

Colours are linear until the sensor; planes are (3, H*W) so that every step is one contiguous sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.scenes.raster import View, cast, pixel_grid, world_rays
from leadline.data.scenes.textures import LEVELS, SIZE, Tile, atlas
from leadline.depth import Intrinsics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.data.scenes.builder import Light, Scene, Surfaces
    from leadline.data.scenes.raster import Hits

    Plane = NDArray[np.float32]

SHADOW_SIZE = 384  # texels of the shadow map
SUN_AWAY = 400.0  # metres: the sun is a lamp far enough to cast nearly parallel shadows
SUN_RADIUS = 45.0  # metres around the middle of the view that the sun's shadow map covers


@dataclass(frozen=True)
class Sensor:
    """How the camera turns light into numbers: exposure, white balance (RGB gains), vignetting, blur, noise."""

    exposure: float = 1.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignette: float = 0.2
    blur: float = 0.12
    noise: float = 0.012


def shade(
    scene: Scene, surfaces: Surfaces, hits: Hits, view: View, sensor: Sensor, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Colour every pixel.

    Args:
        scene: light, weather and extent.
        surfaces: the surfaces that were cast.
        hits: what each pixel sees.
        view: the camera.
        sensor: its faults.
        rng: for the sensor's noise.

    Returns:
        H x W x 3 uint8 RGB, gamma 2.
    """
    ids = hits.surface.reshape(-1)
    near = hits.nearness.reshape(-1)
    z: Plane = np.divide(1, np.maximum(near, np.float32(1e-5)))
    rays = world_rays(view)
    points = rays * z + view.pose[:3, 3].astype(np.float32)[:, None]

    facing, cosine = _orientation(surfaces, scene.light, view)
    u, v = hits.u.reshape(-1) * z, hits.v.reshape(-1) * z
    lamp = _direct(scene.light, points, facing[ids])
    _shade_rounds(surfaces, scene.light, ids, points, u, v, lamp)
    lamp *= _lit(scene.light, surfaces, points, _shadow_bias(scene.light, facing)[ids], view)

    colour = _texture(surfaces, ids, u, v, z, cosine, view)
    light = np.array(scene.light.strength, np.float32)[:, None] * lamp
    light += np.array(scene.light.ambient, np.float32)[:, None] * _ambient(scene, surfaces, ids, points)
    light += _per_surface(surfaces.glow)[ids]
    colour *= light
    _air(scene, colour, rays, z, ids)
    return _expose(colour, view, sensor, rng)


def _per_surface(values: NDArray[np.float32] | NDArray[np.float64], sky: float = 0.0) -> Plane:
    """Values by surface id: index 0 is the sky."""
    return np.concatenate([np.full((*values.shape[:-1], 1), sky), values], axis=-1).astype(np.float32)


def _orientation(surfaces: Surfaces, light: Light, view: View) -> tuple[Plane, Plane]:
    """By surface id: normal . light (sun: cosine; lamp: metres from the plane), and the eye's metres from the plane."""
    normal = np.cross(surfaces.along, surfaces.up)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    position = np.array(light.position)
    towards = normal @ position if light.is_sun else ((position - surfaces.corner) * normal).sum(axis=1)
    away = np.abs(((view.pose[:3, 3] - surfaces.corner) * normal).sum(axis=1))
    rounds = np.zeros(len(surfaces.centre))
    return _per_surface(np.concatenate([towards, rounds])), _per_surface(np.concatenate([away, rounds]), 1.0)


def _direct(light: Light, points: Plane, facing: Plane) -> Plane:
    """Light that arrives unobstructed, times the cosine on faces."""
    facing = np.maximum(facing, 0)
    if light.is_sun:
        return facing
    offset = points - np.array(light.position, np.float32)[:, None]
    square = np.einsum("ij,ij->j", offset, offset)
    fallen: Plane = facing / (np.sqrt(square) + np.float32(0.05)) / (1 + square / np.float32(light.reach**2))
    return fallen


def _shade_rounds(
    surfaces: Surfaces, light: Light, ids: NDArray[np.uint16], points: Plane, u: Plane, v: Plane, lamp: Plane
) -> None:
    """Cylinders and balls have a normal per pixel: fill in their light and their surface coordinates in metres."""
    first = len(surfaces.corner) + 1
    pixel = np.flatnonzero(ids >= first)
    if not pixel.size:
        return
    which = ids[pixel].astype(np.int64) - first
    here = points[:, pixel]
    radius = surfaces.radius[which].astype(np.float32)
    normal = (here - surfaces.centre[which].astype(np.float32).T) / radius
    u[pixel] = (np.arctan2(normal[1], normal[0]) + np.float32(np.pi)) * radius
    v[pixel] = here[2] - surfaces.centre[which, 2].astype(np.float32)
    normal[2] *= surfaces.height[which] == 0
    towards = np.array(light.position, np.float32)[:, None]
    if light.is_sun:
        lamp[pixel] = np.maximum((normal * towards).sum(axis=0), 0)
    else:
        lamp[pixel] = _direct(light, here, (normal * (towards - here)).sum(axis=0))


def _texture(
    surfaces: Surfaces, ids: NDArray[np.uint16], u: Plane, v: Plane, z: Plane, cosine: Plane, view: View
) -> Plane:
    """Look the tiles up at the mip level that fits the pixel's footprint; returns linear RGB, (3, H*W)."""
    texels, offsets = atlas()
    length = np.ones((len(surfaces.tile), 2))
    length[: len(surfaces.corner), 0] = np.linalg.norm(surfaces.along, axis=1)
    length[: len(surfaces.corner), 1] = np.linalg.norm(surfaces.up, axis=1)
    density = SIZE * (surfaces.repeat / np.maximum(length, 1e-6)).max(axis=1)  # texels a metre
    # footprint^2 in texels, stretched by the slant: (density z / f)^2 z / (distance of the eye from the plane)
    scale = _per_surface(density**2 / view.intrinsics.fx**2) / np.maximum(cosine, 0.02)
    rounds = len(surfaces.corner) + 1
    scale[rounds:] *= 0.02
    footprint = scale[ids] * z * z
    footprint *= np.where(ids < rounds, z, 1)
    halvings = np.log2(np.maximum(footprint, 1)) * np.float32(0.5)
    level = np.minimum(halvings.astype(np.int32), LEVELS - 1)

    across = u * _per_surface(surfaces.repeat[:, 0])[ids]
    climb = v * _per_surface(surfaces.repeat[:, 1])[ids]
    column = ((across - np.floor(across)) * np.float32(SIZE)).astype(np.int32)
    row = ((1 - (climb - np.floor(climb))) * np.float32(SIZE)).astype(np.int32)
    np.minimum(column, SIZE - 1, out=column)
    np.minimum(row, SIZE - 1, out=row)
    side = SIZE >> level
    tile = np.concatenate([[0], surfaces.tile]).astype(np.int32)[ids]
    index = offsets[level] + (tile * side + (row >> level)) * side + (column >> level)
    packed = texels[index]
    colour = np.stack([(packed >> shift) & 255 for shift in (0, 8, 16)]).astype(np.float32)
    colour *= colour
    colour *= np.float32(1 / 255**2)
    colour *= np.take(_per_surface(surfaces.colour), ids, axis=1)
    return colour


def _shadow_bias(light: Light, facing: Plane) -> Plane:
    """By surface id: how much nearer to the light, as a factor, something must be to shade the surface.

    One texel of the shadow map spans more distance on a face that the light grazes.
    """
    if not light.is_sun:
        return np.full_like(facing, 1.03)
    cosine = np.clip(facing, 0.1, 1)
    texel = 2 * SUN_RADIUS / SHADOW_SIZE
    slope: Plane = np.sqrt(1 - cosine * cosine) / cosine
    return 1 + np.float32(texel / SUN_AWAY) * (np.float32(0.5) + slope)


def _lit(light: Light, surfaces: Surfaces, points: Plane, bias: Plane, view: View) -> Plane:
    """1 in light, 0 in shadow: a depth map seen from the light, looked up at each point."""
    lamp_view = _light_view(light, view)
    nearest = cast(_casting(surfaces), lamp_view).nearness
    to_lamp = lamp_view.pose[:3, :3].T
    shift = (to_lamp @ lamp_view.pose[:3, 3]).astype(np.float32)[:, None]
    x, y, z = to_lamp.astype(np.float32) @ points - shift
    k = lamp_view.intrinsics
    inverse = np.float32(k.fx) / np.maximum(z, np.float32(0.01))
    column = (x * inverse + np.float32(k.cx)).clip(0, SHADOW_SIZE - 1).astype(np.int32)
    row = (y * inverse + np.float32(k.cy)).clip(0, SHADOW_SIZE - 1).astype(np.int32)
    # the rim of the map stays lit, so that points outside it (clipped to the rim) do too
    nearest[[0, -1]] = nearest[:, [0, -1]] = 0
    soft = np.zeros(len(z), np.float32)
    flat, index = nearest.reshape(-1), row * SHADOW_SIZE + column
    for step in (0, 1, SHADOW_SIZE, SHADOW_SIZE + 1):
        soft += np.take(flat, index + step, mode="clip") * z < bias
    soft *= np.float32(0.25)
    return soft


def _casting(surfaces: Surfaces) -> Surfaces:
    """The surfaces that throw a shadow, in shape only: their paint stays that of all surfaces."""
    faces, rounds = np.split(surfaces.casts, [len(surfaces.corner)])
    return replace(
        surfaces,
        corner=surfaces.corner[faces],
        along=surfaces.along[faces],
        up=surfaces.up[faces],
        taper=surfaces.taper[faces],
        disc=surfaces.disc[faces],
        centre=surfaces.centre[rounds],
        radius=surfaces.radius[rounds],
        height=surfaces.height[rounds],
    )


def _light_view(light: Light, view: View) -> View:
    """A camera at the light: a lamp looks straight down, the sun at the middle of what the camera sees."""
    position = np.array(light.position, np.float64)
    if light.is_sun:
        forward = view.pose[:3, 2] * [1, 1, 0]
        middle = view.pose[:3, 3] + 0.7 * SUN_RADIUS * forward / max(float(np.linalg.norm(forward)), 1e-6)
        axis, eye, focal = -position, middle + SUN_AWAY * position, SHADOW_SIZE / 2 * SUN_AWAY / SUN_RADIUS
    else:
        axis, eye, focal = np.array([0.0, 0.0, -1.0]), position, SHADOW_SIZE / 2 / 2.5
    right = np.cross(axis, [0.3, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(axis, right), axis], axis=1)
    pose[:3, 3] = eye
    return View(Intrinsics(focal, focal, SHADOW_SIZE / 2, SHADOW_SIZE / 2), pose, SHADOW_SIZE, SHADOW_SIZE)


def _ambient(scene: Scene, surfaces: Surfaces, ids: NDArray[np.uint16], points: Plane) -> Plane:
    """Light from everywhere: less from below, and less in corners, where half the world is wall."""
    up = np.cross(surfaces.along, surfaces.up)
    upward = up[:, 2] / np.maximum(np.linalg.norm(up, axis=1), 1e-9)
    side = 0.08 * up[:, 0] / np.maximum(np.linalg.norm(up, axis=1), 1e-9)
    by_id = np.concatenate([0.8 + 0.2 * upward + side, np.full(len(surfaces.centre), 0.85)])
    light = _per_surface(by_id, 1.0)[ids]
    if scene.extent is None:
        light *= 1 - np.float32(0.4) * np.exp(np.minimum(-points[2] / np.float32(0.35), 0))
        return light
    x0, x1, y0, y1, top = (np.float32(value) for value in scene.extent)
    for near, far, axis in ((x0, x1, 0), (y0, y1, 1), (np.float32(0), top, 2)):
        gap = np.minimum(points[axis] - near, far - points[axis])
        light *= 1 - np.float32(0.3) * np.exp(np.minimum(-gap / np.float32(0.3), 0))
    return light


def _air(scene: Scene, colour: Plane, rays: Plane, z: Plane, ids: NDArray[np.uint16]) -> None:
    """Haze in front of far surfaces, and the sky behind them, in place."""
    weather = scene.weather
    horizon = np.array(weather.horizon, np.float32)[:, None]
    if weather.visibility < 1e6:
        clear = np.exp(-z / np.float32(weather.visibility))
        colour -= horizon
        colour *= clear
        colour += horizon
    sky = np.flatnonzero(ids == 0)
    if not sky.size:
        return
    x, y, up = rays[:, sky]
    flat = np.sqrt(x * x + y * y)
    rise = np.maximum(up / np.sqrt(flat * flat + up * up), 0)
    zenith = np.array(weather.zenith, np.float32)[:, None]
    blend = 1 - (1 - rise) ** 3
    dome = horizon * (1 - blend) + zenith * blend
    texels, offsets = atlas()
    column = ((np.arctan2(y, x) * np.float32(SIZE / np.pi)).astype(np.int32)) & (SIZE - 1)
    row = (rise * np.float32(1.6 * SIZE)).astype(np.int32) & (SIZE - 1)
    cloud = (texels[offsets[0] + (int(Tile.SKY) * SIZE + row) * SIZE + column] & 255).astype(np.float32) / 255
    share = np.clip((cloud - (1 - np.float32(weather.clouds))) * 2, 0, 1) * np.minimum(rise * 6, 1)
    colour[:, sky] = dome + (np.float32(0.95) * horizon.max() - dome) * share


def _expose(colour: Plane, view: View, sensor: Sensor, rng: np.random.Generator) -> NDArray[np.uint8]:
    gain = sensor.exposure * np.array(sensor.balance, np.float32)[:, None]
    grid = pixel_grid(view.height, view.width)
    x, y = grid[0] / view.width - np.float32(0.5), grid[1] / view.height - np.float32(0.5)
    falloff = 1 - np.float32(2 * sensor.vignette) * (x * x + y * y)
    colour *= gain
    colour *= falloff
    picture = np.sqrt(np.clip(colour, 0, 1, out=colour)).reshape(3, view.height, view.width)
    if sensor.blur > 0:
        side = np.float32(sensor.blur)
        for axis in (1, 2):
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            step = picture[tuple(ahead)] - picture[tuple(behind)]
            step *= side
            picture[tuple(behind)] += step
            picture[tuple(ahead)] -= step
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    grain *= np.float32(255 * sensor.noise)
    grain += picture * np.float32(255)
    grain += np.float32(0.5)
    return np.ascontiguousarray(np.clip(grain, 0, 255).astype(np.uint8).transpose(1, 2, 0))
