"""Clips: all frames of an item through one change of camera, poses changed with it, each frame decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny_datasets as tiny
from leadline.contract import Camera, Contract
from leadline.data.dataset import Sample, Subset, open_dataset
from leadline.data.label_store import LabelStore, StoreInfo
from leadline.data.transforms import Augmentation, apply_change, draw_change
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError
from tiny_clips import DISPARITY, METRIC, PLAIN, mix_of, still_frames

# ---------------------------------------------------------------- geometry


@given(st.integers(0, 10**6), st.booleans())
def test_known_points_reproject_after_the_change_of_camera(seed: int, with_camera: bool) -> None:
    """A point seen by both cameras: the new poses and intrinsics put it where the changed pictures show it."""
    rng = np.random.default_rng(seed)
    own = Intrinsics(90.0, 80.0, 66.0, 46.0)
    point = np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), rng.uniform(2, 4)])
    angle = rng.uniform(-0.1, 0.1)
    relative = np.eye(4)
    relative[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    relative[:3, 3] = rng.uniform(-0.15, 0.15, 3)
    points = point, relative[:3, :3] @ point + relative[:3, 3]
    frames = [blob(own, p) for p in points]
    camera = Camera(fx_over_width=0.6, fy_over_height=0.9) if with_camera else None
    options = Augmentation(zoom=1.3, roll_deg=8, flip=0.5, shift=1.0)
    change = draw_change(frames[0], (96, 128), camera, rng, options)
    seen = [apply_change(frame, change, camera) for frame in frames]
    k = change.intrinsics
    new_relative = change.pose(relative)
    new_point = change.turn @ points[0] / change.shrinking
    new_points = new_point, new_relative[:3, :3] @ new_point + new_relative[:3, 3]
    for sample, p in zip(seen, new_points, strict=True):
        at = np.array([k.fx * p[0] / p[2] + k.cx, k.fy * p[1] / p[2] + k.cy])
        if not (8 < at[0] < 120 and 8 < at[1] < 88):
            continue
        assert centroid(sample.image) == pytest.approx(at, abs=0.25)
    assert np.linalg.det(new_relative[:3, :3]) == pytest.approx(1)
    assert change.shrinking == 1 or with_camera


def blob(camera: Intrinsics, point: np.ndarray) -> Sample:
    """A soft dot on black where the camera (92 x 132 pixels) sees the point."""
    y, x = np.mgrid[:92, :132] + 0.5
    u, v = camera.fx * point[0] / point[2] + camera.cx, camera.fy * point[1] / point[2] + camera.cy
    dot = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.5**2))
    return Sample("dot", np.repeat(dot[..., None], 3, 2).astype(np.uint8), None, camera)


def centroid(image: np.ndarray) -> tuple[float, float]:
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


def test_a_mirror_conjugates_the_pose_and_a_roll_turns_it() -> None:
    """Closed forms: diag(-1, 1, 1) turns (x, y, z) into (-x, y, z), and yaw into its negative."""
    sample = Sample("a", np.zeros((40, 60, 3), np.uint8), None, Intrinsics(50, 50, 30, 20))
    yaw = np.eye(4)
    yaw[:3, :3] = [[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]]
    yaw[:3, 3] = 1.0, 2.0, 3.0
    mirrored = draw_change(
        sample, (40, 60), None, np.random.default_rng(0), Augmentation(zoom=1, roll_deg=0, flip=1, shift=0)
    )
    assert mirrored.mirror
    assert mirrored.pose(yaw)[:3, 3] == pytest.approx([-1, 2, 3])
    assert mirrored.pose(yaw)[0, 2] == pytest.approx(-0.8)
    assert mirrored.pose(yaw)[2, 2] == pytest.approx(0.6)
    quarter = Augmentation(zoom=1, roll_deg=45, flip=0, shift=0)
    rolled = draw_change(sample, (40, 60), None, np.random.default_rng(3), quarter)
    c, s = np.cos(rolled.roll), np.sin(rolled.roll)
    assert abs(rolled.roll) > 0.1
    assert rolled.pose(yaw)[:3, 3] == pytest.approx([c + 2 * s, 2 * c - s, 3])


@pytest.mark.parametrize(("contract", "scene"), [(DISPARITY, "room"), (METRIC, "room"), (METRIC, "street")])
def test_true_depth_and_poses_of_a_batch_explain_its_neighbours(contract: Contract, scene: str) -> None:
    """Warping the neighbours by the batch's own depth, intrinsics and poses gives the picture back."""
    options = PLAIN | {"zoom": 1.3, "roll_deg": 6, "flip": 0.5, "shift": 1, "colour": 0.4, "hue": 0.1}
    source = {"data": f"rendered:{scene}?count=4&sequence=3&height=96&width=144", "frames": [-1, 1]}
    mix = mix_of(source, contract=contract, augmentation=options)
    batch = mix.batch(0)
    clip = batch.clip
    assert clip is not None
    assert clip.rows.tolist() == [0, 1, 2, 3]
    assert clip.offsets == (-1, 1)
    assert (clip.sources.shape, clip.seen.shape) == ((4, 2, 3, 64, 96), (4, 3, 3, 64, 96))
    assert torch.isfinite(clip.poses).all()
    better = []
    for row in range(4):
        depth, k = batch.target[row, 0], clip.intrinsics[row]
        for number in range(2):
            warped, inside = warp(clip.sources[row, number], depth, k, clip.poses[row, number])
            inside &= batch.valid[row, 0]
            known = (warped - clip.image[row]).abs().mean(0)[inside].mean()
            unmoved = (clip.sources[row, number] - clip.image[row]).abs().mean(0)[inside].mean()
            wrong = torch.linalg.inv(clip.poses[row, number])
            warped, within = warp(clip.sources[row, number], depth, k, wrong)
            within &= inside
            inverted = (warped - clip.image[row]).abs().mean(0)[within].mean()
            better.append(float(known / torch.minimum(unmoved, inverted)))
    assert np.median(better) < 0.6
    assert max(better) < 0.95


