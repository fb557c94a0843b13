"""A camera's walk or drive through one scene: where it stands at each step, and the picture and depth it sees there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from leadline.data.dataset import Sample
from leadline.data.scenes.raster import View, cast
from leadline.data.scenes.room import build_room
from leadline.data.scenes.shading import Sensor, shade
from leadline.data.scenes.street import build_street
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import DataError, closest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leadline.data.scenes.builder import Scene

SceneKind = Literal["room", "street"]
SCENES: tuple[SceneKind, ...] = get_args(SceneKind)
Motion = Literal["walk", "still", "turn"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
TURNING = 1.0  # degrees a frame of a camera that only turns
MEASURED = 200.0  # metres: what lies farther counts as sky


@dataclass(frozen=True)
class Camera:
    """A camera that stays the same for every scene.

    Args:
        fx_over_width: focal length along x over the picture's width (0.58 for KITTI, 0.81 for NYU).
        fy_over_height: focal length along y over the picture's height (1.92 for KITTI, 1.08 for NYU).
    """

    fx_over_width: float
    fy_over_height: float

    def intrinsics(self, height: int, width: int) -> Intrinsics:
        """The camera of a picture of this size, centred."""
        return Intrinsics(self.fx_over_width * width, self.fy_over_height * height, width / 2, height / 2)


def render(seed: int, *, height: int, width: int, scene: SceneKind = "room", camera: Camera | None = None) -> Sample:
    """Draw one random scene.

    Args:
        seed: 0 or more; the same seed and size give the same bytes.
        height: pixels.
        width: pixels.
        scene: `room` (0.4 to 10 m) or `street` (1.5 to 200 m).
        camera: a fixed camera; None draws a random field of view with square pixels.

    Returns:
        A sample with H x W x 3 uint8 RGB, exact z-depth in metres (0 for the sky and beyond 200 m), its intrinsics
        and its pose.

    Raises:
        DataError: an unknown scene, or a size or seed that is not positive.
    """
    return render_sequence(seed, frames=1, height=height, width=width, scene=scene, camera=camera)[0]


def render_sequence(
    seed: int,
    *,
    frames: int,
    height: int,
    width: int,
    scene: SceneKind = "street",
    camera: Camera | None = None,
    moving: bool = False,
    motion: Motion = "walk",
) -> list[Sample]:
    """Draw a walk or drive through one scene; frame t is the picture after t steps of the camera.

    Args:
        seed: 0 or more.
        frames: 1 or more.
        height: pixels.
        width: pixels.
        scene: `room` or `street`.
        camera: a fixed camera, or None.
        moving: traffic (street) or a rolling ball (room) moves too; otherwise only the camera does.
        motion: `walk`, or the ways in which self-supervision cannot learn: `still`, `turn` (rotation alone).

    Returns:
        Samples whose poses (camera to world) share one world.

    Raises:
        DataError: an unknown scene, or a number out of range.
    """
    walk = plan_walk(
        seed, frames=frames, height=height, width=width, scene=scene, camera=camera, moving=moving, motion=motion
    )
    return [walk.frame(time) for time in range(frames)]


@dataclass(frozen=True)
class Walk:
    """A scene and the camera's way through it; each frame is drawn when it is asked for, the same bytes every time."""

    scene: SceneKind
    seed: int
    frames: int
    size: tuple[int, int]
    intrinsics: Intrinsics
    world: Scene
    sensor: Sensor
    sway: tuple[float, float] | None

    def frame(self, time: int) -> Sample:
        """The picture after `time` steps, with exact depth, intrinsics and pose."""
        height, width = self.size
        view = View(self.intrinsics, _pose(self.world, time, self.sway), height, width)
        name = frame_name(self.scene, self.seed, time if self.frames > 1 else None)
        return _frame(self.world, self.sensor, view, time, name, np.random.default_rng([self.seed, time]))


