"""Flicker of depth over time with and without smoothing, and whether moving edges stay as sharp as they were.

Run: python benchmarks/live/flicker.py [FILM...] [--model leadline-s] [--frames 0] [--strips DIR] [--drives 2]
Without films: the two dashcam films of ../shared/data/video (or $LEADLINE_SHARED/data/video), where they are. Rendered
drives, whose poses are known, come after them: there the flow is exact, and anybody can repeat the figures.

flicker   mean |value - mean of both neighbours in time along the motion| / spread of the depth (leadline.live.flicker)
edges     moving edges: gradient of the smoothed map at the strongest 5 % gradients of the raw one (the largest within
          one pixel), over that of the raw map, each divided by its map's standard deviation; only where a point moves
          by more than a pixel or was not found again. 1: as sharp as before; below: blurred.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from leadline.data.rendered import render_sequence
from leadline.data.video import Account, read_film
from leadline.live.display import DisplayRange
from leadline.live.flicker import FlickerMeter
from leadline.live.flow import Flow, flow_of_motion, flows_between
from leadline.live.temporal import Smoother, Smoothing, grey_of
from leadline.live.view import paint
from leadline.predictor import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadline.predictor import Predictor

VERSIONS = {"smoothed": Smoothing(), "causal": Smoothing.causal()}
STRONGEST = 95  # percentile of the raw gradient
MOVES = 1.0  # pixels from frame to frame
STRIP_ROWS = 5  # frames of a strip


@dataclass
class Frame:
    """A frame with its maps."""

    picture: np.ndarray
    values: np.ndarray
    flows: tuple[Flow, Flow] | None = None  # from the frame before and back, where they are known
    steady: dict[str, np.ndarray] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="*", type=Path)
    parser.add_argument("--model", default="leadline-s")
    parser.add_argument("--runtime", default=None, help="export to this engine first")
    parser.add_argument("--frames", type=int, default=0, help="of each film at most; 0: all")
    parser.add_argument("--drives", type=int, default=2, help="rendered drives")
    parser.add_argument("--steps", type=int, default=24, help="frames of a drive")
    parser.add_argument("--strips", type=Path, help="write pictures to look at into this folder")
    options = parser.parse_args()

    films = options.films or shared_films()
    if not films:
        print("no films: name some, or set LEADLINE_SHARED")
    rows = []
    with load(options.model, runtime=options.runtime) as predictor:
        for film in films:
            rows.append(measure(film.name, predictor, film_frames(predictor, film, options.frames), options.strips))
            show(rows[-1])
        for seed in range(options.drives):
            name = f"rendered-street-{seed}"
            rows.append(measure(name, predictor, drive(predictor, seed, options.steps), options.strips))
            show(rows[-1])
    machine = f"{platform.processor() or platform.machine()}, {platform.platform()}"
    print(json.dumps({"model": options.model, "rows": rows, "machine": machine}))


def shared_films() -> list[Path]:
    root = Path(os.environ.get("LEADLINE_SHARED", Path(__file__).parents[3] / "shared"))
    return sorted((root / "data" / "video").glob("*.mp4"))


def film_frames(predictor: Predictor, film: Path, limit: int) -> Iterator[Frame]:
    for frame in read_film(film, 720, Account()):
        if limit and frame.number >= limit:
            return
        yield Frame(frame.image, infer(predictor, frame.image))


def drive(predictor: Predictor, seed: int, count: int) -> Iterator[Frame]:
    """A drive through a rendered street; the flow between its frames comes from depth and poses."""
    last: Any = None
    for sample in render_sequence(seed, frames=count, height=192, width=384, scene="street"):
        values = infer(predictor, sample.image)
        size = values.shape
        scale = size[0] / sample.image.shape[0], size[1] / sample.image.shape[1]
        depth = cv2.resize(sample.depth.values, size[::-1], interpolation=cv2.INTER_NEAREST)
        now = depth, sample.intrinsics.resized(*scale), sample.pose
        flows = None
        if last is not None:
            motion = np.linalg.inv(now[2]) @ last[2]
            there = flow_of_motion(last[0], last[1], motion, now[0])
            flows = there, flow_of_motion(now[0], now[1], np.linalg.inv(motion), last[0])
        last = now
        yield Frame(sample.image, values, flows)


def infer(predictor: Predictor, picture: np.ndarray) -> np.ndarray:
    output = predictor.session.run(predictor.contract.prepare(picture, predictor.size))
    return output.reshape(output.shape[-2:])


def measure(name: str, predictor: Predictor, frames: Iterator[Frame], strips: Path | None) -> dict[str, Any]:
    kind = predictor.contract.output.kind
    smoothers = {version: Smoother(kind, smoothing) for version, smoothing in VERSIONS.items()}
    meter = FlickerMeter(1 + len(VERSIONS))
    sharp: dict[str, list[float]] = {version: [] for version in VERSIONS}
    waiting: deque[Frame] = deque()
    ready: dict[str, deque[np.ndarray]] = {version: deque() for version in VERSIONS}
    last: Frame | None = None
    kept: list[Frame] = []

    def finish() -> None:
        nonlocal last
        while waiting and all(ready.values()):
            frame = waiting.popleft()
            frame.steady = {version: maps.popleft() for version, maps in ready.items()}
            flows = frame.flows or (still(frame.values.shape) if rendered else None)  # a drive's first frame has none
            meter.push([frame.values, *frame.steady.values()], frame.picture, flows)
            if last is not None:
                back = motion(last, frame)
                moving = (np.linalg.norm(back.offset, axis=-1) > MOVES) | (back.trusted < 0.5)
                for version, values in frame.steady.items():
                    if (share := sharpness(frame.values, values, moving)) is not None:
                        sharp[version].append(share)
            last = frame
            kept.append(frame)
            if len(kept) > 64 and strips is not None:
                kept[:] = kept[::2]
            elif strips is None:
                kept.clear()

    rendered = name.startswith("rendered")
    for frame in frames:
        waiting.append(frame)
        for version, smoother in smoothers.items():
            ready[version].extend(smoother.push(frame.picture, frame.values))
        finish()
    for version, smoother in smoothers.items():
        ready[version].extend(smoother.flush())
    finish()
    results = meter.results()
    if results is None:
        raise SystemExit(f"{name}: too few frames")
    if strips is not None:
        write_strip(strips / f"{name}.png", kept, kind)
    raw = results[0]
    row: dict[str, Any] = {
        "film": name,
        "flow": "exact" if rendered else "optical",
        "frames": raw.frames,
        "points": raw.points,
        "flicker": {"raw": raw.value} | {v: each.value for v, each in zip(VERSIONS, results[1:], strict=True)},
        "ratio": {v: each.value / raw.value for v, each in zip(VERSIONS, results[1:], strict=True)},
        "edges": {version: quartiles(values) for version, values in sharp.items()},
        "cuts": {version: smoother.cuts for version, smoother in smoothers.items()},
    }
    return row


def still(shape: tuple[int, ...]) -> tuple[Flow, Flow]:
    nothing = Flow(np.zeros((*shape, 2), np.float32), np.ones(shape, np.float32))
    return nothing, nothing


def motion(last: Frame, frame: Frame) -> Flow:
    """From this frame back to the last one."""
    if frame.flows is not None:
        return frame.flows[1]
    size = frame.values.shape[0], frame.values.shape[1]
    return flows_between(grey_of(last.picture, size), grey_of(frame.picture, size), careful=True)[1]


def sharpness(raw: np.ndarray, steady: np.ndarray, where: np.ndarray) -> float | None:
    """Gradient left at the raw map's strongest edges within `where`; None where there are none."""
    before, after = gradient(raw) / raw.std(), gradient(steady) / steady.std()
    edges = (before >= np.percentile(before, STRONGEST)) & where
    if edges.sum() < 50:
        return None
    around = np.ones((3, 3), np.uint8)
    return float(cv2.dilate(after, around)[edges].mean() / cv2.dilate(before, around)[edges].mean())


