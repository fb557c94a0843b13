"""Timing: percentiles in closed form, turns, isolation of crashing and hanging engines, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from leadline.cli import app
from leadline.cli.benchmark_table import Row, print_rows
from leadline.errors import ConfigError, ContractError, LeadlineError
from leadline.evaluation.isolation import EngineError, IsolatedSession, Job
from leadline.evaluation.latency import CROWDED, InProcess, Timing, alternate, compare, ratio, summarise
from leadline.evaluation.machine import this_machine
from leadline.evaluation.worker import Worker, ran_and_waited
from leadline.runtimes.base import SessionOptions, runtime
from tiny_models import exported, picture

# Speaks the worker's language: what it does is its model's name.
ACTOR = textwrap.dedent(
    """
    import json, os, sys, time
    name, told = "", []
    for line in sys.stdin:
        order = json.loads(line)
        do = order["do"]
        if do == "open":
            name = order["ref"]
            if name == "refuse":
                answer = {"error": "wrong input size '7x7'", "kind": "ContractError"}
            else:
                answer = {"engine": "actor", "name": name, "size": [8, 8], "load_ms": 1.0, "notes": []}
        elif do == "run":
            if name == "crash":
                os.abort()
            if name == "exit":
                print("the engine has had enough", file=sys.stderr)
                sys.exit(3)
            if name == "hang":
                time.sleep(60)
            answer = {"ms": [{"fast": 1.0, "slow": 4.0}.get(name, 2.0)] * order["runs"]}
            if name == "gpu":
                told.append({"to_device": 1.0 if told else 99.0, "compute": 0.5, "to_host": 0.25})
                answer["parts"] = [told[-1]] * order["runs"]
        elif do == "around":
            answer = {"pre_ms": [0.5], "post_ms": [0.25]}
        else:
            answer = {"peak_mib": 100.0, "model_mib": 10.0, "precision_ran": "fp32"}
            answer["device_mib"] = 512.0 if name == "gpu" else None
            answer["waited"] = {"crowded": 0.4, "alone": 0.01}.get(name)
        print(json.dumps(answer), flush=True)
    """
)
COMMAND = (sys.executable, "-c", ACTOR)


class Recorder:
    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary = name, diary

    def run(self, runs: int) -> list[float]:
        self.diary.append(f"{self.name}{runs}")
        return [1.0] * runs


class TestFigures:
    def test_percentiles_of_the_first_hundred_numbers(self) -> None:
        found = summarise(list(np.random.default_rng(0).permutation(np.arange(1.0, 102.0))), warmup=3, pre=[1, 2, 9])
        assert (found.p50, found.p95, found.p99, found.iqr, found.minimum) == (51, 96, 100, 50, 1)
        assert (found.runs, found.warmup, found.pre, found.post) == (101, 3, 2, 0)
        assert found.fps == pytest.approx(1000 / 53)

    def test_turns_alternate_and_share_all_runs(self) -> None:
        diary: list[str] = []
        a, b = alternate(Recorder("A", diary), Recorder("B", diary), 11, 4)
        assert diary == ["A3", "B3", "B3", "A3", "A3", "B3", "B2", "A2"]
        assert sum(map(len, a)) == sum(map(len, b)) == 11

    def test_a_slow_round_slows_both_and_leaves_the_ratio(self) -> None:
        found = ratio([[2, 2], [20, 20], [2, 2]], [[4, 4], [40, 40], [4, 4]])
        assert (found.value, found.low, found.high, found.reference_p50) == (0.5, 0.5, 0.5, 4)

    def test_a_run_and_a_picture_of_its_batch_are_told_apart(self) -> None:
        """SPEC.md 7.3, mistake 3: times of a batch and of a picture were mixed."""
        found = summarise([8.0, 8.0, 8.0], pre=[0.5], post=[0.5], batch=4)
        assert (found.p50, found.batch, found.per_picture) == (8.0, 4, 2.0)
        assert found.fps == pytest.approx(1000 / 3)  # 2 ms of the run, 0.5 before and 0.5 after, for each picture

    def test_copies_and_computing_are_medians_of_their_own(self) -> None:
        told = [
            {"to_device": 1.0, "compute": 5.0},
            {"to_device": 3.0, "compute": 4.0},
            {"to_device": 2.0, "compute": 9.0},
        ]
        assert summarise([6.0, 7.0, 11.0], parts=told).parts == {"to_device": 2.0, "compute": 5.0}
        assert summarise([6.0]).parts is None

    def test_no_runs_are_refused(self) -> None:
        with pytest.raises(ConfigError):
            compare(Job("fast"), runs=0, command=COMMAND)

    def test_an_empty_batch_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="batch"):
            compare(Job("fast"), [Job("slow", batch=0)], command=COMMAND)


class TestIsolation:
    def test_a_crash_a_hang_and_a_refusal_cost_one_row_each(self) -> None:
        """FAULTS.md row 51: the others go on."""
        names = ["crash", "slow", "hang", "exit", "refuse", "fast"]
        seen: list[str] = []
        found = compare(
            Job("base"),
            [Job(name) for name in names],
            runs=4,
            rounds=2,
            warmup=1,
            timeout=2.0,
            command=COMMAND,
            on_done=lambda timing: seen.append(timing.ref),
        )
        by_name = {timing.ref: timing for timing in found}
        assert seen == ["base", *names]
        assert "SIGABRT" in by_name["crash"].failure
        assert "no answer within 2 s" in by_name["hang"].failure
        assert "exit status 3 (the engine has had enough)" in by_name["exit"].failure
        assert by_name["refuse"].failure == "wrong input size '7x7'"
        assert (by_name["crash"].failure_status, by_name["refuse"].failure_status) == (1, 2)
        assert by_name["slow"].ratio is not None
        assert by_name["slow"].ratio.value == 2.0
        assert by_name["fast"].ratio is not None
        assert by_name["fast"].ratio.value == 0.5
        assert by_name["base"].latency is not None
        assert by_name["base"].latency.pre == 0.5
        assert by_name["base"].ratio is None

    def test_without_its_reference_a_candidate_is_measured_alone(self) -> None:
        first, second = compare(Job("crash"), [Job("slow")], runs=2, rounds=1, timeout=5.0, command=COMMAND)
        assert first.latency is None
        assert second.latency is not None
        assert second.latency.p50 == 4.0
        assert second.ratio is None

    def test_parts_of_a_run_leave_the_warm_up_out(self) -> None:
        (timing,) = compare(Job("gpu", batch=2), runs=4, rounds=2, warmup=1, timeout=5.0, command=COMMAND)
        assert timing.latency is not None
        assert timing.latency.parts == {"to_device": 1.0, "compute": 0.5, "to_host": 0.25}
        assert timing.latency.batch == 2
        assert timing.device_mib == 512.0

    def test_an_error_keeps_its_type(self) -> None:
        with pytest.raises(ContractError, match="7x7"), IsolatedSession(Job("refuse"), command=COMMAND):
            pass

    def test_a_process_that_cannot_start_python_is_an_engine_error(self) -> None:
        command = (sys.executable, "-c", "raise SystemExit('no such engine')")
        with pytest.raises(EngineError, match="no such engine"), IsolatedSession(Job("x"), command=command):
            pass

    def test_threads_are_pinned_and_waiting_ones_sleep(self) -> None:
        """RUNTIMES.md pitfall 9: spinning threads collapse when a neighbour takes one core."""
        report = (
            "import json, os; input(); print(json.dumps({'ms': [os.environ[k] for k in KEYS]}), flush=True); input()"
        )
        keys = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
        session = IsolatedSession(Job("x", threads=3), command=(sys.executable, "-c", f"KEYS = {keys}; {report}"))
        assert session.run(1) == ["3", "3", "3", "PASSIVE"]
        session.close()

    def test_the_process_ends_with_the_block(self) -> None:
        with IsolatedSession(Job("fast"), command=COMMAND) as session:
            assert session.run(3) == [1.0, 1.0, 1.0]
        assert session._process.poll() is not None


def test_a_real_engine_in_its_process() -> None:
    bundle = exported("cnn", "onnxruntime", "fp32")
    (timing,) = compare(Job(str(bundle.folder)), runs=5, rounds=1, warmup=1)
    assert timing.failure == ""
    assert timing.latency is not None
    assert 0 < timing.latency.minimum <= timing.latency.p50 <= timing.latency.p95 <= timing.latency.p99
    assert timing.latency.pre > 0
    assert timing.latency.post > 0
    assert (timing.engine, timing.precision_ran, timing.size) == ("onnxruntime", "fp32", (64, 96))
    assert timing.peak_mib is not None
    assert timing.model_mib is not None
    assert 20 < timing.model_mib < timing.peak_mib < 200  # torch alone would be above that


def test_a_real_engine_is_fed_the_whole_batch() -> None:
    bundle = exported("cnn", "torch", "fp32")
    with IsolatedSession(Job(str(bundle.folder), batch=3)) as session:
        assert len(session.run(2)) == 2
    worker = Worker()
    worker.open(str(bundle.folder), 1, "cpu", None, 3)
    assert worker.values.shape == (3, 3, 64, 96)
    assert not np.array_equal(worker.values[0], worker.values[1])


def test_in_this_process() -> None:
    session = runtime("torch").open(exported("cnn", "torch", "fp32"), SessionOptions())
    times = InProcess(session, picture(0, (64, 96))).run(3)
    assert len(times) == 3
    assert min(times) > 0


def test_the_machine_is_described_and_its_id_depends_on_it() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_gib >= 1
    assert machine.versions["torch"]
    assert machine.id == this_machine().id
    assert len(machine.id) == 12
    assert type(machine)(**{**vars(machine), "cpu": "another"}).id != machine.id


def damaged(folder: Path) -> Path:
    """A bundle's manifest without the bundle."""
    folder.mkdir()
    (folder / "manifest.json").write_text('{"kind": "bundle"}')
    return folder


