"""The doctor of self-supervision: what makes video useless for it, and what goes wrong in training, said in words.

`examine` looks at frames and cameras before training; no network is needed. `watch` reads the figures that the
photometric objective notes while training goes on. Both return findings; none is an error by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from leadline.losses.photometric import box_sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from leadline.training.batches import Clip

BLOCK = 32  # pixels; motion is measured block by block
SEARCH_HEIGHT = 192  # pictures are averaged down to about this height before motion is measured

DARK = 0.03  # mean brightness below which a frame is black, 0..1
FLAT = 0.01  # standard deviation of brightness below which a frame shows nothing
TEXTURE = 2 / 255  # mean difference of neighbouring pixels below which a place has no texture
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
GLARING = 5.0  # and at its upper end
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
        smooth.append(float((_texture(frames[:, 0]) < TEXTURE).float().mean()))
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
    moving = _mean([shift >= STILL for shift in moved])
    middle = float(torch.tensor(moved).median())
    found = []
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


def motion_between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How far a picture moves to the next, measured by phase correlation of textured blocks.

    Args:
        first: N x 3 x H x W, 0..1.
        second: the same shape.

    Returns:
        N motions as shares of the width (the 75th percentile over the blocks, since what is far moves little), and N
        shares of blocks that are not found again, 0..1. A picture without texture moves by 0.
    """
    factor = max(1, round(first.shape[-2] / SEARCH_HEIGHT))
    a, b = (
        F.avg_pool2d(x.mean(1, keepdim=True), factor) if factor > 1 else x.mean(1, keepdim=True)
        for x in (first, second)
    )
    width = a.shape[-1]
    size = min(max(BLOCK, 1 << (width // 5).bit_length()), *a.shape[-2:])  # a block sees shifts to half its side
    blocks = [F.unfold(x, size, stride=max(1, size // 2)).transpose(1, 2) for x in (a, b)]
    one, two = (x.reshape(*x.shape[:2], size, size) for x in blocks)
    textured = _texture(one).mean((-2, -1)) >= TEXTURE
    shift, peak = _correlate(one, two)
    sure = peak > 5 / size  # noise alone leaves peaks of some 3 / size
    motions, lost = [], []
    for n in range(len(a)):
        matched = shift[n][textured[n] & sure[n]]
        motions.append(matched.quantile(0.75) / width if len(matched) else shift.new_zeros(()))
        lost.append((textured[n] & ~sure[n]).sum() / textured[n].sum().clamp(min=1))
    return torch.stack(motions), torch.stack(lost)


def _correlate(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Shift in pixels and height of the peak of the phase correlation, each N x B, of N x B x s x s blocks."""
    size = one.shape[-1]
    line = torch.hann_window(size, device=one.device)
    window = line[:, None] * line
    spectra = [torch.fft.rfft2((x - x.mean((-2, -1), keepdim=True)) * window) for x in (one, two)]
    cross = spectra[0].conj() * spectra[1]
    surface = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=(size, size))
    peak, place = surface.flatten(-2).max(-1)
    y, x = place // size, place % size
    y, x = (torch.where(v > size // 2, v - size, v).float() for v in (y, x))
    return torch.hypot(x, y), peak


def _texture(grey: Tensor) -> Tensor:
    """Mean difference to the right and lower neighbour over 3 x 3 windows; ... x H x W keeps its shape."""
    dx = F.pad(grey.diff(dim=-1).abs(), (0, 1))
    dy = F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    return box_sum(dx + dy) / 18


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
