"""Streets: road, kerbs, pavements, buildings or gardens on both sides, crossings, traffic, trees, poles and people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.data.scenes.builder import Builder, Light, Paint, Scene, Weather
from leadline.data.scenes.furniture import person, tint
from leadline.data.scenes.textures import Tile

if TYPE_CHECKING:
    from random import Random

FAR = 200.0  # metres: where the ground ends
FACADES = (Tile.FACADE_BRICK, Tile.FACADE_PLASTER, Tile.FACADE_GLASS, Tile.FACADE_HOUSE)


@dataclass(frozen=True)
class Place:
    """The character of a street.

    Args:
        road: half the road's width, metres.
        pavement: width, metres; 0 for none.
        setback: metres from pavement to buildings.
        storeys: fewest and most.
        built: share of the plots that carry a building.
        parked: share of the kerb with parked cars.
        trees: share of the places for trees that have one.
        crossing: (y0, y1) of a crossing road, metres.
    """

    road: float
    pavement: float
    setback: tuple[float, float]
    storeys: tuple[int, int]
    built: float
    parked: float
    trees: float
    crossing: tuple[float, float]


def build_street(r: Random, frames: int = 1, moving: bool = False) -> Scene:
    """Lay out a random street along +y with the camera near its start, looking along it.

    Args:
        r: source of every choice.
        frames: length of the drive.
        moving: let the traffic in the lanes move.
    """
    place = _place(r)
    builder = Builder()
    on_pavement = place.pavement > 1.5 and r.random() < 0.2
    x = (place.road + 0.8) * r.choice((-1, 1)) if on_pavement else r.uniform(-0.6, 0.6) * place.road
    eye = (x, 0.0, r.choice((r.uniform(1.3, 2.0), r.uniform(1.0, 2.8))))
    speed = r.uniform(0.3, 1.0)
    _ground(builder, r, place)
    for side in (-1, 1):
        _plots(builder, r, place, side)
        _kerbside(builder, r, place, side, eye, speed * frames)
    _traffic(builder, r, place, eye, speed * frames, moving)
    _horizon(builder, r)
    light, weather = _sky(r)
    turned = r.random() < 0.15
    return Scene(
        builder=builder,
        light=light,
        weather=weather,
        extent=None,
        eye=eye,
        heading=r.choice((-1, 1)) * r.uniform(20, 75) if turned else r.gauss(0, 5),
        pitch=r.gauss(-2, 3),
        roll=r.gauss(0, 1.2),
        velocity=(r.gauss(0, 0.01), speed),
        turn=r.gauss(0, 0.4),
        fov_deg=r.uniform(55, 95),
    )


def _place(r: Random) -> Place:
    start = r.uniform(15, 70)
    crossing = (start, start + r.uniform(6, 14)) if r.random() < 0.6 else (FAR, FAR)
    kind = r.random()
    if kind < 0.35:  # town
        return Place(r.uniform(3, 7), r.uniform(1.5, 4), (0, 0.5), (2, 8), 0.95, 0.6, 0.3, crossing)
    if kind < 0.7:  # suburb
        return Place(r.uniform(2.8, 4.5), r.uniform(1.2, 2.2), (2, 9), (1, 3), 0.75, 0.3, 0.5, crossing)
    if kind < 0.88:  # country road
        return Place(r.uniform(2.5, 4), 0.0, (8, 30), (1, 2), 0.2, 0.0, 0.75, crossing)
    return Place(r.uniform(7, 13), 0.6, (8, 25), (2, 9), 0.4, 0.0, 0.3, (FAR, FAR))  # trunk road


def _stretches(place: Place) -> list[tuple[float, float]]:
    """The street's length less the crossing road."""
    first = (-12.0, place.crossing[0])
    return [first, (place.crossing[1], FAR)] if place.crossing[1] < FAR else [first]


