"""Texture tiles of the procedural scenes: drawn once per process, with mip levels, looked up by surface coordinates."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

SIZE = 256  # texels along one side of a tile
LEVELS = 8


class Tile(IntEnum):
    """The tiles, in the order of the atlas; 256 x 256 texels, periodic in both directions."""

    PLAIN = 0
    PLASTER = 1
    PLANKS = 2
    WOOD = 3
    BRICK = 4
    CERAMIC = 5
    CHECKER = 6
    CARPET = 7
    WEAVE = 8
    STRIPES = 9
    DOTS = 10
    CONCRETE = 11
    ASPHALT = 12
    GRASS = 13
    FOLIAGE = 14
    SLABS = 15
    BARK = 16
    FACADE_BRICK = 17
    FACADE_PLASTER = 18
    FACADE_GLASS = 19
    FACADE_HOUSE = 20
    PICTURE_A = 21
    PICTURE_B = 22
    PICTURE_C = 23
    PICTURE_D = 24
    BOOKS = 25
    DOOR = 26
    WINDOW = 27
    CUPBOARD = 28
    METAL = 29
    MARBLE = 30
    RUG = 31
    SHOP = 32
    ROOF = 33
    BLINDS = 34
    FENCE = 35
    CURTAIN = 36
    SKY = 37


def _fractal(rng: np.random.Generator, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Plane:
    """Periodic noise with spectrum 1/f^slope, mean 0.5, about 0..1; `stretch` lengthens it along (y, x)."""
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE * stretch[0]
    fx = np.fft.rfftfreq(SIZE)[None] * SIZE * stretch[1]
    gain = 1.0 / np.maximum(np.hypot(fy, fx), 1.0) ** slope
    gain[0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * gain, s=(SIZE, SIZE))
    noise: Plane = np.clip(0.5 + 0.2 * field / field.std(), 0, 1).astype(np.float32)
    return noise


def _grid() -> tuple[Plane, Plane]:
    axis = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) / np.float32(SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _grey(value: Plane) -> Plane:
    return np.repeat(value[None], 3, axis=0)


def _mix(a: Plane, b: Plane, share: Plane | NDArray[np.bool_]) -> Plane:
    share = share.astype(np.float32)
    return a * (1 - share) + b * share


def _flat(r: float, g: float, b: float) -> Plane:
    return np.array([r, g, b], np.float32)[:, None, None] * np.ones((1, SIZE, SIZE), np.float32)


def _courses(
    rng: np.random.Generator, rows: int, columns: int, joint: float, shift: float = 0.5
) -> tuple[Plane, Plane]:
    """Brick-like courses: a brightness per brick (0..1) and the mask of the joints (1 in a joint)."""
    y, x = _grid()
    row = np.floor(y * rows)
    across = x * columns + shift * (row % 2)
    tone = rng.random((rows, columns), dtype=np.float32)[row.astype(int) % rows, np.floor(across).astype(int) % columns]
    edge_y, edge_x = (y * rows) % 1.0, across % 1.0
    mask = (edge_y < joint) | (edge_x < joint * columns / rows)
    return tone, mask.astype(np.float32)


def _wall_tile(rng: np.random.Generator, kind: Tile) -> Plane:
    y, x = _grid()
    if kind == Tile.PLASTER:
        return _grey(0.8 + 0.25 * (_fractal(rng, 0.9) - 0.5) + 0.1 * (_fractal(rng, 2.0) - 0.5))
    if kind in (Tile.BRICK, Tile.CERAMIC, Tile.SLABS, Tile.ROOF):
        rows, columns, joint = {
            Tile.BRICK: (12, 4, 0.12), Tile.CERAMIC: (5, 5, 0.05), Tile.SLABS: (4, 4, 0.05), Tile.ROOF: (10, 8, 0.2),
        }[kind]  # fmt: skip
        shift = 0.0 if kind == Tile.CERAMIC else 0.5
        tone, mask = _courses(rng, rows, columns, joint, shift)
        brick = _grey(0.55 + 0.3 * tone + 0.25 * (_fractal(rng, 0.8) - 0.5))
        return _mix(brick, _flat(0.85, 0.84, 0.8) if kind == Tile.BRICK else _flat(0.4, 0.4, 0.4), mask)
    if kind == Tile.CHECKER:
        return _grey(0.3 + 0.6 * ((np.floor(x * 4) + np.floor(y * 4)) % 2) + 0.1 * (_fractal(rng, 1.2) - 0.5))
    if kind == Tile.STRIPES:
        stripe: Plane = np.sign(np.sin(2 * np.pi * 6 * x)) * (np.sin(2 * np.pi * 2 * x) > -0.3)
        return _grey(0.65 + 0.25 * stripe)
    if kind == Tile.DOTS:
        fx, fy = (x * 6) % 1 - 0.5, (y * 6) % 1 - 0.5
        leaf = (fx**2 + 2.5 * fy**2 < 0.06) | ((fx - 0.5 * np.sign(fx)) ** 2 + (fy - 0.5 * np.sign(fy)) ** 2 < 0.02)
        return _mix(_flat(0.85, 0.83, 0.78), _flat(0.45, 0.6, 0.55), leaf)
    if kind == Tile.CONCRETE:
        return _grey(0.6 + 0.4 * (_fractal(rng, 1.6) - 0.5) + 0.15 * (_fractal(rng, 0.5) - 0.5))
    if kind == Tile.MARBLE:
        vein: Plane = np.sin(2 * np.pi * (2 * x + 2 * y) + 9 * (_fractal(rng, 1.8) - 0.5))
        return _grey(0.75 + 0.25 * vein)
    return _grey(0.9 + 0.06 * (_fractal(rng, 1.0) - 0.5))


def _ground_tile(rng: np.random.Generator, kind: Tile) -> Plane:
    y, x = _grid()
    if kind == Tile.PLANKS:
        tone, mask = _courses(rng, 8, 2, 0.05, 0.37)
        grain = _fractal(rng, 1.2, (0.5, 4.0))
        return _flat(1.0, 0.82, 0.6) * (0.45 + 0.3 * tone + 0.4 * (grain - 0.5)) * (1 - 0.6 * mask)
    if kind == Tile.WOOD:
        wave: Plane = np.sin(2 * np.pi * (4 * y + 2.5 * _fractal(rng, 1.7, (2.0, 0.4))))
        return _flat(1.0, 0.84, 0.66) * (0.5 + 0.2 * (0.5 + 0.5 * wave) + 0.3 * (_fractal(rng, 0.9, (5.0, 0.4)) - 0.5))
    if kind == Tile.ASPHALT:
        cracks: NDArray[np.bool_] = np.abs(_fractal(rng, 1.7) - 0.5) < 0.006
        return _grey(0.45 + 0.3 * (_fractal(rng, 0.2) - 0.5) + 0.3 * (_fractal(rng, 1.5) - 0.5)) * (1 - 0.35 * cracks)
    if kind in (Tile.GRASS, Tile.FOLIAGE):
        blade = _fractal(rng, 0.5 if kind == Tile.GRASS else 0.8)
        patch = _fractal(rng, 1.6)
        lush: Plane = np.stack([0.35 + 0.3 * patch, 0.45 + 0.2 * patch, 0.2 + 0.1 * patch])
        return lush * (0.3 + 1.2 * blade)
    if kind == Tile.BARK:
        return _grey(0.5 + 0.8 * (_fractal(rng, 0.9, (3.0, 0.5)) - 0.5))
    if kind == Tile.RUG:
        ring = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))
        motif = np.sin(40 * ring) * np.cos(2 * np.pi * 6 * x) * np.cos(2 * np.pi * 6 * y)
        base = _mix(_flat(0.65, 0.2, 0.18), _flat(0.85, 0.75, 0.55), motif > 0.15)
        return _mix(base, _flat(0.2, 0.22, 0.4), (ring > 0.38) & (ring < 0.44)) * (0.8 + 0.4 * _fractal(rng, 0.3))
    if kind == Tile.WEAVE:
        weave = np.sin(2 * np.pi * 40 * x) * np.sin(2 * np.pi * 40 * y)
        return _grey(0.7 + 0.15 * weave + 0.2 * (_fractal(rng, 1.2) - 0.5))
    if kind == Tile.METAL:
        return _grey(0.7 + 0.3 * (_fractal(rng, 0.8, (6.0, 0.3)) - 0.5))
    return _grey(0.6 + 0.5 * (_fractal(rng, 0.15) - 0.5) + 0.2 * (_fractal(rng, 1.4) - 0.5))


def _facade_tile(rng: np.random.Generator, kind: Tile) -> Plane:
    """One storey and two bays (tiles hold 2 x 2 windows), each pane with its own brightness."""
    y, x = _grid()
    base = {
        Tile.FACADE_BRICK: _wall_tile(rng, Tile.BRICK) * _flat(0.85, 0.5, 0.4),
        Tile.FACADE_PLASTER: _wall_tile(rng, Tile.PLASTER),
        Tile.FACADE_GLASS: _wall_tile(rng, Tile.CONCRETE) * 0.7,
        Tile.FACADE_HOUSE: _wall_tile(rng, Tile.PLASTER),
    }[kind]
    half_w, half_h = {
        Tile.FACADE_BRICK: (0.2, 0.28), Tile.FACADE_PLASTER: (0.17, 0.3),
        Tile.FACADE_GLASS: (0.46, 0.36), Tile.FACADE_HOUSE: (0.22, 0.22),
    }[kind]  # fmt: skip
    bay_x, bay_y = (x * 2) % 1 - 0.5, (y * 2) % 1 - 0.5
    tone = rng.random((2, 2), dtype=np.float32)[np.floor(y * 2).astype(int), np.floor(x * 2).astype(int)]
    glass = np.stack([0.12 + 0.35 * tone, 0.17 + 0.4 * tone, 0.22 + 0.45 * tone]) * (1.2 - 0.8 * ((y * 2) % 1))
    frame = (np.abs(bay_x) < half_w + 0.03) & (np.abs(bay_y) < half_h + 0.03)
    pane = (np.abs(bay_x) < half_w) & (np.abs(bay_y) < half_h) & (np.abs(bay_x) > 0.012) & (np.abs(bay_y + 0.1) > 0.01)
    out = _mix(base, _flat(0.85, 0.85, 0.82), frame)
    if kind == Tile.FACADE_HOUSE:
        shutter = (np.abs(np.abs(bay_x) - 0.33) < 0.08) & (np.abs(bay_y) < half_h)
        out = _mix(out, _flat(0.25, 0.35, 0.3), shutter)
    sill = (np.abs(bay_x) < half_w + 0.06) & (np.abs(bay_y - half_h - 0.05) < 0.02)
    return _mix(_mix(out, _flat(0.5, 0.5, 0.48), sill), glass.astype(np.float32), pane)


def _picture_tile(rng: np.random.Generator) -> Plane:
    """An abstract picture in a frame: a graded background with discs, bars and a horizon."""
    y, x = _grid()
    top, low = rng.random(3, dtype=np.float32), rng.random(3, dtype=np.float32)
    out = top[:, None, None] * (1 - y) + low[:, None, None] * y
    for _ in range(9):
        cx, cy, a, b = rng.random(4, dtype=np.float32)
        shape = (x - cx) ** 2 + (y - cy) ** 2 < (0.05 + 0.2 * a) ** 2
        if b < 0.5:
            shape = (np.abs(x - cx) < 0.2 * a + 0.02) & (np.abs(y - cy) < 0.2 * b + 0.02)
        out = _mix(out, _flat(*rng.random(3).tolist()), shape)
    out = out * (0.8 + 0.4 * _fractal(rng, 1.3))
    border = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > 0.46
    return _mix(out.astype(np.float32), _flat(*(0.6 * rng.random(3)).tolist()), border)


def _panel_tile(rng: np.random.Generator, kind: Tile) -> Plane:
    y, x = _grid()
    if kind == Tile.BOOKS:
        edges = np.sort(rng.random(36, dtype=np.float32))
        index = np.searchsorted(edges, x) % 36
        colour = 0.12 + 0.75 * rng.random((36, 3), dtype=np.float32)
        height = 0.65 + 0.32 * rng.random(36, dtype=np.float32)
        spine = colour[index].transpose(2, 0, 1) * (0.75 + 0.5 * (np.abs(y - 0.6)[None] < 0.06))
        books: Plane = spine.astype(np.float32) * ((1 - y) < height[index])
        return books
    if kind == Tile.DOOR:
        fx, fy = np.abs((x * 2) % 1 - 0.5), np.abs((y * 3) % 1 - 0.5)
        groove: NDArray[np.bool_] = (np.maximum(fx, fy) > 0.33) & (np.maximum(fx, fy) < 0.37)
        handle = (np.abs(x - 0.9) < 0.025) & (np.abs(y - 0.52) < 0.03)
        frame = (np.abs(x - 0.5) > 0.48) | (y < 0.01)
        wood = _grey(0.75 + 0.15 * (_fractal(rng, 1.0, (4.0, 0.4)) - 0.5))
        return _mix(_mix(wood * (1 - 0.4 * groove), _flat(0.2, 0.2, 0.2), frame), _flat(0.9, 0.85, 0.6), handle)
    if kind == Tile.WINDOW:
        cloud = _fractal(rng, 1.7)
        view = _mix(np.stack([0.7 + 0.3 * cloud, 0.82 + 0.18 * cloud, 1 + 0 * cloud]), _flat(0.3, 0.45, 0.25),
                    y > 0.6 + 0.2 * cloud)  # fmt: skip
        bars = (np.abs((x * 2) % 1 - 0.5) > 0.47) | (np.abs((y * 2) % 1 - 0.5) > 0.475)
        return _mix(view.astype(np.float32), _flat(0.7, 0.7, 0.7), bars)
    if kind == Tile.CUPBOARD:
        fx, fy = (x * 2) % 1, (y * 2) % 1
        gap = (fx < 0.02) | (fx > 0.98) | (fy < 0.02) | (fy > 0.98)
        knob = (np.abs(fx - 0.88) < 0.03) & (np.abs(fy - 0.5) < 0.08)
        board = _grey(0.8 + 0.12 * (_fractal(rng, 1.1, (3.0, 0.5)) - 0.5))
        return _mix(board * (1 - 0.75 * gap), _flat(0.35, 0.35, 0.38), knob)
    if kind == Tile.SHOP:
        goods = _fractal(rng, 1.3)
        glass = np.stack([0.1 + 0.45 * goods, 0.14 + 0.4 * goods, 0.2 + 0.35 * _fractal(rng, 1.3)])
        sign = (y > 0.05) & (y < 0.22)
        bars = (np.abs((x * 3) % 1 - 0.5) > 0.46) | (y > 0.9) | (y < 0.05)
        letters = sign & (np.sin(2 * np.pi * 14 * x) > 0.2) & (np.abs(y - 0.135) < 0.045) & (np.abs(x - 0.5) < 0.35)
        out = _mix(_mix(glass.astype(np.float32), _flat(0.3, 0.3, 0.32), bars), _flat(0.6, 0.15, 0.15), sign)
        return _mix(out, _flat(0.95, 0.95, 0.9), letters)
    if kind == Tile.BLINDS:
        return _grey((0.65 + 0.35 * np.sin(2 * np.pi * 20 * y)).astype(np.float32))
    if kind == Tile.FENCE:
        return _grey(0.75 - 0.55 * (((x * 12) % 1) < 0.25) + 0.2 * (_fractal(rng, 0.9, (3.0, 0.4)) - 0.5))
    if kind == Tile.CURTAIN:
        fold = _fractal(rng, 1.5, (4.0, 0.5))
        return _grey((0.6 + 0.25 * np.sin(2 * np.pi * 7 * x + 4 * fold) + 0.2 * fold).astype(np.float32))
    return _grey(_fractal(rng, 1.9, (1.6, 0.6)))


def _painter(kind: Tile) -> Callable[[np.random.Generator], Plane]:
    if kind in (Tile.PICTURE_A, Tile.PICTURE_B, Tile.PICTURE_C, Tile.PICTURE_D):
        return _picture_tile
    if Tile.FACADE_BRICK <= kind <= Tile.FACADE_HOUSE:
        return lambda rng: _facade_tile(rng, kind)
    ground = {Tile.PLANKS, Tile.WOOD, Tile.CARPET, Tile.WEAVE, Tile.ASPHALT, Tile.GRASS, Tile.FOLIAGE, Tile.BARK,
              Tile.METAL, Tile.RUG}  # fmt: skip
    if kind in ground:
        return lambda rng: _ground_tile(rng, kind)
    if kind >= Tile.BOOKS and kind not in (Tile.MARBLE, Tile.ROOF):
        return lambda rng: _panel_tile(rng, kind)
    return lambda rng: _wall_tile(rng, kind)


@cache
def atlas() -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """All tiles at all mip levels as packed RGBX texels, and the offset of each level.

    Returns:
        texels: uint32, level by level, tile by tile, row by row; bytes are R, G, B, 0.
        offsets: int32, LEVELS: where each level starts.
    """
    levels: list[list[Plane]] = [[] for _ in range(LEVELS)]
    for kind in Tile:
        tile = np.clip(_painter(kind)(np.random.default_rng([51, kind])), 0, 1).astype(np.float32)
        for level in range(LEVELS):
            levels[level].append(tile)
            side = tile.shape[1] // 2
            tile = tile.reshape(3, side, 2, side, 2).mean(axis=(2, 4))
    packed, offsets, start = [], [], 0
    for planes in levels:
        colour = np.stack(planes).transpose(0, 2, 3, 1)
        texel = np.zeros((*colour.shape[:3], 4), np.uint8)
        texel[..., :3] = np.round(255 * colour)
        packed.append(texel.reshape(-1, 4))
        offsets.append(start)
        start += len(packed[-1])
    return np.ascontiguousarray(np.concatenate(packed)).view("<u4")[:, 0], np.array(offsets, np.int32)
