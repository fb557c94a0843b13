"""What a procedural scene is made of: flat faces, upright cylinders and balls, each with its paint.

The world is right-handed with z up, metres; the camera looks along +z of its own frame, x right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from leadline.data.scenes.textures import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

Colour = tuple[float, float, float]


class Paint(NamedTuple):
    """The look of a surface: linear colour times tile; `size` metres per tile (0 stretches one tile over the face).

    `snap` rounds to whole tiles (facades); `glow` is light of its own.
    """

    tile: Tile = Tile.PLAIN
    size: float = 1.0
    colour: Colour = (0.7, 0.7, 0.7)
    glow: float = 0.0
    snap: bool = False


@dataclass(frozen=True)
class Light:
    """The one light that casts shadows, and the light that comes from everywhere.

    Args:
        position: of a lamp, world metres; of the sun, the unit vector towards it.
        is_sun: parallel light.
        strength: of the direct light, linear RGB.
        ambient: linear RGB.
        reach: metres at which a lamp has lost half its light.
    """

    position: tuple[float, float, float]
    is_sun: bool
    strength: Colour
    ambient: Colour
    reach: float = 3.0


@dataclass(frozen=True)
class Weather:
    """Sky and air: colours in linear RGB, `visibility` in metres (distance at which 63 % is haze)."""

    zenith: Colour = (0.2, 0.4, 0.8)
    horizon: Colour = (0.7, 0.8, 0.9)
    clouds: float = 0.5
    visibility: float = 1e9


@dataclass(frozen=True)
class Surfaces:
    """All surfaces of a scene at one time, as arrays; faces first, then rounds (cylinders and balls).

    Args:
        corner, along, up: F x 3 float64: a face is corner + u*along + v*up, 0 <= u, v <= 1; normal along x up.
        taper: F: how far both ends of u draw in at v = 1 (0 rectangle, 0.5 triangle).
        disc: F bool: only the ellipse inside the face.
        centre: R x 3; of a cylinder its foot. radius: R. height: R, 0 for a ball.
        casts: F + R bool: throws a shadow. moving: F + R bool.
        tile: F + R. repeat: (F + R) x 2 tiles along u and v. colour: 3 x (F + R). glow: F + R.
    """

    corner: NDArray[np.float64]
    along: NDArray[np.float64]
    up: NDArray[np.float64]
    taper: NDArray[np.float32]
    disc: NDArray[np.bool_]
    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    height: NDArray[np.float64]
    casts: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    tile: NDArray[np.int32]
    repeat: NDArray[np.float32]
    colour: NDArray[np.float32]
    glow: NDArray[np.float32]


@dataclass
class Scene:
    """A built world: what stands in it, its light and air, the room's extent and where the camera starts.

    Args:
        builder: the surfaces; `builder.surfaces(time)` gives them at a time.
        light: see Light.
        weather: see Weather.
        extent: (x0, x1, y0, y1, height) of a room in metres for corner darkening, None in the open.
        eye: camera position at the start, metres.
        heading: degrees; 0 looks along +y, positive turns left. pitch: positive looks up. roll: clockwise.
        velocity: metres a frame, world x, y.
        turn: degrees a frame.
        fov_deg: horizontal field of view.
    """

    builder: Builder
    light: Light
    weather: Weather
    extent: tuple[float, float, float, float, float] | None
    eye: tuple[float, float, float]
    heading: float
    pitch: float
    roll: float
    velocity: tuple[float, float]
    turn: float
    fov_deg: float


class Builder:
    """Collects surfaces in a current frame: `at` moves the frame, the shapes then take local coordinates."""

    def __init__(self) -> None:
        self._faces: list[tuple[float, ...]] = []
        self._face_paint: list[Paint] = []
        self._rounds: list[tuple[float, ...]] = []
        self._round_paint: list[Paint] = []
        self.at(0, 0)

    def at(self, x: float, y: float, yaw: float = 0.0, *, z: float = 0.0, velocity: tuple[float, float] = (0, 0),
           casts: bool = True) -> Builder:  # fmt: skip
        """Place the frame at (x, y, z), turned left by `yaw` degrees, moving by `velocity` metres a frame."""
        self.origin = (x, y, z)  # metres, world
        self._cos, self._sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        self._velocity, self._casts = velocity, casts
        return self

    def face(self, corner: Colour, along: Colour, up: Colour, paint: Paint, *, taper: float = 0.0,
             disc: bool = False) -> None:  # fmt: skip
        """Add a face by its corner and two edges, local; it is seen from the side of `along` x `up`."""
        c, s, (ox, oy, oz) = self._cos, self._sin, self.origin
        self._faces.append((
            ox + c * corner[0] - s * corner[1], oy + s * corner[0] + c * corner[1], oz + corner[2],
            c * along[0] - s * along[1], s * along[0] + c * along[1], along[2],
            c * up[0] - s * up[1], s * up[0] + c * up[1], up[2],
            taper, disc, self._casts, *self._velocity,
        ))  # fmt: skip
        self._face_paint.append(paint)

    def box(self, x: float, y: float, z: float, w: float, d: float, h: float, paint: Paint, *,
            top: Paint | None = None, taper: tuple[float, float] = (0.0, 0.0)) -> None:  # fmt: skip
        """Add a box with its foot's middle at (x, y, z), width w, depth d, height h; `taper` draws the top in."""
        a, b = w / 2, d / 2
        tx, ty = taper
        ix, iy = tx * w, ty * d
        self.face((x - a, y - b, z), (w, 0, 0), (0, iy, h), paint, taper=tx)
        self.face((x + a, y - b, z), (0, d, 0), (-ix, 0, h), paint, taper=ty)
        self.face((x + a, y + b, z), (-w, 0, 0), (0, -iy, h), paint, taper=tx)
        self.face((x - a, y + b, z), (0, -d, 0), (ix, 0, h), paint, taper=ty)
        if tx < 0.5 and ty < 0.5:
            self.face((x - a + ix, y - b + iy, z + h), (w - 2 * ix, 0, 0), (0, d - 2 * iy, 0), top or paint)
        if z + self.origin[2] > 0.3:
            self.face((x - a, y + b, z), (w, 0, 0), (0, -d, 0), paint)

    def panel(self, x: float, y: float, z: float, w: float, h: float, paint: Paint, *, disc: bool = False) -> None:
        """Add an upright face that looks towards local -y, its lower edge's middle at (x, y, z)."""
        self.face((x - w / 2, y, z), (w, 0, 0), (0, 0, h), paint, disc=disc)

    def plate(self, x: float, y: float, z: float, w: float, d: float, paint: Paint, *, disc: bool = False) -> None:
        """Add a level face that looks up, its middle at (x, y, z)."""
        self.face((x - w / 2, y - d / 2, z), (w, 0, 0), (0, d, 0), paint, disc=disc)

    def cylinder(self, x: float, y: float, z: float, r: float, h: float, paint: Paint) -> None:
        """Add an upright cylinder with its foot's middle at (x, y, z) and a lid."""
        self.pole(x, y, z, r, h, paint)
        self.plate(x, y, z + h, 2 * r, 2 * r, paint, disc=True)

    def ball(self, x: float, y: float, z: float, r: float, paint: Paint) -> None:
        """Add a ball with its middle at (x, y, z)."""
        self.pole(x, y, z, r, 0.0, paint)

    def pole(self, x: float, y: float, z: float, r: float, h: float, paint: Paint) -> None:
        """Add an upright cylinder without a lid, or a ball where h is 0."""
        c, s, (ox, oy, oz) = self._cos, self._sin, self.origin
        self._rounds.append((ox + c * x - s * y, oy + s * x + c * y, oz + z, r, h, self._casts, *self._velocity))
        self._round_paint.append(paint)

    def surfaces(self, time: float = 0.0) -> Surfaces:
        """All surfaces after `time` frames of movement."""
        faces = np.array(self._faces, np.float64).reshape(-1, 14)
        rounds = np.array(self._rounds, np.float64).reshape(-1, 8)
        corner, centre = faces[:, :3].copy(), rounds[:, :3].copy()
        corner[:, :2] += time * faces[:, 12:14]
        centre[:, :2] += time * rounds[:, 6:8]
        paints = self._face_paint + self._round_paint
        size = np.array([paint.size for paint in paints], np.float64)
        length = np.ones((len(paints), 2))  # rounds take metres as they are
        length[: len(faces), 0] = np.linalg.norm(faces[:, 3:6], axis=1)
        length[: len(faces), 1] = np.linalg.norm(faces[:, 6:9], axis=1)
        repeat = np.where(size[:, None] > 0, length / np.maximum(size, 1e-6)[:, None], 1.0)
        snap = np.array([paint.snap for paint in paints], bool)
        repeat[snap] = np.maximum(np.round(2 * repeat[snap]), 1) / 2
        return Surfaces(
            corner=corner,
            along=faces[:, 3:6],
            up=faces[:, 6:9],
            taper=faces[:, 9].astype(np.float32),
            disc=faces[:, 10] > 0,
            centre=centre,
            radius=rounds[:, 3],
            height=rounds[:, 4],
            casts=np.concatenate([faces[:, 11], rounds[:, 5]]) > 0,
            moving=np.count_nonzero(np.concatenate([faces[:, 12:14], rounds[:, 6:8]]), axis=1) > 0,
            tile=np.array([paint.tile for paint in paints], np.int32),
            repeat=repeat.astype(np.float32),
            colour=np.array([paint.colour for paint in paints], np.float32).T.copy(),
            glow=np.array([paint.glow for paint in paints], np.float32),
        )
