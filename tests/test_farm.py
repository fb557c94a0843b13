"""The device farm: bundles travel once, rows come back, a lost device costs its rows only."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from leadline import __version__
from leadline.bundle import load_bundle
from leadline.errors import BundleError, ConfigError, LeadlineError
from leadline.evaluation.latency import Latency, Ratio, Timing
from leadline.studies import farm_tasks, running
from leadline.studies.farm import DeviceLostError, Farm, timing_of
from leadline.studies.from_file import Studied, carry_out
from leadline.studies.measurement import Status
from leadline.studies.store import Store
from leadline.studies.study_file import StudyFile
from tiny_models import exported

DATA = "rendered:room,count=2,height=72,width=96"
PI = {"id": "p1", "cpu": "Cortex-A76", "cores": 4, "memory_gib": 8, "system": "Linux aarch64", "versions": {}}


def told(ms: float, ratio: float | None = 0.5, failure: str = "") -> dict[str, Any]:
    """What a device answers to `time`."""
    latency = None if failure else Latency(ms, ms, ms, 0.1, ms, 6, 2, 1, 1.0, 1.0)
    compared = Ratio(ratio, ratio, ratio, ms / ratio) if ratio else None
    timing = Timing("bundle", latency, compared, 99.0, 50.0, 10.0, "onnxruntime", "fp32", (64, 96), failure=failure)
    return {"timing": json.loads(json.dumps(timing.as_dict()))}


class Wire:
    """Devices without Ray: each order is carried out at once, with this machine's own tasks and a cache per device."""

    def __init__(self, folder: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.there, self.monkeypatch = folder, set(names), monkeypatch
        self.done: list[tuple[str, str]] = []
        self.answers: dict[int, tuple[str, dict[str, Any]]] = {}
        self.versions = dict.fromkeys(names, __version__)
        self.dies_at: dict[str, int] = {}  # device -> number of its `time` order on which it dies
        self.failure: dict[str, str] = {}
        self.closed = False

    def devices(self) -> set[str]:
        return set(self.there)

    def submit(self, device: str, task: str, order: dict[str, Any]) -> int:
        self.done.append((device, task))
        json.dumps({key: value for key, value in order.items() if key != "files"})  # plain values only
        ticket = len(self.done)
        if self.dies_at.get(device) == sum(one == (device, "time") for one in self.done):
            self.there.discard(device)
            return ticket
        if task == "hello":
            answer = farm_tasks.perform(task, order)
            answer |= {"machine": PI | {"id": device}, "leadline": self.versions[device]}
        elif task == "time":
            alone = len(order["jobs"]) == 1
            answer = told(10.0, None if alone else 0.5, "" if alone else self.failure.get(device, ""))
        else:
            self.monkeypatch.setenv("LEADLINE_CACHE", str(self.folder / device))
            answer = farm_tasks.perform(task, order)
        self.answers[ticket] = device, answer
        return ticket

    def ready(self, tickets: list[int], seconds: float) -> list[int]:
        return [ticket for ticket in tickets if ticket in self.answers]

    def answer(self, ticket: int) -> dict[str, Any]:
        device, answer = self.answers.pop(ticket)
        if device not in self.there:
            raise DeviceLostError(f"{device} left the farm")
        if "error" in answer:
            raise LeadlineError(answer["error"])
        return answer

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Exports and accuracy without processes: the tiny network's bundle, and figures of two pictures."""
    count: Counter[str] = Counter()

    def job(name: str, order: dict[str, Any], **_: object) -> dict[str, Any]:
        export = order["export_order"]
        count[export["runtime"]] += 1
        if not Path(export["out"]).exists():
            shutil.copytree(exported("cnn", export["runtime"], "fp32").folder, export["out"])
        rows = [{"name": name, "status": "scored", "reason": "", "delta1": 0.8, "pixels": 9} for name in ("a", "b")]
        figure = {"value": 0.8, "low": 0.8, "high": 0.8, "n": 2}
        return {
            "parity": {}, "rows": rows, "metrics": {"delta1": figure}, "precision_ran": "fp32", "notes": [],
            "label": "plain/none", "kind": "metric_depth", "one_by_one": True,
        }  # fmt: skip

    monkeypatch.setattr(running, "run_isolated", job)
    monkeypatch.setattr("leadline.studies.report.page.tradeoff_plots", lambda *_: [])  # the costly part of a report
    return count


def study(wire: Wire, out: Path, **more: Any) -> Studied:
    values: dict[str, Any] = {
        "model": "random:fastdepth-pruned", "data": DATA, "runtimes": ["onnxruntime"], "precisions": "fp32",
        "sizes": ["64x96"], "batches": [1, 2], "runs": 6, "machines": ["pi", "orin"],
    }  # fmt: skip
    return carry_out(StudyFile.model_validate(values | more), out, link=lambda: wire)


def test_every_device_measures_every_cell_and_a_bundle_travels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch)
    found = study(wire, tmp_path / "out")
    assert wire.closed
    assert scored == {"torch": 1, "onnxruntime": 1}  # once for all devices and batches
    names = [row.name for row in found.outcome.rows]
    assert names == [
        name.format(on) for on in ("pi", "orin")
        for name in ("torch fp32 224x224 ({})", "onnxruntime fp32 64x96 ({})", "onnxruntime fp32 64x96 batch 2 ({})")
    ]  # fmt: skip
    for row in found.outcome.rows:
        assert row.status is Status.MEASURED
        assert row.machine == PI | {"id": row.on}  # of the device, not of this machine
        assert "accuracy was measured on the machine that leads the study, with the same bundle" in row.notes
    sent = Counter(wire.done)
    for device in ("pi", "orin"):
        assert sent[device, "receive"] == 2
        assert sent[device, "time"] == 3
        kept = list((tmp_path / "caches" / device / "bundles").iterdir())
        assert sorted(load_bundle(place).runtime for place in kept) == ["onnxruntime", "torch"]
    assert [path.name for path in sorted((tmp_path / "out").glob("*.html"))] == ["report-orin.html", "report-pi.html"]
    again = Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch)
    assert study(again, tmp_path / "out").outcome.rows == found.outcome.rows
    assert {task for _, task in again.done} == {"hello"}
    more = Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch)
    study(more, tmp_path / "out", batches=[1, 2, 4])
    assert Counter(task for _, task in more.done)["receive"] == 0  # the caches have them


