"""The contract of a network: what it expects, what it returns, and the one way to prepare and restore."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ContractError, NumericalError
from leadline.image import Interpolation, resize

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

Triple = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=16384)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Camera(_Frozen):
    """The camera model that a metric network learned, as fractions of the picture's sides.

    Metric depth from one picture is right only for the field of view of training; a picture from another camera is
    corrected by the ratio of focal lengths.
    """

    fx_over_width: float = Field(gt=0)
    fy_over_height: float = Field(gt=0)


class InputSpec(_Frozen):
    """How a picture becomes the network's input tensor, N x 3 x H x W float32."""

    height: Side
    width: Side
    dynamic: bool = False  # True: other sizes may be asked for, within the three limits below
    multiple_of: Side = 1
    min_side: Side = 1
    max_side: Side = 16384
    resize: Literal["stretch", "keep_aspect"] = "stretch"  # keep_aspect: both sides at least (height, width), SPEC 6.3
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    channels: Literal["rgb", "bgr"] = "rgb"
    value_max: float = Field(default=1.0, gt=0)  # pictures are scaled to 0..value_max before mean and std
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    camera: Camera | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.height % self.multiple_of or self.width % self.multiple_of:
            raise ValueError(f"height and width must be multiples of {self.multiple_of}")
        return self


class OutputSpec(_Frozen):
    """What the network returns, N x 1 x H x W float32, and how it is brought to the picture's size."""

    kind: Kind
    minimum: float | None = None
    maximum: float | None = None
    align_corners: bool = False