class TestCommand:
    def test_two_models_side_by_side(self, tmp_path: Path) -> None:
        folder = exported("cnn", "onnxruntime", "fp32").folder
        exported("cnn", "onnxruntime", "fp32").write_measurements({"macs": 12_000_000, "parameters": 34_000})
        broken = damaged(tmp_path / "broken")
        result = CliRunner().invoke(
            app, ["benchmark", str(folder), str(broken), "--runs", "3", "--rounds", "1", "--json"]
        )
        assert result.exit_code == 1
        values = json.loads(result.stdout)
        good, bad = values["rows"]
        assert good["latency"]["runs"] == 3
        assert (good["macs"], good["parameters"]) == (12_000_000, 34_000)
        assert good["size_mb"] > 0.05
        assert values["machine"]["id"] == this_machine().id
        assert "broken" in bad["failure"]

    def test_a_name_that_stands_for_nothing_ends_it_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(*_: object, **__: object) -> None:
            raise AssertionError("nothing may be measured")

        monkeypatch.setattr("leadline.evaluation.latency.compare", measured)
        for words in (["nosuch", "random:fastdepth"], ["random:fastdepth", "nosuch"]):
            result = CliRunner().invoke(app, ["benchmark", *words])
            assert result.exit_code == 2
            assert "error: no model 'nosuch'" in result.stderr

    def test_the_table_fits_a_terminal_of_100_columns(self) -> None:
        folder = exported("cnn", "onnxruntime", "fp32").folder
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["benchmark", str(folder), "--runs", "2"])
        assert result.exit_code == 0
        assert f"A: {folder}: onnxruntime fp32, input 64x96" in result.stdout.replace("\n", "")
        for title in (
            "IQR",
            "p99",
            "pre",
            "post",
            "FPS",
            "ratio to A",
            "peak MiB",
            "file MB",
            "G MACs",
            "M parameters",
        ):
            assert title in result.stdout

    def test_the_table_says_which_batch_and_shows_both_times(self) -> None:
        folder = str(exported("cnn", "onnxruntime", "fp32").folder)
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["benchmark", folder, "--runs", "2", "--batch", "4"])
        assert result.exit_code == 0
        assert result.stdout.splitlines()[0].endswith("1 thread, batch 4")
        assert "ms/picture" in result.stdout
        result = CliRunner().invoke(app, ["benchmark", folder, "--runs", "2", "--batch", "4", "--json"])
        [row] = json.loads(result.stdout)["rows"]
        assert row["ms_per_picture"] == pytest.approx(row["ms_per_batch"] / 4)
        assert row["latency"]["batch"] == 4

    def test_nothing_measurable_is_status_2(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "none")])
        assert result.exit_code == 2
        assert result.stdout == ""
        [line] = result.stderr.splitlines()
        assert line.startswith("error: no model")

    def test_none_of_several_measurable_is_an_error_behind_the_rows(self, tmp_path: Path) -> None:
        runner = CliRunner(env={"COLUMNS": "300"})
        result = runner.invoke(app, ["benchmark", *(str(damaged(tmp_path / name)) for name in ("one", "two"))])
        assert result.exit_code == 2
        assert result.stdout.count(": skipped: ") == 2
        assert len(result.stdout.splitlines()) == 3  # the machine, and one line for each
        [line] = result.stderr.splitlines()
        assert line.startswith("error: none of the 2 models could be measured; the first: ")

    def test_an_engine_that_fails_is_status_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timings = [Timing("a", failure="the engine's process ended", failure_status=1)]
        monkeypatch.setattr("leadline.evaluation.latency.compare", lambda *_, **__: timings)
        result = CliRunner().invoke(app, ["benchmark", "random:fastdepth", "--json"])
        assert result.exit_code == 1
        assert json.loads(result.stdout)["rows"][0]["failure_status"] == 1
        assert result.stderr == "error: the engine's process ended\n"


def test_an_engine_that_waited_for_a_core_is_told_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Job("alone"), Job("crowded"), Job("slow")
    alone, crowded, unknown = compare(jobs[0], jobs[1:], runs=2, warmup=1, rounds=1, command=COMMAND)
    assert (alone.cautions, crowded.cautions, unknown.cautions) == ((), (CROWDED,), ())
    print_rows([Row(timing) for timing in (alone, crowded, unknown)], "this machine")
    assert capsys.readouterr().out.count(CROWDED) == 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="only Linux tells how long threads waited")
def test_waiting_is_seen_beside_another_process_on_the_same_core() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread; the process that it starts has it, too
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        ran, waited = ran_and_waited()
        while ran_and_waited()[0] - ran < 200e6:
            pass
        ran, waited = (now - before for now, before in zip(ran_and_waited(), (ran, waited), strict=True))
        assert waited > 0.1 * ran
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)


def test_errors_of_the_process_are_leadline_errors() -> None:
    assert issubclass(EngineError, LeadlineError)
    assert EngineError("x").exit_status == 1
