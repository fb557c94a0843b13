"""Calibration: pictures that show a network its usual activations, and the rules that turn those into ranges.

Rules of Wu et al. 2020 and its tooling (SPEC.md section 8): a histogram of |x| with 2048 bins per tensor; the range is
clipped at the largest value (minmax), at a percentile of |x|, where the quantised histogram loses least information
(entropy), or where the mean squared error of quantising is smallest (mse).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError, DataError, ImageReadError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from leadline.contract import Contract
    from leadline.data.dataset import Dataset
    from leadline.runtimes.base import Calibration, ExportOptions

BINS, LEVELS = 2048, 128  # of |x|; 128 levels are one sign's half of INT8
STEPS = 255  # between the lowest and the highest of INT8's 256 values
COARSE = 16  # bins between the clips that the search for the smallest error tries first
KEPT = 0.99  # of the values: the divergence alone falls to 0 where all of a tensor far from 0 is clipped into one bin
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
RENDERED_SIZE = (240, 320)  # (height, width) of pictures rendered for calibration


def calibration_inputs(
    source: str | Path | None,
    contract: Contract,
    size: tuple[int, int] | None = None,
    count: int = 100,
    *,
    seed: int = 0,
    split: str | None = None,
) -> list[NDArray[np.float32]]:
    """Prepared inputs for calibration or parity.

    Args:
        source: a data set reference, a folder of pictures (searched through), one picture, or None for rendered rooms
            and streets in turn.
        contract: of the network; pictures are prepared by it.
        size: (height, width) of the input; None takes the contract's. Pictures are stretched to it.
        count: at most so many, chosen by `seed`, in the source's order.
        seed: of the choice, and of the rendered scenes.
        split: of a data set.

    Returns:
        Arrays 1 x 3 x h x w float32, all of one size.

    Raises:
        DataError: the source does not exist, holds no picture, or only pictures of one colour.
        ImageReadError: a picture cannot be read.
    """
    from leadline.runtimes.base import bundle_contract

    fixed = bundle_contract(contract, size, dynamic=False)
    inputs, plain = [], True
    for picture in _pictures(source, count, seed, split):
        plain = plain and not picture.std(axis=(0, 1)).any()
        inputs.append(fixed.prepare(picture))
    if plain:
        why = f"each of the {len(inputs)} pictures has one colour all over"
        raise DataError("calibration pictures show nothing", where=source, why=why, mend="name usual pictures")
    return inputs


def _pictures(source: str | Path | None, count: int, seed: int, split: str | None) -> Iterator[NDArray[np.uint8]]:
    if source is None:
        from leadline.data.rendered import render

        height, width = RENDERED_SIZE
        for index in range(count):
            yield render(seed + index, height=height, width=width, scene=("room", "street")[index % 2]).image
        return
    from leadline.data.dataset import Dataset
    from leadline.image import read_image

    held = _opened(source, split)
    for index in _choice(len(held), count, seed):
        with _named_as_calibration():
            picture = held[index].image if isinstance(held, Dataset) else read_image(held[index])
        yield picture


def refuse_empty(source: str | Path, split: str | None = None) -> None:
    """Look whether there are pictures to calibrate with, and read none.

    Args:
        source: as for `calibration_inputs`.
        split: of a data set.

    Raises:
        DataError: the source does not exist or holds no picture.
    """
    _opened(source, split)


def _opened(source: str | Path, split: str | None) -> Dataset | list[Path]:
    """What the pictures are read from: the files of a folder, or a data set; never empty."""
    from leadline.data.dataset import open_dataset

    files = _picture_files(Path(source))
    if files:
        return files
    try:
        dataset = open_dataset(str(source), split)
    except DataError as error:
        if not Path(source).is_dir():
            raise
        why = "no picture lies in the folder, and no data set format knows it"
        mend = "name a folder with pictures, or FORMAT:PATH of a data set"
        raise DataError("no pictures to calibrate with", where=source, why=why, mend=mend) from error
    if not len(dataset):
        raise DataError("no pictures to calibrate with", where=source, mend="name a folder with pictures")
    return dataset


@contextmanager
def _named_as_calibration() -> Iterator[None]:
    """Say of a picture that cannot be read that calibration asked for it; the export names no picture otherwise."""
    try:
        yield
    except (ImageReadError, DataError) as error:
        mend = "move it out of the calibration pictures, or name others with --calibration"
        what = f"bad calibration picture: {error.what}"
        raise type(error)(what, where=error.where, why=error.why, mend=mend) from error


def _picture_files(path: Path) -> list[Path]:
    """The pictures of a plain folder; none where a data set format claims the folder, or for anything else."""
    if path.is_file() and path.suffix.lower() in PICTURES:
        return [path]
    if not path.is_dir():
        return []
    from leadline.data.dataset import open_dataset

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    try:
        open_dataset(str(path))
    except DataError:
        return files
    return []


def _choice(total: int, count: int, seed: int) -> list[int]:
    if total <= count:
        return list(range(total))
    return sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())


@dataclass
class Activation:
    """What calibration saw of one tensor: its extremes, and in a second pass a histogram of |x|.

    The histogram lies between 0 and the largest; exact zeros are counted apart, since they quantise without error.
    """

    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def largest(self) -> float:
        """The largest |x|."""
        return max(abs(self.low), abs(self.high))

    def extend(self, values: NDArray[np.float32]) -> None:
        """First pass: widen the extremes."""
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def count(self, values: NDArray[np.float32]) -> None:
        """Second pass: fill the histogram."""
        size = np.abs(values[values != 0])
        self.zeros += values.size - size.size
        if self.largest > BINS * float(np.finfo(np.float32).tiny):  # below that, bins have no width
            self.counts += np.histogram(size, BINS, range=(0.0, self.largest))[0]

    def limits(self, method: Calibration, percentile: float = 99.99, *, symmetric: bool = False) -> tuple[float, float]:
        """(lowest, highest) value that INT8 has to represent; always holds 0, never empty.

        Args:
            method: the rule.
            percentile: of |x|, for the percentile rule.
            symmetric: the quantiser will widen the range to -clip .. clip; the mse rule must know its steps.
        """
        clip = self.largest
        if method == "percentile":
            clip = percentile_clip(self.counts, self.zeros, percentile) * self.largest / BINS
        elif method == "entropy":
            clip = entropy_clip(self.counts) * self.largest / BINS
        elif method == "mse" and self.counts.any():
            sides = (1.0, 1.0) if symmetric else (max(-self.low, 0) / self.largest, max(self.high, 0) / self.largest)
            clip = mse_clip(self.counts, (sides[0] * BINS, sides[1] * BINS)) * self.largest / BINS
        low, high = max(min(self.low, 0.0), -clip), min(max(self.high, 0.0), clip)
        # A tensor that is always 0 has no range of its own, and one below float32's normal numbers no scale.
        return (low, high) if high - low > STEPS * float(np.finfo(np.float32).tiny) else (0.0, 1.0)


def percentile_clip(counts: NDArray[np.int64], zeros: int, percentile: float) -> int:
    """The bin edge below which `percentile` % of all |x| lie (zeros counted); 1 to the number of bins."""
    total = zeros + int(counts.sum())
    if total == zeros:
        return len(counts)
    below = zeros + np.cumsum(counts)
    return min(int(np.searchsorted(below, total * percentile / 100)) + 1, len(counts))


def entropy_clip(counts: NDArray[np.int64], levels: int = LEVELS) -> int:
    """The bin edge where clipping loses least information; `levels` to the number of bins.

    For each candidate edge i, the reference P is the histogram with everything above i moved into the last bin below i
    that holds something (clipped values get its level), and Q the first i bins quantised to `levels`, spread evenly
    over the bins that hold something. The last minimum of KL(P || Q) wins (SPEC.md section 8). Sums over levels come
    from running sums, so that all edges are tried at once.
    """
    total = int(counts.sum())
    edges = np.arange(levels, len(counts) + 1)
    if total == 0:
        return len(counts)
    filled = counts > 0
    mass = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    bins_filled = np.concatenate([[0], np.cumsum(filled)]).astype(np.float64)
    plogp = np.concatenate([[0.0], np.cumsum(_xlogy(counts, counts))])

    starts = -(-np.arange(levels + 1)[None, :] * edges[:, None] // levels)  # first bin of each level: ceil(k*i/levels)
    level_mass = np.diff(mass[starts], axis=1)
    level_bins = np.diff(bins_filled[starts], axis=1)
    height = np.divide(level_mass, level_bins, out=np.zeros_like(level_mass), where=level_bins > 0)

    top = np.maximum.accumulate(np.where(filled, np.arange(len(counts)), -1))[edges - 1]  # takes what is clipped
    kept, tail, last = mass[edges], total - mass[edges], counts[top].astype(np.float64)
    top_height = np.take_along_axis(height, (top * levels // edges).clip(0)[:, None], axis=1)[:, 0]
    p_log_p = plogp[top] + _xlogy(last + tail, last + tail)
    p_log_q = _xlogy(level_mass, height).sum(axis=1) + _xlogy(tail, top_height)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (p_log_p - p_log_q) / total - np.log(total) + np.log(kept)
    divergence[kept < KEPT * total] = np.inf
    if not np.isfinite(divergence).any():
        return len(counts)
    best = float(divergence.min())
    return int(edges[np.flatnonzero(divergence <= best + 1e-12)[-1]])


def mse_clip(counts: NDArray[np.int64], sides: tuple[float, float]) -> int:
    """The bin edge where clipping and rounding together make the smallest mean squared error; 1 to the number of bins.

    Values are taken as spread evenly within their bin, so that the error of rounding to the quantiser's grid is an
    integral in closed form. Every COARSE-th edge is tried, then all around the best.

    Args:
        counts: histogram of |x|.
        sides: how far the values reach below and above 0, in bins: the clipped range is cut into STEPS steps.
    """
    if not counts.any():
        return len(counts)
    filled = np.flatnonzero(counts)
    starts = filled.astype(np.float64)

    def error(edge: int) -> float:
        step = (min(edge, sides[0]) + min(edge, sides[1])) / STEPS
        inside = filled < edge
        kept, above = starts[inside], starts[~inside] - edge
        rounding = (_squared_rounding(kept + 1, step) - _squared_rounding(kept, step)) @ counts[filled[inside]]
        clipping = (((above + 1) ** 3 - above**3) / 3) @ counts[filled[~inside]]
        return float(rounding + clipping)

    coarse = min(range(COARSE, len(counts) + 1, COARSE), key=error)
    near = range(max(1, coarse - COARSE + 1), min(len(counts), coarse + COARSE - 1) + 1)
    return min(near, key=error)


def _squared_rounding(x: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """The integral from 0 to x of (t - its nearest multiple of step) squared."""
    whole = np.round(x / step)
    return whole * step**3 / 12 + (x - whole * step) ** 3 / 3


def _xlogy(
    x: NDArray[np.float64] | NDArray[np.int64], y: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.asarray(x, np.float64) * np.log(np.where(x > 0, np.maximum(y, 1e-300), 1.0))


def activation_limits(
    collect: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]], options: ExportOptions
) -> dict[str, tuple[float, float]]:
    """The range of every activation that `collect` returns.

    Args:
        collect: runs one prepared input and returns activations by name.
        options: calibration inputs and rule. Minmax needs one pass over them, the histograms a second.

    Raises:
        ConfigError: no calibration inputs, or a percentile outside 0 to 100.
        NumericalError: an activation is NaN or infinite.
    """
    if not options.calibration:
        raise ConfigError("the calibration set is empty", mend="give at least one picture; 100 are usual")
    if not 0 < options.percentile <= 100:
        raise ConfigError("bad percentile", where=options.percentile, why="it must lie above 0 and be at most 100")
    seen: dict[str, Activation] = {}
    for inputs in options.calibration:
        for name, values in collect(inputs).items():
            seen.setdefault(name, Activation()).extend(values)
    for name, activation in seen.items():
        if not np.isfinite(activation.largest):
            raise NumericalError(
                "NaN or infinity during calibration", where=name, mend="check the pictures and weights"
            )
    if options.method != "minmax":
        _count_all(seen, collect, options.calibration)
    rule, share, symmetric = options.method, options.percentile, options.symmetric
    return {name: activation.limits(rule, share, symmetric=symmetric) for name, activation in seen.items()}


def _count_all(
    seen: dict[str, Activation],
    collect: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    inputs: Sequence[NDArray[np.float32]],
) -> None:
    for values in inputs:
        for name, activation in collect(values).items():
            seen[name].count(activation)
