"""The doctor of self-supervision: what makes video useless for it, and what goes wrong in training, said in words.

`examine` looks at frames and cameras before training; no network is needed. `watch` reads the figures that the
photometric objective notes while training goes on. Both return findings; none is an error by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from leadline.depth import Kind
from leadline.errors import DataError, LeadlineError
from leadline.training.batches import Clip
from leadline.training.motion import TEXTURE, motion_between, texture
from leadline.training.objectives.self_supervised import Photometric, Smoothness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from leadline.data.dataset import Dataset, Offset, Sample
    from leadline.training.objectives import Term
    from leadline.training.parts import Part


DARK = 0.03  # mean brightness below which a frame is black, 0..1
FLAT = 0.01  # standard deviation of brightness below which a frame shows nothing
TEXTURELESS = 0.6  # largest share of such places
STILL = 0.002  # motion, as a share of the width, below which a pair of frames stands still (1.3 of 640 pixels)
FAST = 0.12  # likewise, above which the losses' neighbourhoods no longer overlap (77 of 640 pixels)
MOVING = 0.5  # smallest share of pairs that move
UNMATCHED = 0.5  # largest share of textured blocks that are not found again
FLICKER = 0.1  # largest change of mean brightness between two frames, 0..1
FOCAL = (0.3, 3.0)  # of fx / width and fy / width: fields of view of 118 and 19 degrees
OFF_CENTRE = 0.15  # largest distance of the principal point from the centre, of width and height

MASKED = 0.9  # largest share of pixels that fit best without any warp
COLLAPSED = 0.02  # smallest spread of disparity, of its mean
BLACK = 0.015  # mean disparity at the lower end of the published range, 0.01 to 10
GLARING = 8.0  # and at its upper end
FROZEN = 1e-5  # pose_parallax below which the pose network says that nothing moves
EXPLODED = 1.0  # above which the camera moves as far as the scene is deep
TURNING = 20.0  # degrees between two frames


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in words.

    Args:
        what: the fault, a short clause.
        figure: what was measured, with its unit.
        limit: what it should be.
        mend: what to do about it.
    """

    what: str
    figure: str
    limit: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.figure} (should be {self.limit}). {self.mend[0].upper()}{self.mend[1:]}"


def examine(clips: Sequence[Clip]) -> list[Finding]:
    """What is wrong with some clips, before any training; nothing where they will do.

    Args:
        clips: a few dozen pictures with their neighbours say enough; all of one size is not needed.
    """
    if not clips:
        return []
    return [*_frames(clips), *_cameras(clips), *_motion(clips)]


class Attendance:
    """Looks at a run's sequences before it and at its figures while it goes on; says each finding once.

    Args:
        parts: the run's sources.
        every: iterations between two looks at the figures; the first is after three times as many, since a fresh
            network predicts one value everywhere.
        known: what was found elsewhere already.
    """

    def __init__(self, parts: Sequence[Part] = (), every: int = 100, known: Sequence[Finding] = ()) -> None:
        self.every = every
        self.findings: dict[str, Finding] = {}
        self._recent: deque[Mapping[str, float]] = deque(maxlen=min(every, 50))
        self._new: list[Finding] = []
        self.note(known)
        for part in parts:
            if part.frames and part.dataset.format != "rendered":  # those move by construction
                subset = part.indices.tolist()
                self.note(examine(clips_of(part.dataset, part.frames, count=8, among=subset, skip_bad=True)))

    def look(self, iteration: int, notes: Mapping[str, float]) -> list[Finding]:
        """What is newly found after an iteration (1-based) that left these notes."""
        self._recent.append(notes)
        if iteration % self.every == 0 and iteration >= 3 * self.every:
            self.note(watch(self._recent))
        new, self._new = self._new, []
        return new

    def note(self, findings: Sequence[Finding]) -> None:
        """Take in what was found elsewhere; the next `look` returns what of it is new."""
        self._new += [finding for finding in findings if finding.what not in self.findings]
        self.findings = {finding.what: finding for finding in findings} | self.findings


