"""Speed that lasts: windows, first against last minute, clock and temperature, and work beside it that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from leadline.cli import app
from leadline.errors import ConfigError
from leadline.evaluation import cpu_load as module
from leadline.evaluation.cpu_load import PERIOD, cpu_load, usable_cores, work
from leadline.evaluation.isolation import EngineError, IsolatedSession, Job
from leadline.evaluation.power import find_sources
from leadline.evaluation.probe import Wanted, probe
from leadline.evaluation.sustained import Window, celsius, clock_mhz, summary, sustain
from tiny_models import exported


class Throttling:
    """An engine that takes 10 ms, and 15 ms once its clock has passed two minutes."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def last(self, seconds: float) -> list[float]:
        ms = 10.0 if self.now < 120 else 15.0
        self.now += seconds
        return [ms, ms, 99.0 if self.now == 1.0 else ms]


class TestSummary:
    def test_throttling_shows_in_the_last_minute(self) -> None:
        engine, seen = Throttling(), []
        found = sustain(engine, 240, clock=engine.clock, window=1.0, on_window=seen.append)  # type: ignore[arg-type]
        assert len(found.windows) == len(seen) == 240
        assert (found.first_ms, found.last_ms, found.slowest_ms) == (10.0, 15.0, 15.0)
        assert found.ratio == 1.5
        assert (found.span, found.seconds) == (60.0, 240.0)

    def test_a_short_measurement_compares_its_halves(self) -> None:
        found = summary([Window(1.0, 4.0, 3), Window(2.0, 6.0, 3), Window(3.0, 8.0, 3), Window(4.0, 10.0, 3)])
        assert (found.span, found.first_ms, found.last_ms) == (2.0, 5.0, 9.0)

    def test_one_window_is_compared_with_itself(self) -> None:
        found = summary([Window(7.0, 7000.0, 1)])
        assert (found.ratio, found.slowest_ms) == (1.0, 7000.0)

    def test_no_time_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="needs time"):
            sustain(SimpleNamespace(), 0)  # type: ignore[arg-type]

    def test_a_real_engine_runs_without_a_pause(self) -> None:
        with IsolatedSession(Job(str(exported("cnn", "onnxruntime", "fp32").folder))) as session:
            found = sustain(session, 1.0)
        assert 1.0 <= found.seconds < 5.0
        assert 2 <= len(found.windows) <= 11
        assert sum(window.runs for window in found.windows) > len(found.windows)


class TestSensors:
    def test_the_fastest_core_and_the_hottest_zone_count(self, tmp_path: Path) -> None:
        for core, kilohertz in (("cpu0", "1800000"), ("cpu1", "3400000"), ("cpu2", "")):
            folder = tmp_path / "sys/devices/system/cpu" / core / "cpufreq"
            folder.mkdir(parents=True)
            (folder / "scaling_cur_freq").write_text(kilohertz)
        for zone, temperature in (("thermal_zone0", "45500"), ("thermal_zone1", "61250")):
            folder = tmp_path / "sys/class/thermal" / zone
            folder.mkdir(parents=True)
            (folder / "temp").write_text(temperature)
        assert clock_mhz(tmp_path) == pytest.approx(3400)
        assert celsius(tmp_path) == pytest.approx(61.25)

    def test_what_the_system_does_not_tell_is_not_guessed(self, tmp_path: Path) -> None:
        assert clock_mhz(tmp_path) is None
        assert celsius(tmp_path) is None


