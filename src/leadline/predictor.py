"""From a picture to its depth: prepare by the contract, run, restore."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError, ContractError
from leadline.exif import exif_camera
from leadline.image import read_image, rgb_array
from leadline.reference import load_model, open_session
from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, required

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray
    from PIL.Image import Image

    from leadline.contract import Contract
    from leadline.depth import Depth, Intrinsics
    from leadline.runtimes.base import Session


class Predictor:
    """A model that is ready for pictures of any size.

    Args:
        session: an opened model.
        size: (height, width) of the network's input in pixels, where the contract is dynamic; None for the contract's.

    Raises:
        ContractError: the size is not allowed.
    """

    def __init__(self, session: Session, size: tuple[int, int] | None = None) -> None:
        self.session = session
        self.size = session.contract.checked_size(size) if size is not None else None

    @property
    def contract(self) -> Contract:
        """What the network expects and returns, its depth kind included."""
        return self.session.contract

    def predict(self, image: Path | str | NDArray[np.uint8] | Image, intrinsics: Intrinsics | None = None) -> Depth:
        """Depth of one picture, at the picture's size, in the contract's kind.

        Args:
            image: a path, H x W x 3 uint8 RGB, or a Pillow picture.
            intrinsics: the picture's camera in its pixels, if known; kept in the result, and used to correct metric
                depth where the contract names the camera of training. Without it, a file's EXIF focal length is used.

        Raises:
            ImageReadError: the file cannot be read completely and safely.
            ContractError: the array is not H x W x 3 uint8.
            NumericalError: the engine returned NaN or infinity; the message names it.
        """
        source = str(image) if isinstance(image, Path | str) else ""
        pixels = _pixels(image)
        prepared = self.contract.prepare(pixels, self.size)
        output = self.session.run(prepared)
        if intrinsics is None and source:
            intrinsics = exif_camera(source, *pixels.shape[:2])
        return self.contract.restore(output, pixels.shape[:2], intrinsics=intrinsics, source=source)

    def close(self) -> None:
        """Free what the engine holds."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    ref: str | Path,
    runtime: str | None = None,
    precision: str | None = None,
    *,
    threads: int = 1,
    size: tuple[int, int] | None = None,
) -> Predictor:
    """Open a model for prediction.

    Args:
        ref: zoo name, checkpoint or bundle folder, `.onnx` with a contract beside it, `hf:owner/name`, or a local
            Hugging Face folder.
        runtime: an engine to export to first, in memory of this process only; None runs the reference as it is.
        precision: of that export (`fp32` by default); static INT8 needs calibration pictures, so use
            `leadline export` for it.
        threads: of the engine; 0 is the engine's choice.
        size: (height, width) of the network's input in pixels, where the contract is dynamic.

    Raises:
        ModelReferenceError: the reference names nothing.
        ConfigError: unknown runtime or precision, or a precision without a runtime.
        ContractError: the size is not allowed.
        UnavailableError: the runtime is missing; the message says how to install it.
    """
    options = SessionOptions(threads=threads)
    if runtime is None:
        if precision is not None:
            mend = "give runtime= as well, or export a bundle and load that"
            raise ConfigError("a precision needs a runtime", where=precision, mend=mend)
        return Predictor(open_session(str(ref), options, size=size), size)
    return Predictor(_exported(str(ref), runtime, precision or "fp32", options, size), size)


def _exported(ref: str, runtime: str, precision: str, options: SessionOptions, size: tuple[int, int] | None) -> Session:
    adapter = required(runtime)
    if precision not in list(Precision):
        raise ConfigError("unknown precision", where=precision, mend=f"known: {', '.join(Precision)}")
    model = load_model(ref)
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        wanted = ExportOptions(precision=Precision(precision), size=size)
        return adapter.open(adapter.export(model, wanted, Path(folder)), options)


def _pixels(image: Path | str | NDArray[np.uint8] | Image) -> NDArray[np.uint8]:
    if isinstance(image, Path | str):
        return read_image(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ContractError("a picture must be uint8 H x W x 3 in RGB", why=f"got {image.dtype} {image.shape}")
        return image
    return rgb_array(image)
