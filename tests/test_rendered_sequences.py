"""Rendered sequences: neighbours with true poses, and the motions from which nothing can be learnt."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.data.dataset import open_dataset
from leadline.data.rendered import render_sequence
from leadline.errors import DataError

SMALL = "height=32&width=48"


def test_scenes_follow_one_another_and_only_their_own_frames_are_neighbours() -> None:
    data = open_dataset(f"rendered:room?count=3&sequence=4&{SMALL}")
    assert len(data) == 12
    assert [name[-4:] for name in data.names()[:5]] == ["0000", "0001", "0002", "0003", "0000"]
    assert data.with_neighbours([-1, 1]) == [1, 2, 5, 6, 9, 10]
    assert data.with_neighbours(["stereo"]) == []
    assert data.neighbour(4, -1) is None
    assert data.neighbour_name(5, 1) == data.names()[6]
    with pytest.raises(IndexError):
        data.neighbour_name(12, -1)


def test_frames_are_those_of_the_sequence() -> None:
    data = open_dataset(f"rendered:street?count=2&sequence=3&{SMALL}")
    frames = render_sequence(2_000_001, frames=3, height=32, width=48, scene="street")
    for index, frame in zip((3, 4, 5), frames, strict=True):
        assert data[index].name == frame.name
        assert np.array_equal(data[index].image, frame.image)
        assert np.array_equal(data[index].pose, frame.pose)
    neighbour = data.neighbour(4, 1)
    assert neighbour is not None
    assert neighbour.depth is None
    assert np.array_equal(neighbour.pose, frames[2].pose)


@pytest.mark.parametrize("scene", ["room", "street"])
def test_the_camera_moves_smoothly_and_enough_for_parallax(scene: str) -> None:
    """Steps are alike, and what lies at the median depth shifts by a quarter of a pixel of 640 or more."""
    shifts = []
    for seed in range(6):
        frames = render_sequence(seed, frames=5, height=24, width=80, scene=scene)
        places = np.array([frame.pose[:3, 3] for frame in frames])
        steps = np.diff(places, axis=0)
        assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.02
        depth = frames[2].depth.values
        shifts.append(np.linalg.norm(steps[2]) / np.median(depth[depth > 0]))
    assert np.median(shifts) > 0.006


def test_a_still_camera_sees_the_same_but_for_noise() -> None:
    frames = render_sequence(3, frames=3, height=32, width=48, scene="room", motion="still")
    assert all(np.array_equal(frame.pose, frames[0].pose) for frame in frames)
    assert all(np.array_equal(frame.depth.values, frames[0].depth.values) for frame in frames)
    assert not np.array_equal(frames[0].image, frames[1].image)


def test_a_turning_camera_stays_where_it_is() -> None:
    frames = render_sequence(3, frames=3, height=32, width=48, scene="room", motion="turn")
    first, second = frames[0].pose, frames[1].pose
    assert np.array_equal(first[:3, 3], second[:3, 3])
    between = np.linalg.inv(first) @ second
    angle = np.degrees(np.arccos((np.trace(between[:3, :3]) - 1) / 2))
    assert angle == pytest.approx(1.0, abs=1e-6)
    data = open_dataset(f"rendered:room?count=1&sequence=3&motion=turn&{SMALL}")
    assert np.array_equal(data[0].pose[:3, 3], data[2].pose[:3, 3])
    assert not np.array_equal(data[0].pose, data[2].pose)


def test_things_may_move_too() -> None:
    still, moving = (open_dataset(f"rendered:street?count=4&sequence=3&moving={flag}&{SMALL}") for flag in (0, 1))
    last = [index for index in range(12) if index % 3 == 2]
    assert any(not np.array_equal(still[index].depth.values, moving[index].depth.values) for index in last)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("rendered:room?sequence=3&motion=fly", "'still'|known"),
        ("rendered:room?motion=still", "only a sequence moves"),
        ("rendered:room?moving=1", "only a sequence moves"),
        ("rendered:room?sequence=0", "from 1 to 1000"),
        ("rendered:room?sequense=3", "did you mean 'sequence'"),
    ],
)
def test_wrong_sequences_are_explained(reference: str, says: str) -> None:
    with pytest.raises(DataError, match="(?i)" + says):
        open_dataset(reference)


def test_wrong_motions_are_refused() -> None:
    with pytest.raises(DataError, match="motion"):
        render_sequence(0, frames=2, height=32, width=32, motion="fly")
