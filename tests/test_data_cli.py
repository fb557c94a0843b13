"""`leadline data`: check, render and list, through the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import tiny_datasets as tiny
from leadline.cli import app
from leadline.cli import data as verb
from leadline.data.dataset import FORMATS, open_dataset


def leadline(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "120"})


def checked(*arguments: str) -> tuple[int, dict]:
    result = leadline("check", *arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_a_sound_data_set_is_described(tmp_path: Path) -> None:
    status, report = checked(str(tiny.folder(tmp_path)))
    assert status == 0
    assert report["problems"] == []
    assert (report["format"], report["kind"], report["unit"]) == ("folder", "metric_depth", "m")
    assert (report["samples"], report["read"], report["with_depth"], report["with_intrinsics"]) == (3, 3, 3, 3)
    assert report["sizes"] == [{"height": 12, "width": 16, "count": 3}]
    assert report["depth"]["min"] == pytest.approx(2.0)
    assert report["depth"]["median"] == pytest.approx(2.1)
    assert report["depth"]["max"] == pytest.approx(2.2)
    assert report["depth"]["measured"] == pytest.approx(11 / 12)
    assert report["depth"]["beyond_max_depth"] == 0


def test_bad_items_are_counted_and_the_rest_go_on(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path, 6)
    (root / "images" / "000.png").write_bytes(b"")
    (root / "depth" / "001.png").unlink()
    tiny.png16(root / "depth" / "002.png", np.full((6, 8), 2000))
    tiny.png16(root / "depth" / "003.png", np.zeros((12, 16)))
    status, report = checked(str(root))
    assert status == 1
    assert (report["samples"], report["read"]) == (5, 3)
    found = {problem["item"]: problem["what"] for problem in report["problems"]}
    assert found.keys() == {"000", "001", "002", "003"}
    assert "empty" in found["000"]
    assert found["001"] == "picture without depth"
    assert "6x8" in found["002"]
    assert found["003"] == "no pixel of the depth was measured"
    assert [problem["item"] for problem in report["problems"] if not problem["fatal"]] == ["003"]


def test_infinite_and_negative_depth_are_findings_and_nan_is_not(tmp_path: Path) -> None:
    tiny.describe(tmp_path, depth_scale=1)
    (tmp_path / "depth").mkdir()
    rows = {
        "a": [[1, 2, np.nan, 0], [3, 1, 2, 2]],
        "b": [[1, np.inf, -np.inf, 2], [3, 1, 2, 2]],
        "c": [[1, np.inf, -1, 2], [3, 1, -2, -3]],
    }
    for name, values in rows.items():
        tiny.picture(tmp_path / "images" / f"{name}.png", 2, 4)
        np.save(tmp_path / "depth" / f"{name}.npy", np.array(values, np.float32))
    status, report = checked(str(tmp_path))
    assert status == 1
    assert report["read"] == 3
    assert report["depth"]["infinite"] == pytest.approx(3 / 24)
    assert report["depth"]["negative"] == pytest.approx(3 / 24)
    found = {problem["item"]: problem["what"] for problem in report["problems"]}
    assert found == {
        "b": "infinite depth: 12.50% of all pixels, in 2 of 3 samples, this the first",
        "c": "negative depth: 12.50% of all pixels, in 1 of 3 samples, this the first",
    }
    assert not any(problem["fatal"] for problem in report["problems"])


def test_relative_disparity_may_be_negative(tmp_path: Path) -> None:
    tiny.describe(tmp_path, kind="relative_disparity", unit="none", depth_scale=1, max_depth=None)
    tiny.picture(tmp_path / "images" / "a.png", 2, 2)
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "a.npy", np.array([[-1, 0], [1, 2]], np.float32))
    status, report = checked(str(tmp_path))
    assert (status, report["depth"]["negative"]) == (0, 0)


def test_a_wrong_unit_is_found_and_the_scale_proposed(tmp_path: Path) -> None:
    status, report = checked(str(tiny.folder(tmp_path, depth_scale=1)))
    assert status == 1
    assert report["read"] == 0
    assert all("Set depth_scale to 1000" in problem["what"] for problem in report["problems"])
    assert len(report["problems"]) == 3


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"depth_scale": 200}, 1),  # 10 to 11 m in an indoor set of at most 10 m; the median alone would pass
        ({"max_depth": 2.05}, 1),  # two of three samples beyond
        ({"max_depth": 2.15}, 1),  # one of three
        ({"max_depth": 2.25}, 0),
        ({"max_depth": None}, 0),
    ],
)
def test_depth_that_is_mostly_out_of_range_is_a_finding(
    tmp_path: Path, changes: dict[str, object], status: int
) -> None:
    found, report = checked(str(tiny.folder(tmp_path, **changes)))
    assert (found, report["read"]) == (status, 3)
    if status:
        (problem,) = report["problems"]
        assert "of the measured pixels out of range (0.05 to " in problem["what"]
        assert "most here: 100%" in problem["what"]
        assert "check the unit" in problem["mend"]
        assert not problem["fatal"]


def test_a_few_far_pixels_are_no_finding(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path, 1)
    depth = np.full((12, 16), 2000)
    depth[:2] = 30000  # one sixth, beyond 10 m
    tiny.png16(root / "depth" / "000.png", depth)
    status, report = checked(str(root))
    assert status == 0
    assert report["depth"]["beyond_max_depth"] == pytest.approx(1 / 6)


def test_the_table_names_what_is_wrong(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "data", 30)
    for path in list((root / "depth").iterdir()):
        path.unlink()
    result = leadline("check", str(root))
    assert result.exit_code == 1
    assert "30 problems:" in result.stdout
    assert "000: picture without depth" in result.stdout
    assert "and 10 more" in result.stdout


def test_pictures_alone_have_no_kind(tmp_path: Path) -> None:
    status, report = checked(str(tiny.pictures(tmp_path)))
    assert status == 0
    assert (report["kind"], report["with_depth"], report["depth"]["min"]) == (None, 0, None)
    assert leadline("check", str(tmp_path)).exit_code == 0


@pytest.mark.parametrize(
    ("make", "split", "count"),
    [
        (tiny.kitti, "lidar", 2),
        (tiny.kitti_object, None, 2),
        (tiny.ddad, "val", 2),
        (tiny.nyu, "train", 3),
        (tiny.fastdepth, "holdout", 2),
    ],
)
def test_every_format_can_be_checked(tmp_path: Path, make, split: str | None, count: int) -> None:
    status, report = checked(str(make(tmp_path)), *(["--split", split] if split else []))
    negative = ["negative depth: 2.08% of all pixels, in 2 of 2 samples, this the first"]  # 1 of 48 is -1 in each
    assert [problem["what"] for problem in report["problems"]] == (negative if make is tiny.fastdepth else [])
    assert status == (make is tiny.fastdepth)
    assert report["read"] == count


def test_a_limit_reads_fewer(tmp_path: Path) -> None:
    _, report = checked(str(tiny.folder(tmp_path)), "--limit", "2")
    assert (report["samples"], report["read"]) == (3, 2)


def test_user_errors_are_one_line_and_status_two(tmp_path: Path) -> None:
    for arguments in (
        ("check", str(tmp_path / "nowhere")),
        ("check", str(tmp_path)),
        ("render", "--scene", "rom", "--out", str(tmp_path / "out")),
        ("render", "--size", "large", "--out", str(tmp_path / "out")),
        ("render", "--fov", "200", "--out", str(tmp_path / "out")),
    ):
        result = leadline(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rendered_scenes_are_a_sound_data_set(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    result = leadline("render", "--out", str(out), "--count", "2", "--size", "32,48", "--fov", "90", "--seed", "3")
    assert result.exit_code == 0, result.output
    status, report = checked(str(out))
    assert status == 0
    assert report["sizes"] == [{"height": 32, "width": 48, "count": 2}]
    camera = open_dataset(str(out))[0].intrinsics
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((24, 24, 24, 16))  # 90 degrees: f = width / 2


def test_the_list_names_every_format() -> None:
    assert {row["format"] for row in json.loads(leadline("list", "--json").stdout)} == set(FORMATS)
    table = leadline("list").stdout
    assert all(name in table for name in FORMATS)
    narrow = CliRunner().invoke(app, ["data", "list"], env={"COLUMNS": "60"}).stdout
    assert "SPEC" not in narrow  # nobody outside has it
    assert "\u2026" not in narrow  # nothing is cut off


def test_the_examples_of_the_help_run(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for example in verb.EXAMPLES:
        command = [sys.executable, "-m", *example.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    shown = leadline("--help").stdout
    assert all(example in " ".join(shown.split()) for example in verb.EXAMPLES)


@pytest.mark.parametrize("command", ["check", "render", "list"])
def test_the_examples_of_each_command_run(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "scenes")
    [epilog] = [info.epilog for info in verb.app.registered_commands if info.name == command]
    examples = [line for line in epilog.splitlines() if line.startswith("leadline data ")]
    assert examples
    for example in examples:
        words = example.split()[2:]
        if command == "render":
            words = ["replaced" if word == "scenes" else word for word in words]
        result = leadline(*words)
        assert result.exit_code == 0, (example, result.output)


@pytest.mark.data
@pytest.mark.parametrize("path", ["rgbd/hololens", "rgbd/sevenscenes", "kitti_object", "ddad", "kitti_raw"])
def test_the_real_samples_have_no_problems(shared_data: Path, path: str) -> None:
    status, report = checked(str(shared_data / path))
    assert status == 0
    assert report["read"] == report["samples"] == report["with_intrinsics"] > 0
