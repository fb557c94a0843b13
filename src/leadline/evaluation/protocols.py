"""Protocols: how accuracy is counted, named and pinned, so that a figure means the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from leadline.data.dataset import Sample
from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, KindError, closest
from leadline.evaluation.alignment import Alignment
from leadline.image import resize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FALLBACK_CAP = 80.0  # metres, where neither protocol nor data set names a cap
FOREIGN_CAP, FOREIGN_SHAPE = 2.0, 1.2  # factors of cap and of width over height from which data is another kind


@dataclass(frozen=True)
class Crop:
    """The part of the picture that counts, as fractions of its sides; bounds are truncated to pixels."""

    top: float
    bottom: float
    left: float
    right: float

    def bounds(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(first row, end row, first column, end column), ends exclusive."""
        rows = int(self.top * height + 1e-9), int(self.bottom * height + 1e-9)
        return *rows, int(self.left * width + 1e-9), int(self.right * width + 1e-9)


GARG_CROP = Crop(0.40810811, 0.99189189, 0.03594771, 0.96405229)
KITTI_EIGEN_CROP = Crop(0.3324324, 0.91351351, 0.0359477, 0.96405229)
NYU_EIGEN_CROP = Crop(45 / 480, 471 / 480, 41 / 640, 601 / 640)


@dataclass(frozen=True)
class Protocol:
    """How accuracy is counted.

    Args:
        name: of the protocol, without variants.
        alignments: the alignment for each kind that the protocol accepts; every other kind is refused.
        min_depth: metres; ground truth at or below it does not count.
        max_depth: metres; ground truth at or above it does not count. None takes the data set's.
        capped: False: no cap and no clamping of the prediction at all.
        crop: the part of the picture that counts.
        pictures: (height, width) of the pictures that the crop was made for.
        preparation: what is done to picture and depth before the model sees them.
        mask: `truth`: pixels with ground truth; `either`: pixels with ground truth or a positive prediction.
        averaging: figures per picture and then their mean, or over all pixels of all pictures.
        truth: `data`: the data set's depth; `model`: another model's output.
        variants: changes to the pinned protocol, in the order in which they are printed.
    """

    name: str
    alignments: Mapping[Kind, Alignment]
    min_depth: float = 1e-3
    max_depth: float | None = None
    capped: bool = True
    crop: Crop | None = None
    pictures: tuple[int, int] | None = None
    preparation: Literal["none", "fastdepth-224"] = "none"
    mask: Literal["truth", "either"] = "truth"
    averaging: Literal["per-image", "pooled"] = "per-image"
    truth: Literal["data", "model"] = "data"
    variants: tuple[str, ...] = field(default=())

    @property
    def label(self) -> str:
        """The name that is printed with every figure: `nyu-eigen`, or `nyu-eigen/median` for a variant."""
        return "/".join((self.name, *self.variants))

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of prediction that may be scored."""
        return frozenset(self.alignments)

    @property
    def cap(self) -> float:
        """Metres; infinity where the protocol has none."""
        if not self.capped:
            return float("inf")
        return self.max_depth if self.max_depth is not None else FALLBACK_CAP

    @property
    def primary(self) -> str:
        """The metric that ranks models under this protocol."""
        return "agreement" if self.truth == "model" else "delta1"

    def label_for(self, kind: Kind) -> str:
        """The label for a model of this kind; where alignment depends on the kind, it is named.

        Raises:
            KindError: the protocol does not accept the kind.
        """
        alignment = self.alignment_for(kind)
        depends = self.truth == "data" and len(set(self.alignments.values())) > 1
        return f"{self.label}/{alignment.value}" if depends else self.label

    def alignment_for(self, kind: Kind, model: str | None = None) -> Alignment:
        """The alignment that a prediction of this kind gets.

        Args:
            kind: of the model's output.
            model: its name, for the message.

        Raises:
            KindError: the protocol does not accept the kind; the message names one that does.
        """
        if kind in self.alignments:
            return self.alignments[kind]
        fitting = f"{self.name}/{Alignment.LSQ_DEPTH}" if kind is Kind.RELATIVE_DEPTH else "zero-shot-disparity"
        why = f"{kind.value} is not comparable with its ground truth; it takes {', '.join(sorted(self.kinds))}"
        raise KindError(f"protocol {self.label} refuses", where=model or kind.value, why=why, mend=f"use {fitting}")

    def for_data(self, max_depth: float | None) -> Protocol:
        """The protocol with its cap filled in from the data set (metres), else 80 m."""
        if not self.capped or self.max_depth is not None:
            return self
        return replace(self, max_depth=max_depth if max_depth is not None else FALLBACK_CAP)

    def misfits(self, max_depth: float | None, size: tuple[int, int] | None) -> list[str]:
        """What of the protocol was made for other data, in words; the figures are still counted by it.

        Args:
            max_depth: the largest depth that the data set trusts, metres; None where it does not say.
            size: (height, width) of its pictures.
        """
        found = []
        if self.capped and self.max_depth is not None and max_depth is not None:
            if self.max_depth > FOREIGN_CAP * max_depth:
                found.append(f"its cap is {self.max_depth:g} m, the data set's largest depth {max_depth:g} m")
            elif self.max_depth * FOREIGN_CAP < max_depth:
                found.append(f"its cap of {self.max_depth:g} m leaves out what lies beyond, up to {max_depth:g} m")
        if self.crop is not None and self.pictures is not None and size is not None:
            (height, width), (own_height, own_width) = size, self.pictures
            stretch = (width / height) / (own_width / own_height)
            if not 1 / FOREIGN_SHAPE < stretch < FOREIGN_SHAPE:
                found.append(f"its crop is for pictures of {own_height}x{own_width}, these have {height}x{width}")
        return [f"{self.name} was made for other data: {'; '.join(found)}"] if found else []

    def prepare(self, sample: Sample) -> Sample:
        """The sample as the protocol shows it to the model; picture, depth and camera change together.

        Raises:
            DataError: the picture is too narrow for the preparation.
        """
        return _fastdepth_224(sample) if self.preparation == "fastdepth-224" else sample

    def valid(self, truth: Depth, prediction: Depth) -> NDArray[np.bool_]:
        """The pixels that count: ground truth within the caps and inside the crop. H x W."""
        mask = truth.valid
        if self.mask == "either":
            mask = mask | (prediction.values > 0)
        if self.capped:
            mask = mask & (truth.values > self.min_depth) & (truth.values < self.cap)
        if self.crop is not None:
            top, bottom, left, right = self.crop.bounds(*truth.shape)
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            mask = mask & inside
        return mask

    def clamp(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Metres, limited to the protocol's range (at least 1 mm) where it has one."""
        if not self.capped:
            return depth
        return np.clip(depth, max(self.min_depth, 1e-3), self.cap)