@lru_cache(maxsize=16)
def plan_walk(
    seed: int,
    *,
    frames: int,
    height: int,
    width: int,
    scene: SceneKind,
    camera: Camera | None = None,
    moving: bool = False,
    motion: Motion = "walk",
) -> Walk:
    """The scene and the way through it, undrawn; arguments and errors of `render_sequence`."""
    _check(seed, frames, height, width, scene)
    if motion not in MOTIONS:
        raise DataError("unknown motion of a rendered sequence", where=motion, mend=closest(motion, MOTIONS))
    r = Random(f"leadline {scene} {seed}")
    sensor, sway = _sensor(r), (r.uniform(0, 6.28), r.uniform(0, 6.28))
    world = (build_room if scene == "room" else build_street)(r, frames, moving)
    if motion != "walk":
        turn = 0.0 if motion == "still" else math.copysign(TURNING, world.turn)
        world = replace(world, velocity=(0.0, 0.0), turn=turn)
    intrinsics = camera.intrinsics(height, width) if camera else Intrinsics.from_fov(world.fov_deg, height, width)
    steady = None if motion != "walk" else sway
    return Walk(scene, seed, frames, (height, width), intrinsics, world, sensor, steady)


def _check(seed: int, frames: int, height: int, width: int, scene: str) -> None:
    if scene not in SCENES:
        raise DataError("unknown rendered scene", where=scene, mend=closest(scene, SCENES))
    if seed < 0 or frames < 1 or min(height, width) < 8:
        why = f"seed {seed}, frames {frames}, height {height}, width {width}"
        raise DataError("cannot render", why=why, mend="use seed >= 0, frames >= 1 and a size of at least 8 x 8")


def _frame(world: Scene, sensor: Sensor, view: View, time: int, name: str, rng: np.random.Generator) -> Sample:
    surfaces = world.builder.surfaces(time)
    hits = cast(surfaces, view)
    image = shade(world, surfaces, hits, view, sensor, rng)
    values = np.zeros_like(hits.nearness)
    np.divide(1, hits.nearness, out=values, where=hits.nearness > 1 / MEASURED)
    return Sample(name, image, Depth(values, Kind.METRIC_DEPTH, view.intrinsics, name), view.intrinsics, view.pose)


def _pose(world: Scene, time: int, sway: tuple[float, float] | None) -> NDArray[np.float64]:
    """Camera to world after `time` steps: steady travel and turn, with a little sway of a carried camera (or none)."""
    nod = lean = bob = 0.0
    if sway is not None:
        nod = 0.4 * (math.sin(0.7 * time + sway[0]) - math.sin(sway[0]))
        lean = 0.3 * (math.sin(0.5 * time + sway[1]) - math.sin(sway[1]))
        bob = 0.01 * (math.sin(0.9 * time + sway[1]) - math.sin(sway[1]))
    heading = math.radians(world.heading + world.turn * time)
    pitch, roll = math.radians(world.pitch + nod), math.radians(world.roll + lean)
    forward = np.array([-math.sin(heading) * math.cos(pitch), math.cos(heading) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(heading), math.sin(heading), 0.0])
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    pose[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    pose[:3, 2] = forward
    step_x, step_y = world.velocity
    pose[:3, 3] = np.array(world.eye) + np.array([time * step_x, time * step_y, bob])
    return pose


def frame_name(scene: SceneKind, seed: int, time: int | None = None) -> str:
    """Scene and seed, and the step of a sequence."""
    return f"{scene}-{seed:07d}" if time is None else f"{scene}-{seed:07d}-{time:04d}"


def _sensor(r: Random) -> Sensor:
    warm, green = r.gauss(0, 0.07), r.gauss(0, 0.03)
    return Sensor(
        exposure=math.exp(r.gauss(0.0, 0.25)),
        balance=(1 + warm, 1 + green, 1 - warm),
        vignette=r.uniform(0, 0.45),
        blur=r.uniform(0.02, 0.2),
        noise=r.choice((r.uniform(0.002, 0.012), r.uniform(0.002, 0.03))),
    )
