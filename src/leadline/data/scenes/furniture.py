"""Furniture and what hangs on walls; each piece stands in a frame whose back is +y and whose middle is the origin."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

from leadline.data.scenes.builder import Builder, Colour, Paint
from leadline.data.scenes.textures import Tile

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Maker = Callable[[Builder, Random, float, float, float], None]

PICTURES = (Tile.PICTURE_A, Tile.PICTURE_B, Tile.PICTURE_C, Tile.PICTURE_D)


def tint(r: Random, low: float = 0.1, high: float = 0.9, saturation: float = 0.6) -> Colour:
    """A random linear colour with value in low..high."""
    red, green, blue = colorsys.hsv_to_rgb(r.random(), saturation * r.random(), r.uniform(low, high))
    return red, green, blue


def timber(r: Random) -> Paint:
    """Wood, lacquer or, sometimes, anything at all."""
    if r.random() < 0.12:
        return Paint(r.choice(list(Tile)), r.uniform(0.3, 1.5), tint(r))
    value = r.uniform(0.12, 0.95)
    if r.random() < 0.55:
        brown = (value, value * r.uniform(0.75, 0.95), value * r.uniform(0.5, 0.85))
        return Paint(Tile.WOOD, r.uniform(0.5, 1.2), brown)
    return Paint(Tile.PLAIN, 1.0, tint(r, 0.05, 1.0, 0.4))


def cloth(r: Random) -> Paint:
    """Upholstery."""
    tile = r.choice((Tile.WEAVE, Tile.WEAVE, Tile.CARPET, Tile.STRIPES, Tile.DOTS, Tile.PLAIN))
    return Paint(tile, r.uniform(0.3, 0.8), tint(r, 0.08, 0.9, 0.9))


def table(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A table or desk with four legs and perhaps something on it."""
    h, top, paint = r.uniform(0.42, 0.9), r.uniform(0.025, 0.06), timber(r)
    legs = paint if r.random() < 0.6 else Paint(Tile.METAL, 0.5, tint(r, 0.05, 0.6, 0.2))
    b.box(0, 0, h - top, w, d, top, paint)
    thick = r.uniform(0.035, 0.08)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box(x * (w / 2 - thick), y * (d / 2 - thick), 0, thick, thick, h - top, legs)
    clutter(b, r, w, d, h)