class TestDutyCycle:
    def test_each_period_is_worked_for_its_share(self) -> None:
        """On a clock that moves by 1 ms at each look, 10 periods of 20 ms at 30 %: 60 ms of looking, the rest sleep."""
        now, slept = [0.0], [0.0]

        def clock() -> float:
            now[0] += 0.001
            return now[0]

        def sleep(seconds: float) -> None:
            now[0] += seconds
            slept[0] += seconds

        work(0.3, turns=10, clock=clock, sleep=sleep)
        assert now[0] == pytest.approx(10 * PERIOD, rel=0.1)
        assert slept[0] == pytest.approx(0.7 * 10 * PERIOD, rel=0.15)

    def test_what_another_program_took_is_not_caught_up(self) -> None:
        """A stall of a second costs its work: the turns after it come at once, without any."""
        now, spun = [0.0], [0]
        stalled = iter([1.0])

        def clock() -> float:
            spun[0] += 1
            now[0] += 0.001
            return now[0]

        def sleep(seconds: float) -> None:
            now[0] += seconds + next(stalled, 0.0)

        work(0.5, turns=60, clock=clock, sleep=sleep)
        assert spun[0] * 0.001 < 0.5 * 60 * PERIOD  # a second of 1.2 was slept through

    @pytest.mark.parametrize(("percent", "cores"), [(-1, 0), (101, 0), (50, -1), (50, 100_000)])
    def test_impossible_loads_are_refused(self, percent: float, cores: int) -> None:
        with pytest.raises(ConfigError), cpu_load(percent, cores):
            pass

    def test_no_load_starts_nothing(self) -> None:
        with cpu_load(0) as load:
            assert load.processes == []


class TestProcesses:
    def test_they_work_at_most_their_share_and_end_with_the_block(self) -> None:
        with cpu_load(40, 1) as load:
            time.sleep(1.0)
            reached = load.reached()
            [process] = load.processes
            if hasattr(os, "sched_getaffinity"):
                assert os.sched_getaffinity(process.pid) == {usable_cores()[0]}
        assert 0.02 < reached < 0.6  # less on a busy machine, never much more
        assert process.poll() is not None

    def test_an_interruption_ends_them_too(self) -> None:
        started: list[subprocess.Popen[bytes]] = []

        def interrupted() -> None:
            with cpu_load(10, 1) as load:
                started.extend(load.processes)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [process.poll() is not None for process in started] == [True]

    def test_they_do_not_outlive_a_parent_that_is_killed(self) -> None:
        script = (
            "import time\nfrom leadline.evaluation.cpu_load import cpu_load\n"
            "with cpu_load(10, 1) as load:\n    print(load.processes[0].pid, flush=True)\n    time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert psutil.pid_exists(child)
            parent.kill()
        until = time.monotonic() + 10
        while _alive(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _alive(child)

    def test_the_command_is_our_own_module(self) -> None:
        assert module.COMMAND[1:] == ("-m", module.__name__)


class TestCommand:
    def test_all_at_once(self) -> None:
        """Without a pause, beside other work, with energy or the reason why not."""
        words = ["benchmark", str(exported("cnn", "onnxruntime", "fp32").folder), "--runs", "2", "--rounds", "1"]
        words += ["--duration", "0.5", "--cpu-load", "10", "--cpu-load-cores", "1", "--energy"]
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, words)
        assert result.exit_code == 0
        assert "beside 10 % on 1 core (" in result.stdout.splitlines()[0]
        assert "without a pause: " in result.stdout
        assert "ms in the first half" in result.stdout
        assert "A: energy " in result.stdout
        if not find_sources().meters:
            assert "A: energy n/a: " in result.stdout

    def test_as_json(self) -> None:
        words = ["benchmark", str(exported("cnn", "onnxruntime", "fp32").folder), "--runs", "2", "--rounds", "1"]
        result = CliRunner().invoke(app, [*words, "--duration", "0.5", "--layers", "2", "--json"])
        assert result.exit_code == 0
        probe = json.loads(result.stdout)["rows"][0]["probe"]
        assert probe["sustained"]["ratio"] == pytest.approx(
            probe["sustained"]["last_ms"] / probe["sustained"]["first_ms"]
        )
        assert probe["sustained"]["windows"][0]["ms"] > 0
        assert len(probe["layers"]) > 20
        assert probe["energy"] is None

    def test_more_cores_than_there_are_is_the_users_fault(self) -> None:
        words = ["benchmark", "random:fastdepth", "--cpu-load", "50", "--cpu-load-cores", "100000"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "not so many cores" in result.stderr


class TestProbe:
    def test_an_engine_that_fails_keeps_what_it_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(session: IsolatedSession, runs: int) -> None:
            raise EngineError("the engine's process ended")

        monkeypatch.setattr(IsolatedSession, "profile", broken)
        job = Job(str(exported("cnn", "onnxruntime", "fp32").folder))
        found = probe(job, Wanted(layers=True, seconds=0.2))
        assert found.sustained is not None
        assert found.layers is None
        assert (found.failure, found.failure_status) == ("the engine's process ended", 1)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
