"""`leadline study FILE`: the file is checked, the engine is chosen by a rule, a fault costs its row only."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leadline.cli import app
from leadline.errors import ConfigError, ContractError, DataError, OutputError
from leadline.output import output_lock
from leadline.runtimes.base import Availability
from leadline.studies import engine_choice
from leadline.studies.engine_choice import first_available
from leadline.studies.from_file import carry_out
from leadline.studies.measurement import Measurement, Status
from leadline.studies.store import Store
from leadline.studies.study import Cell, Study, cells, engine_of
from leadline.studies.study_file import StudyFile, load_study

ROOT = Path(__file__).parents[1]
DATA = "rendered:room,count=3,height=72,width=96"


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


class TestTheFile:
    def test_every_key_is_read(self, tmp_path: Path) -> None:
        file = load_study(
            written(
                tmp_path,
                "model: leadline-s\nruntime: [torch on cuda, onnxruntime]\nprecisions: [FP32, FP16]\n"
                "sizes: [224x288, [192, 256]]\nbatches: [1, 2, 2]\nlimits: {max_ms: 20}\nmachines: rpi5\ntimeout: 5\n",
            )
        )
        assert file.runtime == ("torch on cuda", "onnxruntime")
        assert file.precisions == ("fp32", "fp16")
        assert file.sizes == ((224, 288), (192, 256))
        assert file.batches == (1, 2)
        assert (file.bounds.max_ms, file.bounds.max_drop) == (20, 0.01)
        assert (file.machines, file.timeout, file.data) == (("rpi5",), 5, "rendered")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("model: m\nprecision: [fp32]\n", "unknown key 'precision'.*Did you mean 'precisions'"),
            ("model: m\nlimits: {max_dorp: 1}\n", "Did you mean 'max_drop'"),
            ("data: rendered\n", "'model' is missing"),
            ("model: m\nsizes: [224]\n", "224 is no size; write HEIGHTxWIDTH"),
            ("model: m\nsizes: [224x288x3]\n", "is no size"),
            ("model: m\nbatches: [0]\n", "1 to 64 pictures"),
            ("model: m\nruntime: torch\nruntimes: [torch]\n", "write one of them"),
            (
                "model: m\nruntimes: [torch, onxruntime]\n",
                "study.yaml: runtimes: unknown engine 'onxruntime'.*onnxruntime",
            ),
            ("model: m\nruntime: [torch on]\n", "study.yaml: runtime: unknown engine 'torch on'. Did you mean 'torch'"),
            ("model: m\nprecisions: int9\n", "study.yaml: precisions: unknown precision 'int9'"),
            ("model: m\nprotocol: nyu-eigne\n", "study.yaml: protocol: .*nyu-eigne"),
            ("- model\n", "must be a mapping"),
            ("model: m\ndata: folder:nowhere-at-all\n", "leads nowhere"),
            ("model: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ],
    )
    def test_what_is_wrong_with_it_is_said_in_a_line(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            load_study(written(tmp_path, text))
        assert "\n" not in str(caught.value)

    def test_flags_come_before_the_file(self, tmp_path: Path) -> None:
        path = written(tmp_path, "model: m\nlimit: 64\n")
        assert load_study(path, {"limit": 4, "data": None}).limit == 4

    @pytest.mark.parametrize("name", ["tensorrt-matrix", "engines"])
    def test_those_of_the_repository_are_valid(self, name: str) -> None:
        file = load_study(ROOT / "studies" / f"{name}.yaml")
        contract = _contract("random:depth-anything-v2-base" if name == "tensorrt-matrix" else file.model)
        assert all(contract.checked_size(size) == size for size in file.sizes)

    def test_a_size_that_the_network_does_not_take_is_refused_before_any_work(self, tmp_path: Path) -> None:
        file = StudyFile(model="random:depth-anything-v2-mini", data=DATA, runtimes="onnxruntime", sizes=["100x100"])
        with pytest.raises(ContractError, match=r"multiples of 14.*Use 98,98"):
            carry_out(file, tmp_path / "out")
        assert not (tmp_path / "out" / "study.sqlite").exists()
        with pytest.raises(ContractError, match=r"a/study\.yaml: sizes: .*Use 98,98"):
            carry_out(file, tmp_path / "out", place=Path("a/study.yaml"))


def _contract(model: str):
    from leadline.reference import load_model

    return load_model(model).contract


class TestTheEngine:
    def engines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """openvino is not installed, onnxruntime is."""
        kept = engine_choice.runtime

        class Missing:
            precisions = kept("openvino").precisions

            def availability(self) -> Availability:
                return Availability(False, reason="openvino is not installed", install="pip install openvino")

        monkeypatch.setattr(engine_choice, "runtime", lambda name: Missing() if name == "openvino" else kept(name))

    def test_the_first_that_is_here_is_taken_and_the_rule_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines(monkeypatch)
        choice = first_available(
            ["openvino", "onnxruntime on cuda", "onnxruntime"], ["fp32", "fp16"], probe=lambda *_: "no CUDA here"
        )
        assert choice.entry == "onnxruntime"
        assert choice.sentence == (
            "Engine: onnxruntime, the first of openvino, onnxruntime on cuda, onnxruntime that is here with fp32, "
            "fp16; not openvino: openvino is not installed (pip install openvino); not onnxruntime on cuda: no CUDA "
            "here."
        )

    def test_an_engine_without_the_precisions_is_passed_over(self) -> None:
        choice = first_available(["onnxruntime", "openvino"], ["bf16"], probe=lambda *_: "")
        assert choice.entry == "openvino"
        assert "not onnxruntime: it has no bf16" in choice.sentence

    def test_the_reference_runs_where_the_list_has_pytorch(self) -> None:
        choice = first_available(["onnxruntime on cuda", "torch on cuda"], ["fp32"], probe=lambda *_: "")
        assert (choice.entry, choice.reference_device) == ("onnxruntime on cuda", "cuda")
        choice = first_available(["torch on cuda", "onnxruntime"], ["fp32"], probe=lambda *_: "no CUDA here")
        assert (choice.entry, choice.reference_device) == ("onnxruntime", "")

    def test_none_of_them_is_an_error_with_every_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines(monkeypatch)
        with pytest.raises(ConfigError, match=r"openvino: openvino is not installed.*onnxruntime: it has no bf16"):
            first_available(["openvino", "onnxruntime"], ["bf16"])

    def test_an_engine_may_name_its_device(self) -> None:
        assert engine_of("torch on cuda:1") == ("torch", "cuda:1")
        assert engine_of("onnxruntime") == ("onnxruntime", "")
        with pytest.raises(ConfigError, match="torch on cuda"):
            engine_of("torch on ")


def test_cells_are_engines_times_precisions_times_sizes_times_batches() -> None:
    study = Study(
        "m", runtimes=("onnxruntime", "torch on cuda"), precisions=("fp32",), sizes=((64, 96), (32, 32)),
        batches=(1, 4), reference_device="cuda",
    )  # fmt: skip
    plan = cells(study, _contract("random:fastdepth-pruned"))
    assert plan[0] == Cell("torch", "fp32", (224, 224), device="cuda")
    assert len(plan) == 1 + 2 * 2 * 2
    assert [one.name for one in plan[1:3]] == ["onnxruntime fp32 64x96", "onnxruntime fp32 64x96 batch 4"]
    assert plan[-1].name == "torch on cuda fp32 32x32 batch 4"
    assert plan[1].folder == plan[2].folder == "onnxruntime-fp32-64x96"
    assert plan[1].exported == plan[2].exported != plan[3].exported


def test_keys_of_a_plain_study_do_not_change_with_what_it_does_not_use(tmp_path: Path) -> None:
    from leadline.reference import load_model
    from leadline.studies.study import cell_key

    loaded, cell = load_model("random:fastdepth-pruned"), Cell("onnxruntime", "fp32", (64, 96))
    plain = cell_key(Study("m"), cell, loaded, {})
    assert cell_key(Study("m", on=("here",), timeout=3.0, devices=("cpu",)), cell, loaded, {}) == plain
    assert cell_key(Study("m", batches=(1, 2)), cell, loaded, {}) != plain  # another bundle: its batch is open
    assert cell_key(Study("m", both_alignments=True), cell, loaded, {}) != plain
    assert cell_key(Study("m"), Cell("onnxruntime", "fp32", (64, 96), device="cuda"), loaded, {}) != plain


ENGINE = """
import os, sys, time
sys.path.insert(0, {tests!r})
import numpy as np
from leadline.runtimes.base import Availability, Precision, Session, bundle_contract, bundle_of

