"""A film of what a live source shows, playable up to its last fragment whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.errors import ConfigError, OutputError
from leadline.live.writers import Segment, film_segment
from leadline.output import check_writable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}


class Recording:
    """Frames at the times when they were taken; the file appears with the first.

    Args:
        path: `.mp4` or `.mkv`; nothing may be there yet.

    Raises:
        ConfigError: another ending.
        OutputError: something is there, or the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in CONTAINERS:
            raise ConfigError("cannot record to", where=str(path), mend=f"end the name in {' or '.join(CONTAINERS)}")
        if path.exists():
            raise OutputError("will not replace", where=path, why="it is there already", mend="choose another name")
        check_writable(path.parent)
        self.path, self.frames = path, 0
        self._file: Segment | None = None
        self._begin, self._last = 0.0, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise _explained(error, self.path) from error

    def add(self, picture: NDArray[np.uint8], seconds: float) -> None:
        """The next frame, H x W x 3 uint8 RGB, all of one size, and its time on any rising clock.

        Raises:
            OutputError: the disk is full, or the place cannot be written.
        """
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._begin = seconds
                self._file = film_segment(self.path, CONTAINERS[self.path.suffix.lower()])
            self._last = max(self._last + 1, round(1000 * (seconds - self._begin)))
            self._file.add(picture, self._last)
        except OSError as error:
            raise _explained(error, self.path) from error
        self.frames += 1


def _explained(error: OSError, path: Path) -> OutputError:
    why, mend = error.strerror or str(error), "free some space, or choose another place"
    return OutputError("cannot record to", where=path, why=why, mend=mend)
