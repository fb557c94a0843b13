"""The floor in closed form, what it counts, the cache of the machine's peaks, and the commands that show them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from leadline.cli import app
from leadline.errors import LeadlineError
from leadline.evaluation import peaks
from leadline.evaluation.latency import summarise
from leadline.evaluation.machine import this_machine
from leadline.evaluation.roofline import (
    Peak,
    Roofline,
    arithmetic,
    count_activations,
    floor_of,
    roofline_of,
    share_of_floor,
)
from leadline.output import cache_folder
from tiny_models import exported


def peak(best: float) -> Peak:
    return Peak(best, 0.5, best - 1, 30, "kernel 512")


# RUNTIMES.md, 'The floor': 2 threads.
PUBLISHED = Roofline(
    "machine",
    2,
    "2026-11-22T09:00:00+00:00",
    {"fp32": peak(194.0), "bf16": peak(437.0), "int8": peak(893.0)},
    peak(34.0),
    2,
    0.0,
)


class TestFloor:
    @pytest.mark.parametrize(("ran", "ms"), [("fp32", 7.6), ("bf16", 3.4), ("int8 (38 of 40 layers)", 1.65)])
    def test_fastdepth_has_the_published_floors(self, ran: str, ms: float) -> None:
        """RUNTIMES.md: FastDepth of 0.74 G multiply-accumulates takes 7.6, 3.4 and 1.65 ms at least."""
        found = floor_of(PUBLISHED, ran, macs=740_000_000)
        assert found is not None
        assert found.ms == pytest.approx(ms, rel=0.01)
        assert found.bound == "compute"

    def test_operations_and_bytes_in_closed_form(self) -> None:
        machine = replace(PUBLISHED, peaks={"fp32": peak(100.0), "int8": peak(400.0)}, bandwidth=peak(10.0))
        found = floor_of(machine, "fp32", macs=10**6, parameters=10**7, activations=500_000, batch=2)
        assert found is not None
        assert found.compute_ms == pytest.approx(0.04)  # 2 x 2 x 10^6 operations at 10^11 a second
        assert found.memory_ms == pytest.approx(4.8)  # 4 bytes x (10^7 weights + 2 x 10^6 reads and writes) at 10^10
        assert (found.ms, found.bound) == (found.memory_ms, "memory")
        assert found.reached(9.6) == pytest.approx(0.5)
        narrow = floor_of(machine, "int8", macs=10**6, parameters=10**7, activations=500_000, batch=2)
        assert narrow is not None
        assert (narrow.compute_ms, narrow.memory_ms) == (pytest.approx(0.01), pytest.approx(1.2))

    def test_a_batch_is_held_against_the_floor_of_the_batch(self) -> None:
        latency = summarise([80.0], batch=4)
        machine = replace(PUBLISHED, peaks={"fp32": peak(100.0)})
        assert share_of_floor(machine, latency, "fp32", macs=10**9) == pytest.approx(1.0)  # 8 x 10^9 at 10^11 a second

    @pytest.mark.parametrize(
        ("ran", "kind"),
        [
            ("fp32", "fp32"),
            ("fp32 (fp16 weights)", "fp32"),
            ("fp32 (int8 weights)", "fp32"),
            ("int8 (38 of 40 layers)", "int8"),
            ("bf16 (3 of 4 layers)", "bf16"),
            ("", ""),
        ],
    )
    def test_the_arithmetic_counts_and_not_the_stored_width(self, ran: str, kind: str) -> None:
        assert arithmetic(ran) == kind

    def test_without_a_peak_there_is_no_floor(self) -> None:
        assert floor_of(PUBLISHED, "fp16", macs=1) is None
        assert floor_of(PUBLISHED, "unknown", macs=1) is None


class TestActivations:
    def test_products_count_and_what_lies_between_them_does_not(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 3, stride=2, padding=1)
        )
        # the input 3 x 8 x 6, 5 x 8 x 6 and 2 x 4 x 3
        assert count_activations(model, (8, 6)) == 144 + 240 + 24

    def test_linear_layers_and_attention_products_count(self) -> None:
        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inward = nn.Linear(3, 7)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                tokens = self.inward(x.flatten(2).transpose(1, 2))[:, None]  # 1 x 1 x 20 x 7
                return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

        assert count_activations(Attends(), (4, 5)) == 60 + 20 * 7 + 20 * 20 + 20 * 7


class TestMeasuring:
    def test_the_best_repeat_counts(self) -> None:
        found = peaks.rate("spin", 1e6, lambda: sum(range(2000)))
        assert found.best >= found.median > 0
        assert 5 <= found.repeats <= peaks.REPEATS
        assert found.kernel == "spin"

    def test_what_this_machine_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Quickly: one small size, short arrays; the order of magnitude must be a processor's."""
        monkeypatch.setattr(peaks, "SIDES", (256,))
        monkeypatch.setattr(peaks, "ARRAY", 2**22)
        monkeypatch.setattr(peaks, "SECONDS", 0.1)
        found = peaks.measured(1)
        assert {"fp32", "bf16", "int8"} <= set(found["peaks"])
        assert all(1 < each["best"] < 100_000 for each in found["peaks"].values())
        assert 0.1 < found["bandwidth"]["best"] < 100_000
        assert found["cores"] >= 1
        assert 0 <= found["others"] <= found["cores"]

    def test_a_process_that_fails_says_why(self) -> None:
        with pytest.raises(LeadlineError, match="no such kernel"):
            peaks.measure("m", 1, (sys.executable, "-c", "raise SystemExit('no such kernel')"))


