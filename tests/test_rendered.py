"""Rendered scenes: the same bytes for the same seed, depth and cameras that agree with closed forms, and variety."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from leadline.data.dataset import open_dataset
from leadline.data.folder_writer import write_folder
from leadline.data.rendered import Camera, render, render_sequence
from leadline.data.scenes.builder import Builder, Paint
from leadline.data.scenes.raster import View, cast
from leadline.depth import Intrinsics
from leadline.errors import DataError

FINGERPRINT = """
import hashlib
from leadline.data.rendered import render
for scene in ("room", "street"):
    sample = render(5, height=48, width=64, scene=scene)
    print(hashlib.sha256(sample.image.tobytes() + sample.depth.values.tobytes()).hexdigest())
"""


SEED_WITH_BALL = 1  # the rolling ball is in view


def fingerprint(sample):
    return hashlib.sha256(sample.image.tobytes() + sample.depth.values.tobytes()).hexdigest()


def looking(pose_eye, forward, right=(1.0, 0.0, 0.0)):
    """Camera to world for an eye that looks along `forward` with `right` to its right."""
    forward, right = np.array(forward, float), np.array(right, float)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, pose_eye
    return pose


def depth_of(hits):
    return np.where(hits.nearness > 0, 1 / np.maximum(hits.nearness, 1e-6), 0)


@pytest.mark.parametrize("scene", ["room", "street"])
def test_same_seed_same_bytes_and_other_seed_other_picture(scene):
    first, again = (render(11, height=48, width=64, scene=scene) for _ in range(2))
    other = render(12, height=48, width=64, scene=scene)
    assert fingerprint(first) == fingerprint(again)
    assert first.intrinsics == again.intrinsics
    assert np.array_equal(first.pose, again.pose)
    assert fingerprint(first) != fingerprint(other)
    assert np.abs(first.depth.values - other.depth.values).mean() > 0.1


def test_another_process_draws_the_same_bytes():
    done = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    here = [fingerprint(render(5, height=48, width=64, scene=scene)) for scene in ("room", "street")]
    assert done.stdout.split() == here


def test_a_sample_has_the_promised_types():
    sample = render(3, height=50, width=70, scene="street")
    assert sample.image.shape == (50, 70, 3)
    assert sample.image.dtype == np.uint8
    assert sample.depth.values.shape == (50, 70)
    assert sample.depth.values.dtype == np.float32
    assert sample.depth.unit == "m"
    assert sample.depth.intrinsics == sample.intrinsics
    assert sample.pose.shape == (4, 4)
    assert np.allclose(sample.pose[:3, :3] @ sample.pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(sample.pose[:3, :3]) == pytest.approx(1)


def test_ground_seen_level_has_depth_height_times_focal_over_row():
    builder = Builder()
    builder.plate(0, 0, 0, 1000, 1000, Paint())
    view = View(Intrinsics(40, 55, 32, 20), looking((3, -2, 1.5), (0, 1, 0)), 48, 64)
    depth = depth_of(cast(builder.surfaces(), view))
    rows = np.arange(48) + 0.5
    below = rows > 20.5
    assert np.allclose(depth[below], (1.5 * 55 / (rows[below] - 20))[:, None], rtol=1e-5)
    assert not depth[rows < 20].any()


@pytest.mark.parametrize("pitch", [-35.0, -10.0, 20.0])
def test_ground_seen_from_a_pitched_camera(pitch):
    builder = Builder()
    builder.plate(0, 0, 0, 4000, 4000, Paint())
    c, s = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    view = View(Intrinsics(60, 60, 32, 24), looking((0, 0, 2), (0, c, s)), 48, 64)
    depth = depth_of(cast(builder.surfaces(), view))
    y = (np.arange(48) + 0.5 - 24) / 60
    fall = y * c - s  # metres the ray falls for a metre of z-depth
    seen = fall > 0.02
    assert seen.any()
    assert np.allclose(depth[seen], (2 / fall[seen])[:, None], rtol=2e-5)


def test_a_box_ball_and_cylinder_stand_where_they_should():
    builder = Builder()
    builder.box(0, 6, 0, 2, 2, 4, Paint())  # its front is at y = 5
    builder.at(-3, 6)
    builder.ball(0, 0, 1.5, 0.5, Paint())
    builder.at(3, 6)
    builder.cylinder(0, 0, 0, 0.5, 3, Paint())
    view = View(Intrinsics(100, 100, 100.25, 60.5), looking((0, 0, 1.5), (0, 1, 0)), 121, 201)
    depth = depth_of(cast(builder.surfaces(), view))
    assert depth[60, 100] == pytest.approx(5, rel=1e-5)
    front = np.flatnonzero(np.isclose(depth[60], 5, rtol=1e-5))
    assert (front[0], front[-1]) == (80, 119)  # |x| <= 1 m at 5 m: |column + 0.5 - 100.25| <= 20
    for column in (50, 150):  # x = -3 and 3 at y = 6
        x = (column + 0.5 - 100.25) / 100
        along = np.array([x, 1.0])
        middle = np.array([math.copysign(3, x), 6.0])
        square, reach = along @ along, middle @ along
        root = reach**2 - square * (middle @ middle - 0.25)
        assert depth[60, column] == pytest.approx((reach - math.sqrt(root)) / square, rel=1e-5)
    assert depth[60, 65] == 0


def test_a_world_point_projects_to_the_pixel_that_sees_it():
    rng = np.random.default_rng(4)
    for _ in range(8):
        turn, pitch = rng.uniform(-3, 3), rng.uniform(-0.5, 0.5)
        forward = np.array([-math.sin(turn) * math.cos(pitch), math.cos(turn) * math.cos(pitch), math.sin(pitch)])
        right = np.array([math.cos(turn), math.sin(turn), 0])
        eye = rng.uniform(-2, 2, 3)
        pose = looking(eye, forward, right)
        intrinsics = Intrinsics(120, 90, 70, 40)
        local = np.array([rng.uniform(-1, 1), rng.uniform(-0.7, 0.7), rng.uniform(3, 6)])
        builder = Builder()
        builder.ball(*(pose[:3, :3] @ local + eye), 0.05, Paint())
        depth = depth_of(cast(builder.surfaces(), View(intrinsics, pose, 80, 140)))
        row, column = int(90 * local[1] / local[2] + 40), int(120 * local[0] / local[2] + 70)
        assert depth[row, column] == pytest.approx(local[2] - 0.05, abs=0.05)
        seen = np.argwhere(depth > 0)
        assert np.abs(seen - [row, column]).max() <= 4


def reproject(a, b):
    """Relative difference between a's depth carried into b and b's own, at a's pixels that b covers."""
    k, (height, width) = a.intrinsics, a.depth.shape
    y, x = np.mgrid[:height, :width] + 0.5
    z = a.depth.values.astype(np.float64)
    local = np.stack([(x - k.cx) / k.fx * z, (y - k.cy) / k.fy * z, z, np.ones_like(z)])[:, z > 0]
    moved = np.linalg.inv(b.pose) @ a.pose @ local
    column = np.floor(b.intrinsics.fx * moved[0] / moved[2] + b.intrinsics.cx)
    row = np.floor(b.intrinsics.fy * moved[1] / moved[2] + b.intrinsics.cy)
    inside = (moved[2] > 0.1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = b.depth.values[row[inside].astype(int), column[inside].astype(int)]
    return np.abs(there - moved[2, inside])[there > 0] / moved[2, inside][there > 0]


@pytest.mark.parametrize("scene", ["room", "street"])
@pytest.mark.parametrize("seed", [2, 7, 9])
def test_depth_and_poses_of_a_sequence_agree(scene, seed):
    frames = render_sequence(seed, frames=3, height=120, width=240, scene=scene)
    for a, b in pairwise(frames):
        assert not np.allclose(a.pose, b.pose)
        error = reproject(a, b)
        assert error.size > 5000
        assert np.median(error) < 0.005
        assert (error < 0.03).mean() > 0.85  # the rest is hidden in b, or at an edge
    assert len({frame.name for frame in frames}) == 3


def test_moving_objects_break_the_reprojection_where_they_are():
    still, moving = (
        render_sequence(SEED_WITH_BALL, frames=2, height=96, width=128, scene="room", moving=moves)
        for moves in (False, True)
    )
    assert np.array_equal(still[1].pose, moving[1].pose)
    ball = moving[0].depth.values != still[0].depth.values
    assert 0.001 < ball.mean() < 0.5
    after = moving[1].depth.values != still[1].depth.values
    columns = [np.argwhere(mask)[:, 1].mean() for mask in (ball, after)]
    assert abs(columns[0] - columns[1]) > 0.5


def test_traffic_moves_without_changing_the_street():
    still, moving = (
        render_sequence(4, frames=3, height=48, width=160, scene="street", moving=moves) for moves in (False, True)
    )
    assert np.array_equal(still[0].depth.values, moving[0].depth.values)
    changed = (still[2].depth.values != moving[2].depth.values).mean()
    assert 0 < changed < 0.5


@pytest.mark.parametrize("scene", ["room", "street"])
def test_a_mean_depth_map_explains_little(scene):
    maps = np.stack([render(seed, height=48, width=96, scene=scene).depth.values for seed in range(32)])
    known = maps > 0
    mean = maps.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    errors = [(np.abs(mean[ok] - one[ok]) / one[ok]).mean() for one, ok in zip(maps, known, strict=True)]
    assert np.mean(errors) > 0.25
    medians = [np.median(one[ok]) for one, ok in zip(maps, known, strict=True)]
    assert max(medians) / min(medians) > 2.5


def test_ranges_of_depth_and_light():
    rooms = [render(seed, height=48, width=64) for seed in range(16)]
    streets = [render(seed, height=48, width=64, scene="street") for seed in range(16)]
    near = min(sample.depth.values.min() for sample in rooms)
    assert 0.1 < near < 1.0
    assert 4 < max(sample.depth.values.max() for sample in rooms) < 16
    assert np.mean([sample.depth.valid.mean() for sample in rooms]) > 0.999
    assert min(sample.depth.values[sample.depth.valid].min() for sample in streets) > 0.3
    assert 80 < max(sample.depth.values.max() for sample in streets) <= 200
    assert 0.6 < np.mean([sample.depth.valid.mean() for sample in streets]) < 0.99  # the rest is sky
    for sample in rooms + streets:
        assert 8 < sample.image.mean() < 247
        assert sample.image.std() > 5


def test_a_fixed_camera_stays_and_a_free_one_varies():
    camera = Camera(0.58, 1.92)
    for seed in (0, 1):
        fixed = render(seed, height=96, width=320, scene="street", camera=camera).intrinsics
        assert fixed == Intrinsics(0.58 * 320, 1.92 * 96, 160, 48)
    free = {render(seed, height=24, width=32).intrinsics.fx for seed in range(4)}
    assert len(free) == 4


def test_reference_options_and_disjoint_splits():
    mixed = open_dataset("rendered")
    assert len(mixed) == 64
    assert mixed.names()[0].startswith("room")
    assert mixed.names()[1].startswith("street")
    assert mixed.max_depth == 80
    small = open_dataset("rendered:room,count=3,height=40,width=56,seed=7")
    assert [sample.image.shape for sample in small] == [(40, 56, 3)] * 3
    assert [sample.name for sample in small] == small.names()
    assert small.max_depth == 10
    assert small[-1].name == small.names()[2]
    train, val, test = (set(open_dataset("rendered:room", split).names()) for split in ("train", "val", "test"))
    assert not train & val
    assert not val & test
    assert not train & test
    with pytest.raises(IndexError):
        small[3]


@pytest.mark.parametrize(
    ("reference", "split", "says"),
    [
        ("rendered:rooms", None, "did you mean 'room'"),
        ("rendered:room,counts=2", None, "did you mean 'count'"),
        ("rendered:room,count=0", None, "from 1 to"),
        ("rendered:room,count=two", None, "whole number"),
        ("rendered:street,fx=0.6", None, "fx and fy belong together"),
        ("rendered", "training", "did you mean 'train'"),
    ],
)
def test_wrong_references_are_explained(reference, split, says):
    with pytest.raises(DataError, match="(?i)" + says):
        open_dataset(reference, split)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"height": 4}, {"scene": "forest"}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(DataError):
        render(**({"seed": 0, "height": 32, "width": 32, "scene": "room"} | wrong))


@pytest.mark.parametrize(("scene", "scale"), [("room", 1000), ("street", 256)])
def test_written_folder_reads_back(tmp_path, scene, scale):
    dataset = open_dataset(f"rendered:{scene},count=2,height=32,width=64,fx=0.8,fy=1.6")
    write_folder(dataset, tmp_path / "out", max_depth=dataset.max_depth, licence=dataset.licence)
    says = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (says["depth_scale"], says["count"], says["kind"]) == (scale, 2, "metric_depth")
    again = open_dataset(str(tmp_path / "out"))
    assert again.max_depth == dataset.max_depth
    for old, new in zip(dataset, again, strict=True):
        assert new.name.endswith(old.name)
        assert np.array_equal(old.image, new.image)
        assert np.array_equal(old.depth.values > 0, new.depth.values > 0)
        assert np.abs(old.depth.values - new.depth.values).max() <= 0.5001 / scale
        assert (new.intrinsics.fx, new.intrinsics.fy) == pytest.approx((0.8 * 64, 1.6 * 32))


def test_a_failed_write_leaves_nothing(tmp_path):
    samples = [render(0, height=16, width=16), render(1, height=24, width=16)]
    with pytest.raises(DataError, match="several sizes"):
        write_folder(samples, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