def clips_of(
    dataset: Dataset,
    offsets: Sequence[Offset],
    *,
    count: int = 24,
    among: Sequence[int] | None = None,
    skip_bad: bool = False,
) -> list[Clip]:
    """Clips of one picture each for `examine`, spread evenly over a data set, at its own size.

    Args:
        dataset: any format with sequences.
        offsets: the neighbours, as in a training source's `frames`.
        count: at most so many.
        among: indices with all these neighbours; found where absent.
        skip_bad: leave out what cannot be read, instead of raising.

    Raises:
        DataError: no sample has all these neighbours, or one has no camera.
        ImageReadError: a frame cannot be read.
    """
    every = dataset.with_neighbours(offsets) if among is None else among
    if not every:
        wanted = ", ".join(str(offset) for offset in offsets)
        mend = "use a format with sequences: frames:FOLDER, frames:FILM, kitti-raw or a rendered sequence"
        raise DataError(f"no sample has the neighbours {wanted}", where=dataset.name, mend=mend)
    chosen = [every[k * len(every) // min(count, len(every))] for k in range(min(count, len(every)))]
    clips = []
    for index in chosen:
        try:
            clips.append(_clip(dataset, index, offsets))
        except LeadlineError:
            if not skip_bad:
                raise
    return clips


def _clip(dataset: Dataset, index: int, offsets: Sequence[Offset]) -> Clip:
    sample = dataset[index]
    camera = sample.intrinsics
    if camera is None:
        mend = "give it: ?fov=60 or ?fx=..&fy=..&cx=..&cy=.. after the path"
        raise DataError("no camera for a frame", where=sample.name, why="self-supervision needs intrinsics", mend=mend)
    neighbours = [found for offset in offsets if (found := dataset.neighbour(index, offset)) is not None]
    image, sources = _picture(sample)[None], torch.stack([_picture(other) for other in neighbours])[None]
    return Clip(
        rows=torch.tensor([0]),
        image=image,
        sources=sources,
        seen=torch.cat([image[:, None], sources], 1),
        offsets=tuple(offsets),
        intrinsics=torch.tensor([[[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]]),
        poses=torch.full((1, len(neighbours), 4, 4), float("nan")),
    )


def _picture(sample: Sample) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))).float() / 255


def unanchored(objectives: Sequence[Term], offsets: Sequence[Offset], kind: Kind) -> list[Finding]:
    """Metres that rest on nothing: frames of one moving camera leave the scale of depth open."""
    frames = [objective for objective in objectives if isinstance(objective, Photometric)]
    others = [each for each in objectives if not isinstance(each, Photometric | Smoothness)]
    known = "stereo" in offsets or any(objective.poses == "known" for objective in frames)
    if kind is not Kind.METRIC_DEPTH or not frames or others or known:
        return []
    mend = "add depth or labels (`silog`), a stereo pair or known poses, or train a network of scaled disparity"
    figure, limit = "frames of one camera alone, poses learned", "tied to something measured"
    return [Finding("metres that will drift", figure, limit, mend)]


def watch(notes: Sequence[Mapping[str, float]]) -> list[Finding]:
    """What goes wrong in training, from the figures that objectives noted in the last iterations.

    Args:
        notes: of some tens of iterations, for steady medians; the keys are those of the photometric objective.
    """

    def median(name: str) -> float | None:
        values = [note[name] for note in notes if name in note]
        return float(torch.tensor(values).median()) if values else None

    return [
        *_mask_finding(median("mask_share")),
        *_disparity_findings(median("disparity_mean"), median("disparity_spread")),
        *_pose_findings(median("pose_parallax"), median("pose_turn_deg")),
    ]


