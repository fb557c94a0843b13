"""Steady depth: noise goes, motion and edges stay; the flicker metric on constructed films."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.depth import Intrinsics, Kind
from leadline.live.flicker import FlickerMeter
from leadline.live.flow import Flow, flow_of_motion, flows_between
from leadline.live.temporal import Smoother, Smoothing

SIZE = (72, 96)


def texture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth random grey, 0 to 255, periodic."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(random.normal(size=size))
    fy, fx = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    values = np.fft.irfft2(spectrum * np.exp(-((np.hypot(fx, fy) / 0.09) ** 2)), size)
    return (127.5 + 127.5 * values / np.abs(values).max()).astype(np.float64)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


BACKGROUND, BLOCK = texture(1, SIZE), texture(2, SIZE)


def film(count: int, noise: float, speed: int = 2) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pictures, noisy maps and true maps: a near block that moves to the right before a far wall."""
    random = np.random.default_rng(0)
    found = []
    for t in range(count):
        inside = np.zeros(SIZE, bool)
        inside[20:52, 8 + speed * t : 40 + speed * t] = True
        picture = np.where(inside, np.roll(BLOCK, speed * t, axis=1), BACKGROUND)
        truth = np.where(inside, 2.0, 1.0).astype(np.float32)
        found.append((rgb(picture), (truth + random.normal(0, noise, SIZE)).astype(np.float32), truth))
    return found


def smooth(frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]], smoother: Smoother) -> list[np.ndarray]:
    out = [values for picture, noisy, _ in frames for values in smoother.push(picture, noisy)]
    return out + smoother.flush()


def test_flow_finds_a_shift_and_follows_it_over_frames() -> None:
    one, two, three = (np.roll(BACKGROUND, 3 * k, axis=1).astype(np.uint8) for k in range(3))
    there, back = flows_between(one, two)
    inner = np.s_[8:-8, 12:-12]
    np.testing.assert_allclose(np.median(there.offset[inner], axis=(0, 1)), (3, 0), atol=0.3)
    np.testing.assert_allclose(np.median(back.offset[inner], axis=(0, 1)), (-3, 0), atol=0.3)
    assert there.trusted[inner].mean() > 0.95
    far = there.then(flows_between(two, three)[0])
    np.testing.assert_allclose(np.median(far.offset[inner], axis=(0, 1)), (6, 0), atol=0.5)


def test_another_scene_is_not_trusted() -> None:
    there, _ = flows_between(BACKGROUND.astype(np.uint8), texture(7, SIZE).astype(np.uint8))
    assert there.trusted.mean() < 0.2


@pytest.mark.parametrize("smoothing", [Smoothing(), Smoothing.causal()])
def test_every_frame_comes_back_once_in_order(smoothing: Smoothing) -> None:
    smoother, times = Smoother(Kind.METRIC_DEPTH, smoothing), []
    frames = film(7, 0.0)
    for number, (picture, values, _) in enumerate(frames):
        times += [number] * len(smoother.push(picture, values))
    times += [len(frames)] * len(smoother.flush())
    assert times == [min(k + smoothing.after, 7) for k in range(7)]
    assert smoother.flush() == []


@pytest.mark.parametrize(("smoothing", "share"), [(Smoothing(), 0.55), (Smoothing.causal(), 0.65)])
def test_noise_goes_and_moving_edges_stay(smoothing: Smoothing, share: float) -> None:
    frames = film(12, 0.03)
    smoother = Smoother(Kind.METRIC_DEPTH, smoothing)
    out = smooth(frames, smoother)
    assert len(out) == 12
    assert smoother.cuts == 0
    for (_, noisy, truth), values in list(zip(frames, out, strict=True))[4:-2]:
        assert np.abs(values - truth).mean() < share * np.abs(noisy - truth).mean()
        step = np.abs(np.diff(values, axis=1)).max(axis=1)[24:48]  # one sharp step on each row of the block's sides
        assert step.min() > 0.85