def _all(alignment: Alignment) -> Mapping[Kind, Alignment]:
    return MappingProxyType(dict.fromkeys(sorted(alignment.kinds), alignment))


_BY_KIND = MappingProxyType({Kind.METRIC_DEPTH: Alignment.NONE, Kind.SCALED_DISPARITY: Alignment.MEDIAN})
_SAME_KIND = MappingProxyType(
    {
        Kind.METRIC_DEPTH: Alignment.NONE,
        Kind.SCALED_DISPARITY: Alignment.MEDIAN,
        Kind.RELATIVE_DEPTH: Alignment.LSQ_DEPTH,
        Kind.RELATIVE_DISPARITY: Alignment.LSQ_DISPARITY,
    }
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("nyu-eigen", _all(Alignment.NONE), max_depth=10.0, crop=NYU_EIGEN_CROP, pictures=(480, 640)),
            Protocol("kitti-eigen", _BY_KIND, max_depth=80.0, crop=GARG_CROP, pictures=(375, 1242)),
            Protocol("kitti-benchmark", _BY_KIND, min_depth=0.0, max_depth=80.0),
            Protocol("ddad", _all(Alignment.MEDIAN), min_depth=0.0, max_depth=200.0),
            Protocol("fastdepth-224", _all(Alignment.NONE), capped=False, preparation="fastdepth-224"),
            Protocol("zero-shot-disparity", _all(Alignment.LSQ_DISPARITY)),
            Protocol("plain", _SAME_KIND),
            Protocol("fidelity", _SAME_KIND, capped=False, truth="model"),
        )
    }
)
ALIASES = {"nyu-eigen-median": "nyu-eigen/median"}
VARIANTS = (*(alignment.value for alignment in Alignment), "or-mask", "eigen-crop", "pooled")