def _frames(clips: Sequence[Clip]) -> list[Finding]:
    """Black and flat frames, flicker, and places without texture."""
    dark, flat, flicker, smooth = [], [], [], []
    for clip in clips:
        frames = torch.cat([clip.image[:, None], clip.sources], 1).mean(2)  # R x (1 + S) x H x W
        brightness = frames.mean((-2, -1))
        dark += (brightness < DARK).flatten().tolist()
        flat += (frames.std((-2, -1)) < FLAT).flatten().tolist()
        flicker += (brightness[:, 1:] - brightness[:, :1]).abs().flatten().tolist()
        smooth.append(float((texture(frames[:, 0]) < TEXTURE).float().mean()))
    found = []
    if (share := _mean(dark)) > 0.02:
        mend = "leave these frames out, or check how the film was decoded"
        found.append(Finding("black frames", f"{share:.0%} of the frames", "below 2%", mend))
    elif (share := _mean(flat)) > 0.02:
        mend = "leave these frames out: covered lens, fog or fades teach nothing"
        found.append(Finding("frames that show nothing", f"{share:.0%} of the frames", "below 2%", mend))
    share = _mean(smooth)
    if share > TEXTURELESS:
        mend = "train at a larger size, add textured data, or give labels as well (`--loss ssi` with a teacher)"
        figure, limit = f"{share:.0%} of the pixels", f"below {TEXTURELESS:.0%}"
        found.append(Finding("little texture to match", figure, limit, mend))
    change = _mean(flicker)
    if change > FLICKER:
        mend = "fix the camera's exposure, or leave out the frames where it jumps"
        figure, limit = f"brightness changes by {change:.2f} between frames", f"below {FLICKER:g} of 0 to 1"
        found.append(Finding("unsteady exposure", figure, limit, mend))
    return found


def _cameras(clips: Sequence[Clip]) -> list[Finding]:
    """Intrinsics that cannot be those of the pictures."""
    found: dict[str, Finding] = {}
    for clip in clips:
        height, width = clip.image.shape[-2:]
        for matrix in clip.intrinsics.tolist():
            (fx, _, cx), (_, fy, cy), _ = matrix
            finding = _camera_finding(fx, fy, cx, cy, height, width)
            if finding is not None:
                found.setdefault(finding.what, finding)
    return list(found.values())


def _camera_finding(fx: float, fy: float, cx: float, cy: float, height: int, width: int) -> Finding | None:
    figure = f"fx {fx:.4g}, fy {fy:.4g}, cx {cx:.4g}, cy {cy:.4g} for {height}x{width} (height x width)"
    if not all(abs(value) < float("inf") for value in (fx, fy, cx, cy)) or min(fx, fy) <= 0:
        return Finding("impossible intrinsics", figure, "finite and positive", "give the camera in pixels")
    if max(abs(fx), abs(fy)) < 4 or max(abs(cx), abs(cy)) < 2:
        mend = f"multiply fx and cx by the width ({width}), fy and cy by the height ({height})"
        return Finding("intrinsics look normalised", figure, "in pixels", mend)
    if not FOCAL[0] <= fx / width <= FOCAL[1] or not FOCAL[0] <= fy / width <= FOCAL[1]:
        mend = "check the camera, or the size it was calibrated at; `?fov=DEG` sets a horizontal field of view"
        limit = f"a focal length of {FOCAL[0]:g} to {FOCAL[1]:g} widths"
        return Finding("unlikely focal length", figure, limit, mend)
    if abs(cx / width - 0.5) > OFF_CENTRE or abs(cy / height - 0.5) > OFF_CENTRE:
        mend = "give cx and cy for this size of the picture, crops taken into account"
        return Finding("principal point off the centre", figure, f"within {OFF_CENTRE:.0%} of it", mend)
    return None