def _ground(b: Builder, r: Random, place: Place) -> None:
    grey = r.uniform(0.4, 1.2)
    b.at(0, 0, casts=False)
    asphalt = Tile.SLABS if r.random() < 0.08 else Tile.ASPHALT
    tone = (grey, grey * r.uniform(0.92, 1.0), grey * r.uniform(0.85, 1.05))
    b.plate(0, 90, 0, 2 * FAR, 2 * FAR, Paint(asphalt, r.uniform(2, 6), tone))
    verge_green = (r.uniform(0.5, 1.1), r.uniform(0.7, 1.1), r.uniform(0.4, 0.8))
    slab = Paint(r.choice((Tile.SLABS, Tile.CONCRETE, Tile.BRICK)), r.uniform(1, 3), tint(r, 0.4, 0.9, 0.2))
    verge = slab if place.setback[1] < 1 else Paint(Tile.GRASS, r.uniform(1.5, 4), verge_green)
    kerb = r.uniform(0.06, 0.16) if place.pavement else 0.02
    for y0, y1 in _stretches(place):
        middle, length = (y0 + y1) / 2, y1 - y0
        for side in (-1, 1):
            edge = place.road + place.pavement
            if place.pavement:
                b.box(side * (place.road + place.pavement / 2), middle, 0, place.pavement, length, kerb, slab)
            b.box(side * (edge + 75), middle, 0, 150, length, kerb + 0.01, verge)
    _markings(b, r, place)


def _markings(b: Builder, r: Random, place: Place) -> None:
    white = Paint(Tile.CONCRETE, 1.0, (0.95, 0.95, r.uniform(0.6, 0.95)))
    lanes = max(1, round(place.road / 3.2))
    if r.random() < 0.85:
        for lane in range(-lanes + 1, lanes):
            x = lane * place.road / lanes
            if lane == 0 and r.random() < 0.3:
                b.plate(x, 90, 0.004, 0.13, FAR, white)
                continue
            for i in range(14):
                b.plate(x, -2 + 9 * i, 0.004, 0.13, 3.0, white)
    if place.pavement < 1 or r.random() < 0.3:
        for side in (-1, 1):
            b.plate(side * (place.road - 0.3), 90, 0.004, 0.15, FAR, white)
    if place.crossing[0] < FAR and r.random() < 0.6:  # zebra
        for i in range(round(2 * place.road)):
            b.plate(-place.road + i + 0.5, place.crossing[0] - 2.5, 0.005, 0.5, 3.0, white)


def _plots(b: Builder, r: Random, place: Place, side: int) -> None:
    """Buildings, gardens, hedges and fences along one side."""
    y, edge = -12.0, place.road + place.pavement
    while y < 150:
        w = r.uniform(7, 22)
        if y < place.crossing[1] and y + w > place.crossing[0]:
            y = place.crossing[1] + 0.5
            continue
        gap = 0.0 if place.setback[1] < 1 else r.uniform(0.5, 8)
        back = r.uniform(*place.setback)
        b.at(side * (edge + back), y + w / 2, -90 * side)  # the frame's -y looks at the street
        if r.random() < place.built:
            _building(b, r, place, w, y)
        elif place.trees > 0.2:
            for _ in range(r.randint(1, 4)):
                _tree(b, r, r.uniform(-0.4, 0.4) * w, r.uniform(1, 12))
        if back > 1.5 and y < 80 and r.random() < 0.6:
            b.at(side * (edge + 0.3), y + w / 2, -90 * side)
            h = r.uniform(0.5, 1.8)
            tile = r.choice((Tile.FOLIAGE, Tile.FENCE, Tile.BRICK))
            colour = (0.8, 1, 0.7) if tile == Tile.FOLIAGE else tint(r, 0.3, 1, 0.4)
            b.box(0, 0, 0, w * r.uniform(0.5, 1), r.uniform(0.1, 0.7), h, Paint(tile, 1.5, colour))
        y += w + gap