def test_a_device_that_dies_costs_its_rows_only_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch)
    wire.dies_at = {"pi": 2}  # its reference is measured, its first candidate is under way
    found = study(wire, tmp_path / "out")
    states = {row.name: row.status.value for row in found.outcome.rows}
    assert [states[name] for name in states if "(orin)" in name] == ["measured"] * 3
    assert [states[name] for name in states if "(pi)" in name] == ["measured", "failed", "failed"]
    for row in found.outcome.rows:
        if row.status is Status.FAILED:
            assert row.lost
            assert row.reason == "device lost: pi left the farm; the same command tries it again"
    back = Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch)
    again = study(back, tmp_path / "out")
    assert {row.status for row in again.outcome.rows} == {Status.MEASURED}
    assert Counter(back.done)["orin", "time"] == 0
    assert Counter(back.done)["pi", "time"] == 2
    with Store(tmp_path / "out" / "study.sqlite") as store:
        assert len(store.all()) == 6


def test_a_device_that_never_joined_is_lost_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("orin",), monkeypatch)
    found = study(wire, tmp_path / "out")
    assert [row.status.value for row in found.outcome.on("pi").rows] == ["failed"] * 3
    why = "device lost: pi is not in the farm, or did not answer; the same command tries it again once it has joined"
    assert found.lost == {"pi": why}
    assert set(found.machines) == {"orin"}
    both = study(Wire(tmp_path / "caches", ("pi", "orin"), monkeypatch), tmp_path / "out")
    assert {row.status for row in both.outcome.rows} == {Status.MEASURED}
    with Store(tmp_path / "out" / "study.sqlite") as store:  # the rows without a fingerprint are gone
        assert len(store.all()) == 6


def test_no_device_at_all_says_how_one_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ray start --address=HEAD:6379 --resources='\{\"pi\": 1\}'"):
        study(Wire(tmp_path, (), monkeypatch), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"the farm has orin\. Did you mean 'orin'"):
        study(Wire(tmp_path, ("orin",), monkeypatch), tmp_path / "out", machines=["oirn"])


def test_other_versions_on_the_device_are_said_in_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("pi",), monkeypatch)
    wire.versions["pi"] = "0.0.9"
    found = study(wire, tmp_path / "out", machines="pi", batches=[1])
    for row in found.outcome.rows:
        assert f"leadline 0.0.9 on pi, {__version__} here" in row.notes


def test_an_engine_that_the_device_lacks_is_a_skipped_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("pi",), monkeypatch)
    kept = wire.submit

    def submit(device: str, task: str, order: dict[str, Any]) -> int:
        ticket = kept(device, task, order)
        if task == "hello":
            engine = wire.answers[ticket][1]["engines"]["onnxruntime"]
            engine |= {"available": False, "reason": "it is not installed", "install": "pip install onnxruntime"}
        return ticket

    monkeypatch.setattr(wire, "submit", submit)
    found = study(wire, tmp_path / "out", machines="pi", batches=[1])
    row = found.outcome.rows[1]
    assert (row.status, row.lost) == (Status.SKIPPED, False)
    assert row.reason == "on pi: it is not installed; pip install onnxruntime"


def test_an_engine_that_fails_there_is_a_failed_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Counter[str]
) -> None:
    wire = Wire(tmp_path / "caches", ("pi",), monkeypatch)
    wire.failure["pi"] = "the engine's process ended: killed by SIGILL"
    found = study(wire, tmp_path / "out", machines="pi", batches=[1])
    assert [row.status.value for row in found.outcome.rows] == ["measured", "failed"]
    assert found.outcome.rows[1].reason == "the engine's process ended: killed by SIGILL"
    assert not found.outcome.rows[1].lost