class TestCache:
    @pytest.fixture(autouse=True)
    def _empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
        self.measured: list[int] = []

        def measure(machine: str, threads: int) -> Roofline:
            self.measured.append(threads)
            return replace(PUBLISHED, machine=machine, threads=threads)

        monkeypatch.setattr(peaks, "measure", measure)

    def test_it_is_measured_once_for_a_number_of_threads(self) -> None:
        machine = this_machine()
        first, second = roofline_of(machine, 1), roofline_of(machine, 1)
        assert (first.cached, second.cached) == (False, True)
        assert replace(second, cached=False) == first
        roofline_of(machine, 2)
        roofline_of(machine, 1, fresh=True)
        assert self.measured == [1, 2, 1]

    def test_another_machine_or_a_damaged_file_is_measured_again(self) -> None:
        machine = this_machine()
        roofline_of(machine, 1)
        roofline_of(replace(machine, cpu="another"), 1)
        assert self.measured == [1, 1]
        [path] = (cache_folder() / "roofline").glob(f"{machine.id}-1.json")
        path.write_text("{")
        assert roofline_of(machine, 1).cached is False
        assert self.measured == [1, 1, 1]

    def test_where_measuring_is_not_wanted_a_missing_one_says_how(self) -> None:
        with pytest.raises(LeadlineError, match="doctor --roofline"):
            roofline_of(this_machine(), 1, cached_only=True)
        assert self.measured == []

    def test_a_cache_that_cannot_be_written_costs_nothing_but_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LEADLINE_CACHE", "/dev/null/nowhere")
        assert roofline_of(this_machine(), 1).cached is False
        assert roofline_of(this_machine(), 1).cached is False
        assert self.measured == [1, 1]

    def test_doctor_shows_it(self) -> None:
        result = CliRunner().invoke(app, ["doctor", "--roofline", "--threads", "2"])
        assert result.exit_code == 0
        assert "Roofline  2 threads, measured 2026-11-22" in result.stdout
        assert any(line.split()[:3] == ["int8", "893.0", "GOP/s"] for line in result.stdout.splitlines())
        assert "busy" not in result.stdout
        values = json.loads(CliRunner().invoke(app, ["doctor", "--roofline", "--threads", "2", "--json"]).stdout)
        assert values["roofline"]["bandwidth"]["best"] == 34.0
        assert values["roofline"]["cached"] is True
        assert self.measured == [2]

    def test_a_busy_machine_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peaks, "measure", lambda machine, threads: replace(PUBLISHED, others=1.5))
        result = CliRunner().invoke(app, ["doctor", "--roofline"])
        assert "the machine was busy (other programs kept 1.5 of 2 cores)" in result.stdout

    def test_other_programs_on_cores_that_are_left_are_no_harm(self) -> None:
        wide = replace(PUBLISHED, cores=16, threads=4)
        assert not replace(wide, others=12.0).busy
        assert replace(wide, others=12.5).busy
        assert replace(wide, threads=0, others=0.5).busy


class TestBenchmark:
    """`leadline benchmark --roofline` with the published peaks, on a bundle whose counts are written down."""

    @pytest.fixture(autouse=True)
    def _published(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            peaks, "measure", lambda machine, threads: replace(PUBLISHED, machine=machine, threads=threads)
        )

    def test_each_row_says_what_share_of_its_floor_it_reaches(self) -> None:
        bundle = exported("cnn", "onnxruntime", "fp32")
        bundle.write_measurements({"macs": 97_000_000, "parameters": 1000, "activations": 1000})
        words = ["benchmark", str(bundle.folder), "--runs", "3", "--rounds", "1", "--roofline", "--json"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0
        values = json.loads(result.stdout)
        [row] = values["rows"]
        assert row["floor"]["ms"] == pytest.approx(1.0)  # 2 x 97 M operations at 194 GFLOP/s
        assert row["floor"]["bound"] == "compute"
        assert row["floor"]["share"] == pytest.approx(1.0 / row["latency"]["p50"])
        assert values["roofline"]["peaks"]["fp32"]["best"] == 194.0

    def test_the_table_shows_floors_and_slowest_layers(self) -> None:
        bundle = exported("cnn", "onnxruntime", "fp32")
        bundle.write_measurements({"macs": 97_000_000, "parameters": 1000, "activations": 1000})
        words = ["benchmark", str(bundle.folder), "--runs", "2", "--rounds", "1", "--roofline", "--layers", "3"]
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, words)
        assert result.exit_code == 0
        for title in ("floor ms", "of floor", "memory 34.0 GB/s", "by the engine's profiler; the slowest:", "share"):
            assert title in result.stdout
        assert [line.split()[0] for line in result.stdout.splitlines() if line[:2].strip().isdigit()] == ["1", "2", "3"]

    def test_without_counts_the_row_says_why_it_has_no_floor(self) -> None:
        bundle = exported("cnn", "openvino", "fp32")
        words = ["benchmark", str(bundle.folder), "--runs", "2", "--rounds", "1", "--roofline"]
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, words)
        assert result.exit_code == 0
        assert "A: floor n/a: its multiply-accumulates are not known" in result.stdout