def gradient(values: np.ndarray) -> np.ndarray:
    x, y = cv2.Sobel(values, cv2.CV_32F, 1, 0), cv2.Sobel(values, cv2.CV_32F, 0, 1)
    return np.hypot(x, y)


def write_strip(path: Path, frames: list[Frame], kind: Any) -> None:
    """Frame, raw, smoothed, causal, in one row each, all in one colour range."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = [frames[round(at)] for at in np.linspace(0, len(frames) - 1, STRIP_ROWS)]
    size = chosen[0].values.shape
    lo, hi = DisplayRange().update(np.stack([each.values for each in chosen]).reshape(-1, size[1]), kind)
    rows = [
        np.concatenate(
            [
                cv2.resize(each.picture, size[::-1], interpolation=cv2.INTER_AREA),
                *(paint(values, kind, lo, hi, size) for values in (each.values, *each.steady.values())),
            ],
            axis=1,
        )
        for each in chosen
    ]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75)) if values else (np.nan,) * 3
    return {"median": float(middle), "q25": float(low), "q75": float(high), "n": len(values)}


def show(row: dict[str, Any]) -> None:
    flicker, ratio, edges = row["flicker"], row["ratio"], row["edges"]
    print(
        f"{row['film']}  (n = {row['frames']} frames, {row['points']:.0%} of the points followed, {row['flow']} flow)"
    )
    print(f"  {'raw':9} flicker {flicker['raw']:.3%} of the spread")
    for version in VERSIONS:
        sharp = edges[version]
        print(
            f"  {version:9} flicker {flicker[version]:.3%}, {ratio[version]:.2f} of raw;  moving edges "
            f"{sharp['median']:.3f} [{sharp['q25']:.3f}, {sharp['q75']:.3f}] of raw, n = {sharp['n']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
