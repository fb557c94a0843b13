"""What must hold for a network's metres: targets within its range, and a camera that they are right for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from leadline.data.dataset import open_dataset
from leadline.depth import Kind
from leadline.errors import LeadlineError
from leadline.training.doctor import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from leadline.contract import Contract
    from leadline.training.batches import Batch
    from leadline.training.config import Source

LOOKED_AT = 8  # pictures of each source whose camera is read
ONE_CAMERA = 0.03  # relative difference of focal lengths below which cameras count as one
BEYOND = 0.01  # largest share of measured pixels above the network's maximum


def beyond_maximum(batch: Batch, contract: Contract) -> list[Finding]:
    """Targets in metres that a network cannot say, since its output ends below them; nothing where there are few.

    Args:
        batch: as training sees it.
        contract: of the network.
    """
    end = contract.output.maximum
    metric = [row for row, kind in enumerate(batch.kinds) if kind is Kind.METRIC_DEPTH]
    if end is None or contract.output.kind is not Kind.METRIC_DEPTH or not metric:
        return []
    measured = batch.target[metric][batch.valid[metric]]
    share = float((measured > end).float().mean()) if measured.numel() else 0.0
    if share <= BEYOND:
        return []
    figure = f"{share:.0%} of a batch's measured pixels lie above {end:g} m, where {contract.name}'s output ends"
    mend = "start at a variant that reaches farther, as in --model random:leadline-s --set 'network={max_depth: 80}'"
    return [Finding("targets beyond the network's maximum", figure, f"at most {BEYOND:.0%}", mend)]


def common_camera(sources: Sequence[Source], *, skip_bad: bool) -> tuple[tuple[float, float] | None, str]:
    """The camera of all pictures with metres, as (fx / width, fy / height), and what a run says of it.

    Args:
        sources: of the run; some pictures of each are read.
        skip_bad: leave incomplete items out.

    Returns:
        None for the camera where the pictures do not agree or do not name theirs; no words where nothing is in metres.
    """
    seen = [camera for source in sources for camera in _cameras(source, skip_bad)]
    known = np.array([camera for camera in seen if camera is not None])
    if not seen:
        return None, ""
    vague = "its metres are right for no particular camera (set one: --set 'camera=[FX/WIDTH, FY/HEIGHT]')"
    if len(known) < len(seen):
        return None, f"{len(seen) - len(known)} of {len(seen)} pictures looked at name no camera: {vague}"
    middle = np.median(known, axis=0)
    if float(np.abs(known / middle - 1).max()) > ONE_CAMERA:
        wide, narrow = (_degrees(fraction) for fraction in (known[:, 0].min(), known[:, 0].max()))
        return None, f"the pictures' cameras differ, {narrow:.0f} to {wide:.0f} degrees wide: {vague}"
    camera = round(float(middle[0]), 6), round(float(middle[1]), 6)
    words = f"{_degrees(camera[0]):.0f} degrees wide and {_degrees(camera[1]):.0f} high"
    return camera, f"its metres are for the pictures' camera, {words}"


def _cameras(source: Source, skip_bad: bool) -> Iterator[tuple[float, float] | None]:
    """Focal lengths of some pictures over their sides, spread evenly; None for a picture without a camera."""
    dataset = open_dataset(source.data, source.split, skip_bad=skip_bad)
    if source.labels is None and dataset.kind is not Kind.METRIC_DEPTH:
        return
    indices = range(len(dataset))[source.first : source.last]
    count = min(LOOKED_AT, len(indices))
    for index in (indices[k * len(indices) // count] for k in range(count)):
        try:
            sample = dataset[index]
        except LeadlineError:
            continue  # training itself says so, or leaves it out
        height, width = sample.image.shape[:2]
        own = sample.intrinsics
        yield None if own is None else (own.fx / width, own.fy / height)


def _degrees(fraction: float) -> float:
    return 2 * math.degrees(math.atan(0.5 / fraction))
