"""Depth in shared memory: its layout, tearing, other processes, and that nothing is left."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_films as tiny
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, OutputError
from leadline.live import shared
from leadline.live.shared import Share, read
from predicting import write_model
from test_camera import camera

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"leadline-{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for code, kind in enumerate(Kind)])
def test_the_layout_is_the_documented_one(name: str, kind: Kind, code: int) -> None:
    with Share(name) as share:
        share.write(VALUES, kind, 12.5)
        share.write(VALUES + 1, kind, 13.5)
        block = SharedMemory(name)
        content = bytes(block.buf[: 64 + 24])
        block.close()
        found = read(name)
    scale = 1.0 if kind is Kind.METRIC_DEPTH else 0.0
    assert struct.unpack("<8sIIIIQddQ", content[:56]) == (b"LEADLINE", 1, code, 2, 3, 2, 13.5, scale, 2)
    assert struct.unpack("<6f", content[64:]) == (1, 2, 3, 4, 5, 6)
    assert (found.depth.kind, found.frame, found.unix) == (kind, 2, 13.5)
    np.testing.assert_array_equal(found.depth.values, VALUES + 1)


def test_a_frame_that_is_being_written_is_not_returned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_TRIES", 3)
    with Share(name) as share:
        share.write(VALUES, Kind.METRIC_DEPTH, 0.0)
        block = SharedMemory(name)
        struct.pack_into("<Q", block.buf, 24, 2)  # the second frame has begun
        with pytest.raises(DataError, match="no whole frame"):
            read(name)
        struct.pack_into("<Q", block.buf, 48, 2)
        assert read(name).frame == 2
        block.close()


def test_no_reader_ever_sees_a_torn_frame(name: str) -> None:
    done = threading.Event()

    def work() -> None:
        number = 0
        while not done.is_set():
            number += 1
            share.write(np.full((200, 300), number, np.float32), Kind.METRIC_DEPTH, float(number))

    with Share(name) as share:
        share.write(np.zeros((200, 300), np.float32), Kind.METRIC_DEPTH, 0.0)
        writer = threading.Thread(target=work)
        writer.start()
        try:
            seen = [read(name) for _ in range(300)]
        finally:
            done.set()
            writer.join()
    for each in seen:
        assert float(np.ptp(each.depth.values)) == 0
        assert each.depth.values[0, 0] == each.unix == each.frame - 1
    assert len({each.frame for each in seen}) > 1
    assert [each.frame for each in seen] == sorted(each.frame for each in seen)


def test_another_process_reads_it_and_leaves_it(name: str) -> None:
    code = f"from leadline.live.shared import read; print(read({name!r}).depth.values.sum())"
    with Share(name) as share:
        share.write(VALUES, Kind.METRIC_DEPTH, 0.0)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.stderr) == ("15.0", "")
        assert read(name).frame == 1


def test_nothing_is_left(name: str) -> None:
    with Share(name) as share:
        share.write(VALUES, Kind.METRIC_DEPTH, 0.0)
        with pytest.raises(DataError, match="size changed"):
            share.write(VALUES.T, Kind.METRIC_DEPTH, 0.0)
    with pytest.raises(DataError, match="no such shared memory"):
        read(name)
    with Share(name):
        pass  # no frame came
    with pytest.raises(DataError, match="no such shared memory"):
        read(name)


def test_the_block_of_another_is_left_alone(name: str) -> None:
    with Share(name) as first:
        first.write(VALUES, Kind.METRIC_DEPTH, 0.0)
        with Share(name) as second, pytest.raises(OutputError, match="another process writes it"):
            second.write(VALUES + 9, Kind.METRIC_DEPTH, 0.0)
        np.testing.assert_array_equal(read(name).depth.values, VALUES)


@pytest.mark.parametrize("size", [16, 100])
def test_a_foreign_block_is_not_read(name: str, size: int) -> None:
    foreign = SharedMemory(name, create=True, size=size)
    try:
        foreign.buf[:8] = b"whatever"
        with pytest.raises(DataError, match="not a block of leadline camera"):
            read(name)
    finally:
        foreign.close()
        foreign.unlink()


@pytest.mark.parametrize("bad", ["", "a/b", "../x", ".x", "é", "x" * 31])
def test_names(bad: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        Share(bad)
    with pytest.raises(ConfigError, match="not a name"):
        read(bad)


def test_the_command_shares_what_it_sees(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[shared.Shared] = []
    write = Share.write

    def looked(self: Share, *arguments: Any) -> None:
        write(self, *arguments)
        seen.append(read(name))

    monkeypatch.setattr(Share, "write", looked)
    film = tiny.film(tmp_path / "in.mp4", 3)
    result = camera(write_model(tmp_path / "model"), film, "--show", "none", "--share", name)
    assert result.exit_code == 0, result.output
    assert [each.frame for each in seen] == [1, 2, 3]
    assert {each.depth.shape for each in seen} == {(32, 64)}
    with pytest.raises(DataError, match="no such shared memory"):
        read(name)