def test_scale_and_shift_of_relative_maps_are_brought_together() -> None:
    """Every second frame has another scale and shift, as a network that is free in both may give."""
    frames = [
        (picture, ((1.3 * truth + 0.2) if t % 2 else truth).astype(np.float32), truth)
        for t, (picture, _, truth) in enumerate(film(10, 0.0))
    ]
    meter = FlickerMeter(2)
    out = smooth(frames, Smoother(Kind.RELATIVE_DISPARITY))
    for (picture, raw, _), values in zip(frames, out, strict=True):
        meter.push([raw, values], picture)
    before, after = meter.results() or []
    assert after.value < 0.15 * before.value
    kept = smooth(frames, Smoother(Kind.METRIC_DEPTH, Smoothing(before=0, after=0)))
    for (_, raw, _), values in zip(frames, kept, strict=True):
        np.testing.assert_array_equal(raw, values)  # metres are nobody's to change


def test_a_scale_that_really_changes_comes_through() -> None:
    picture = rgb(BACKGROUND)
    truth = film(1, 0.0)[0][2]
    smoother = Smoother(Kind.RELATIVE_DISPARITY, Smoothing.causal())
    last = truth
    for t in range(80):
        for values in smoother.push(picture, truth * (1.0 if t < 5 else 1.5)):
            last = values
    np.testing.assert_allclose(last, 1.5 * truth, rtol=0.02)


def test_a_cut_begins_anew() -> None:
    first, second = film(4, 0.0), [(rgb(texture(9, SIZE)), np.full(SIZE, 5.0, np.float32), None)] * 4
    smoother = Smoother(Kind.RELATIVE_DEPTH)
    out = smooth([*first, *second], smoother)  # type: ignore[list-item]
    assert smoother.cuts == 1
    assert len(out) == 8
    for values in out[4:]:
        np.testing.assert_allclose(values, 5.0, rtol=1e-6)


def still(maps: list[np.ndarray]) -> FlickerMeter:
    nothing = Flow(np.zeros((*SIZE, 2), np.float32), np.ones(SIZE, np.float32))
    meter = FlickerMeter()
    for values in maps:
        meter.push([values], flows=(nothing, nothing))
    return meter


def test_flicker_of_constructed_films() -> None:
    """A jump of a there and back flickers by a; an even approach does not, though it changes."""
    ramp = np.tile(np.linspace(0, 1, SIZE[1], dtype=np.float32), (SIZE[0], 1))
    spread = float(np.percentile(ramp, 98) - np.percentile(ramp, 2))
    (blinking,) = still([ramp + 0.1 * (t % 2) for t in range(6)]).results() or []
    assert blinking.value == pytest.approx(0.1 / spread, rel=1e-3)
    assert (blinking.frames, blinking.points) == (4, 1.0)
    (nearing,) = still([ramp + 0.1 * t for t in range(6)]).results() or []
    assert nearing.value == pytest.approx(0, abs=1e-6)
    assert nearing.change == pytest.approx(0.1 / spread, rel=1e-3)
    assert still([ramp, ramp]).results() is None


def test_known_poses_give_the_exact_flow() -> None:
    """A wall at 4 m seen by a camera that moves 0.1 m to the right: every pixel moves by f B / Z to the left."""
    wall, camera = np.full(SIZE, 4.0, np.float32), Intrinsics(80, 80, 48, 36)
    motion = np.eye(4)
    motion[0, 3] = -0.1
    flow = flow_of_motion(wall, camera, motion, wall)
    np.testing.assert_allclose(flow.offset[..., 0], -80 * 0.1 / 4, atol=1e-5)
    np.testing.assert_allclose(flow.offset[..., 1], 0, atol=1e-5)
    assert flow.trusted[:, 2:].all()
    assert not flow.trusted[:, :2].any()  # left the picture