def get_protocol(name: str, alignment: Alignment | str | None = None) -> Protocol:
    """The protocol called `name`, with variants after slashes, as in `nyu-eigen/median`.

    Args:
        name: a name of PROTOCOLS; then any of VARIANTS: an alignment, `or-mask` (fastdepth-224: pixels with a positive
            prediction count too), `eigen-crop` (kitti-eigen: Eigen's crop instead of Garg's), `pooled` (figures over
            all pixels).
        alignment: the same as a variant.

    Raises:
        ConfigError: unknown protocol or variant, or a variant that the protocol cannot have.
    """
    base, *variants = ALIASES.get(name, name).split("/")
    if base not in PROTOCOLS:
        raise ConfigError("unknown protocol", where=name, mend=closest(base, PROTOCOLS))
    protocol = PROTOCOLS[base]
    for variant in [*variants, *([str(alignment)] if alignment is not None else [])]:
        protocol = _changed(protocol, variant)
    return protocol


def _changed(protocol: Protocol, variant: str) -> Protocol:
    if variant not in VARIANTS:
        place = f"{protocol.name}/{variant}"
        raise ConfigError("unknown variant of a protocol", where=place, mend=closest(variant, VARIANTS))
    owner = {"or-mask": "fastdepth-224", "eigen-crop": "kitti-eigen"}.get(variant, protocol.name)
    if owner != protocol.name or protocol.truth == "model":
        mend = f"it belongs to {owner}" if owner != protocol.name else ""
        raise ConfigError(f"protocol {protocol.name} has no variant", where=variant, mend=mend)
    if variant == "or-mask":
        changed = replace(protocol, mask="either")
    elif variant == "eigen-crop":
        changed = replace(protocol, crop=KITTI_EIGEN_CROP)
    elif variant == "pooled":
        changed = replace(protocol, averaging="pooled")
    elif protocol.alignments == _all(Alignment(variant)):
        return protocol
    elif any(earlier in list(Alignment) for earlier in protocol.variants):
        raise ConfigError("a protocol has one alignment", where=f"{protocol.label}/{variant}")
    else:
        changed = replace(protocol, alignments=_all(Alignment(variant)))
    if changed.mask == "either" and changed.kinds != {Kind.METRIC_DEPTH}:
        why = "pixels without ground truth cannot be aligned to it"
        raise ConfigError("or-mask and an alignment exclude each other", where=f"{protocol.label}/{variant}", why=why)
    return replace(changed, variants=(*protocol.variants, variant))


def _fastdepth_224(sample: Sample) -> Sample:
    """FastDepth's validation geometry: height 250, centre crop 228 x 304, then 224 x 224, all nearest (SPEC.md 1.5)."""
    height, width = sample.image.shape[:2]
    scale = 250 / height
    middle = 250, int(width * scale + 1e-9)
    if middle[1] < 304:
        why = f"{width} pixels wide at {height} high; the crop needs a width of at least 1.216 heights"
        raise DataError("fastdepth-224 cannot crop", where=sample.name, why=why)
    top, left = round((middle[0] - 228) / 2), round((middle[1] - 304) / 2)

    def geometry(values: NDArray[np.generic]) -> NDArray[np.generic]:
        shrunk = resize(values, middle, "nearest")
        return resize(shrunk[top : top + 228, left : left + 304], (224, 224), "nearest")

    camera = sample.intrinsics
    if camera is not None:
        camera = camera.resized(middle[0] / height, middle[1] / width).cropped(top, left)
        camera = camera.resized(224 / 228, 224 / 304)
    depth = sample.depth
    if depth is not None:
        values = np.ascontiguousarray(geometry(depth.values), np.float32)
        depth = replace(depth, values=values, intrinsics=camera if depth.intrinsics is not None else None)
    image = np.ascontiguousarray(geometry(sample.image), np.uint8)
    return replace(sample, image=image, depth=depth, intrinsics=camera)