def _motion(clips: Sequence[Clip]) -> list[Finding]:
    """Frames that stand still, move too little or too far, or do not belong together."""
    moved, lost = [], []
    for clip in clips:
        for k in range(clip.sources.shape[1]):
            shift, unmatched = motion_between(clip.image, clip.sources[:, k])
            moved += shift.tolist()
            lost += unmatched.tolist()
    found = []
    found_again = [shift for shift, share in zip(moved, lost, strict=True) if share <= UNMATCHED]
    moving = _mean([shift >= STILL for shift in found_again]) if found_again else 1.0
    middle = float(torch.tensor(found_again).median()) if found_again else 0.0
    if moving == 0:
        figure, limit = f"median motion {middle:.2%} of the width", f"above {STILL:.1%}"
        mend = "use film of a moving camera; with a slow one, take frames further apart (`frames: [-3, 3]`)"
        found.append(Finding("static or too slow frames", figure, limit, mend))
    elif moving < MOVING:
        figure, limit = f"the picture moves in {moving:.0%} of the pairs", f"at least {MOVING:.0%}"
        mend = "cut the stretches where the camera stands, or take frames further apart (`frames: [-3, 3]`)"
        found.append(Finding("the camera moves too seldom", figure, limit, mend))
    if middle > FAST:
        figure, limit = f"median motion {middle:.0%} of the width", f"below {FAST:.0%}"
        mend = "take frames closer together, or film at a higher frame rate"
        found.append(Finding("too fast motion", figure, limit, mend))
    elif _mean(lost) > UNMATCHED:
        figure, limit = f"{_mean(lost):.0%} of the textured blocks are not found again", f"below {UNMATCHED:.0%}"
        mend = "take frames closer together, and cut the sequence where the scene changes"
        found.append(Finding("neighbouring frames do not match: too fast motion, or a cut", figure, limit, mend))
    return found


def _mask_finding(share: float | None) -> list[Finding]:
    if share is None or share <= MASKED:
        return []
    mend = "use frames with camera motion (`leadline data check DATA --frames -1,1`), or check the intrinsics"
    limit = f"below {MASKED:.0%}"
    return [Finding("almost everything is masked", f"{share:.0%} of the pixels fit best unwarped", limit, mend)]


def _disparity_findings(mean: float | None, spread: float | None) -> list[Finding]:
    if mean is None or spread is None:
        return []
    figure = f"mean disparity {mean:.3g}, spread {spread:.1%} of it"
    if spread < COLLAPSED:
        mend = "lower the learning rate or the weight of smoothness, and begin again from an earlier state"
        return [Finding("disparity collapses to a constant", figure, f"a spread above {COLLAPSED:.0%}", mend)]
    if mean < BLACK:
        mend = "everything is predicted at the farthest: check for static frames, or lower the learning rate"
        return [Finding("black disparity", figure, f"a mean above {BLACK:g}", mend)]
    if mean > GLARING:
        mend = "everything is predicted at the nearest: check intrinsics and known poses (`unit_m`)"
        return [Finding("glaring disparity", figure, f"a mean below {GLARING:g}", mend)]
    return []


def _pose_findings(parallax: float | None, turn: float | None) -> list[Finding]:
    found = []
    if parallax is not None and parallax < FROZEN:
        mend = "check for static frames, or raise `auxiliary_rate`"
        figure = f"motion {parallax:.1e} of the scene's depth"
        found.append(Finding("the pose network sees no motion", figure, f"above {FROZEN:.0e}", mend))
    if parallax is not None and parallax > EXPLODED:
        mend = "lower `auxiliary_rate`, check the frames' order and known poses (`unit_m`)"
        figure = f"motion {parallax:.2g} of the scene's depth"
        found.append(Finding("the camera moves too far", figure, f"below {EXPLODED:g}", mend))
    if turn is not None and turn > TURNING:
        mend = "lower `auxiliary_rate`, and check that neighbours belong to one sequence"
        found.append(Finding("the camera turns too far", f"{turn:.0f} degrees", f"below {TURNING:g}", mend))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