def warp(
    source: torch.Tensor, depth: torch.Tensor, k: torch.Tensor, pose: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Straight from the definitions: back-project, move, project, look up between pixel centres at + 0.5."""
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.linalg.inv(k) @ torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)
    moved = k @ (pose[:3, :3] @ (rays * depth.reshape(1, -1)) + pose[:3, 3:])
    u, v = moved[0] / moved[2].clamp(min=1e-3), moved[1] / moved[2].clamp(min=1e-3)
    inside = (moved[2] > 0.05) & (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], -1).reshape(1, height, width, 2)
    out = torch.nn.functional.grid_sample(source[None], grid, align_corners=False)[0]
    return out, inside.reshape(height, width)


# ---------------------------------------------------------------- colours


def test_one_jitter_for_all_frames_or_one_for_each(tmp_path: Path) -> None:
    source = {"data": f"frames:{still_frames(tmp_path / 'film')}?fov=60", "frames": [-1, 1]}
    colours = PLAIN | {"colour": 0.4, "hue": 0.1, "flip": 0.5}
    shared = mix_of(source, augmentation=colours).batch(0).clip
    each = mix_of(source, augmentation=colours | {"jitter_per_frame": True}).batch(0).clip
    assert shared is not None
    assert each is not None
    for clip in (shared, each):
        assert torch.equal(clip.image[:, None].expand_as(clip.sources), clip.sources)  # true colours, unmoved scene
    assert torch.equal(shared.seen[:, 1], shared.seen[:, 0])
    assert torch.equal(shared.seen[:, 2], shared.seen[:, 0])
    assert (shared.seen[:, 0] - shared.image).abs().mean() > 0.01
    for first, second in ((0, 1), (1, 2)):
        assert (each.seen[:, first] - each.seen[:, second]).abs().mean() > 0.01


def test_the_network_sees_the_first_frame_of_the_clip(tmp_path: Path) -> None:
    source = {"data": f"frames:{still_frames(tmp_path / 'film')}?fov=60", "frames": [1]}
    mix = mix_of(source, augmentation=PLAIN | {"colour": 0.3})
    batch = mix.batch(0)
    assert batch.clip is not None
    pixels = (batch.clip.seen[2, 0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.allclose(DISPARITY.normalise(pixels), batch.image[2].numpy(), atol=1e-6)


# ---------------------------------------------------------------- which samples, which rows


def test_ends_of_sequences_are_left_out_counted_and_said(tmp_path: Path) -> None:
    still_frames(tmp_path / "film" / "a", 5)
    still_frames(tmp_path / "film" / "b", 3)
    still_frames(tmp_path / "film" / "c", 2)
    mix = mix_of({"data": f"frames:{tmp_path / 'film'}?fov=60", "frames": [-1, 1]})
    assert len(mix.sources[0]) == 4
    assert [mix.sources[0].name(index) for index in mix.sources[0].indices] == ["a/1", "a/2", "a/3", "b/1"]
    assert len(mix.notices) == 1
    assert "6 of 10 samples left out" in mix.notices[0]


def test_supervised_and_filmed_sources_share_a_batch(tmp_path: Path) -> None:
    filmed = {"data": f"frames:{still_frames(tmp_path / 'film')}?fov=60", "frames": [-1, 1]}
    mix = mix_of({"data": "rendered:room,count=4,height=48,width=72"}, filmed, contract=METRIC)
    batch = mix.batch(3)
    assert batch.clip is not None
    assert batch.clip.rows.tolist() == [2, 3]
    assert batch.valid[:2].any()
    assert not batch.valid[2:].any()
    assert not batch.target[2:].any()
    assert batch.kinds == (Kind.METRIC_DEPTH,) * 4
    assert torch.isnan(batch.clip.poses).all()
    moved = batch.to(torch.device("cpu"))
    assert moved.clip is not None
    assert torch.equal(moved.clip.seen, batch.clip.seen)
    relative = METRIC.model_copy(update={"output": METRIC.output.model_copy(update={"kind": Kind.RELATIVE_DISPARITY})})
    assert not mix_of(filmed, contract=relative).batch(0).valid.any()


@pytest.mark.parametrize(
    ("query", "frames", "says"),
    [
        ("?fov=60", [0, 1], "bad frames"),
        ("?fov=60", [1, 1], "bad frames"),
        ("?fov=60", [-9, 9], "no sequences"),
        ("?fov=60", ["stereo"], "no sequences"),
    ],
)
def test_frames_that_make_no_sense_are_refused(tmp_path: Path, query: str, frames: list[object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        mix_of({"data": f"frames:{still_frames(tmp_path / 'film')}{query}", "frames": frames})


def test_formats_without_sequences_are_refused_with_those_that_have_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kitti-raw"):
        mix_of({"data": str(tiny.folder(tmp_path / "pictures")), "frames": [-1, 1]})


def test_sources_that_disagree_about_their_frames_are_refused(tmp_path: Path) -> None:
    data = f"frames:{still_frames(tmp_path / 'film')}?fov=60"
    with pytest.raises(ConfigError, match="differ in their frames"):
        mix_of({"data": data, "frames": [-1, 1]}, {"data": data, "frames": [1]})


def test_a_sample_with_neither_depth_nor_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no depth"):
        mix_of({"data": f"frames:{still_frames(tmp_path / 'film')}?fov=60"}).batch(0)


def test_frames_without_a_camera_are_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fov=60"):
        mix_of({"data": f"frames:{still_frames(tmp_path / 'film')}", "frames": [-1, 1]}).batch(0)


def test_intrinsics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    film = still_frames(tmp_path / "film")  # 48 x 72
    for camera, says in (("70 70 90 24", "do not fit"), ("-70 70 36 24", "must be positive")):
        (film / "intrinsics.txt").write_text(camera)
        with pytest.raises(DataError, match=says):
            mix_of({"data": f"frames:{film}", "frames": [-1, 1]}).batch(0)


def test_neighbours_of_another_shape_are_refused(tmp_path: Path) -> None:
    film = still_frames(tmp_path / "film", 3)
    tiny.picture(film / "2.png", 72, 48)
    with pytest.raises(DataError, match="differ in shape"):
        mix_of({"data": f"frames:{film}?fov=60", "frames": [-1, 1]}).batch(0)


def test_a_part_keeps_its_neighbours_outside_it(tmp_path: Path) -> None:
    whole = open_dataset(f"frames:{still_frames(tmp_path / 'film')}?fov=60")
    part = Subset(whole, 1, 3)
    assert part.with_neighbours([-1, 1]) == [0, 1]
    assert part.neighbour_name(0, -1) == "0"
    neighbour = part.neighbour(0, -1)
    assert neighbour is not None
    assert neighbour.name == "0"
    assert part.relative_pose(0, -1) is None


# ---------------------------------------------------------------- labels


def labelled(root: Path, store: Path, names: list[str], kind: Kind = Kind.RELATIVE_DISPARITY) -> None:
    """Pictures whose red channel rises to the right and down, and labels that are that channel, at half the size."""
    y, x = np.mgrid[:96, :144]
    ramp = (x + y).astype(np.uint8)
    info = StoreInfo(teacher="t", teacher_name="t", teacher_sha256="0" * 64, kind=kind, height=48, width=72,
                     resize="stretch")  # fmt: skip
    made = LabelStore.create(store, info)
    root.mkdir(parents=True, exist_ok=True)
    half = ramp.reshape(48, 2, 72, 2).mean((1, 3)).astype(np.float32)
    for name in ("a", "b", "c"):
        Image.fromarray(np.stack([ramp, ramp * 0, ramp * 0], -1)).save(root / f"{name}.png")
        if name in names:
            made.put(name, Depth(half, kind), picture="1" * 64, size=(96, 144))


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_flipped_rolled_and_cropped_with_their_picture(tmp_path: Path, seed: int) -> None:
    labelled(tmp_path / "photos", tmp_path / "labels", ["a", "b", "c"])
    options = PLAIN | {"zoom": 1.5, "roll_deg": 5, "flip": 0.5, "shift": 1}
    source = {"data": str(tmp_path / "photos"), "labels": str(tmp_path / "labels")}
    batch = mix_of(source, augmentation=options, seed=seed).batch(0)
    assert batch.kinds == (Kind.RELATIVE_DISPARITY,) * 4
    red = (batch.image[:, 0] * DISPARITY.input.std[0] + DISPARITY.input.mean[0]) * 255
    wrong = (red - batch.target[:, 0]).abs()
    inside = batch.valid[:, 0]
    inside[:, :3] = inside[:, -3:] = inside[:, :, :3] = inside[:, :, -3:] = False
    assert inside.float().mean() > 0.7
    assert wrong[inside].quantile(0.98) < 2.5  # of up to 240; nearest neighbour is half a pixel off
    assert batch.target.max() - batch.target.min() > 60


def test_pictures_without_a_label_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    labelled(tmp_path / "photos", tmp_path / "labels", ["a", "c"])
    source = {"data": str(tmp_path / "photos"), "labels": str(tmp_path / "labels")}
    with pytest.raises(DataError, match=r"1 of 3 samples, the first: b"):
        mix_of(source)
    mix = mix_of(source, skip_bad=True)
    assert mix.unpaired == {"b": "picture without label"}
    assert set(mix.batch(0).names) == {"a", "c"}


def test_a_label_of_another_picture_shape_is_refused(tmp_path: Path) -> None:
    labelled(tmp_path / "photos", tmp_path / "labels", ["a", "b", "c"])
    for name in "abc":
        tiny.picture(tmp_path / "photos" / f"{name}.png", 96, 96)
    with pytest.raises(DataError, match="proportions"):
        mix_of({"data": str(tmp_path / "photos"), "labels": str(tmp_path / "labels")}).batch(0)
