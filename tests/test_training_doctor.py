"""The doctor: each fault is fed to it, and a sound sequence gets no finding."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import tiny_models
from leadline.cli import app
from leadline.data.rendered import Camera, render_sequence
from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.training.batches import Clip
from leadline.training.config import TrainConfig
from leadline.training.doctor import Attendance, Finding, examine, unanchored, watch
from leadline.training.fit import Start, fit
from leadline.training.motion import motion_between
from leadline.training.objectives.self_supervised import Photometric, Smoothness
from leadline.training.objectives.supervised import Silog

H, W = 96, 320
GOOD = {
    "mask_share": 0.3,
    "disparity_mean": 0.2,
    "disparity_spread": 0.4,
    "pose_travel": 0.05,
    "pose_parallax": 0.01,
    "pose_turn_deg": 0.5,
}


def texture(seed: int = 0, margin: int = 80) -> torch.Tensor:
    """Something to cut shifted frames from: detail at two scales, 3 x (H + margins) x (W + margins)."""
    r = torch.Generator().manual_seed(seed)
    h, w = H + 2 * margin, W + 2 * margin
    coarse = F.interpolate(torch.rand(1, 3, h // 8, w // 8, generator=r), (h, w), mode="bicubic", align_corners=False)
    return (0.7 * coarse + 0.3 * torch.rand(1, 3, h, w, generator=r))[0].clamp(0, 1)


def shifted(dx: int, dy: int = 0, margin: int = 80) -> torch.Tensor:
    return texture()[:, margin + dy : margin + dy + H, margin + dx : margin + dx + W]


def clip_of(image: torch.Tensor, *sources: torch.Tensor) -> Clip:
    stacked = torch.stack(sources)[None]
    camera = torch.tensor([[[0.6 * W, 0, W / 2], [0, 0.6 * W, H / 2], [0, 0, 1]]])
    return Clip(
        torch.tensor([0]),
        image[None],
        stacked,
        torch.cat([image[None, None], stacked], 1),
        (-1, 1),
        camera,
        torch.full((1, 2, 4, 4), math.nan),
    )


def good() -> Clip:
    return clip_of(shifted(0), shifted(-9), shifted(9))


def what(findings: list[Finding]) -> str:
    return "; ".join(finding.what for finding in findings)


def with_camera(fx: float, fy: float, cx: float, cy: float) -> Clip:
    return replace(good(), intrinsics=torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]]))


def test_a_sound_clip_has_no_finding() -> None:
    assert examine([good()]) == []
    assert examine([]) == []


def test_a_rendered_drive_has_no_finding() -> None:
    samples = render_sequence(3, frames=5, height=96, width=320, camera=Camera(0.6, 2.0))
    frames = [torch.from_numpy(s.image.transpose(2, 0, 1).copy()).float() / 255 for s in samples]
    clips = [clip_of(frames[t], frames[t - 1], frames[t + 1]) for t in (1, 2, 3)]
    assert examine(clips) == []


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (5, 0), (-12, 3), (20, -6)])
def test_motion_is_measured(dx: int, dy: int) -> None:
    moved, lost = motion_between(shifted(0)[None], shifted(dx, dy)[None])
    assert float(moved) == pytest.approx(math.hypot(dx, dy) / W, abs=0.5 / W)
    assert float(lost) < 0.3


def test_static_frames() -> None:
    noise = 0.01 * torch.randn(2, 3, H, W, generator=torch.Generator().manual_seed(1))
    still = clip_of(shifted(0), shifted(0) + noise[0], shifted(0) + noise[1])
    assert "static or too slow" in what(examine([still] * 3))


def test_a_camera_that_moves_too_seldom() -> None:
    still = clip_of(shifted(0), shifted(0), shifted(0))
    (finding,) = examine([still, still, good()])
    assert finding.what == "the camera moves too seldom"
    assert "33%" in finding.figure
    assert examine([still, good(), good()]) == []


def test_too_fast_motion() -> None:
    assert "too fast" in what(examine([clip_of(shifted(0), shifted(-70), shifted(70))]))


def test_frames_of_another_scene() -> None:
    other = texture(seed=7)[:, :H, :W]
    assert "do not match" in what(examine([clip_of(shifted(0), other, other.flip(-1))]))


def test_photographs_of_different_places_are_no_film() -> None:
    """Pictures with the spectrum of photographs (amplitude as 1 / frequency), which look alike to a correlation."""
    fy, fx = torch.fft.fftfreq(H)[:, None], torch.fft.rfftfreq(W)
    fall = 1 / torch.hypot(fy, fx).clamp(min=1 / W)
    noise = torch.randn(9, 3, H, W, generator=torch.Generator().manual_seed(3))
    places = torch.fft.irfft2(torch.fft.rfft2(noise) * fall, s=(H, W))
    places = (places / places.std((1, 2, 3), keepdim=True) * 0.2 + 0.5).clamp(0, 1)
    said = what(examine([clip_of(*places[k : k + 3]) for k in (0, 3, 6)]))
    assert "do not match" in said
    assert "moves too seldom" not in said


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ((0.58, 1.92, 0.5, 0.5), "normalised"),
        ((0.58 * W, 1.92 * H, 0.5, 0.5), "normalised"),
        ((0.1 * W, 0.1 * W, W / 2, H / 2), "focal length"),
        ((5 * W, 5 * W, W / 2, H / 2), "focal length"),
        ((0.6 * W, 0.6 * W, 0.95 * W, H / 2), "principal point"),
        ((0.6 * W, 0.6 * W, W / 2, 0.1 * H), "principal point"),
        ((-0.6 * W, 0.6 * W, W / 2, H / 2), "impossible"),
        ((math.nan, 0.6 * W, W / 2, H / 2), "impossible"),
    ],
)
def test_wrong_intrinsics(camera: tuple[float, float, float, float], words: str) -> None:
    (finding,) = examine([with_camera(*camera)])
    assert words in finding.what
    assert finding.mend


def test_black_and_flat_frames() -> None:
    black = torch.zeros(3, H, W)
    assert "black frames" in what(examine([clip_of(black, black, black)]))
    grey = torch.full((3, H, W), 0.5)
    assert "show nothing" in what(examine([clip_of(grey, grey, grey)]))


def test_little_texture() -> None:
    def mostly_flat(dx: int) -> torch.Tensor:
        frame = torch.full((3, H, W), 0.4)
        frame[:, : H // 4] = shifted(dx)[:, : H // 4]
        return frame

    assert "little texture" in what(examine([clip_of(mostly_flat(0), mostly_flat(-9), mostly_flat(9))]))


def test_unsteady_exposure() -> None:
    assert "exposure" in what(examine([clip_of(shifted(0) * 0.5, shifted(-9), shifted(9))]))


def test_healthy_training_has_no_finding() -> None:
    assert watch([GOOD] * 20) == []
    assert watch([]) == []
    assert watch([{"silog": 1.0}]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask_share": 0.97}, "masked"),
        ({"disparity_spread": 0.001}, "collapses"),
        ({"disparity_mean": 0.0101}, "black disparity"),
        ({"disparity_mean": 9.9}, "glaring disparity"),
        ({"pose_parallax": 1e-7}, "no motion"),
        ({"pose_parallax": 3.0}, "too far"),
        ({"pose_turn_deg": 45.0}, "turns too far"),
    ],
)
def test_what_goes_wrong_in_training(change: dict[str, float], words: str) -> None:
    (finding,) = watch([GOOD | change] * 5)
    assert words in finding.what
    assert finding.mend in str(finding) or finding.mend[1:] in str(finding)
    assert watch([GOOD | change, *[GOOD] * 5]) == []  # one bad iteration is no finding


def frames_folder(folder: Path, step: int) -> Path:
    """Six frames of a picture that shifts by `step` pixels from one to the next."""
    folder.mkdir()
    for t in range(6):
        frame = (shifted(step * t - 3 * step).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(frame).save(folder / f"{t}.png")
    return folder


def check(reference: str, *more: str) -> Result:
    return CliRunner().invoke(app, ["data", "check", reference, *more], env={"COLUMNS": "200"})


def test_the_command_says_what_speaks_against_self_supervision(tmp_path: Path) -> None:
    sound, still = frames_folder(tmp_path / "sound", 9), frames_folder(tmp_path / "still", 0)
    done = check(f"frames:{sound}?fov=60", "--frames", "-1,1")
    assert done.exit_code == 0
    assert "nothing against it" in done.stdout
    done = check(f"frames:{still}?fov=60", "--frames", "-1,1")
    assert done.exit_code == 1
    assert "static or too slow frames: median motion 0.00% of the width" in done.stdout
    done = check(f"frames:{still}?fov=160", "--frames", "-1,1", "--json")
    assert [finding["what"] for finding in json.loads(done.stdout)["findings"]] == [
        "unlikely focal length",
        "static or too slow frames",
    ]


@pytest.mark.parametrize("frames", ["x", "0", "-1,,1", "1.5"])
def test_a_wrong_list_of_frames_is_refused(frames: str) -> None:
    done = check("rendered:room?count=1", "--frames", frames)
    assert done.exit_code == 2
    assert "--frames" in str(done.exception) + done.output


def test_pictures_without_neighbours_are_refused() -> None:
    done = check("rendered:room?count=1&height=48&width=64", "--frames", "-1,1")
    assert done.exit_code == 2
    assert "no sample has the neighbours" in str(done.exception) + done.output


def training(data: Path, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "fastdepth",
            "sources": [{"data": f"frames:{data}?fov=60", "frames": [-1, 1]}],
            "objectives": [
                {"loss": "photometric", "pose": {"network": "small"}, "scales": 2},
                {"loss": "smoothness"},
            ],
            "size": [32, 96],
            "batch": 2,
            "iterations": 4,
            "save_every": 2,
            "warmup": 1,
            "threads": 1,
            "ema": 0,
        }
        | changes
    )


def run_fit(config: TrainConfig, out: Path, on_progress: Any = None) -> Any:
    whole = tiny_models.cnn()
    config_of_network: Any = whole.config
    start = Start(copy.deepcopy(whole.model), whole.contract, "fastdepth", config_of_network)
    return fit(config, start, out, on_progress=on_progress)


def test_a_run_says_findings_once_in_log_and_at_its_end(tmp_path: Path) -> None:
    still = frames_folder(tmp_path / "still", 0)
    told: list[tuple[int, str]] = []
    result = run_fit(
        training(still), tmp_path / "run", lambda step: told.extend((step.iteration, f) for f in step.findings)
    )
    assert [(iteration, text.split(":")[0]) for iteration, text in told] == [
        (1, "metres that will drift"),
        (1, "static or too slow frames"),
    ]
    assert "static or too slow frames" in (tmp_path / "run" / "log.csv").read_text()
    assert any(notice.startswith("static or too slow") for notice in result.notices)


def test_a_sound_run_trains_the_pose_network_and_resumes_bit_by_bit(tmp_path: Path) -> None:
    sound = frames_folder(tmp_path / "sound", 6)
    whole = run_fit(training(sound), tmp_path / "whole")
    assert len(whole.notices) == 2  # the ends of the sequence have one neighbour; metres will drift
    rows = (tmp_path / "whole" / "log.csv").read_text()
    assert "mask_share=" in rows
    assert "pose_turn_deg=" in rows

    class StopError(Exception):
        pass

    def stop_after_three(step: Any) -> None:
        if step.iteration == 3:
            raise StopError

    with pytest.raises(StopError):
        run_fit(training(sound), tmp_path / "cut", stop_after_three)
    resumed = run_fit(training(sound), tmp_path / "cut")
    assert resumed.begun == 2
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    fresh = training(sound).objectives[0].modules()["pose"].state_dict()
    for key, value in whole.auxiliary["pose"].state_dict().items():
        assert torch.equal(value, resumed.auxiliary["pose"].state_dict()[key]), key
    assert not torch.equal(whole.auxiliary["pose"].state_dict()["net.0.bias"], fresh["net.0.bias"])


def test_self_supervision_without_frames_is_refused(tmp_path: Path) -> None:
    config = training(tmp_path, sources=[{"data": "rendered:room?count=4&height=48&width=64"}])
    with pytest.raises(ConfigError, match="frames"):
        run_fit(config, tmp_path / "run")


def test_metres_need_something_measured() -> None:
    frames, smooth, depth = Photometric(), Smoothness(), Silog()
    assert "drift" in what(unanchored([frames, smooth], (-1, 1), Kind.METRIC_DEPTH))
    assert unanchored([frames, smooth], (-1, 1), Kind.SCALED_DISPARITY) == []
    assert unanchored([frames, smooth], (-1, "stereo"), Kind.METRIC_DEPTH) == []
    assert unanchored([Photometric(poses="known")], (-1, 1), Kind.METRIC_DEPTH) == []
    assert unanchored([frames, depth], (-1, 1), Kind.METRIC_DEPTH) == []
    assert unanchored([depth], (), Kind.METRIC_DEPTH) == []


def test_a_figure_is_judged_by_the_median_of_the_last_iterations() -> None:
    doctor = Attendance(every=10)
    for iteration in range(1, 30):
        assert doctor.look(iteration, GOOD | {"mask_share": 0.99}) == []
    (finding,) = doctor.look(30, GOOD)
    assert "masked" in finding.what
    assert doctor.look(40, GOOD | {"mask_share": 0.99}) == []  # said once
