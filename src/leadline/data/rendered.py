"""Pictures with exact depth that Leadline draws itself: procedural rooms and streets, the same bytes for the same seed.

No file, no download, no licence to ask for: they serve tests, benchmarks, demonstrations and training. With
`sequence=N` each scene is a walk or drive of N frames whose poses are known, so that self-supervision can be checked.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from leadline.data.dataset import Dataset, Sample
from leadline.data.scenes.walk import (
    MEASURED,
    MOTIONS,
    SCENES,
    Camera,
    Motion,
    SceneKind,
    frame_name,
    plan_walk,
    render,
    render_sequence,
)
from leadline.errors import DataError, closest

if TYPE_CHECKING:
    from pathlib import Path

    from leadline.data.dataset import Offset

__all__ = ["MEASURED", "SCENES", "Camera", "Format", "SceneKind", "render", "render_sequence"]

MAX_DEPTH = {"room": 10.0, "street": 80.0}  # metres
DEFAULT_SIZE = {"room": (240, 320), "street": (192, 640)}
SPLITS = {"train": (0, 20_000), "val": (1_000_000, 256), "test": (2_000_000, 64)}  # first seed, number of scenes
SPLIT_ROOM = 1_000_000  # seeds of one split, so that splits stay disjoint
SEED_ROOM = 10_000_000  # seeds of one `seed=N`


class Format(Dataset):
    """Rendered scenes as a data set: `rendered`, `rendered:room`, `rendered:street`, each with options.

    `rendered:street,count=200,height=192,width=640,seed=7,fx=0.58,fy=1.92`; without a scene the two alternate. Samples
    are drawn when they are read. `rendered:room?count=50&sequence=10` draws 50 scenes of 10 frames each, which follow
    one another and are each other's neighbours; `motion=still` and `motion=turn` (rotation alone) are ways of moving
    from which depth cannot be learnt, and `moving=1` lets traffic or a ball move too.
    """

    format: ClassVar[str] = "rendered"
    licence = "CC0-1.0"
    source = "drawn by leadline.data.rendered"

    def __init__(
        self,
        scenes: tuple[SceneKind, ...],
        seeds: range,
        size: tuple[int, int],
        camera: Camera | None = None,
        *,
        sequence: int = 1,
        motion: Motion = "walk",
        moving: bool = False,
    ) -> None:
        self.scenes, self.seeds, self.size, self.camera = scenes, seeds, size, camera
        self.sequence, self.motion, self.moving = sequence, motion, moving
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
            path: `SCENE,key=value,...`, each part optional; keys: count, height, width, seed, fx, fy, sequence,
                motion, moving.
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
        motions = [part.partition("=")[2] for part in parts if part.startswith("motion=")]
        motion = motions[-1] if motions else "walk"
        if motion not in MOTIONS:
            raise DataError("unknown motion of a rendered sequence", where=motion, mend=closest(motion, MOTIONS))
        options = _options([part for part in parts if not part.startswith("motion=")])
        sequence, moving = int(options.get("sequence", 1)), bool(options.get("moving", 0))
        if sequence == 1 and (moving or motions):
            raise DataError("only a sequence moves", where=f"rendered:{path}", mend="add sequence=10")
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
        seeds = range(first, first + count)
        return cls(scenes, seeds, size, camera, sequence=sequence, motion=motion, moving=moving)

    def __len__(self) -> int:
        """Number of scenes, times the frames of each."""
        return len(self.seeds) * self.sequence

    def names(self) -> list[str]:
        """Scene and seed of each sample, and its step in a sequence."""
        return [self._name(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> Sample:
        """Draw one sample, H x W of the data set's size."""
        scene, time = divmod(range(len(self))[index], self.sequence)
        height, width = self.size
        walk = plan_walk(
            self.seeds[scene],
            frames=self.sequence,
            height=height,
            width=width,
            scene=self._scene(scene),
            camera=self.camera,
            moving=self.moving,
            motion=self.motion,
        )
        return walk.frame(time)

    def neighbour_name(self, index: int, offset: Offset) -> str | None:
        """The frame's name; None beyond the sequence's ends, and for the other eye, which these cameras have not."""
        there = self._step(index, offset)
        return None if there is None else self._name(there)

    def neighbour(self, index: int, offset: Offset) -> Sample | None:
        """That frame's picture, camera and pose."""
        there = self._step(index, offset)
        return None if there is None else replace(self[there], depth=None)

    def _step(self, index: int, offset: Offset) -> int | None:
        if offset == "stereo":
            return None
        index = range(len(self))[index]
        there = index % self.sequence + int(offset)
        return index + int(offset) if 0 <= there < self.sequence else None

    def _name(self, index: int) -> str:
        scene, time = divmod(index, self.sequence)
        return frame_name(self._scene(scene), self.seeds[scene], time if self.sequence > 1 else None)

    def _scene(self, number: int) -> SceneKind:
        return self.scenes[number % len(self.scenes)]


LIMITS = {
    "count": (1, SPLIT_ROOM),
    "height": (8, 4096),
    "width": (8, 4096),
    "seed": (0, 10**9),
    "fx": (0.1, 20),
    "fy": (0.1, 20),
    "sequence": (1, 1000),
    "moving": (0, 1),
}


def _options(parts: list[str]) -> dict[str, float]:
    options: dict[str, float] = {}
    for part in parts:
        key, _, text = part.partition("=")
        if key not in LIMITS:
            raise DataError("unknown option of rendered scenes", where=key, mend=closest(key, [*LIMITS, "motion"]))
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