def _building(b: Builder, r: Random, place: Place, w: float, y: float) -> None:
    storey, storeys, d = r.uniform(2.7, 3.6), r.randint(*place.storeys), r.uniform(8, 14)
    h = storey * storeys
    tile = r.choice(FACADES)
    facade = Paint(tile, 2 * storey, tint(r, 0.5, 1.0, 0.45), snap=True)
    b.box(0, d / 2, 0, w, d, h, facade, top=Paint(Tile.CONCRETE, 3, tint(r, 0.3, 0.7, 0.2)))
    roof = Paint(Tile.ROOF, 3, (r.uniform(0.3, 0.8), r.uniform(0.2, 0.4), r.uniform(0.15, 0.4)))
    if storeys <= 4 and r.random() < 0.75:
        rise = r.uniform(1.5, 4)
        across = r.random() < 0.4
        eaves = 2 * r.uniform(0, 0.5)
        taper = (0.5, 0.0) if across else (r.choice((0.0, 0.2)), 0.5)
        b.box(0, d / 2, h, w + eaves, d + eaves, rise, roof, taper=taper)
        if r.random() < 0.5:
            b.box(r.uniform(-0.3, 0.3) * w, d * 0.6, h, 0.7, 0.7, rise + 0.9, Paint(Tile.BRICK, 1, (0.6, 0.35, 0.3)))
    else:
        b.box(0, 0.1, h, w, 0.3, r.uniform(0.2, 0.7), Paint(Tile.CONCRETE, 2, facade.colour))
    if y > 70:
        return
    if place.setback[1] < 1 and r.random() < 0.6:
        shops = max(1, round(w / 6))
        for i in range(shops):
            front = Paint(Tile.SHOP, 0, tint(r, 0.6, 1.2, 0.8))
            b.panel(w * ((i + 0.5) / shops - 0.5), -0.03, 0.1, 0.97 * w / shops, storey * 0.95, front)
        if r.random() < 0.4:
            b.box(0, -0.6, storey * 0.8, w * 0.6, 1.2, 0.12, Paint(Tile.STRIPES, 1, tint(r, 0.4, 1, 1)))
    else:
        b.panel(r.uniform(-0.3, 0.3) * w, -0.03, 0.1, 1.1, 2.1, Paint(Tile.DOOR, 0, tint(r, 0.2, 0.9, 0.8)))
    if storeys > 2 and r.random() < 0.35:
        for i in range(1, min(storeys, 6)):
            b.box(r.choice((0, w * 0.22)), -0.5, i * storey, w * 0.3, 1.0, 1.0, Paint(Tile.PLASTER, 2, facade.colour))


def _tree(b: Builder, r: Random, x: float, y: float, size: float = 1.0) -> None:
    h, crown = size * r.uniform(1.5, 3.5), size * r.uniform(0.9, 2.0)
    green = (r.uniform(0.4, 1.1), r.uniform(0.6, 1.1), r.uniform(0.3, 0.8))
    b.pole(x, y, 0, size * r.uniform(0.1, 0.25), h + crown, Paint(Tile.BARK, 1, (0.4, 0.3, 0.22)))
    if r.random() < 0.15:  # conifer
        b.box(x, y, 0.6, 1.7 * crown, 1.7 * crown, h + 2 * crown, Paint(Tile.FOLIAGE, 2, green), taper=(0.49, 0.49))
        return
    for _ in range(r.randint(3, 6)):
        radius = crown * r.uniform(0.5, 0.85)
        b.ball(x + r.gauss(0, 0.45) * crown, y + r.gauss(0, 0.45) * crown, h + r.uniform(0.3, 1.6) * crown, radius,
               Paint(Tile.FOLIAGE, r.uniform(1.5, 3), green))  # fmt: skip


def _kerbside(b: Builder, r: Random, place: Place, side: int, eye: tuple[float, float, float], drive: float) -> None:
    """Parked cars, trees, lamp posts, signs, bins and people beside the road; nothing in the camera's way."""
    inner = place.road + (0.5 if place.pavement else 0.8)
    y = r.uniform(-6, 3)
    while y < 90:
        crossing = place.crossing[0] - 4 < y < place.crossing[1] + 4
        car_x = side * (place.road - 1.05)
        if not crossing and r.random() < place.parked and (abs(car_x - eye[0]) > 2.2 or y > drive + 6):
            b.at(car_x, y, r.gauss(0, 1.5) + (0 if side > 0 else 180))
            vehicle(b, r)
        y += r.uniform(5.3, 8.5)
    blocked = abs(side * inner - eye[0]) < 1.6
    for i in range(11):
        y = (drive + 3 if blocked else 3) + 7.5 * i + r.uniform(-2, 2)
        if place.crossing[0] - 1 < y < place.crossing[1] + 1:
            continue
        x = side * (inner + r.uniform(0, 0.3))
        what = r.random()
        b.at(x, y, -90 * side)
        if what < place.trees * 0.7:
            _tree(b, r, 0, 1.0 if place.pavement > 2 else 2.5, r.uniform(0.8, 1.5))
        elif what < 0.62:
            _post(b, r)
        elif what < 0.85 and place.pavement > 1:
            b.at(side * (place.road + r.uniform(0.4, place.pavement - 0.2)), y, r.uniform(0, 360),
                 velocity=(0, 0))  # fmt: skip
            person(b, r, 0, 0, 0)
        elif what < 0.92:
            b.cylinder(0, 0.4, 0.1, r.uniform(0.15, 0.4), r.uniform(0.6, 1.2), Paint(Tile.METAL, 1, tint(r)))
    if place.road > 7:
        b.at(side * (place.road + 0.3), 80, -90 * side)
        b.box(0, 0, 0.45, 180, 0.1, 0.32, Paint(Tile.METAL, 1.0, (0.7, 0.7, 0.72)))


