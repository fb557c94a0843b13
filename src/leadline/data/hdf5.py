"""Arrays out of HDF5 files, with Leadline's errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.data.arrays import MAX_BYTES
from leadline.errors import ImageReadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray


class Hdf5:
    """An HDF5 file, open while the `with` block lasts (so that workers never share a handle).

    Raises:
        ImageReadError: missing, or not an HDF5 file.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            why = "no such file" if not path.exists() else f"not an HDF5 file, or damaged: {error}"
            raise ImageReadError("cannot read", where=path, why=why) from error

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a dataset.

        Raises:
            ImageReadError: there is no such dataset.
        """
        with self._judging(name):
            return tuple(self._dataset(name).shape)

    def read(self, name: str, index: int | None = None) -> NDArray[Any]:
        """A numeric dataset, or its slice at `index` of the first axis; at most 256 MiB.

        Raises:
            ImageReadError: missing, damaged, too large or not numeric.
        """
        with self._judging(name):
            dataset = self._dataset(name)
            if dataset.dtype.kind not in "biuf":
                raise ImageReadError("not numbers", where=self.path, why=f"{name} has dtype {dataset.dtype}")
            count = dataset.size if index is None else dataset.size // max(1, dataset.shape[0])
            if count * dataset.dtype.itemsize > MAX_BYTES:
                raise ImageReadError("array too large", where=self.path, why=f"{name}: {dataset.shape}")
            return np.asarray(dataset[()] if index is None else dataset[index])

    @contextmanager
    def _judging(self, name: str) -> Iterator[None]:
        """Turn what h5py raises for damaged files, which differs by the damaged place, into one error."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ImageReadError("damaged HDF5 file", where=self.path, why=f"{name}: {error}") from error

    def _dataset(self, name: str) -> Any:
        import h5py

        found = self._file.get(name)
        if not isinstance(found, h5py.Dataset):
            why = f"no dataset {name!r}, only {', '.join(sorted(self._file)[:20]) or 'nothing'}"
            raise ImageReadError("unexpected content", where=self.path, why=why)
        return found
