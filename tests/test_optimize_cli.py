"""`leadline optimize` as a user types it: measured, continued, killed, locked, limited."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny_datasets as tiny
from leadline.cli import app

DATA = "rendered:room,count=3,height=72,width=96"
COMMAND = [sys.executable, "-m", "leadline", "optimize", "random:fastdepth-pruned", "--data", DATA]
COMMAND += ["--size", "224,224", "--runs", "6", "--runtime", "torch", "--runtime", "onnxruntime"]


def optimise(out: Path, *more: str) -> tuple[int, dict[str, object], str]:
    done = subprocess.run([*COMMAND, "--out", str(out), "--json", *more], capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    status, answer, errors = optimise(out, "--precision", "fp32")
    assert status == 0, errors
    (out / "answer.json").write_text(json.dumps(answer))
    return out


def test_every_candidate_is_measured_and_one_is_recommended(study: Path) -> None:
    answer = json.loads((study / "answer.json").read_text())
    rows = answer["rows"]
    assert [(row["runtime"], row["precision"], row["status"]) for row in rows] == [
        ("torch", "fp32", "measured"),
        ("onnxruntime", "fp32", "measured"),
    ]
    for row in rows:
        assert row["precision_ran"] == "fp32"
        assert row["accuracy"]["protocol"] == "plain/none"
        assert row["accuracy"]["scored"] == 3
        assert 0 < row["latency"]["p50"] <= row["latency"]["p95"] <= row["latency"]["p99"]
        assert row["memory_mb"] > 50
        assert row["size_mb"] == pytest.approx(5.5, abs=0.6)  # 1.36 M float32 parameters
        assert row["parameters"] == 1_360_786
    change = rows[1]["accuracy"]["change"]["delta1"]
    assert abs(change["value"]) < 1e-3
    assert Path(answer["recommended"]).is_dir()
    assert Path(answer["report"]).read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_second_run_repeats_nothing(study: Path) -> None:
    before = json.loads((study / "answer.json").read_text())["rows"]
    start = time.monotonic()
    status, answer, _ = optimise(study, "--precision", "fp32")
    assert status == 0
    assert answer["rows"] == before
    assert time.monotonic() - start < 60


def test_more_candidates_join_and_the_old_ones_stay(study: Path, tmp_path: Path) -> None:
    out = shutil.copytree(study, tmp_path / "study")
    before = json.loads((out / "answer.json").read_text())["rows"]
    status, answer, errors = optimise(out, "--precision", "fp32", "--precision", "int8-dynamic")
    assert status == 0, errors
    rows = answer["rows"]
    assert isinstance(rows, list)
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert [row for row in rows if row["status"] == "measured"] == before
    assert {row["runtime"] for row in skipped} == {"torch", "onnxruntime"}
    assert all("int8-static" in row["reason"] for row in skipped)  # what to use instead


def test_limits_that_nothing_keeps_are_said_and_the_status_is_1(study: Path, tmp_path: Path) -> None:
    out = shutil.copytree(study, tmp_path / "study")
    status, answer, _ = optimise(out, "--precision", "fp32", "--max-mb", "0.1")
    assert status == 1
    assert answer["recommended"] is None
    assert "Nothing keeps to the limits" in str(answer["reason"])


def test_killed_in_the_middle_it_keeps_what_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out), "--precision", "fp32"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while finished(out) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished(out) == 1
    status, answer, errors = optimise(out, "--precision", "fp32")
    assert status == 0, errors
    rows = answer["rows"]
    assert isinstance(rows, list)
    assert len(rows) == finished(out) == 2


def test_interrupted_it_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = [*COMMAND, "--out", str(out), "--precision", "fp32", "--precision", "int8-weights"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "4 candidates\n"
    assert process.stderr.readline() == "[0/4] torch fp32 224x224: exporting and scoring\n"
    seen = process.stderr.readline()  # what torch lacks is finished at once, while others are exported
    assert seen == "[1/4] torch int8-weights 224x224: skipped\n"
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    [said] = [line for line in rest.splitlines() if not line.startswith("[")]
    assert said == (f"interrupted: 1 of 4 candidates are finished and kept in {out}; the same command continues there")
    assert finished(out) == 1
    assert not list(out.glob("bundles/*tmp*"))


def test_pictures_without_ground_truth_are_compared_with_the_uncompressed_model(tmp_path: Path) -> None:
    pictures = tiny.pictures(tmp_path / "pictures")
    command = ["random:fastdepth-pruned", "--data", str(pictures), "--size", "64,96", "--runs", "6"]
    command += ["--runtime", "onnxruntime", "--precision", "fp32", "--out", str(tmp_path / "study")]
    done = CliRunner(env={"COLUMNS": "150"}).invoke(app, ["optimize", *command])
    assert done.exit_code == 0, done.output
    for part in (
        "The pictures have no ground truth: accuracy here is protocol fidelity",
        "x faster: against the first row in the same rounds, in turn",
        "pictures only (fidelity)",
        "Caution: 3 pictures only",
    ):
        assert part in done.stdout
    report = (tmp_path / "study" / "report.html").read_text()
    assert "The pictures have no ground truth" in report
    assert "Caution: 3 pictures only" in report
    [bundle] = (tmp_path / "study" / "bundles").glob("onnxruntime-fp32-*")
    rows = json.loads(CliRunner().invoke(app, ["benchmark", str(bundle), "--runs", "2", "--json"]).stdout)["rows"]
    assert rows[0]["parameters"] == 1_360_786  # SPEC.md 1.2; the exported file itself no longer tells
    assert rows[0]["macs"] > 1e6


def finished(out: Path) -> int:
    if not (out / "study.sqlite").is_file():
        return 0
    connection = sqlite3.connect(out / "study.sqlite")
    try:
        return int(connection.execute("SELECT count(*) FROM measurements").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        connection.close()


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom leadline.output import output_lock\n"
        "with output_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        status, _, errors = optimise(tmp_path)
        holder.kill()
    assert status == 2
    assert str(holder.pid) in errors
    assert len(errors.strip().splitlines()) == 1


def test_unknown_words_are_refused_in_one_line(tmp_path: Path) -> None:
    status, _, errors = optimise(tmp_path, "--precision", "int9")
    assert status == 2
    assert "int9" in errors
    assert len(errors.strip().splitlines()) == 1