def _post(b: Builder, r: Random) -> None:
    """A lamp post, traffic light or sign."""
    metal = Paint(Tile.METAL, 0.5, tint(r, 0.15, 0.6, 0.2))
    what = r.random()
    if what < 0.5:
        h = r.uniform(4, 8)
        b.pole(0, 0, 0, r.uniform(0.05, 0.1), h, metal)
        b.box(0, -0.7, h - 0.1, 0.1, 1.5, 0.08, metal)
        b.box(0, -1.3, h - 0.2, 0.22, 0.5, 0.12, metal)
    elif what < 0.7:
        b.pole(0, 0, 0, 0.06, 3.2, metal)
        b.box(0, 0, 2.4, 0.3, 0.25, 0.85, Paint(colour=(0.04, 0.05, 0.04)))
    else:
        b.pole(0, 0, 0, 0.035, 2.7, metal)
        size = r.uniform(0.5, 0.9)
        paint = Paint(r.choice((Tile.PLAIN, Tile.PLAIN, Tile.PICTURE_A)), 0, tint(r, 0.5, 1, 1.2))
        x, y, z = b.origin
        b.at(x, y, r.choice((0, 0, 180)), z=z)
        b.panel(0, -0.05, 2.7 - size, size, size, paint, disc=r.random() < 0.5)


def vehicle(b: Builder, r: Random) -> None:
    """A car, van, lorry or bus along local y, its front towards +y."""
    colour = tint(r, 0.03, 0.9, r.choice((0.1, 1.2)))
    body, dark = Paint(Tile.PLAIN, 2, colour), Paint(Tile.PLAIN, 1, (0.03, 0.035, 0.045))
    what = r.random()
    span = (2.0, 4.5) if what < 0.75 else (2.2, 6.0) if what < 0.9 else (2.5, 9.0)
    b.plate(0, 0, 0.007, *span, Paint(Tile.ASPHALT, 3, (0.06, 0.06, 0.06)), disc=what < 0.75)  # no sky under the car
    if what < 0.75:
        w, length, low, high = r.uniform(1.65, 1.9), r.uniform(3.6, 4.8), r.uniform(0.75, 1.0), r.uniform(0.5, 0.75)
        b.box(0, 0, 0.25, w, length, low - 0.25, body)
        cabin, at = length * r.uniform(0.5, 0.72), -length * r.uniform(0.02, 0.1)
        b.box(0, at, low, 0.96 * w, cabin, high, dark, top=body, taper=(0.1, 0.17))
    elif what < 0.9:
        w, length, low, high = r.uniform(1.9, 2.2), r.uniform(4.8, 6.5), 1.2, r.uniform(0.8, 1.4)
        b.box(0, 0, 0.3, w, length, low - 0.3, body)
        b.box(0, -0.06 * length, low, w, 0.88 * length, high, body, taper=(0.04, 0.06))
        b.face((-0.45 * w, 0.39 * length, low), (0, 0, 0.8 * high), (0.9 * w, 0, 0), dark)
        b.panel(0, -length / 2 - 0.01, low, 0.85 * w, 0.5 * high, dark)
    else:
        w, length, high = 2.5, r.uniform(7, 12), r.uniform(2.6, 3.4)
        b.box(0, 0, 0.4, w, length, high - 0.4, body)
        band = Paint(Tile.FACADE_GLASS, 2.4, (0.5, 0.5, 0.55), snap=True)
        b.box(0, 0, 0.5 * high, w + 0.02, length + 0.02, 0.3 * high, band)
    for side in (-1, 1):
        for end in (-0.31, 0.31):
            tyre = 0.33 if what < 0.9 else 0.48
            corner = (side * (w / 2 + 0.012), end * length - side * tyre, 0.0)
            b.face(corner, (0, 2 * side * tyre, 0), (0, 0, 2 * tyre), dark, disc=True)
    for x in (-0.38, 0.38):
        b.panel(x * w, -length / 2 - 0.012, 0.6, 0.2 * w, 0.14, Paint(Tile.PLAIN, 1, (0.7, 0.04, 0.03), 0.3))
    b.panel(0, -length / 2 - 0.012, 0.45, 0.5, 0.11, Paint(Tile.PLAIN, 1, (0.9, 0.9, 0.8)))


