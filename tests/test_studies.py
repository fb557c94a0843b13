"""Studies: the store survives, the front is right, the recommendation keeps to the limits and says why."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny_datasets as tiny
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError, KindError, OutputError
from leadline.studies.ground_truth import choose_protocol, choose_scenes
from leadline.studies.identity import claim
from leadline.studies.isolated import JobError, run_isolated
from leadline.studies.measurement import Accuracy, Figure, Latency, Measurement, Status
from leadline.studies.optimize import optimize
from leadline.studies.pareto import pareto_front
from leadline.studies.planning import Candidate
from leadline.studies.precisions import left_out, linear_share, usual_precisions
from leadline.studies.recommend import Limits, recommend
from leadline.studies.running import run_study
from leadline.studies.store import Store
from leadline.studies.study import Cell, Outcome, Study, cells, default_sizes


def row(name: str, *, ms: float, delta1: float = 0.8, mb: float = 10.0, change: float | None = None) -> Measurement:
    """A measured row; `change` None makes it the reference."""
    changes = {} if change is None else {"delta1": Figure(value=change, low=change - 0.004, high=change + 0.004, n=50)}
    figure = Figure(value=delta1, low=delta1 - 0.02, high=delta1 + 0.02, n=50)
    runtime, _, precision = name.partition(" ")
    return Measurement(
        key=name,
        model="m",
        runtime=runtime,
        precision=precision,
        height=64,
        width=96,
        status=Status.MEASURED,
        accuracy=Accuracy(
            protocol="plain/none", data="d", primary="delta1", metrics={"delta1": figure}, change=changes, scored=50
        ),
        latency=Latency(
            p50=ms, p95=ms, p99=ms, iqr=0.1, runs=9, warmup=2, threads=1, pre=1, post=1, reference_p50=40.0
        ),
        size_mb=mb,
    )


REFERENCE = row("torch fp32", ms=40)
FAST = row("openvino int8-static", ms=5, delta1=0.795, mb=4, change=-0.005)
WRONG = row("onnxruntime int8-dynamic", ms=3, delta1=0.5, mb=4, change=-0.3)
SAME = row("onnxruntime fp32", ms=12, mb=14, change=0.0)


def test_the_fastest_within_the_limits_is_recommended_and_the_sentence_says_why() -> None:
    advice = recommend([REFERENCE, FAST, WRONG, SAME], REFERENCE, Limits(max_drop=0.01))
    assert advice.row is FAST
    for part in ("5.00 ms", "8.00 times", "-0.005 [-0.009, -0.001]", "50 pictures", "plain/none", "4.00 MB"):
        assert part in advice.sentence
    assert "onnxruntime int8-dynamic 64x96 would be faster (3.00 ms) but δ1 drops by 0.300" in advice.sentence


def test_fastest_is_judged_in_the_same_rounds() -> None:
    """The machine was twice as busy while SLOWED was timed, and its reference with it."""
    assert FAST.latency
    latency = FAST.latency.model_copy(update={"p50": 8.0, "reference_p50": 80.0})
    slowed = FAST.model_copy(update={"key": "slowed", "latency": latency})
    advice = recommend([REFERENCE, FAST, slowed], REFERENCE, Limits())
    assert advice.row is slowed
    assert "10.0 times as fast" in advice.sentence
    assert "fewer milliseconds" in advice.sentence  # 5.00 against 8.00


def test_tighter_limits_change_the_choice() -> None:
    rows = [REFERENCE, FAST, WRONG, SAME]
    assert recommend(rows, REFERENCE, Limits(max_drop=0.001)).row is SAME
    assert recommend(rows, REFERENCE, Limits(max_drop=0.5)).row is WRONG
    assert recommend([REFERENCE], REFERENCE, Limits()).row is REFERENCE


def test_an_interval_beyond_the_limit_is_said() -> None:
    assert "measure on more pictures" in recommend([REFERENCE, FAST], REFERENCE, Limits(max_drop=0.006)).sentence
    assert "measure on more pictures" not in recommend([REFERENCE, FAST], REFERENCE, Limits(max_drop=0.02)).sentence


def test_impossible_limits_are_said_with_the_nearest() -> None:
    advice = recommend([REFERENCE, FAST], REFERENCE, Limits(max_ms=1))
    assert advice.row is None
    assert "Nothing keeps to the limits" in advice.sentence
    assert "Nearest is openvino int8-static" in advice.sentence  # as many faults as the reference, but faster
    assert "5.00 ms is over 1 ms" in advice.sentence


def test_where_nothing_but_the_reference_was_measured_nothing_is_recommended() -> None:
    absent = [
        FAST.model_copy(update={"key": status.value, "status": status, "accuracy": None, "latency": None})
        for status in (Status.SKIPPED, Status.FAILED)
    ]
    advice = recommend([REFERENCE, *absent], REFERENCE, Limits())
    assert advice.row is None
    assert advice.sentence.startswith("Nothing but the reference was measured: 2 of 2 candidates were skipped or fail")
    assert recommend([REFERENCE], REFERENCE, Limits()).row is REFERENCE  # nothing else was asked for


def batched(one: Measurement, batch: int, ms: float, reference: float = 40.0) -> Measurement:
    """The same row for runs of a whole batch, each of `ms`."""
    assert one.latency
    latency = one.latency.model_copy(update={"p50": ms, "batch": batch, "reference_p50": reference})
    return one.model_copy(update={"key": f"{one.key} {batch} {ms}", "batch": batch, "latency": latency})


def test_a_batch_is_recommended_in_milliseconds_of_a_run_and_of_a_picture() -> None:
    four = batched(FAST, 4, 12.0)
    advice = recommend([REFERENCE, FAST, four], REFERENCE, Limits())
    assert advice.row is four
    assert "13.3 times as fast per picture as torch fp32" in advice.sentence  # 40 ms against 3
    assert "12.0 ms per run of 4 pictures, 3.00 ms per picture" in advice.sentence
    limited = recommend([REFERENCE, FAST, four], REFERENCE, Limits(max_ms=10))
    assert limited.row is FAST
    assert "but 12.0 ms per run is over 10 ms" in limited.sentence


def test_fewer_milliseconds_beside_a_faster_reference_are_explained() -> None:
    """The quicker row ran while the machine was idle: 4.00 of 20 ms is a larger share than 5.00 of 40."""
    idle = batched(FAST, 1, 4.0, reference=20.0)
    advice = recommend([REFERENCE, FAST, idle], REFERENCE, Limits())
    assert advice.row is FAST
    assert "shows fewer milliseconds per picture (4.00), while the reference beside it was faster" in advice.sentence


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for index, (x, y) in enumerate(points):
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        assert (index in front) == (not beaten)


def test_store_keeps_rows_and_scores(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.put(REFERENCE, {"a": '{"delta1": 1}'})
        store.put(FAST)
        store.put(FAST.model_copy(update={"size_mb": 5.0}))
    with Store(tmp_path / "s.sqlite") as store:
        assert store.get("torch fp32") == REFERENCE
        assert [one.size_mb for one in store.all()] == [10.0, 5.0]
        assert store.scores("torch fp32") == {"a": '{"delta1": 1}'}
        assert store.get("nothing") is None
    mode = sqlite3.connect(tmp_path / "s.sqlite")
    assert mode.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    mode.close()


def test_a_store_survives_being_killed_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    script = (
        "import sys, test_studies as t\nfrom pathlib import Path\nfrom leadline.studies.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for k in range(10**6):\n"
        "    store.put(t.FAST.model_copy(update={'key': str(k)}), {str(p): '{}' for p in range(50)})\n"
        "    print(k, flush=True)"
    )
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parent
        )
        assert writer.stdout is not None
        finished = [writer.stdout.readline() for _ in range(20)][-1]
        writer.kill()
        rest = writer.stdout.read().splitlines()
        writer.wait()
        writer.stdout.close()
        last = int((rest or [finished])[-1])
        with Store(path) as store:
            assert {str(k) for k in range(last + 1)} <= {one.key for one in store.all()}
            assert len(store.scores(str(last))) == 50


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DataError, match="not a store"):
        Store(path)


class TestOneStudyInAFolder:
    def held(self, tmp_path: Path, *, model: str = "m", noted: bool = True) -> Path:
        """A folder in which `Study(model)` has a row."""
        if noted:
            claim(tmp_path, Study(model), "abc")
        with Store(tmp_path / "study.sqlite") as store:
            store.put(REFERENCE.model_copy(update={"model": model}))
        return tmp_path

    def test_the_same_study_goes_on_with_other_candidates(self, tmp_path: Path) -> None:
        out = self.held(tmp_path)
        claim(out, Study("m", precisions=("fp16",), runtimes=("torch",), sizes=((32, 32),), batches=(1, 2)), "abc")
        assert json.loads((out / "study.json").read_text())["model"] == "m"

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"model": "n"}, "model is m there and n here"),
            ({"data": "rendered:street"}, "data is rendered there and rendered:street here"),
            ({"limit": 8}, "limit is all pictures there and 8 here"),
            ({"both_alignments": True}, "scored with both alignments is no there and yes here"),
        ],
    )
    def test_another_study_is_refused_with_what_differs(self, tmp_path: Path, other: dict, said: str) -> None:
        out = self.held(tmp_path)
        before = (out / "study.json").read_bytes()
        with pytest.raises(OutputError, match=f"another study lies in.*{said}.*Choose another folder with --out"):
            claim(out, Study(**({"model": "m"} | other)), "abc")
        assert (out / "study.json").read_bytes() == before

    def test_other_weights_under_the_same_name_are_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="weights of m have changed since"):
            claim(self.held(tmp_path), Study("m"), "def")

    def test_a_folder_of_the_version_before_tells_by_its_rows(self, tmp_path: Path) -> None:
        out = self.held(tmp_path, noted=False)
        with pytest.raises(OutputError, match="model is m there and n here"):
            claim(out, Study("n"), "abc")
        claim(out, Study("m", limit=8), "abc")

    def test_a_folder_without_figures_is_free(self, tmp_path: Path) -> None:
        claim(tmp_path, Study("m"), "abc")
        claim(tmp_path, Study("n"), "def")
        assert json.loads((tmp_path / "study.json").read_text())["model"] == "n"


def test_cells_start_with_the_reference_and_know_their_words() -> None:
    study = Study("m", runtimes=("torch", "onnxruntime"), precisions=("fp32",), sizes=((64, 96), (32, 64)))
    contract = Contract(name="m", input=InputSpec(height=64, width=96), output=OutputSpec(kind=Kind.METRIC_DEPTH))
    plan = cells(study, contract)
    assert plan[0] == Cell("torch", "fp32", (64, 96))
    assert len(plan) == len(set(plan)) == 4
    with pytest.raises(ConfigError, match="fp33"):
        cells(Study("m", precisions=("fp33",)), contract)


def test_the_reference_keeps_the_models_own_size_when_others_are_asked_for() -> None:
    spec = InputSpec(height=224, width=288, dynamic=True, multiple_of=32)
    contract = Contract(name="m", input=spec, output=OutputSpec(kind=Kind.METRIC_DEPTH))
    study = Study("m", runtimes=("onnxruntime",), precisions=("fp32",), sizes=((96, 128),))
    assert cells(study, contract) == [Cell("torch", "fp32", (224, 288)), Cell("onnxruntime", "fp32", (96, 128))]


def test_a_precision_that_a_runtime_lacks_is_a_cell_of_its_own() -> None:
    contract = Contract(name="m", input=InputSpec(height=64, width=96), output=OutputSpec(kind=Kind.METRIC_DEPTH))
    study = Study("m", runtimes=("onnxruntime", "onnxruntime"), precisions=("bf16", "fp32"))
    assert [(cell.runtime, cell.precision) for cell in cells(study, contract)] == [
        ("torch", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "bf16"),  # no such arithmetic there: a skipped row, not silence
    ]


def scattered(one: Measurement, *, n: int = 50, iqr: float = 0.1) -> Measurement:
    """The same row from `n` pictures, with quartiles `iqr` ms apart."""
    assert one.accuracy
    assert one.latency
    metrics, change = (
        {name: figure.model_copy(update={"n": n}) for name, figure in figures.items()}
        for figures in (one.accuracy.metrics, one.accuracy.change)
    )
    accuracy = one.accuracy.model_copy(update={"metrics": metrics, "change": change})
    return one.model_copy(
        update={"accuracy": accuracy, "latency": one.latency.model_copy(update={"iqr": iqr}), "key": f"{one.key} {n}"}
    )


def test_a_verdict_of_few_pictures_says_so() -> None:
    few = recommend([REFERENCE, scattered(FAST, n=4)], REFERENCE, Limits(max_drop=0.01))
    assert "on 4 pictures only (plain/none)" in few.sentence
    assert few.caution == "Caution: 4 pictures only, 30 or more make a verdict."
    assert "on 1 picture only" in recommend([scattered(REFERENCE, n=1)], REFERENCE, Limits()).sentence
    alone = recommend([REFERENCE, scattered(FAST, n=1)], REFERENCE, Limits(max_drop=0.01)).sentence
    assert "-0.005 against the reference" in alone  # one picture has no interval
    enough = recommend([REFERENCE, scattered(FAST, n=30)], REFERENCE, Limits(max_drop=0.01))
    assert "on 30 pictures (plain/none)" in enough.sentence
    assert enough.caution == ""


def test_times_that_scatter_and_wide_intervals_are_cautioned_against() -> None:
    # 0.75 ms is 15 % of 5 ms; the interval of FAST's change is 0.008 wide
    assert recommend([REFERENCE, scattered(FAST, iqr=0.74)], REFERENCE, Limits()).caution == ""
    said = recommend([REFERENCE, scattered(FAST, iqr=1.0)], REFERENCE, Limits()).caution
    assert said.startswith("Caution: times of openvino int8-static 64x96 scatter (IQR 20% of the median)")
    slow = scattered(REFERENCE, iqr=10.0)
    assert (
        "times of torch fp32 64x96 scatter (IQR 25% of the median)" in recommend([slow, FAST], slow, Limits()).caution
    )
    better = FAST.model_copy(update={"key": "up", "accuracy": row("x", ms=5, change=0.0).accuracy})
    said = recommend([REFERENCE, better], REFERENCE, Limits(max_drop=0.003)).caution
    assert said == "Caution: the interval of the change is 0.008 wide, the allowed drop 0.003."


def test_without_limits_kept_the_nearest_is_cautioned_about() -> None:
    advice = recommend([scattered(REFERENCE, n=3)], REFERENCE, Limits(max_ms=1))
    assert advice.row is None
    assert "3 pictures only" in advice.caution


class TestProtocolOfTheData:
    def test_metric_depth_is_scored_plainly_or_as_asked(self, tmp_path: Path) -> None:
        data = str(tiny.folder(tmp_path))
        assert choose_protocol(data, None, None) == ("plain", "")
        assert choose_protocol(data, None, "nyu-eigen/median") == ("nyu-eigen/median", "")
        assert choose_protocol(data, None, "fidelity") == ("fidelity", "")

    def test_pictures_alone_take_fidelity_with_a_notice(self, tmp_path: Path) -> None:
        name, notice = choose_protocol(str(tiny.pictures(tmp_path)), None, None)
        assert name == "fidelity"
        assert notice.startswith("The pictures have no ground truth: accuracy here is protocol fidelity")

    def test_a_protocol_that_needs_what_is_not_there_is_refused(self, tmp_path: Path) -> None:
        data = str(tiny.pictures(tmp_path))
        with pytest.raises(DataError, match=r"plain cannot be used.*no ground truth.*--protocol fidelity"):
            choose_protocol(data, None, "plain")
        with pytest.raises(ConfigError, match="nyu-eigen"):
            choose_protocol(data, None, "nyu-eigne")

    def test_relative_ground_truth_is_no_ground_truth(self, tmp_path: Path) -> None:
        tiny.describe(tmp_path, kind="relative_disparity", unit="none", depth_scale=255, max_depth=None)
        tiny.picture(tmp_path / "images" / "a.png", 2, 2)
        tiny.png16(tmp_path / "depth" / "a.png", np.array([[0, 255], [51, 102]]))
        name, notice = choose_protocol(str(tmp_path), None, None)
        assert (name, "relative_disparity, not metric" in notice) == ("fidelity", True)
        with pytest.raises(KindError, match="nyu-eigen"):
            choose_protocol(str(tmp_path), None, "nyu-eigen")


@pytest.mark.parametrize("what", ["data", "calibration", "model"])
def test_a_study_does_not_write_among_what_it_reads(tmp_path: Path, what: str) -> None:
    source = tiny.folder(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    arguments = {"model": "random:fastdepth-pruned", "data": "rendered:room"} | {what: str(source)}
    for out in (source, source / "runs" / "study", tmp_path / "elsewhere" / ".." / "source"):
        with pytest.raises(OutputError, match=f"refused to write into.*the {what} folder, or inside it"):
            optimize(out=out, **arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_study_takes_the_test_pictures_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(study: Study, folder: Path, _: object) -> Outcome:
        return Outcome(study, folder, [REFERENCE])

    monkeypatch.setattr("leadline.studies.optimize.run_study", run)
    monkeypatch.setattr("leadline.studies.report.write_report", lambda *_: tmp_path / "report.html")
    found = optimize("random:fastdepth", str(tiny.split_folder(tmp_path / "data")), out=tmp_path / "out")
    assert found.outcome.study.split == "test"
    split, engines, precisions = found.outcome.notices
    assert split.startswith("split test")
    assert engines.startswith("Engines that were not tried: ")
    assert "int8-dynamic (engines quantise Linear layers alone so, and this network is of convolutions)" in precisions


class TestUsualPrecisions:
    def test_a_network_of_convolutions_is_not_tried_in_dynamic_int8(self) -> None:
        assert usual_precisions("onnxruntime", linear=0.0) == ["fp32", "int8-static"]
        assert usual_precisions("onnxruntime", linear=0.9) == ["fp32", "int8-dynamic", "int8-static"]

    def test_half_precision_that_a_cpu_widens_is_tried_on_other_devices(self) -> None:
        assert "fp16" not in usual_precisions("torch")
        assert "fp16" in usual_precisions("torch", "cuda")
        assert "fp16" in usual_precisions("ncnn")  # it computes in it

    def test_bf16_is_tried_where_the_cpu_has_it_or_nothing_is_known(self) -> None:
        assert "bf16" not in usual_precisions("openvino", sets=("avx2",))
        assert "bf16" in usual_precisions("openvino", sets=("avx2", "amx_bf16"))
        assert "bf16" in usual_precisions("openvino")
        assert "bf16" in usual_precisions("torch", "cuda", sets=("avx2",))

    def test_what_is_named_is_tried(self) -> None:
        contract = Contract(name="m", input=InputSpec(height=64, width=96), output=OutputSpec(kind=Kind.METRIC_DEPTH))
        named = cells(Study("m", runtimes=("onnxruntime",), precisions=("fp16", "int8-dynamic")), contract, linear=0.0)
        assert [one.precision for one in named] == ["fp32", "fp16", "int8-dynamic"]
        with pytest.raises(ConfigError, match="onxruntime"):
            cells(Study("m", runtimes=("onxruntime",), precisions=("fp16",)), contract)

    def test_what_is_left_out_is_said_once_with_its_reason(self) -> None:
        engines = [("torch", ""), ("onnxruntime", "")]
        assert left_out(engines, linear=1.0, sets=("bf16",)) == (
            "Precisions that were not tried everywhere: fp16 (a CPU computes it in FP32: half the size and no time); "
            "int8-weights (size and no time). Name them to try them."
        )
        assert left_out([("tvm", "")], linear=1.0, sets=()) == ""

    def test_linear_layers_are_counted_by_their_weights(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(8, 4))  # 48 and 32 weights, biases apart
        assert linear_share(model) == pytest.approx(0.4)
        assert linear_share(nn.Identity()) == 0


def test_a_rerun_tells_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [Candidate(Cell(one.runtime, "fp32", (64, 96)), one, *([tmp_path] * 3)) for one in (REFERENCE, SAME)]
    monkeypatch.setattr("leadline.studies.running.plan_of", lambda *_: kept)
    with Store(tmp_path / "study.sqlite") as store:
        for one in (REFERENCE, SAME):
            store.put(one)
    told: list[tuple[int, int, str, str]] = []
    run_study(Study("m"), tmp_path, lambda done, total, cell, what: told.append((done, total, cell.runtime, what)))
    assert told == [
        (1, 2, "torch", "measured in an earlier run"),
        (2, 2, "onnxruntime", "measured in an earlier run"),
    ]


def test_an_open_input_is_tried_at_a_smaller_size_too() -> None:
    spec = InputSpec(height=224, width=288, dynamic=True, multiple_of=32)
    contract = Contract(name="m", input=spec, output=OutputSpec(kind=Kind.METRIC_DEPTH))
    assert default_sizes(contract) == ((224, 288), (160, 224))
    fixed = contract.model_copy(update={"input": InputSpec(height=224, width=288)})
    assert default_sizes(fixed) == ((224, 288),)


def test_a_job_that_fails_says_how() -> None:
    with pytest.raises(JobError, match="nowhere"):
        run_isolated(
            "export",
            {
                "model": "/nowhere/at/all",
                "runtime": "torch",
                "precision": "fp32",
                "size": None,
                "calibration": None,
                "count": 1,
                "out": "unused",
            },
        )


def test_a_job_that_crashes_or_hangs_costs_only_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(JobError, match="SIGSEGV"):
        run_isolated("export", {})
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(JobError, match=r"killed after 0\.5 s"):
        run_isolated("export", {}, timeout=0.5)


def test_rooms_alone_are_drawn_for_a_model_whose_metres_end_before_a_street_does() -> None:
    data, notice = choose_scenes("rendered", "leadline-s-indoor")
    assert data == "rendered:room"
    assert "end at 10 m" in notice
    assert choose_scenes("rendered", "random:depth-anything-v2-mini") == ("rendered", "")  # no metres, no end
    assert choose_scenes("rendered:street", "leadline-s-indoor") == ("rendered:street", "")