class Faulty(Session):
    precision_ran = "fp32"
    calls = 0
    def _infer(self, values):
        Faulty.calls += 1
        if self.engine == "crashing":
            os.kill(os.getpid(), 11)
        if self.engine == "hanging" and "jobs" not in sys.argv[0]:
            time.sleep(600)
        output = np.full((len(values), 1, *values.shape[2:]), 2.0, np.float32)
        if self.engine == "nan" and Faulty.calls > 6:
            output[0, 0, 0, 0] = np.nan
        return output + np.arange(values.shape[3], dtype=np.float32)

class Engine:
    precisions, dynamic, packages = (Precision.FP32,), False, "none"
    def __init__(self, name):
        self.name = name
    def availability(self):
        return Availability(True, version="1")
    def export(self, source, options, out):
        contract = bundle_contract(source.contract, options.size, False)
        (out / "network").write_text("weights")
        return bundle_of(self, source, options, contract, out, {{}})
    def open(self, bundle, options):
        return Faulty(self.name, bundle.contract)
    def example(self, bundle):
        return ""

RUNTIME = Engine({name!r})
"""
SITE = """
import leadline.runtimes.base as base
base.RUNTIMES.update({{name: f"engine_{{name}}" for name in {names!r}}})
import leadline.runtimes.export as export
export.check_parity = lambda *_, **__: None
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Engines that crash, hang and answer NaN, in this process and in those of jobs."""
    names = ("crashing", "hanging", "nan")
    place = tmp_path / "engines"
    place.mkdir()
    for name in names:
        (place / f"engine_{name}.py").write_text(ENGINE.format(tests=str(Path(__file__).parent), name=name))
    (place / "sitecustomize.py").write_text(SITE.format(names=names))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(place))
    from leadline.runtimes.base import RUNTIMES

    for name in names:
        monkeypatch.setitem(RUNTIMES, name, f"engine_{name}")
    return names


def faulty_study(*engines: str, timeout: float) -> StudyFile:
    return StudyFile(
        model="random:fastdepth-pruned", data=DATA, runtimes=engines, precisions="fp32", sizes="64x64", runs=5,
        timeout=timeout, alignments="one",
    )  # fmt: skip


def test_an_engine_that_crashes_or_answers_nan_costs_its_row_only(tmp_path: Path, faulty: tuple[str, ...]) -> None:
    file = faulty_study("crashing", "nan", timeout=400)
    found = carry_out(file, tmp_path / "out")
    rows = {row.runtime: row for row in found.outcome.rows}
    assert rows["torch"].status is Status.MEASURED
    assert [rows[name].status for name in ("crashing", "nan")] == [Status.FAILED] * 2
    assert "SIGSEGV" in rows["crashing"].reason
    assert "NaN or infinity" in rows["nan"].reason
    assert "nan (fp32)" in rows["nan"].reason  # engine and precision are named
    with Store(tmp_path / "out" / "study.sqlite") as store:  # each is kept, and not tried again
        assert len(store.all()) == 3
    again = carry_out(file, tmp_path / "out")
    assert again.outcome.rows == found.outcome.rows


@pytest.mark.slow
def test_an_engine_that_hangs_costs_its_row_only(tmp_path: Path, faulty: tuple[str, ...]) -> None:
    found = carry_out(faulty_study("hanging", "torch", timeout=90), tmp_path / "out")
    rows = {row.name: row for row in found.outcome.rows}
    assert "no answer within 90 s" in rows["hanging fp32 64x64"].reason
    assert rows["torch fp32 64x64"].status is Status.MEASURED


class TestFaults:
    FILE = "model: random:fastdepth-pruned\ndata: rendered:room,count=2,height=72,width=96\nruntimes: torch\n"

    def test_a_store_of_a_newer_version_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "study.sqlite"
        Store(path).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=99")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        file = load_study(written(tmp_path, self.FILE))
        with pytest.raises(DataError, match=r"newer version.*Update leadline"):
            carry_out(file, tmp_path)
        assert path.read_bytes() == before

    def test_a_store_of_the_version_before_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "study.sqlite"
        row = Measurement(key="k", model="m", runtime="torch", precision="fp32", height=1, width=1, status="failed")
        old = {key: value for key, value in row.model_dump(mode="json").items() if key not in ("batch", "on", "lost")}
        with Store(path) as store:
            store._connection.execute(
                "INSERT INTO measurements (key, status, row) VALUES (?, ?, ?)",
                ("k", "failed", Measurement(**old).model_dump_json(exclude={"batch", "on", "lost", "device", "zeros"})),
            )
            store._connection.execute("PRAGMA user_version=1")
            store._connection.commit()
        with Store(path) as store:
            assert store.get("k") == row

    def test_a_second_run_into_the_folder_names_the_first(self, tmp_path: Path) -> None:
        file = load_study(written(tmp_path, self.FILE))
        with output_lock(tmp_path / "out"), pytest.raises(OutputError, match=f"process {os.getpid()} is writing"):
            carry_out(file, tmp_path / "out")

    def test_an_output_that_cannot_be_written_fails_before_any_work(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        path = written(tmp_path, self.FILE)
        started = time.monotonic()
        for place in (tmp_path / "file" / "out", Path("/proc/nothing")):
            with pytest.raises(OutputError, match="cannot write to"):
                carry_out(load_study(path), place)
        assert time.monotonic() - started < 5

    def test_a_full_disk_keeps_the_rows_and_is_said(self, tmp_path: Path) -> None:
        row = Measurement(key="0", model="m", runtime="torch", precision="fp32", height=1, width=1, status="failed")
        with Store(tmp_path / "study.sqlite") as store:
            store.put(row)
            (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
            store._connection.execute(f"PRAGMA max_page_count={pages + 2}")

            def fill() -> None:
                for number in range(200):
                    store.put(row.model_copy(update={"key": f"k{number}", "reason": "x" * 4000}))

            with pytest.raises(OutputError, match="disk"):
                fill()
        with Store(tmp_path / "study.sqlite") as store:
            assert store.get("0") == row

    def test_the_command_says_what_is_wrong_in_one_line_with_status_2(self, tmp_path: Path) -> None:
        path = written(tmp_path, self.FILE + "runs: 3\n")
        done = CliRunner().invoke(app, ["study", str(path)])
        assert done.exit_code == 2
        assert done.output.count("\n") == 1
        assert "runs" in done.output


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_keeps_what_was_finished(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"model: random:fastdepth-pruned\ndata: {DATA}\nruntimes: onnxruntime\nprecisions: fp32\nruns: 6\n"
        "sizes: 64x64\nbatches: [1, 2]\n",
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "leadline", "study", str(path), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while _count(out) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = _count(out)
    assert kept >= 1
    copy = shutil.copytree(out, tmp_path / "copy")
    with Store(copy / "study.sqlite") as store:
        before = store.all()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _count(out) == 3
    with Store(out / "study.sqlite") as store:
        assert store.all()[: len(before)] == before


def _count(out: Path) -> int:
    path = out / "study.sqlite"
    if not path.is_file():
        return 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM measurements").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()