def _traffic(b: Builder, r: Random, place: Place, eye: tuple[float, float, float], drive: float, moving: bool) -> None:
    lanes = max(1, round(place.road / 3.2))
    keep_right = r.random() < 0.7
    for lane in range(-lanes, lanes):
        x = (lane + 0.5) * place.road / lanes
        if place.parked and abs(x) > place.road - 2.8 and lanes > 1:
            continue
        ahead = (x > 0) == keep_right
        own = abs(x - eye[0]) < 2.2
        y = eye[1] + drive + r.uniform(5, 30) if own else r.uniform(-3, 25)
        while y < 110 and r.random() < 0.8:
            speed = r.uniform(0.2, 1.0) if ahead else -r.uniform(0.2, 1.0)
            if own and not ahead:
                y += 40
            b.at(x + r.gauss(0, 0.15), y, (0 if ahead else 180) + r.gauss(0, 1), velocity=(0, speed if moving else 0.0))
            vehicle(b, r)
            y += r.uniform(9, 45)


def _horizon(b: Builder, r: Random) -> None:
    """What closes the view: a building across the end, hills or a line of trees."""
    b.at(0, 0)
    if r.random() < 0.3:
        b.at(r.uniform(-5, 5), r.uniform(70, 170))
        b.box(0, 5, 0, r.uniform(15, 60), 10, r.uniform(8, 30), Paint(r.choice(FACADES), 6, tint(r, 0.5, 1), snap=True))
    if r.random() < 0.7:
        b.at(0, 0, casts=False)
        for _ in range(r.randint(2, 7)):
            x, y, size = r.uniform(-160, 160), r.uniform(150, 195), r.uniform(8, 40)
            hill = Paint(Tile.FOLIAGE, 20, (0.5, 0.6, 0.4))
            b.box(x, y, 0, 6 * size, 10, size * 0.6, hill, taper=(r.uniform(0.1, 0.45), 0.3))


def _sky(r: Random) -> tuple[Light, Weather]:
    height, turn = math.radians(r.uniform(18, 70)), r.uniform(0, 2 * math.pi)
    to_sun = (math.cos(height) * math.cos(turn), math.cos(height) * math.sin(turn), math.sin(height))
    bright, warm = r.uniform(0.9, 1.9), r.uniform(0.0, 0.25)
    overcast = r.random() < 0.3
    sun = bright * (0.12 if overcast else r.uniform(0.6, 1.0))
    sky = bright * (r.uniform(0.55, 0.85) if overcast else r.uniform(0.2, 0.45))
    direct, diffuse = (sun * (1 + warm), sun, sun * (1 - warm)), (0.95 * sky, sky, 1.05 * sky)
    light = Light(to_sun, is_sun=True, strength=direct, ambient=diffuse)
    grey = r.uniform(0.5, 1.0)
    horizon = (grey * r.uniform(0.85, 1.0), grey * r.uniform(0.9, 1.0), grey)
    zenith = horizon if overcast else (r.uniform(0.1, 0.3), r.uniform(0.25, 0.5), r.uniform(0.6, 0.9))
    clear = r.random()
    visibility = r.uniform(60, 200) if clear < 0.12 else r.uniform(300, 1500)
    return light, Weather(zenith, horizon, r.uniform(0, 1) if not overcast else 0.3, visibility)
