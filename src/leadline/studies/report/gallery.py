"""The qualitative panel as HTML: pictures, depth maps and error maps with their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leadline.colors import colorize
from leadline.depth import Kind
from leadline.studies.report.numbers import text
from leadline.studies.report.panel import scenes
from leadline.studies.report.pictures import (
    data_uri,
    error_colors,
    error_gradient,
    gradient,
    shrink_depth,
    shrink_image,
    shrink_values,
    side_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from leadline.studies.report.candidates import Candidate
    from leadline.studies.report.panel import Map, Scene
    from leadline.studies.study import Outcome


def gallery(outcome: Outcome, found: Sequence[Candidate]) -> str:
    """The section's body; where there are no pictures, one sentence that says why.

    Args:
        outcome: the study.
        found: its measured candidates.
    """
    shown, missing = scenes(outcome, found)
    if not shown:
        return f'<p class="quiet">No pictures are shown: {text(missing)}.</p>'
    height, width = shown[0].image.shape[:2]
    side = side_for(len(shown) * (2 + 2 * len(found)), height, width)
    return "".join(_scene(scene, side) for scene in shown)


def _scene(scene: Scene, side: int) -> str:
    first = [_figure("Picture", data_uri(shrink_image(scene.image, side)), f"The picture {scene.name}")]
    if scene.truth is not None:
        colors = colorize(shrink_depth(scene.truth, side), scene.lo, scene.hi)
        first.append(_figure("Ground truth", data_uri(colors), f"Ground truth depth of {scene.name}; black is unknown"))
    maps = "".join(_map(scene, item, side) for item in scene.maps)
    return (
        f'<article class="scene"><h3>{text(scene.name)}</h3>'
        f'<div class="pair source">{"".join(first)}{_legends(scene)}</div>'
        f'<div class="maps">{maps}</div></article>'
    )


def _map(scene: Scene, item: Map, side: int) -> str:
    candidate = item.candidate
    mark = ' <span class="badge good">★ recommended</span>' if candidate.recommended else ""
    mark += ' <span class="badge">reference</span>' if candidate.reference else ""
    title = f'<h4><span class="number">{candidate.number}</span> {text(candidate.row.name)}{mark}</h4>'
    if item.depth is None or item.error is None or item.mean is None:
        return f'<section class="candidate">{title}<p class="quiet">no depth map to show for this picture</p></section>'
    depth = colorize(shrink_depth(item.depth, side), scene.lo, scene.hi)
    error = error_colors(_shrunk_error(item.error, side), scene.worst)
    mean = f"{100 * item.mean:.1f} %"
    pair = _figure("Depth", data_uri(depth), f"Depth of {scene.name} by {candidate.row.name}") + _figure(
        f"Error, {mean} on average", data_uri(error), f"Error map of {candidate.row.name} on {scene.name}: mean {mean}"
    )
    return f'<section class="candidate">{title}<div class="pair">{pair}</div></section>'


def _shrunk_error(error: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    return shrink_values(error, np.isfinite(error), side)


def _figure(caption: str, uri: str, alt: str) -> str:
    image = f'<img src="{uri}" alt="{text(alt)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>"


def _legends(scene: Scene) -> str:
    if scene.kind is Kind.METRIC_DEPTH:
        ends = f"{scene.lo:.2g} m, near", f"far, {scene.hi:.3g} m"
    elif scene.kind.is_disparity:
        ends = "far", "near (no unit)"
    else:
        ends = "near", "far (no unit)"
    worst = f"{100 * scene.worst:.0f} %"
    return (
        '<div class="legends">'
        f"{_legend('Depth', gradient(scene.kind.is_disparity), (ends[0], '', ends[1]))}"
        f"{_legend('Error', error_gradient(), (f'−{worst}, too near', 'right', f'too far, +{worst}'))}"
        f'<p class="quiet">Errors are counted against {text(scene.compared)}. Black: no depth; grey: not counted.</p>'
        "</div>"
    )


def _legend(title: str, colors: str, ends: tuple[str, str, str]) -> str:
    labels = "".join(f"<span>{text(end)}</span>" for end in ends)
    return (
        f'<div class="legend"><strong>{text(title)}</strong><div class="ramp" style="background:{colors}"></div>'
        f'<div class="ends">{labels}</div></div>'
    )