def test_a_timing_travels_whole() -> None:
    timing = timing_of(told(10.0)["timing"])
    assert timing.latency == Latency(10.0, 10.0, 10.0, 0.1, 10.0, 6, 2, 1, 1.0, 1.0)
    assert timing.ratio == Ratio(0.5, 0.5, 0.5, 20.0)
    with pytest.raises(LeadlineError, match=f"words of another version.*Install leadline {__version__}"):
        timing_of({"latency": None, "ratio": None, "size": [1, 1], "notes": [], "unheard_of": 1})


class TestTheCache:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))

    def test_a_bundle_arrives_and_is_known_by_its_content(self, tmp_path: Path) -> None:
        bundle = exported("cnn", "onnxruntime", "fp32").folder
        name = farm_tasks.content_hash(bundle)
        assert farm_tasks.perform("lacks", {"name": name}) == {"lacks": True}
        assert farm_tasks.perform("receive", {"name": name, "files": farm_tasks.packed(bundle)}) == {}
        assert farm_tasks.perform("lacks", {"name": name}) == {"lacks": False}
        place = tmp_path / "cache" / "bundles" / name
        data = bytearray((place / "model.onnx").read_bytes())
        data[100] ^= 1
        (place / "model.onnx").write_bytes(bytes(data))
        assert farm_tasks.perform("lacks", {"name": name}) == {"lacks": True}  # damaged: it is sent again
        assert farm_tasks.perform("receive", {"name": name, "files": farm_tasks.packed(bundle)}) == {}
        assert farm_tasks.perform("lacks", {"name": name}) == {"lacks": False}

    def test_what_is_not_the_bundle_of_its_hash_is_refused(self, tmp_path: Path) -> None:
        files = farm_tasks.packed(exported("cnn", "onnxruntime", "fp32").folder)
        answer = farm_tasks.perform("receive", {"name": "0" * 64, "files": files})
        assert "not the one of its hash" in answer["error"]
        answer = farm_tasks.perform("receive", {"name": "0" * 64, "files": {"../../evil": b"x"}})
        assert "unsafe file name" in answer["error"]
        assert not list(tmp_path.rglob("evil"))
        for name in ("../up", "A" * 64, "0" * 63):
            with pytest.raises(BundleError, match="not a content hash"):
                farm_tasks.lacks(name=name)


@pytest.mark.slow
def test_real_ray_nodes_one_of_which_dies_mid_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs leadline[ray]")
    from leadline.studies.farm_ray import RayLink

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = {
        name: cluster.add_node(num_cpus=1, resources={name: 1}, env_vars={"LEADLINE_CACHE": str(tmp_path / name)})
        for name in ("pi", "orin")
    }
    file = StudyFile.model_validate(
        {
            "model": "random:fastdepth-pruned",
            "data": DATA,
            "runtimes": ["onnxruntime"],
            "precisions": "fp32",
            "sizes": ["64x64"],
            "batches": [1, 2],
            "runs": 6,
            "machines": ["pi", "orin"],
            "alignments": "one",
        }
    )
    died: list[str] = []

    def on_cell(done: int, total: int, cell: Any, what: str) -> None:
        if what == "measured" and cell.on == "pi" and not died:  # after its first row
            died.append(cell.name)
            cluster.remove_node(nodes["pi"], allow_graceful=False)

    try:
        found = carry_out(file, tmp_path / "out", on_cell=on_cell, link=lambda: RayLink(cluster.address))
        rows = {on: found.outcome.on(on).rows for on in ("pi", "orin")}
        assert [row.status.value for row in rows["orin"]] == ["measured"] * 3
        assert [row.status.value for row in rows["pi"]] == ["measured", "failed", "failed"]
        assert all(row.lost and row.reason.startswith("device lost: pi left the farm") for row in rows["pi"][1:])
        assert len(list((tmp_path / "orin" / "bundles").iterdir())) == 2
        cluster.add_node(num_cpus=1, resources={"pi": 1}, env_vars={"LEADLINE_CACHE": str(tmp_path / "pi")})
        again = carry_out(file, tmp_path / "out", link=lambda: RayLink(cluster.address))
        assert {row.status for row in again.outcome.rows} == {Status.MEASURED}
        assert again.outcome.on("orin").rows == rows["orin"]
    finally:
        cluster.shutdown()


def test_without_a_head_the_message_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs leadline[ray]")
    from leadline.errors import UnavailableError
    from leadline.studies.farm_ray import RayLink

    def nobody(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(UnavailableError, match=r"Could not find any running Ray.*ray start --head --port=6379"):
        RayLink()


def test_the_farm_asks_only_devices_that_the_study_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(tmp_path, ("pi", "orin"), monkeypatch)
    farm = Farm(wire, ["orin"])
    farm.greet()
    assert wire.done == [("orin", "hello")]
    assert farm.devices["orin"].machine["cpu"] == "Cortex-A76"