class Contract(_Frozen):
    """Everything that a program needs to know to run a depth network; written next to every weight.

    Raises:
        ContractError: from `load`, when the file is not a valid contract.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=200)
    input: InputSpec
    output: OutputSpec
    licence: str = "unknown"
    provenance: str = ""
    training_data: tuple[str, ...] = ()

    def size_for(self, height: int, width: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """(height, width) of the network's input for a picture of this size, in pixels.

        Args:
            height: of the picture.
            width: of the picture.
            size: another base size than the contract's, where it is dynamic.

        Raises:
            ContractError: the wanted size is not allowed; the message proposes the nearest that is.
        """
        spec = self.input
        base = self.checked_size(size) if size is not None else (spec.height, spec.width)
        if spec.resize == "stretch":
            return base
        scale = max(base[0] / height, base[1] / width)
        return self._rounded(scale * height, base[0]), self._rounded(scale * width, base[1])

    def checked_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size itself if the network may be run at it.

        Raises:
            ContractError: it may not; the message proposes one.
        """
        spec, n = self.input, self.input.multiple_of
        if tuple(size) == (spec.height, spec.width):
            return size
        place = f"{size[0]}x{size[1]} (height x width)"
        if not spec.dynamic:
            mend = f"use {spec.height},{spec.width}"
            raise ContractError("wrong input size", where=place, why=f"{self.name} has a fixed input", mend=mend)
        if any(side % n or not spec.min_side <= side <= spec.max_side for side in size):
            near = [
                min(max(round(side / n) * n, math.ceil(spec.min_side / n) * n), spec.max_side // n * n) for side in size
            ]
            rule = f"sides must be multiples of {n} from {spec.min_side} to {spec.max_side}"
            raise ContractError("wrong input size", where=place, why=rule, mend=f"use {near[0]},{near[1]}")
        return size

    def at(self, size: tuple[int, int]) -> Self:
        """The same contract with another base size, (height, width) in pixels.

        Raises:
            ContractError: the network may not be run at it; the message proposes a size.
        """
        height, width = self.checked_size(size)
        changed = self.input.model_copy(update={"height": height, "width": width})
        return self.model_copy(update={"input": changed})

    def _rounded(self, side: float, at_least: int) -> int:
        n = self.input.multiple_of
        rounded = int(np.round(side / n) * n)
        wanted = rounded if rounded >= at_least else int(math.ceil(side / n) * n)
        return min(wanted, self.input.max_side // n * n)  # a 1 x 5000 picture would ask for millions of pixels

    def prepare(self, image: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A picture as the network's input.

        Args:
            image: H x W x 3 uint8, RGB, 0..255.
            size: (height, width) instead of the contract's own, where it is dynamic.

        Returns:
            1 x 3 x h x w float32, scaled and normalised.

        Raises:
            ContractError: wrong shape or dtype of the picture, or a size that is not allowed.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ContractError("a picture must be uint8 H x W x 3", why=f"got {image.dtype} {image.shape}")
        spec = self.input
        height, width = image.shape[:2]
        resized = resize(image, self.size_for(height, width, size), spec.interpolation, antialias=spec.antialias)
        return self.normalise(resized)[None]

    def normalise(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """H x W x 3 RGB in 0..255 (uint8 or float32) to 3 x H x W float32 in the network's value range."""
        order = (2, 1, 0) if self.input.channels == "bgr" else (0, 1, 2)
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        for plane, source, (gain, offset) in zip(out, order, self.affine, strict=True):
            plane[...] = pixels[:, :, source]
            plane *= gain
            plane += offset
        return out

    @cached_property
    def affine(self) -> tuple[tuple[float, float], ...]:
        """Per input channel (gain, offset): input = gain * (0..255 value) + offset."""
        spec = self.input
        return tuple((spec.value_max / 255 / s, -m / s) for m, s in zip(spec.mean, spec.std, strict=True))

    def restore(
        self,
        output: NDArray[np.float32],
        size: tuple[int, int],
        *,
        intrinsics: Intrinsics | None = None,
        source: str = "",
    ) -> Depth:
        """The network's output as a Depth at the picture's size: the inverse of `prepare`.

        Args:
            output: h x w, or 1 x 1 x h x w float32, as the network returned it.
            size: (height, width) of the picture, pixels.
            intrinsics: the picture's camera; metric depth is corrected for its focal length where the contract
                names the camera of training.
            source: for messages and the result.

        Raises:
            NumericalError: the output holds NaN or infinity.
            ContractError: the output has another shape.
        """
        plane = output.reshape(output.shape[-2:]) if output.size == math.prod(output.shape[-2:]) else output
        if plane.ndim != 2:
            raise ContractError("the network must return one map per picture", why=f"got shape {output.shape}")
        if not np.isfinite(plane).all():
            share = 1 - np.isfinite(plane).mean()
            raise NumericalError("NaN or infinity in the output", where=source or self.name, why=f"{share:.1%} of it")
        values = resize(
            np.ascontiguousarray(plane, np.float32), size, "bilinear", align_corners=self.output.align_corners
        )
        factor = self.focal_ratio(size, intrinsics)
        if factor != 1.0:
            values = values * np.float32(factor)
        return Depth(np.asarray(values, np.float32), self.output.kind, intrinsics, source)

    def focal_ratio(self, size: tuple[int, int], intrinsics: Intrinsics | None) -> float:
        """Focal length of this picture over that of training, both relative to the picture; 1 where unknown."""
        camera = self.input.camera
        if camera is None or intrinsics is None or self.output.kind is not Kind.METRIC_DEPTH:
            return 1.0
        height, width = size
        along_x = intrinsics.fx / width / camera.fx_over_width
        along_y = intrinsics.fy / height / camera.fy_over_height
        return math.sqrt(along_x * along_y)

    def assumed_camera(self, height: int, width: int) -> Intrinsics | None:
        """The camera with square pixels for which the metres of a picture without one are right, centred.

        It is that of training for a picture of training's proportions, and that one turned for a turned picture; for
        every other, the one whose `focal_ratio` is 1.

        Args:
            height: of the picture, pixels.
            width: of the picture, pixels.

        Returns:
            None where the network names no camera, or its values are no metres.
        """
        camera = self.input.camera
        if camera is None or self.output.kind is not Kind.METRIC_DEPTH:
            return None
        focal = math.sqrt(camera.fx_over_width * width * camera.fy_over_height * height)
        return Intrinsics(focal, focal, width / 2, height / 2)

    def save(self, path: Path) -> None:
        """Write the contract as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Contract:
        """Read a contract written by `save`.

        Raises:
            ContractError: missing file, broken JSON, unknown keys or wrong values.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ContractError("no contract", where=path, mend="a contract.json must lie beside the model") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ContractError("not a valid contract", where=path, why=f"{place}: {first['msg']}") from error
