"""Rooms: floor, walls with doors and windows, and furniture that neither collides nor repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from leadline.data.scenes.builder import Builder, Light, Paint, Scene, Weather
from leadline.data.scenes.furniture import FREE_STANDING, WALL_SIDE, hang, tint
from leadline.data.scenes.textures import Tile

if TYPE_CHECKING:
    from random import Random

    Footprint = tuple[float, float, float, float]  # x0, x1, y0, y1 in metres

EYE_ROOM = (0.3, 0.8)  # metres kept free around the camera's path

FLOORS = (
    Tile.PLANKS, Tile.PLANKS, Tile.WOOD, Tile.CERAMIC, Tile.CARPET, Tile.CHECKER, Tile.MARBLE, Tile.CONCRETE,
)  # fmt: skip
WALLS = (
    Tile.PLASTER, Tile.PLASTER, Tile.PLASTER, Tile.PLAIN, Tile.PLAIN, Tile.PLAIN, Tile.STRIPES, Tile.DOTS, Tile.BRICK,
    Tile.CERAMIC, Tile.CONCRETE, Tile.WOOD,
)  # fmt: skip


def build_room(r: Random, frames: int = 1, moving: bool = False) -> Scene:
    """Lay out a random room with the camera inside, looking mostly across it.

    Args:
        r: source of every choice.
        frames: length of the walk; its path is kept clear of furniture.
        moving: let a ball roll over the floor.
    """
    width, depth = r.uniform(2.4, 6.5), r.uniform(2.6, 9.0)
    height = r.choice((r.uniform(2.25, 2.8), r.uniform(2.4, 4.0)))
    builder = Builder()
    eye, heading, velocity, path = _walk(r, width, depth, frames)
    _shell(builder, r, width, depth, height)
    taken = [path]
    _furnish(builder, r, width, depth, height, taken)
    lamp = (width * r.uniform(0.25, 0.75), depth * r.uniform(0.25, 0.75), height - r.uniform(0.12, 0.5))
    _lamp(builder, r, lamp, height)
    bright = r.uniform(0.7, 2.0)
    warm = r.uniform(-0.12, 0.12)
    share = r.uniform(0.3, 0.75)  # of the light that comes from everywhere
    lit, rest = 2.2 * bright * (1 - share), bright * share
    roll, pitch, turn, fov = r.gauss(0, 2.5), r.gauss(-8, 7), r.uniform(-0.8, 0.8), r.uniform(50, 82)
    reach = r.uniform(2.0, 5.0)
    if moving:  # drawn last, so that the room is the same with and without it
        _ball(builder, r, eye, heading, (width, depth))
    return Scene(
        builder=builder,
        light=Light(
            lamp,
            is_sun=False,
            strength=(lit * (1 + warm), lit, lit * (1 - warm)),
            ambient=(rest * (1 - 0.5 * warm), rest, rest * (1 + 0.5 * warm)),
            reach=reach,
        ),
        weather=Weather(),
        extent=(0, width, 0, depth, height),
        eye=eye,
        heading=heading,
        pitch=pitch,
        roll=roll,
        velocity=velocity,
        turn=turn,
        fov_deg=fov,
    )


def _walk(
    r: Random, width: float, depth: float, frames: int
) -> tuple[tuple[float, float, float], float, tuple[float, float], Footprint]:
    """Start of the camera, its heading, its step a frame, and the ground that must stay free."""
    margin = 0.4
    x, y = r.uniform(margin, width - margin), r.uniform(margin, depth * 0.6)
    if r.random() < 0.5:
        y = depth - y
    aim_x, aim_y = width * r.uniform(0.15, 0.85), depth * r.uniform(0.15, 0.85)
    if r.random() < 0.6:  # look at the far side
        aim_y = depth * (1 - y / depth)
    heading = math.degrees(math.atan2(x - aim_x, aim_y - y)) + r.gauss(0, 12)
    speed = r.uniform(0.03, 0.08)
    dx, dy = -speed * math.sin(math.radians(heading)), speed * math.cos(math.radians(heading))
    steps = max(frames - 1, 0)
    for position, step, limit in ((x, dx, width), (y, dy, depth)):
        if steps and not margin <= position + steps * step <= limit - margin:
            shrink = ((limit - margin if step > 0 else margin) - position) / (steps * step)
            dx, dy = dx * max(shrink, 0), dy * max(shrink, 0)
    ends_x, ends_y = (x, x + steps * dx), (y, y + steps * dy)
    free = r.uniform(*EYE_ROOM)
    path = (min(ends_x) - free, max(ends_x) + free, min(ends_y) - free, max(ends_y) + free)
    eye_height = r.choice((r.uniform(1.2, 1.75), r.uniform(0.6, 1.9)))
    return (x, y, eye_height), heading, (dx, dy), path


def _ball(
    builder: Builder, r: Random, eye: tuple[float, float, float], heading: float, room: tuple[float, float]
) -> None:
    """A ball that rolls across in front of the camera."""
    speed, size, ahead = r.uniform(0.03, 0.09), r.uniform(0.15, 0.3), math.radians(heading)
    far = r.uniform(1.6, 2.4)
    x = min(max(eye[0] - far * math.sin(ahead), size), room[0] - size)
    y = min(max(eye[1] + far * math.cos(ahead), size), room[1] - size)
    builder.at(x, y, velocity=(speed * math.cos(ahead), speed * math.sin(ahead)))
    builder.ball(0, 0, size, size, Paint(r.choice(list(Tile)), 0.5, tint(r)))


def _shell(builder: Builder, r: Random, width: float, depth: float, height: float) -> None:
    floor = Paint(r.choice(FLOORS), r.uniform(0.8, 2.0), tint(r, 0.25, 0.95))
    reach = 4.0  # the floor goes on behind door openings
    builder.at(0, 0, casts=False)
    builder.plate(width / 2, depth / 2, 0, width + 2 * reach, depth + 2 * reach, floor)
    ceiling = Paint(r.choice((Tile.PLASTER, Tile.PLAIN, Tile.PLANKS)), 2.0, tint(r, 0.6, 1.0, 0.1))
    builder.face((-reach, depth + reach, height), (width + 2 * reach, 0, 0), (0, -depth - 2 * reach, 0), ceiling)
    same = _wall_paint(r)
    skirting = Paint(Tile.WOOD, 1.0, tint(r, 0.3, 1.0))
    corners = ((0, 0, depth, width), (90, 0, 0, depth), (180, width, 0, width), (270, width, depth, depth))
    for yaw, x, y, length in corners:
        paint = same if r.random() < 0.75 else _wall_paint(r)
        builder.at(x, y, yaw, casts=False)
        _wall(builder, r, length, height, paint, skirting)
    if r.random() < 0.3:  # a chimney breast or pillar turns the rectangle into another shape
        w, d = r.uniform(0.3, 1.2), r.uniform(0.3, 0.8)
        builder.at(r.choice((w / 2, width - w / 2)), r.choice((d / 2, depth - d / 2)))
        builder.box(0, 0, 0, w, d, height, same)
    if r.random() < 0.15:
        builder.at(0, 0, casts=False)
        for i in range(4):
            builder.box(width / 2, depth * (i + 0.5) / 4, height - 0.22, width, 0.15, 0.22, skirting)


def _wall_paint(r: Random) -> Paint:
    return Paint(r.choice(WALLS), r.uniform(0.7, 2.5), tint(r, 0.35, 1.0, 0.35))


def _wall(builder: Builder, r: Random, length: float, height: float, paint: Paint, skirting: Paint) -> None:
    """A wall along local x that looks towards -y: perhaps an opening to a corridor, windows, pictures."""
    start = 0.0
    if r.random() < 0.35 and length > 2.2:
        w, h = r.uniform(0.8, 1.3), r.uniform(1.95, min(2.2, height - 0.1))
        at = r.uniform(0.3, length - w - 0.3)
        _face(builder, -0.01, at, 0, height, paint)
        _face(builder, at, at + w, h, height, paint)
        start = at + w
        deep = r.uniform(0.8, 3.6)
        beyond = _wall_paint(r)
        builder.face((at - 0.6, deep, 0), (w + 1.2, 0, 0), (0, 0, height), beyond)
        builder.face((at - 0.6, 0.12, 0), (0, deep, 0), (0, 0, height), beyond)
        builder.face((at + w + 0.6, deep, 0), (0, 0.12 - deep, 0), (0, 0, height), beyond)
        for side in (at - 0.04, at + w + 0.04):
            builder.box(side, 0.06, 0, 0.08, 0.2, h + 0.08, skirting)
        builder.box(at + w / 2, 0.06, h, w, 0.2, 0.08, skirting)
    _face(builder, start, length + 0.01, 0, height, paint)
    if start == 0.0:
        builder.box(length / 2, -0.01, 0, length, 0.02, r.uniform(0.05, 0.14), skirting)
    bare = (start + 0.1, length - 0.1) if start < length / 2 else (0.1, start - 1.5)  # beside the opening
    hang(builder, r, *bare, height)


def _face(builder: Builder, x0: float, x1: float, z0: float, z1: float, paint: Paint) -> None:
    if x1 > x0 and z1 > z0:
        builder.face((x0, 0, z0), (x1 - x0, 0, 0), (0, 0, z1 - z0), paint)


def _furnish(builder: Builder, r: Random, width: float, depth: float, height: float, taken: list[Footprint]) -> None:
    for _ in range(r.randint(6, 26)):
        make, w, d = r.choice(WALL_SIDE)
        w, d = w * r.uniform(0.8, 1.25), d * r.uniform(0.85, 1.15)
        side = r.randrange(4)
        length = width if side % 2 == 0 else depth
        if w > length - 0.2:
            continue
        s = r.uniform(w / 2 + 0.02, length - w / 2 - 0.02)
        x, y = ((s, depth - d / 2 - 0.03), (d / 2 + 0.03, s), (s, d / 2 + 0.03), (width - d / 2 - 0.03, s))[side]
        half_x, half_y = (w / 2, d / 2) if side % 2 == 0 else (d / 2, w / 2)
        if _claim(taken, (x - half_x, x + half_x, y - half_y, y + half_y)):
            builder.at(x, y, 90 * side)
            make(builder, r, w, d, height)
    for _ in range(r.randint(2, 18)):
        make, w, d = r.choice(FREE_STANDING)
        half = 0.5 * max(w, d)
        if min(width, depth) < 2 * half + 0.3:
            continue
        x, y = r.uniform(half + 0.1, width - half - 0.1), r.uniform(half + 0.1, depth - half - 0.1)
        if _claim(taken, (x - half, x + half, y - half, y + half)):
            builder.at(x, y, r.uniform(0, 360))
            make(builder, r, w, d, height)
    if r.random() < 0.4:
        w, d = r.uniform(1.0, width * 0.7), r.uniform(1.0, depth * 0.6)
        builder.at(width / 2, depth * r.uniform(0.35, 0.65), r.gauss(0, 4), casts=False)
        builder.plate(0, 0, 0.012, w, d, Paint(r.choice((Tile.RUG, Tile.RUG, Tile.CARPET)), 0, tint(r, 0.4, 1.0)))


def _claim(taken: list[Footprint], area: Footprint) -> bool:
    """Reserve ground; False where something else has it."""
    x0, x1, y0, y1 = area
    if any(x0 < b and a < x1 and y0 < d and c < y1 for a, b, c, d in taken):
        return False
    taken.append(area)
    return True


def _lamp(builder: Builder, r: Random, lamp: tuple[float, float, float], height: float) -> None:
    x, y, z = lamp
    builder.at(x, y, casts=False)
    builder.box(0, 0, z + 0.1, 0.02, 0.02, max(height - z - 0.1, 0.02), Paint(colour=(0.2, 0.2, 0.2)))
    glow = Paint(Tile.PLAIN, 1.0, (1.0, 0.95, 0.85), 1.5)
    if r.random() < 0.5:
        builder.ball(0, 0, z + 0.06, r.uniform(0.08, 0.2), glow)
    else:
        builder.box(0, 0, z, r.uniform(0.2, 0.5), r.uniform(0.2, 0.5), 0.15, glow, taper=(0.25, 0.25))
