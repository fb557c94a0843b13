"""Pictures with exact depth that Leadline draws itself: procedural rooms and streets, the same bytes for the same seed.

No file, no download, no licence to ask for: they serve tests, benchmarks, demonstrations and training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from leadline.data.dataset import Dataset, Sample
from leadline.data.scenes.raster import View, cast
from leadline.data.scenes.room import build_room
from leadline.data.scenes.shading import Sensor, shade
from leadline.data.scenes.street import build_street
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import DataError, closest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from leadline.data.scenes.builder import Scene

SceneKind = Literal["room", "street"]
SCENES: tuple[SceneKind, ...] = get_args(SceneKind)
MAX_DEPTH = {"room": 10.0, "street": 80.0}  # metres
DEFAULT_SIZE = {"room": (240, 320), "street": (192, 640)}
SPLITS = {"train": (0, 20_000), "val": (1_000_000, 256), "test": (2_000_000, 64)}  # first seed, number of samples
SPLIT_ROOM = 1_000_000  # seeds of one split, so that splits stay disjoint
SEED_ROOM = 10_000_000  # seeds of one `seed=N`
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

    Returns:
        Samples whose poses (camera to world) share one world.

    Raises:
        DataError: an unknown scene, or a number out of range.
    """
    _check(seed, frames, height, width, scene)
    r = Random(f"leadline {scene} {seed}")
    sensor, sway = _sensor(r), (r.uniform(0, 6.28), r.uniform(0, 6.28))
    world = (build_room if scene == "room" else build_street)(r, frames, moving)
    intrinsics = camera.intrinsics(height, width) if camera else Intrinsics.from_fov(world.fov_deg, height, width)
    samples = []
    for time in range(frames):
        view = View(intrinsics, _pose(world, time, sway), height, width)
        name = _name(scene, seed, time if frames > 1 else None)
        samples.append(_frame(world, sensor, view, time, name, np.random.default_rng([seed, time])))
    return samples


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


def _pose(world: Scene, time: int, sway: tuple[float, float]) -> NDArray[np.float64]:
    """Camera to world after `time` steps: steady travel and turn, with a little sway of a carried camera."""
    heading = math.radians(world.heading + world.turn * time)
    pitch = math.radians(world.pitch + 0.4 * (math.sin(0.7 * time + sway[0]) - math.sin(sway[0])))
    roll = math.radians(world.roll + 0.3 * (math.sin(0.5 * time + sway[1]) - math.sin(sway[1])))
    forward = np.array([-math.sin(heading) * math.cos(pitch), math.cos(heading) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(heading), math.sin(heading), 0.0])
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    pose[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    pose[:3, 2] = forward
    bob = 0.01 * (math.sin(0.9 * time + sway[1]) - math.sin(sway[1]))
    step_x, step_y = world.velocity
    pose[:3, 3] = np.array(world.eye) + np.array([time * step_x, time * step_y, bob])
    return pose


def _sensor(r: Random) -> Sensor:
    warm, green = r.gauss(0, 0.07), r.gauss(0, 0.03)
    return Sensor(
        exposure=math.exp(r.gauss(0.0, 0.25)),
        balance=(1 + warm, 1 + green, 1 - warm),
        vignette=r.uniform(0, 0.45),
        blur=r.uniform(0.02, 0.2),
        noise=r.choice((r.uniform(0.002, 0.012), r.uniform(0.002, 0.03))),
    )


class Format(Dataset):
    """Rendered scenes as a data set: `rendered`, `rendered:room`, `rendered:street`, each with options.

    `rendered:street,count=200,height=192,width=640,seed=7,fx=0.58,fy=1.92`; without a scene the two alternate. Samples
    are drawn when they are read.
    """

    format: ClassVar[str] = "rendered"
    licence = "CC0-1.0"
    source = "drawn by leadline.data.rendered"

    def __init__(
        self, scenes: tuple[SceneKind, ...], seeds: range, size: tuple[int, int], camera: Camera | None = None
    ) -> None:
        self.scenes, self.seeds, self.size, self.camera = scenes, seeds, size, camera
        self.max_depth = max(MAX_DEPTH[scene] for scene in scenes)
        self.name = f"rendered-{scenes[0]}" if len(scenes) == 1 else "rendered"

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Never: nothing on a disk is this format."""
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Read the reference's scene and options.

        Args:
            path: `SCENE,key=value,...`, each part optional; keys: count, height, width, seed, fx, fy.
            split: `train`, `val` or `test` (the default), whose scenes are disjoint.

        Raises:
            DataError: an unknown scene, key or split, or a value out of range.
        """
        if split is not None and split not in SPLITS:
            raise DataError("unknown split", where=split, why="of rendered scenes", mend=closest(split, SPLITS))
        parts = [part for part in path.replace("?", ",").replace("&", ",").split(",") if part]
        name = parts.pop(0) if parts and "=" not in parts[0] else ""
        if name and name not in SCENES:
            raise DataError("unknown rendered scene", where=name, mend=closest(name, SCENES))
        scenes = tuple(scene for scene in SCENES if name in ("", scene))
        options = _options(parts)
        first, count = SPLITS[split or "test"]
        first, count = first + SEED_ROOM * int(options.get("seed", 0)), int(options.get("count", count))
        height, width = DEFAULT_SIZE[scenes[0]]
        camera = None
        if "fx" in options or "fy" in options:
            if not {"fx", "fy"} <= options.keys():
                why, mend = "fx and fy belong together", "give both, as fx=0.58,fy=1.92"
                raise DataError("incomplete camera", where=f"rendered:{path}", why=why, mend=mend)
            camera = Camera(options["fx"], options["fy"])
        size = (int(options.get("height", height)), int(options.get("width", width)))
        return cls(scenes, range(first, first + count), size, camera)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.seeds)

    def names(self) -> list[str]:
        """Scene and seed of each sample."""
        return [_name(self._scene(index), seed) for index, seed in enumerate(self.seeds)]

    def __getitem__(self, index: int) -> Sample:
        """Draw one sample, H x W of the data set's size."""
        height, width = self.size
        scene = self._scene(range(len(self))[index])
        return render(self.seeds[index], height=height, width=width, scene=scene, camera=self.camera)

    def _scene(self, index: int) -> SceneKind:
        return self.scenes[index % len(self.scenes)]


def _name(scene: SceneKind, seed: int, time: int | None = None) -> str:
    return f"{scene}-{seed:07d}" if time is None else f"{scene}-{seed:07d}-{time:04d}"


LIMITS = {
    "count": (1, SPLIT_ROOM),
    "height": (8, 4096),
    "width": (8, 4096),
    "seed": (0, 10**9),
    "fx": (0.1, 20),
    "fy": (0.1, 20),
}


def _options(parts: list[str]) -> dict[str, float]:
    options: dict[str, float] = {}
    for part in parts:
        key, _, text = part.partition("=")
        if key not in LIMITS:
            raise DataError("unknown option of rendered scenes", where=key, mend=closest(key, LIMITS))
        low, high = LIMITS[key]
        try:
            value = float(text) if key in ("fx", "fy") else int(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            mend = f"use {'a number' if key in ('fx', 'fy') else 'a whole number'} from {low} to {high}"
            raise DataError("value out of range", where=part, why="in a reference to rendered scenes", mend=mend)
        options[key] = value
    return options