def round_table(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A round table on one leg."""
    h, paint = r.uniform(0.45, 0.76), timber(r)
    b.cylinder(0, 0, h - 0.04, min(w, d) / 2, 0.04, paint)
    b.cylinder(0, 0, 0, 0.05, h - 0.04, paint)
    b.cylinder(0, 0, 0, 0.2, 0.03, paint)
    clutter(b, r, w * 0.6, d * 0.6, h)


def clutter(b: Builder, r: Random, w: float, d: float, z: float) -> None:
    """Things on a top of w x d at height z: books, boxes, mugs, balls, a screen."""
    for _ in range(r.randint(0, 4)):
        x, y = r.uniform(-0.4, 0.4) * w, r.uniform(-0.4, 0.4) * d
        what = r.random()
        if what < 0.4:
            across, along, h = r.uniform(0.05, 0.3), r.uniform(0.05, 0.25), r.uniform(0.02, 0.3)
            b.box(x, y, z, across, along, h, Paint(Tile.PLAIN, 0.5, tint(r)))
        elif what < 0.7:
            b.cylinder(x, y, z, r.uniform(0.025, 0.09), r.uniform(0.06, 0.3), Paint(Tile.PLAIN, 0.5, tint(r)))
        else:
            size = r.uniform(0.04, 0.1)
            b.ball(x, y, z + size, size, Paint(Tile.PLAIN, 0.5, tint(r, 0.3, 1.0, 1.0)))
    if r.random() < 0.3:
        size = r.uniform(0.35, 0.65)
        b.box(0, 0.2 * d, z, 0.2, 0.15, 0.08, Paint(colour=(0.05, 0.05, 0.05)))
        b.box(0, 0.2 * d, z + 0.08, size, 0.04, 0.6 * size, Paint(colour=(0.04, 0.04, 0.04)))
        b.panel(0, 0.2 * d - 0.021, z + 0.1, 0.94 * size, 0.55 * size, Paint(r.choice(PICTURES), 0, (0.8, 0.9, 1), 0.4))


def chair(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A chair with four legs and a back."""
    paint, seat = timber(r), r.uniform(0.4, 0.5)
    b.box(0, 0, seat - 0.05, w, d, 0.05, cloth(r) if r.random() < 0.5 else paint)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box(x * (w / 2 - 0.025), y * (d / 2 - 0.025), 0, 0.04, 0.04, seat - 0.05, paint)
    back = r.uniform(0.35, 0.6)
    if r.random() < 0.5:
        b.box(0, d / 2 - 0.02, seat, w, 0.04, back, paint)
    else:
        for x in (-1, 0, 1):
            b.box(x * (w / 2 - 0.025), d / 2 - 0.02, seat, 0.04, 0.03, back, paint)
        b.box(0, d / 2 - 0.02, seat + back - 0.08, w, 0.035, 0.1, paint)


def sofa(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A sofa or armchair with cushions."""
    paint, seat, back, arm = cloth(r), r.uniform(0.36, 0.46), r.uniform(0.65, 0.95), r.uniform(0.12, 0.25)
    b.box(0, 0, 0.06, w, d, seat - 0.06, paint)
    b.box(0, d / 2 - 0.12, seat, w, 0.24, back - seat, paint, taper=(0.0, 0.15))
    for x in (-1, 1):
        b.box(x * (w / 2 - arm / 2), 0, seat, arm, d, r.uniform(0.12, 0.24), paint)
    for _ in range(r.randint(0, 3)):
        b.box(r.uniform(-0.3, 0.3) * w, d / 2 - 0.3, seat, 0.4, 0.12, 0.35, cloth(r), taper=(0.1, 0.3))


def bed(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A bed with mattress, cover and pillows, its head at the back."""
    frame, h = timber(r), r.uniform(0.25, 0.5)
    b.box(0, 0, 0, w, d, h, frame)
    b.box(0, 0, h, w * 0.96, d * 0.96, 0.16, Paint(Tile.PLAIN, 1, tint(r, 0.7, 1.0, 0.2)))
    b.box(0, -0.15 * d, h + 0.14, w, d * 0.68, 0.06, cloth(r))
    b.box(0, d / 2 - 0.03, 0, w, 0.06, r.uniform(0.7, 1.3), frame)
    for x in (-0.22, 0.22):
        linen = Paint(Tile.PLAIN, 1, tint(r, 0.7, 1, 0.3))
        b.box(x * w, 0.36 * d, h + 0.16, 0.38 * w, 0.35, 0.12, linen, taper=(0.12, 0.15))


def shelf(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """An open shelf with boards, books and boxes."""
    paint, h, levels = timber(r), r.uniform(0.8, min(2.2, room - 0.1)), r.randint(2, 6)
    d = min(d, 0.4)
    for side in (-1, 1):
        b.box(side * (w / 2 - 0.01), 0, 0, 0.02, d, h, paint)
    b.panel(0, d / 2 - 0.005, 0, w, h, paint)
    step = h / levels
    for i in range(levels + 1):
        b.box(0, 0, min(i * step, h - 0.02), w, d, 0.02, paint)
        if i == levels or r.random() < 0.15:
            continue
        fill = r.uniform(0.3, 0.95) * (w - 0.06)
        x = r.uniform(-0.5, 0.5) * (w - 0.06 - fill)
        deep, high = d * r.uniform(0.5, 0.85), step * r.uniform(0.45, 0.85)
        if r.random() < 0.35:
            b.box(x, 0.02, i * step + 0.02, fill, deep, high, Paint(colour=tint(r)))
        else:
            b.box(x, 0.02, i * step + 0.02, fill, deep, high * 0.6, Paint(colour=tint(r, 0.2, 0.8)))
            spines = Paint(Tile.BOOKS, 0, tint(r, 0.6, 1, 0.2))
            b.panel(x, 0.015 - deep / 2, i * step + 0.02, fill, high, spines)


def cabinet(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A cabinet, sideboard or wardrobe with doors."""
    h, paint = r.choice((r.uniform(0.7, 1.1), r.uniform(1.6, min(2.3, room - 0.05)))), timber(r)
    b.box(0, 0, 0, w, d, h, paint)
    front = Paint(r.choice((Tile.CUPBOARD, Tile.CUPBOARD, Tile.DOOR)), r.choice((0, 0, h)), paint.colour)
    b.panel(0, -d / 2 - 0.006, 0.06, w * 0.98, h - 0.08, front)
    if h < 1.2:
        clutter(b, r, w, d, h)


def counter(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A kitchen counter with cupboards above."""
    paint = timber(r)
    b.box(0, 0, 0, w, d, 0.88, paint)
    b.panel(0, -d / 2 - 0.006, 0.08, w, 0.78, Paint(Tile.CUPBOARD, r.uniform(0.8, 1.3), paint.colour))
    b.box(0, 0, 0.88, w + 0.02, d + 0.03, 0.04, Paint(Tile.MARBLE, 1.0, tint(r, 0.2, 0.9, 0.2)))
    clutter(b, r, w, d, 0.92)
    if r.random() < 0.6:
        b.box(0, d / 2 - 0.17, 1.45, w, 0.34, min(0.7, room - 1.5), paint)
        doors = Paint(Tile.CUPBOARD, r.uniform(0.8, 1.2), paint.colour)
        b.panel(0, d / 2 - 0.346, 1.46, w, min(0.68, room - 1.52), doors)


def floor_lamp(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A lamp on a thin pole."""
    h = r.uniform(1.2, 1.7)
    b.cylinder(0, 0, 0, 0.14, 0.03, Paint(Tile.METAL, 0.5, tint(r, 0.1, 0.5)))
    b.cylinder(0, 0, 0, 0.015, h, Paint(Tile.METAL, 0.5, tint(r, 0.1, 0.5)))
    b.box(0, 0, h, 0.36, 0.36, 0.28, Paint(Tile.WEAVE, 0.5, tint(r, 0.6, 1, 0.4), r.uniform(0, 0.8)), taper=(0.2, 0.2))


def plant(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A pot with a bush."""
    pot, h = r.uniform(0.12, 0.22), r.uniform(0.2, 0.45)
    b.cylinder(0, 0, 0, pot, h, Paint(Tile.CONCRETE, 0.5, tint(r, 0.2, 0.8)))
    for _ in range(r.randint(3, 7)):
        size = r.uniform(0.08, 0.2)
        green = (r.uniform(0.3, 0.8), r.uniform(0.6, 1.0), r.uniform(0.3, 0.7))
        b.ball(r.gauss(0, 0.12), r.gauss(0, 0.12), h + r.uniform(0.1, 0.7), size, Paint(Tile.FOLIAGE, 0.5, green))


def boxes(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A stack of cartons."""
    z = 0.0
    for _ in range(r.randint(1, 3)):
        h = r.uniform(0.2, 0.5)
        paint = Paint(Tile.PLAIN, 1, (0.55, 0.4, 0.25)) if r.random() < 0.5 else Paint(Tile.PLASTER, 1, tint(r))
        b.box(r.gauss(0, 0.03), r.gauss(0, 0.03), z, r.uniform(0.3, 0.6), r.uniform(0.3, 0.5), h, paint)
        z += h


def stool(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A stool, pouffe or bin."""
    b.cylinder(0, 0, 0, r.uniform(0.15, 0.26), r.uniform(0.3, 0.6), cloth(r))


def person(b: Builder, r: Random, w: float, d: float, room: float) -> None:
    """A standing figure of cylinders and a ball."""
    h = r.uniform(1.5, 1.9)
    shirt, trousers = Paint(Tile.WEAVE, 0.4, tint(r, 0.1, 0.9, 0.9)), Paint(Tile.WEAVE, 0.4, tint(r, 0.05, 0.5))
    skin = r.uniform(0.15, 0.75)
    for x in (-0.09, 0.09):
        b.cylinder(x, r.gauss(0, 0.05), 0, 0.075, 0.48 * h, trousers)
        b.cylinder(2.6 * x, 0, 0.45 * h, 0.05, 0.37 * h, shirt)
    b.cylinder(0, 0, 0.47 * h, 0.18, 0.36 * h, shirt)
    b.ball(0, 0, 0.92 * h, 0.11, Paint(Tile.PLAIN, 1, (skin, 0.75 * skin, 0.6 * skin)))


def hang(b: Builder, r: Random, x0: float, x1: float, height: float) -> None:
    """Fill a stretch of a wall (looking towards -y, x0..x1) with a door, windows, curtains, pictures, a radiator."""
    x = x0 + r.uniform(0, 0.8)
    while x < x1 - 0.5:
        what, room = r.random(), x1 - x
        if what < 0.3 and room > 0.9 and height > 2.2:
            w, h, z = r.uniform(0.7, min(2.2, room)), r.uniform(0.8, 1.3), r.uniform(0.7, 1.0)
            _window(b, r, x + w / 2, z, w, min(h, height - z - 0.1))
        elif what < 0.45 and room > 0.9:
            w = r.uniform(0.75, 0.95)
            b.panel(x + w / 2, -0.012, 0, w, min(2.05, height - 0.05), Paint(Tile.DOOR, 0, timber(r).colour))
        elif what < 0.75:
            w, h = r.uniform(0.3, min(1.3, room)), r.uniform(0.3, 0.9)
            b.box(x + w / 2, -0.02, 1.25, w + 0.06, 0.03, h + 0.06, timber(r))
            b.panel(x + w / 2, -0.04, 1.28, w, h, Paint(r.choice(PICTURES), 0, tint(r, 0.6, 1, 0.3)))
        else:
            w = r.uniform(0.3, 0.8)
        x += w + r.uniform(0.2, 1.6)


def _window(b: Builder, r: Random, x: float, z: float, w: float, h: float) -> None:
    tile = r.choice((Tile.WINDOW, Tile.WINDOW, Tile.WINDOW, Tile.BLINDS))
    b.panel(x, -0.012, z, w, h, Paint(tile, 0, tint(r, 0.8, 1.0, 0.2), r.choice((0.1, r.uniform(0.4, 1.5)))))
    frame = Paint(Tile.PLAIN, 1, tint(r, 0.4, 1.0, 0.2))
    for side in (-0.5, 0.5):
        b.box(x + side * w, -0.02, z - 0.05, 0.06, 0.06, h + 0.1, frame)
    b.box(x, -0.06, z - 0.06, w + 0.15, 0.14, 0.04, frame)
    b.box(x, -0.02, z + h, w, 0.06, 0.06, frame)
    if r.random() < 0.45:
        cloth_paint = Paint(Tile.CURTAIN, 0, tint(r, 0.4, 1.0, 0.8))
        for side in (-1, 1):
            b.box(x + side * (w / 2 + 0.1), -0.1, 0.08, 0.4, 0.06, z + h + 0.05, cloth_paint)
    if r.random() < 0.4:
        b.box(x, -0.08, 0.12, w * 0.8, 0.1, min(0.55, z - 0.2), Paint(Tile.BLINDS, 1.5, (0.85, 0.85, 0.85)))


WALL_SIDE: tuple[tuple[Maker, float, float], ...] = (
    (sofa, 1.9, 0.85), (sofa, 0.9, 0.85), (bed, 1.5, 2.05), (shelf, 0.9, 0.32), (shelf, 1.4, 0.35),
    (cabinet, 1.0, 0.5), (cabinet, 1.6, 0.55), (counter, 2.0, 0.6), (table, 1.3, 0.65), (table, 0.5, 0.4),
    (plant, 0.5, 0.5), (boxes, 0.7, 0.5),
)  # fmt: skip
FREE_STANDING: tuple[tuple[Maker, float, float], ...] = (
    (chair, 0.44, 0.44), (chair, 0.44, 0.44), (chair, 0.44, 0.44), (table, 1.4, 0.8), (table, 0.9, 0.6),
    (round_table, 1.0, 1.0), (stool, 0.5, 0.5), (floor_lamp, 0.4, 0.4), (plant, 0.5, 0.5), (boxes, 0.6, 0.5),
    (sofa, 0.85, 0.8), (person, 0.5, 0.5),
)  # fmt: skip
