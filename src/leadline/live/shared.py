"""The latest depth in shared memory, for other processes on this machine.

Layout (little-endian; 64 bytes, then the values as float32, row by row):

====== ======= ===================================================================================
offset type    content
====== ======= ===================================================================================
0      char[8] `LEADLINE`
8      uint32  version of the layout, 1
12     uint32  kind: 0 metric_depth, 1 relative_depth, 2 relative_disparity, 3 scaled_disparity
16     uint32  height, as the network returned it
20     uint32  width
24     uint64  begun: number of the frame, written before anything else of that frame
32     float64 time of the picture, seconds since 1970
40     float64 scale: metres = scale * value; 0 where the values have no unit
48     uint64  finished: the same number, written after everything else; 0 before the first frame
====== ======= ===================================================================================

A reader takes `finished`, copies, and then takes `begun`: where both are the same number above 0, the copy is whole.
"""

from __future__ import annotations

import mmap
import re
import sys
import time
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.depth import Depth, Kind
from leadline.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION, MAGIC, START = 1, b"LEADLINE", 64
KINDS = (Kind.METRIC_DEPTH, Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY)
_BEGUN, _FINISHED = 3, 6  # places among the header's 8-byte words, which are written in one go
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,29}")
_TRIES, _PAUSE_S = 200, 0.001


class Share:
    """Writes depth into the block `name`, which is made at the first frame and removed at the end.

    Raises:
        ConfigError: a name that not all systems take.
    """

    def __init__(self, name: str) -> None:
        _check_name(name)
        self.name, self.frames = name, 0
        self._block: SharedMemory | None = None

    def write(self, values: NDArray[np.float32], kind: Kind, unix: float) -> None:
        """The next frame: h x w float32, what its values mean, when its picture arrived.

        Raises:
            OutputError: the block is another's, or cannot be made.
            DataError: another size than the first frame's.
        """
        if self._block is None:
            self._block = _made(self.name, START + 4 * values.size)
            np.frombuffer(self._buffer, "<u4", 4, 8)[:] = VERSION, KINDS.index(kind), *values.shape
            self._buffer[:8] = MAGIC
        buffer = self._buffer
        if tuple(np.frombuffer(buffer, "<u4", 2, 16)) != values.shape:
            raise DataError("the depth's size changed", where=f"--share {self.name}", why=f"now {values.shape}")
        self.frames += 1
        words, reals = np.frombuffer(buffer, "<u8", 8), np.frombuffer(buffer, "<f8", 8)
        words[_BEGUN] = self.frames
        reals[4:6] = unix, float(kind is Kind.METRIC_DEPTH)
        np.frombuffer(buffer, "<f4", values.size, START)[:] = values.reshape(-1)
        words[_FINISHED] = self.frames

    @property
    def _buffer(self) -> Any:
        assert self._block is not None
        return self._block.buf

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        if self._block is not None:
            self._block.close()
            self._block.unlink()
            self._block = None


@dataclass(frozen=True)
class Shared:
    """One whole frame: its depth at the network's size, its number, and when its picture arrived (seconds, 1970)."""

    depth: Depth
    frame: int
    unix: float


def read(name: str) -> Shared:
    """The latest whole frame that `leadline camera --share NAME` wrote.

    Raises:
        DataError: no such block, a foreign one, or no whole frame within about 0.2 s.
    """
    _check_name(name)
    content: bytes = b""
    for _ in range(_TRIES):
        content = _copied(name)
        if len(content) < START or content[:8] not in (MAGIC, bytes(8)):  # zeros: it is being made
            raise DataError("not a block of leadline camera", where=name)
        words = np.frombuffer(content, "<u8", 8)
        if 0 < words[_FINISHED] == words[_BEGUN]:
            version, kind, height, width = (int(each) for each in np.frombuffer(content, "<u4", 4, 8))
            if version != VERSION:
                raise DataError("another version of the layout", where=name, why=f"{version}, {VERSION} is read")
            values = np.frombuffer(content, "<f4", height * width, START).reshape(height, width)
            depth = Depth(values.astype(np.float32), KINDS[kind], source=name)
            return Shared(depth, int(words[_BEGUN]), float(np.frombuffer(content, "<f8", 1, 32)[0]))
        time.sleep(_PAUSE_S)
    raise DataError("no whole frame", where=name, why="it was written anew during each look, or never")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        mend = "take up to 30 letters, digits, _, - and ."
        raise ConfigError("not a name for shared memory", where=f"--share {name}", mend=mend)


def _made(name: str, size: int) -> SharedMemory:
    try:
        return SharedMemory(name, create=True, size=size)
    except FileExistsError as error:
        why = "another process writes it, or one that was killed left it"
        mend = f"take another name, or delete /dev/shm/{name} if nobody uses it"
        raise OutputError("shared memory of this name is there", where=f"--share {name}", why=why, mend=mend) from error
    except OSError as error:
        raise OutputError("cannot make shared memory", where=f"--share {name}", why=str(error)) from error


def _copied(name: str) -> bytes:
    """The block, with `finished` as it was before and `begun` as it is after everything else was copied."""
    try:
        block = _mapped(name)
    except (OSError, ValueError) as error:
        raise DataError(
            "no such shared memory", where=name, mend=f"start leadline camera ... --share {name}"
        ) from error
    buffer: Any = block.buf if isinstance(block, SharedMemory) else block
    finished = bytes(buffer[48:56])
    content = bytearray(buffer[:])
    content[24:32], content[48:56] = buffer[24:32], finished
    block.close()
    return bytes(content)


def _mapped(name: str) -> SharedMemory | mmap.mmap:
    """The block for reading; SharedMemory before Python 3.13 would remove it when a mere reader ends."""
    if (place := Path("/dev/shm") / name).exists():
        with place.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    untracked: dict[str, Any] = {"track": False} if sys.version_info >= (3, 13) else {}
    return SharedMemory(name, **untracked)
