"""Clips of frames are decoded once, in any number of threads, and a fault names its sample."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from leadline.data.dataset import Dataset, Sample
from leadline.depth import Depth, Kind
from leadline.errors import DataError
from leadline.training.batches import Batch, ahead
from tiny_clips import METRIC, PLAIN, mix_of, still_frames


def test_each_frame_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadline.data import frames

    read: list[str] = []
    real = frames.read_image
    monkeypatch.setattr(frames, "read_image", lambda path: read.append(path.name) or real(path))
    source = {"data": f"frames:{still_frames(tmp_path / 'film', 6)}?fov=60", "frames": [-1, 1]}
    mix = mix_of(source)
    for iteration in range(4):
        mix.batch(iteration)
    # each inner frame at most twice: as a neighbour first, then whole; the ends are only ever neighbours
    assert max(read.count(name) for name in read) <= 2
    before = len(read)
    for iteration in range(4, 8):
        mix.batch(iteration)
    assert len(read) == before
    tight = mix_of(source, cache_mb=0)
    again = [tight.batch(iteration).clip for iteration in range(2)]
    assert all(torch.equal(one.seen, mix.batch(n).clip.seen) for n, one in enumerate(again))  # type: ignore[union-attr]


def test_batches_are_the_same_from_any_number_of_threads(tmp_path: Path) -> None:
    source = {"data": f"frames:{still_frames(tmp_path / 'film', 7)}?fov=60", "frames": [-1, 1]}
    options = PLAIN | {"zoom": 1.4, "colour": 0.3, "flip": 0.5}
    alone = [mix_of(source, augmentation=options).batch(number) for number in range(2, 9)]
    for workers in (1, 3):
        several = list(ahead(mix_of(source, augmentation=options), 2, 9, workers=workers))
        assert [batch.names for batch in several] == [batch.names for batch in alone]
        for one, other in zip(several, alone, strict=True):
            assert torch.equal(one.image, other.image)
            assert one.clip is not None
            assert other.clip is not None
            assert torch.equal(one.clip.sources, other.clip.sources)


class Failing(Dataset):
    """Its third picture cannot be had."""

    format = "failing"
    name = "failing"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @classmethod
    def detect(cls, path: Path) -> bool:
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Dataset:
        raise NotImplementedError

    def __len__(self) -> int:
        return 3

    def names(self) -> list[str]:
        return ["one", "two", "three"]

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            raise self.error
        depth = Depth(np.ones((32, 32), np.float32), Kind.METRIC_DEPTH)
        return Sample(self.names()[index], np.zeros((32, 32, 3), np.uint8), depth)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (MemoryError(), DataError, "out of memory.*'three'.*cache_mb"),
        (DataError("truncated"), DataError, "'three'.*truncated"),
        (SystemExit(3), SystemExit, "3"),
    ],
)
def test_a_dying_loader_is_an_error_that_names_the_sample_and_never_a_hang(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: type[BaseException], says: str
) -> None:
    monkeypatch.setattr("leadline.training.batches.open_dataset", lambda *_, **__: Failing(error))
    mix = mix_of({"data": "failing"}, contract=METRIC)
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            list(ahead(mix, 0, 50, workers=2))
        except BaseException as raised:  # noqa: BLE001  whatever it is, it must arrive
            caught.append(raised)

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    consumer.join(timeout=60)
    assert not consumer.is_alive()
    with pytest.raises(kind, match=says):
        raise caught[0]


def test_a_fault_in_the_program_itself_says_which_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadline.training.batches.open_dataset", lambda *_, **__: Failing(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug") as caught:
        [mix_of({"data": "failing"}, contract=METRIC).batch(number) for number in range(3)]
    assert caught.value.__notes__ == ["while reading the training sample three"]


def test_threads_end_when_the_training_stops_early(tmp_path: Path) -> None:
    mix = mix_of({"data": f"frames:{still_frames(tmp_path / 'film')}?fov=60", "frames": [1]})
    batches = ahead(mix, 0, 1000, workers=2)
    first: Batch = next(batches)
    assert first.clip is not None
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("leadline-batches")]
