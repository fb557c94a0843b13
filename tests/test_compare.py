"""`leadline compare`: paired rows, intervals, spreads, regressions in words, and what cannot be compared."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leadline.cli import app
from leadline.errors import ConfigError, DataError
from leadline.studies.comparing import Comparison, Thresholds, compare_stores
from leadline.studies.measurement import Accuracy, Figure, Latency, Measurement, Status
from leadline.studies.store import Store, read_store

LAPTOP = {
    "cpu": "Laptop", "physical_cores": 4, "cores": 8, "memory_gib": 16, "instruction_sets": ["avx2"],
    "system": "Linux", "python": "3.11.7", "versions": {"onnxruntime": "1.31", "leadline": "0.1.0"},
}  # fmt: skip
PI = LAPTOP | {"cpu": "Cortex-A76", "cores": 4, "memory_gib": 8, "instruction_sets": ["asimd"]}
SCORES = {f"p{i}": 0.70 + 0.01 * i for i in range(10)}


def row(
    precision: str = "fp32", *, ms: float = 10.0, iqr: float = 0.2, scores: dict[str, float] | None = None,
    **more: object,
) -> tuple[Measurement, dict[str, str]]:  # fmt: skip
    scores = SCORES if scores is None else scores
    mean = sum(scores.values()) / len(scores)
    figure = Figure(value=mean, low=mean, high=mean, n=len(scores))
    accuracy = Accuracy(
        protocol="plain/none", data="d", primary="delta1", metrics={"delta1": figure}, scored=len(scores)
    )
    latency = Latency(p50=ms, p95=ms, p99=ms, iqr=iqr, runs=60, warmup=10, threads=1, pre=1, post=1, reference_p50=40.0)
    values: dict[str, object] = {
        "key": f"{precision}{more}{ms}", "model": "leadline-s", "runtime": "onnxruntime", "precision": precision,
        "precision_ran": precision, "height": 64, "width": 96, "status": Status.MEASURED, "accuracy": accuracy,
        "latency": latency, "memory_mb": 100.0, "size_mb": 14.0, "machine": LAPTOP,
    }  # fmt: skip
    texts = {name: json.dumps({"name": name, "status": "scored", "delta1": value}) for name, value in scores.items()}
    return Measurement.model_validate(values | more), texts


def with_reference(
    one: tuple[Measurement, dict[str, str]], ms: float, quartiles: tuple[float, float] | None = None
) -> tuple[Measurement, dict[str, str]]:
    """The same row beside a reference that took `ms` in the same rounds."""
    latency = one[0].latency
    assert latency
    changed = latency.model_copy(update={"reference_p50": float(ms), "ratio_quartiles": quartiles})
    return one[0].model_copy(update={"latency": changed}), one[1]


def store(folder: Path, *rows: tuple[Measurement, dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with Store(folder / "study.sqlite") as kept:
        for one, scores in rows:
            kept.put(one, scores)
    return folder


def compared(tmp_path: Path, a: list, b: list, **thresholds: object) -> Comparison:
    first, second = store(tmp_path / "a", *a), store(tmp_path / "b", *b)
    return compare_stores(read_store(first), read_store(second), Thresholds(**thresholds))


def test_the_same_twice_has_no_regression(tmp_path: Path) -> None:
    found = compared(tmp_path, [row(), row("int8-static", ms=4)], [row(), row("int8-static", ms=4)])
    assert found.regressions == []
    assert [pair.name for pair in found.pairs] == ["onnxruntime fp32 64x96", "onnxruntime int8-static 64x96"]
    for pair in found.pairs:
        assert pair.change == Figure(value=0, low=0, high=0, n=10)
        assert (pair.slower.value, pair.relative.value, pair.memory, pair.size) == (1, 1, 1, 1)
    assert (found.only_a, found.only_b, found.notices) == ([], [], [])


class TestAccuracy:
    def test_differences_are_paired_over_pictures(self, tmp_path: Path) -> None:
        """Every picture lost 0.01: the paired difference has no width, though pictures differ by 0.09."""
        found = compared(tmp_path, [row()], [row(scores={name: value - 0.01 for name, value in SCORES.items()})])
        change = found.pairs[0].change
        assert change.value == pytest.approx(-0.01)
        assert (change.low, change.high) == (pytest.approx(-0.01), pytest.approx(-0.01))
        assert found.regressions == [
            "onnxruntime fp32 64x96: δ1 -0.010 [-0.010, -0.010] on 10 pictures (allowed 0.005)"
        ]

    def test_the_threshold_is_an_option(self, tmp_path: Path) -> None:
        worse = row(scores={name: value - 0.01 for name, value in SCORES.items()})
        assert compared(tmp_path, [row()], [worse], max_drop=0.02).regressions == []

    def test_a_drop_whose_interval_reaches_zero_says_so(self, tmp_path: Path) -> None:
        other = dict(SCORES)
        other["p0"] -= 0.4
        [said] = compared(tmp_path, [row()], [row(scores=other)]).regressions
        assert "δ1 -0.040" in said
        assert "the interval reaches 0: measure on more pictures" in said

    def test_better_is_no_regression(self, tmp_path: Path) -> None:
        better = row(scores={name: value + 0.1 for name, value in SCORES.items()})
        assert compared(tmp_path, [row()], [better]).regressions == []

    def test_pictures_of_one_side_are_left_out_and_counted(self, tmp_path: Path) -> None:
        fewer = {name: value for name, value in SCORES.items() if name != "p9"} | {"other": 0.1}
        pair = compared(tmp_path, [row()], [row(scores=fewer)]).pairs[0]
        assert (pair.change.value, pair.change.n) == (0, 9)
        assert "accuracy over the 9 pictures that both scored, of 10 and 10" in pair.doubts

    def test_other_protocols_and_other_pictures_are_not_compared(self, tmp_path: Path) -> None:
        one, texts = row()
        other = one.model_copy(update={"accuracy": one.accuracy.model_copy(update={"protocol": "plain/median"})})
        pair = compared(tmp_path / "1", [row()], [(other, texts)]).pairs[0]
        assert pair.change is None
        assert pair.doubts == ("accuracy not compared: protocol plain/none and plain/median",)
        pair = compared(tmp_path / "2", [row()], [row(scores={"x": 0.1})]).pairs[0]
        assert pair.change is None
        assert "no scored picture in common" in pair.doubts[0]


class TestTimes:
    def test_slower_beyond_the_spread_is_a_regression(self, tmp_path: Path) -> None:
        found = compared(tmp_path, [row(ms=10)], [row(ms=12)], by="ms")
        # middle halves 9.9..10.1 and 11.9..12.1: quotients from 11.9/10.1 to 12.1/9.9
        slower = found.pairs[0].slower
        assert (slower.value, slower.low, slower.high) == (
            1.2,
            pytest.approx(1.178, abs=1e-3),
            pytest.approx(1.222, abs=1e-3),
        )
        [said] = found.regressions
        assert "1.20 times the time [1.18, 1.22], 10.00 to 12.00 ms (allowed 1.1)" in said
        assert found.judged_by == "Times were judged by the time of a run."
        assert compared(tmp_path / "x", [row(ms=10)], [row(ms=12)], max_slower=1.3, by="ms").regressions == []

    def test_a_busy_machine_that_slowed_the_reference_too_is_no_regression(self, tmp_path: Path) -> None:
        """Twice the time beside a reference of twice the time: a ratio of 0.25 both times."""
        found = compared(tmp_path / "1", [row(ms=10)], [with_reference(row(ms=20), 80)])
        assert found.regressions == []
        assert (found.pairs[0].slower.value, found.pairs[0].relative.value) == (2, 1)
        assert found.judged_by.startswith("Times were judged by the ratio to each study's own reference")
        assert len(compared(tmp_path / "2", [row(ms=10)], [with_reference(row(ms=20), 80)], by="ms").regressions) == 1

    def test_a_larger_share_of_the_references_time_is_a_regression(self, tmp_path: Path) -> None:
        """As many milliseconds, beside a reference that took half of them: a ratio of 0.25, then of 0.5."""
        found = compared(tmp_path, [row(ms=10)], [with_reference(row(ms=10), 20, quartiles=(0.9, 1.1))])
        [said] = found.regressions
        # the first's ratio has the spread of its time (9.9 to 10.1 of 40), the second's that of its rounds
        assert "2.00 times the time against the reference in turn [1.78, 2.22]" in said
        assert "ratio 0.250 to 0.500 (10.00 to 10.00 ms) (allowed 1.1)" in said

    def test_the_reference_itself_has_no_ratio_and_is_not_judged_by_it(self, tmp_path: Path) -> None:
        first, second = (with_reference(row(ms=ms, runtime="torch"), ms) for ms in (40, 60))
        found = compared(tmp_path / "1", [first], [second])
        assert found.regressions == []
        assert found.pairs[0].relative is None
        assert "the reference itself takes 1.50 times the time, 40.00 to 60.00 ms" in found.pairs[0].doubts[0]
        assert len(compared(tmp_path / "2", [first], [second], by="ms").regressions) == 1

    def test_ratios_to_different_references_are_not_compared(self, tmp_path: Path) -> None:
        first, second = (with_reference(row(ms=40, runtime="torch", device=device), 40) for device in ("", "cuda"))
        found = compared(tmp_path, [first, row()], [second, with_reference(row(), 5)])
        assert found.notices == [
            "Different references: torch fp32 64x96 and torch on cuda fp32 64x96. Ratios to them do not compare."
        ]
        [pair] = found.pairs
        assert (pair.relative, pair.times.by, pair.regressions) == (None, "ms", ())

    def test_times_that_scatter_and_overlap_are_a_doubt(self, tmp_path: Path) -> None:
        found = compared(tmp_path, [row(ms=10, iqr=4)], [row(ms=12, iqr=4)], by="ms")
        assert found.regressions == []
        assert "the times scatter and overlap" in found.pairs[0].doubts[0]

    def test_other_machines_are_named_and_judged_on_request_only(self, tmp_path: Path) -> None:
        far = row(ms=50, machine=PI)
        found = compared(tmp_path / "1", [row()], [far])
        assert found.regressions == []
        assert found.pairs[0].slower.value == 5
        assert found.notices[0].startswith("Different machines: ")
        assert "Laptop, 8 cores, 16 GiB" in found.notices[0]
        assert "Cortex-A76, 4 cores, 8 GiB" in found.notices[0]
        assert "5.00 times the time" in compared(tmp_path / "2", [row()], [far], max_slower=2).regressions[0]

    def test_other_versions_on_one_machine_are_named_and_judged(self, tmp_path: Path) -> None:
        newer = LAPTOP | {"versions": {"onnxruntime": "1.32", "leadline": "0.1.0"}}
        found = compared(tmp_path, [row()], [row(ms=20, machine=newer)])
        assert found.notices == ["Different versions: onnxruntime 1.31 and 1.32."]
        assert len(found.regressions) == 1

    def test_a_batch_is_paired_with_its_like(self, tmp_path: Path) -> None:
        found = compared(tmp_path, [row(), row(ms=18, batch=2)], [row(ms=18, batch=2), row()])
        assert [(pair.name, pair.slower.value) for pair in found.pairs] == [
            ("onnxruntime fp32 64x96", 1), ("onnxruntime fp32 64x96 batch 2", 1),
        ]  # fmt: skip


def test_memory_and_size_are_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, [row()], [row(memory_mb=150.0, size_mb=28.0)])
    assert found.regressions == [
        "onnxruntime fp32 64x96: peak memory 1.50 times, 100.0 to 150.0 MiB (allowed 1.1)",
        "onnxruntime fp32 64x96: size on disk 2.00 times, 14.0 to 28.0 MB (allowed 1.1)",
    ]


def test_rows_that_are_missing_fail_or_are_skipped_are_regressions(tmp_path: Path) -> None:
    none = {"accuracy": None, "latency": None}
    failed = row(status=Status.FAILED, reason="killed by SIGSEGV", **none)
    skipped = row("bf16", status=Status.SKIPPED, reason="not installed", **none)
    never = row("int8-dynamic", status=Status.SKIPPED, reason="no such arithmetic", **none)
    ours, theirs = [row(), row("fp16"), row("bf16"), never], [failed, skipped, row("int8-static")]
    found = compared(tmp_path / "1", ours, theirs)
    assert found.only_a == ["onnxruntime fp16 64x96", "onnxruntime int8-dynamic 64x96"]
    assert found.only_b == ["onnxruntime int8-static 64x96"]
    assert found.regressions == [
        "onnxruntime fp32 64x96: was measured and now fails: killed by SIGSEGV",
        "onnxruntime bf16 64x96: was measured and is now skipped: not installed",
        "onnxruntime fp16 64x96: measured in the first, missing in the second",
    ]
    assert compared(tmp_path / "2", ours, theirs, allow_missing=True).regressions == found.regressions[:1]


def test_a_lost_machine_is_no_row(tmp_path: Path) -> None:
    lost = row("fp16", lost=True, status=Status.FAILED, reason="device lost")
    found = compared(tmp_path, [row(), row("fp16")], [row(), lost])
    assert found.only_a == found.missing == ["onnxruntime fp16 64x96"]


def test_of_a_candidate_that_was_measured_twice_the_later_row_counts(tmp_path: Path) -> None:
    found = compared(tmp_path, [row()], [row(ms=30, key="old"), row(ms=10, key="new")])
    assert [pair.slower.value for pair in found.pairs] == [1]


def test_two_models_are_compared_on_request_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of another model.*first is of runs/a, this one of runs/b.*--across-models"):
        compared(tmp_path / "1", [row(model="runs/a")], [row(model="runs/b")])
    found = compared(tmp_path / "2", [row(model="runs/a")], [row(model="runs/b")], across_models=True)
    assert len(found.pairs) == 1
    assert found.notices == ["Different models: runs/a and runs/b."]


def test_another_network_under_the_same_name_is_reported(tmp_path: Path) -> None:
    found = compared(tmp_path, [row(parameters=1_360_786)], [row(parameters=900)])
    assert found.notices == [
        "Different networks: onnxruntime fp32 64x96 has 1,360,786 parameters, and in the second 900."
    ]


class TestWhatCannotBeCompared:
    def test_nothing_in_common(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no row in common.*int8-static.*the first has onnxruntime fp32"):
            compared(tmp_path, [row()], [row("int8-static")])

    def test_no_store_and_no_figures(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no store.*study\.sqlite"):
            read_store(tmp_path)
        (tmp_path / "x.sqlite").write_bytes(b"no database" * 100)
        with pytest.raises(DataError, match="not a store"):
            read_store(tmp_path / "x.sqlite")
        failed = row(status=Status.FAILED)
        with pytest.raises(DataError, match="holds no measured row"):
            compared(tmp_path, [row()], [failed])

    def test_a_newer_version(self, tmp_path: Path) -> None:
        place = store(tmp_path, row())
        connection = sqlite3.connect(place / "study.sqlite")
        connection.execute("PRAGMA user_version=99")
        connection.close()
        with pytest.raises(DataError, match="newer version"):
            read_store(place)

    @pytest.mark.parametrize("name", ["max_slower", "max_larger", "max_drop"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
    def test_a_bad_threshold(self, tmp_path: Path, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}.*finite number"):
            compared(tmp_path, [row()], [row()], **{name: value})

    def test_a_quotient_of_0_is_none_and_a_drop_of_0_is_one(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="above 0"):
            compared(tmp_path / "1", [row()], [row()], max_slower=0)
        assert compared(tmp_path / "2", [row()], [row()], max_drop=0).regressions == []


def test_reading_changes_nothing_and_needs_no_right_to_write(tmp_path: Path) -> None:
    place = store(tmp_path / "a", row())
    file = place / "study.sqlite"
    before, listed = file.read_bytes(), sorted(place.iterdir())
    place.chmod(0o555)
    try:
        assert len(read_store(file).rows) == 1
    finally:
        place.chmod(0o755)
    assert (file.read_bytes(), sorted(place.iterdir())) == (before, listed)


@pytest.mark.parametrize(("ms", "status", "said"), [(10.0, 0, "Nothing became worse"), (20.0, 1, "Worse: onnxruntime")])
def test_the_exit_status_serves_ci(tmp_path: Path, ms: float, status: int, said: str) -> None:
    a, b = store(tmp_path / "a", row()), store(tmp_path / "b", row(ms=ms), row("fp16"))
    done = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert (done.exit_code, said in done.output) == (status, True)
    assert "Only in the second: onnxruntime fp16 64x96" in done.output
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--json"])
    assert done.exit_code == status
    assert json.loads(done.output)["pairs"][0]["slower"]["value"] == ms / 10


def test_a_missing_row_ends_with_status_1_and_is_named(tmp_path: Path) -> None:
    a, b = store(tmp_path / "a", row(), row("fp16")), store(tmp_path / "b", row())
    done = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert done.exit_code == 1
    assert "Worse: onnxruntime fp16 64x96: measured in the first, missing in the second" in done.output
    assert CliRunner().invoke(app, ["compare", str(a), str(b), "--allow-missing"]).exit_code == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_a_threshold_that_is_none_ends_with_status_2(tmp_path: Path, value: str) -> None:
    a = str(store(tmp_path / "a", row()))
    done = CliRunner().invoke(app, ["compare", a, a, "--max-slower", value])
    assert (done.exit_code, "--max-slower" in done.output) == (2, True)


def test_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    made = "what was done to it in many words, so that no line of eighty columns could hold the candidate's name"
    a = store(tmp_path / "a", row(made=made))
    lines = CliRunner(env={"COLUMNS": "40"}).invoke(app, ["compare", str(a), str(a)]).output.splitlines()
    [line] = [line for line in lines if made in line]
    assert " ".join(line.split(made)[1].split()) == (
        "onnxruntime fp32 64x96 δ1 +0.0000 [+0.000, +0.000] 1.00 [0.98, 1.02] 1.00 [0.98, 1.02] 1.00 1.00"
    )


def test_what_cannot_be_compared_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(store(tmp_path / "a", row())), str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "no store of a study" in done.output
