"""The report of a study: complete, self-contained, harmless, and right about what it marks."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.data.dataset import open_dataset
from leadline.depth import Depth, Kind
from leadline.studies.measurement import Accuracy, Figure, Latency, Measurement, Status
from leadline.studies.recommend import Limits, Recommendation, recommend
from leadline.studies.report import write_report
from leadline.studies.report.candidates import candidates
from leadline.studies.report.panel import scenes
from leadline.studies.study import Outcome, Study

DATA = "rendered:room?height=60&width=80"
# runtime, precision, ran in, δ1, its change, AbsRel, ms, MB: onnxruntime int8-static is slower than its fp32
ROWS = (
    ("torch", "fp32", "fp32", 0.812, 0.0, 0.134, 21.40, 5.61),
    ("torch", "int8-dynamic", "int8", 0.809, -0.003, 0.136, 22.90, 3.10),
    ("onnxruntime", "fp32", "fp32", 0.812, 0.0, 0.134, 12.80, 5.58),
    ("onnxruntime", "fp16", "fp16 weights, fp32 arithmetic", 0.812, 0.0, 0.134, 14.10, 2.83),
    ("onnxruntime", "int8-static", "int8", 0.801, -0.011, 0.141, 16.30, 1.62),
    ("openvino", "fp32", "fp32", 0.812, 0.0, 0.134, 9.70, 5.60),
    ("openvino", "fp16", "fp32", 0.812, 0.0, 0.134, 9.72, 2.84),
    ("openvino", "int8-static", "int8", 0.806, -0.006, 0.138, 6.20, 1.71),
)
REASON = "openvino is not installed; pip install 'leadline[openvino]'"


def _figure(value: float, width: float = 0.03, n: int = 64) -> Figure:
    return Figure(value=value, low=value - width, high=value + width, n=n)


def _row(number: int, *, protocol: str = "plain", primary: str = "delta1", **changes: Any) -> Measurement:
    name, precision, ran, score, moved, rel, ms, mb = ROWS[number]
    metrics = {primary: _figure(score), "abs_rel": _figure(rel, 0.012), "rmse": _figure(4.1 * rel, 0.05)}
    if primary == "agreement":
        metrics = {primary: _figure(score), "correlation": _figure(0.98, 0.004), "aligned_error": _figure(0.08, 0.01)}
    accuracy = Accuracy(
        protocol=protocol, data=DATA, primary=primary, metrics=metrics, scored=64,
        change={primary: _figure(moved, 0.004)} if number else {},
    )  # fmt: skip
    latency = Latency(
        p50=ms, p95=ms * 1.09, p99=ms * 1.3, iqr=ms * 0.04, runs=60, warmup=10, threads=1, pre=0.52, post=0.21,
        reference_p50=21.4 + 0.05 * number,
    )  # fmt: skip
    folder = f"bundles/{name}-{precision}-60x80"
    parity = {"pictures": 4, "max_abs": 0.0123, "mean_abs": 0.0011, "relative": 8.1e-4, "correlation": 0.99991}
    values: dict[str, Any] = {
        "key": f"key{number}", "model": "leadline-s-indoor", "runtime": name, "precision": precision,
        "precision_ran": ran, "height": 60, "width": 80, "status": Status.MEASURED, "bundle": folder,
        "accuracy": accuracy, "latency": latency, "memory_mb": 180.0 + 40 * number, "size_mb": mb,
        "macs": 371_000_000, "parameters": 1_390_000, "parity": parity,
        "machine": {"cpu": "Example CPU 3000, 2 cores", "memory_gb": 8, "versions": {"torch": "2.13.0"}},
    }  # fmt: skip
    return Measurement(**(values | changes))


def _absent(number: int, status: Status, reason: str, **changes: Any) -> Measurement:
    none: dict[str, Any] = {"accuracy": None, "latency": None, "size_mb": None, "memory_mb": None, "parity": {}}
    return _row(number, **(none | {"status": status, "reason": reason} | changes))


def make_outcome(
    folder: Path, rows: list[Measurement], *, kind: Kind = Kind.METRIC_DEPTH, panel: bool = True, **study: Any
) -> Outcome:
    """A study that was never run, on small rendered rooms."""
    contract = Contract(
        name="leadline-s", input=InputSpec(height=60, width=80), output=OutputSpec(kind=kind), licence="Apache-2.0",
        provenance="trained on rendered rooms", training_data=("rendered:room",),
    )  # fmt: skip
    place = folder / rows[0].bundle
    place.mkdir(parents=True)
    contract.save(place / "contract.json")
    outcome = Outcome(Study(**({"model": "leadline-s-indoor", "data": DATA} | study)), folder, rows)
    if panel:
        dataset = open_dataset(outcome.study.data, outcome.study.split)
        samples = [dataset[i] for i in range(3)]
        (folder / "panel").mkdir()
        for number, row in enumerate(row for row in rows if row.status is Status.MEASURED):
            maps = {sample.name: _predicted(sample.depth, kind, number) for sample in samples}
            np.savez_compressed(
                folder / "panel" / f"{row.runtime}-{row.precision}-{row.height}x{row.width}.npz", **maps
            )
    return outcome


def _predicted(truth: Depth, kind: Kind, number: int) -> np.ndarray:
    """The truth, too far by 10 % on the right and by up to 8 % more on the left; in the kind's own values."""
    values = truth.values.astype(np.float64)
    across = np.linspace(-1, 1, values.shape[1])
    metres = np.maximum(values, 0.1) * np.where(across > 0, 1.10, 1.0 + 0.01 * number)
    if kind.is_disparity:
        return (3.0 / metres).astype(np.float16)
    return metres.astype(np.float16)


class _Page(HTMLParser):
    """What a browser would see: elements with their attributes, table rows as text, all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.words: list[str] = []
        self.silent = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.silent += tag in ("script", "style")
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.words.append(data)
            if self.rows:
                self.rows[-1] += data + " "

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, name: str) -> str:
        """The first table row that names a candidate."""
        return next(row for row in self.rows if name in row)


def _report(outcome: Outcome, limits: Limits = Limits(0.01, 20.0)) -> tuple[str, _Page]:  # noqa: B008
    html = write_report(outcome, recommend(outcome.rows, outcome.reference, limits), limits).read_text("utf-8")
    return html, _Page(html)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, _Page, Outcome]:
    rows = [_row(number, notes=("64 of 654 pictures, spread evenly",)) for number in range(len(ROWS))]
    rows[1] = rows[1].model_copy(update={"notes": (*rows[1].notes, "weights are quantised when it is opened")})
    rows.append(_absent(7, Status.SKIPPED, REASON, key="skipped", precision="bf16"))
    rows.append(_absent(4, Status.FAILED, "export ended without a result: SIGSEGV", key="failed", precision="bf16"))
    outcome = make_outcome(tmp_path_factory.mktemp("study"), rows)
    return *_report(outcome), outcome


def test_the_file_needs_no_other_and_no_network(full: tuple[str, _Page, Outcome]) -> None:
    html, page, outcome = full
    assert [path.name for path in outcome.folder.glob("*.html")] == ["report.html"]
    assert not list(outcome.folder.glob(".report*")), "the temporary file is gone"
    assert len(html) < 5_000_000
    loading = [
        a[key] or "" for _, a in page.elements for key in ("src", "href", "xlink:href", "action", "data") if key in a
    ]
    assert loading
    assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in loading)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert "@import" not in html
    assert re.findall(r"url\((?!#plot-)", html) == []


def test_every_candidate_has_its_row_with_figures_and_intervals(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    for name, precision, ran, score, _, rel, _, mb in ROWS:
        row = page.row(f"{name} {precision} 60x80")
        for figure in (ran, f"{score:.3f}", f"[{score - 0.03:.3f}, {score + 0.03:.3f}]", f"{rel:.3f}", f"{mb:.2f}"):
            assert figure in row
    chosen = page.row("openvino int8-static 60x80")
    assert "−0.006 [−0.010, −0.002]" in " ".join(chosen.split()), "the paired change"
    assert "6.20" in chosen
    assert "0.29×" in chosen, "6.2 of 21.75 ms"


def test_the_recommended_row_and_the_pareto_front_are_marked_in_words(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    rows = {f"{name} {precision}": page.row(f"{name} {precision} 60x80") for name, precision, *_ in ROWS}
    assert [name for name, row in rows.items() if "★ recommended" in row] == ["openvino int8-static"]
    # by hand from ROWS: best trades of δ1, ms and MB
    front = {"onnxruntime fp16", "onnxruntime int8-static", "openvino fp32", "openvino fp16", "openvino int8-static"}
    assert {name for name, row in rows.items() if "◆ Pareto" in row} == front
    assert (
        "On the Pareto front of accuracy and latency: 8 openvino int8-static 60x80, 6 openvino fp32 60x80." in page.text
    )
    size_front = "5 onnxruntime int8-static 60x80, 8 openvino int8-static 60x80, 4 onnxruntime fp16 60x80."
    assert "On the Pareto front of accuracy and size: " + size_front in page.text


def test_a_note_of_all_candidates_is_said_once(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    assert page.text.count("64 of 654 pictures, spread evenly") == 1
    assert page.text.count("weights are quantised when it is opened") == 1
    assert "weights are quantised when it is opened" in page.row("torch int8-dynamic 60x80")


def test_a_smaller_precision_that_is_slower_is_called_slower(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    assert "slower here: 1.27× the time of onnxruntime fp32" in page.row("onnxruntime int8-static")
    assert "no faster here than openvino fp32" in page.row("openvino fp16")
    assert "slower" not in page.row("openvino int8-static")


def test_the_card_says_what_to_ship_and_how_to_run_it(full: tuple[str, _Page, Outcome]) -> None:
    _, page, outcome = full
    bundle = outcome.folder / "bundles" / "openvino-int8-static-60x80"
    assert f"leadline predict photo.jpg --model {bundle}" in page.text
    assert "Ship openvino int8-static 60x80" in page.text
    reference = outcome.reference.latency
    chosen = next(row.latency for row in outcome.rows if bundle.name in row.bundle)
    assert reference
    assert chosen
    times = chosen.reference_p50 / chosen.p50
    assert f"{times:.2f}× as fast as the reference in the same rounds" in page.text
    assert f"its own row has {reference.p50:.1f} ms" in page.text
    assert f" {reference.p50:.1f} " in page.row("torch fp32")
    assert "δ1 may drop by 0.01 against the reference; at most 20 ms" in page.text


def test_what_has_no_figures_is_listed_with_its_reason(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    assert "○ skipped" in page.row("openvino bf16")
    assert "pip install 'leadline[openvino]'" in " ".join(page.row("openvino bf16").split())
    assert "✕ failed" in page.row("onnxruntime bf16")
    assert "SIGSEGV" in page.row("onnxruntime bf16")
    assert "2 further candidates have no figures" in page.text


def test_what_was_run_is_told(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    for words in (
        "Example CPU 3000, 2 cores", "Apache-2.0", "metric depth, metres", "371 M", "1.39 M", "torch 2.13.0",
        "one picture at a time", "within a factor of 1.25", "calibrated on 64 pictures", "0.9999", "64 scored",
        "95 % percentile bootstrap intervals over 64 pictures (2,000 draws)",
    ):  # fmt: skip
        assert words in page.text


def test_the_plots_are_sound_xml_with_ids_of_their_own(full: tuple[str, _Page, Outcome]) -> None:
    html, page, _ = full
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", html, re.S)]
    assert len(plots) == 4, "latency and size, each for wide and narrow screens"
    written = [" ".join(plot.itertext()) for plot in plots]
    assert all("8 int8-static" in words and "recommended" in words for words in written)
    assert all(plot.get("aria-label") for plot in plots)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html))
    assert {first or second for first, second in used} <= set(ids)


def test_tables_and_pictures_can_be_read_aloud(full: tuple[str, _Page, Outcome]) -> None:
    _, page, _ = full
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 3 * (2 + 2 * len(ROWS))
    assert all(image["alt"] for image in images)
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert {"lang": "en"} in [attributes for tag, attributes in page.elements if tag == "html"]


def test_errors_in_the_panel_are_shares_of_the_true_depth(full: tuple[str, _Page, Outcome]) -> None:
    outcome = full[2]
    shown, _ = scenes(outcome, candidates(outcome, Recommendation(None, "")))
    assert [scene.name for scene in shown] == open_dataset(DATA).names()[:3]
    assert shown[0].maps[0].mean == pytest.approx(0.05, abs=1e-3), "10 % on the right half, none on the left"
    assert shown[0].maps[5].mean == pytest.approx(0.075, abs=1e-3), "10 % and 5 %"
    right = shown[0].maps[0].error
    assert right is not None
    assert right[:, 50:].min() == pytest.approx(0.1, abs=2e-3), "too far is positive"


@pytest.mark.parametrize("kind", [Kind.SCALED_DISPARITY, Kind.RELATIVE_DISPARITY])
def test_maps_without_metres_are_aligned_to_the_truth_and_it_is_said(tmp_path: Path, kind: Kind) -> None:
    outcome = make_outcome(tmp_path, [_row(0), _row(2)], kind=kind)
    exact = {name: (3.0 / values).astype(np.float32) for name, values in _truths().items()}
    np.savez(tmp_path / "panel" / "torch-fp32-60x80.npz", **exact)
    (first, *_), _ = scenes(outcome, candidates(outcome, Recommendation(None, "")))
    assert first.maps[0].mean == pytest.approx(0, abs=1e-5), "3/depth is the depth up to its factor"
    assert first.kind is Kind.METRIC_DEPTH
    assert "each is aligned to the truth" in _report(outcome)[1].text


def _truths() -> dict[str, np.ndarray]:
    return {sample.name: sample.depth.values for sample in map(open_dataset(DATA).__getitem__, range(3))}


def test_fidelity_compares_with_the_reference(tmp_path: Path) -> None:
    rows = [_row(number, protocol="fidelity", primary="agreement") for number in (0, 2)]
    outcome = make_outcome(tmp_path, rows, kind=Kind.RELATIVE_DISPARITY, protocol="fidelity")
    shown, _ = scenes(outcome, candidates(outcome, Recommendation(None, "")))
    assert shown[0].maps[0].mean == pytest.approx(0, abs=1e-6), "the reference equals itself"
    assert shown[0].maps[1].mean > 0
    _, page = _report(outcome)
    assert "It says what compression changed, not whether the model is right." in page.text
    assert "agreement" in page.row("candidate")
    assert "correlation" in page.row("candidate")
    assert "AbsRel" not in page.text
    assert "Errors are counted against the reference's map" in page.text


def test_nothing_within_the_limits_is_said_as_clearly(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path, [_row(0), _row(2)], panel=False)
    _, page = _report(outcome, Limits(0.0, 1.0, 0.5))
    assert "✕ Nothing to recommend" in page.text
    assert "at most 1 ms; at most 0.5 MB" in page.text
    assert "leadline predict" not in page.text
    assert "No pictures are shown: no depth maps of the reference were kept" in page.text


def test_the_reference_alone_and_damaged_maps(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path, [_row(0)])
    (tmp_path / "panel" / "torch-fp32-60x80.npz").write_bytes(b"PK\x03\x04 not an archive")
    _, page = _report(outcome, Limits())
    assert "Keep torch fp32 60x80" in page.text
    assert "No pictures are shown" in page.text


def test_without_a_measured_candidate_nothing_is_recommended(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path, [_row(0), _absent(2, Status.SKIPPED, REASON)], panel=False)
    _, page = _report(outcome, Limits())
    assert "✕ Nothing to recommend" in page.text
    assert "Nothing but the reference was measured: 1 of 1 candidates were skipped or failed" in page.text
    assert "1 further candidate has no figures" in page.text


def test_the_page_is_headed_by_its_command_and_a_batch_has_both_times(tmp_path: Path) -> None:
    four = _row(5)
    assert four.latency
    four = four.model_copy(update={"batch": 4, "latency": four.latency.model_copy(update={"batch": 4, "p50": 60.0})})
    outcome = make_outcome(tmp_path, [_row(0), four], panel=False)
    limits = Limits(0.01, 200.0)
    advice = recommend(outcome.rows, outcome.reference, limits)
    page = _Page(write_report(outcome, advice, limits, command="leadline study").read_text("utf-8"))
    assert "leadline study" in page.text
    assert "leadline optimize" not in page.text
    assert "60.0 ms per run of 4 pictures, 15.0 ms per picture" in advice.sentence
    assert "15.0 ms per picture, median; a run of 4 pictures in 60.0 ms, 95 % of the runs within" in page.text
    assert "at most 200 ms per run" in page.text
    assert {"60.0", "15.0"} <= set(page.row("batch 4").split())


def test_a_data_set_that_is_gone_costs_the_pictures_only(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path, [_row(0), _row(2)])
    moved = Outcome(Study(model="m", data="folder:/nowhere/at/all"), tmp_path, outcome.rows)
    _, page = _report(moved)
    assert "No pictures are shown: cannot open the data set" in page.text
    assert "onnxruntime fp32 60x80" in page.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=https://evil.example/x onerror=alert(1)> $\\frac$ 模型"
    rows = [
        _row(0, model=evil, machine={"cpu": evil, evil: {evil: [evil]}}, notes=(evil,), parity={evil: evil}),
        _row(2, runtime=evil, precision_ran=evil),
        _absent(4, Status.FAILED, evil),
    ]
    outcome = make_outcome(tmp_path, rows, panel=False, model=evil, split=evil)
    advice = Recommendation(rows[1], evil)
    html = write_report(outcome, advice, Limits()).read_text("utf-8")
    page = _Page(html)
    assert evil in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1, "the table's own"
    assert "img" not in {tag for tag, _ in page.elements}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    for svg in re.findall(r"<svg .*?</svg>", html, re.S):
        assert ElementTree.fromstring(svg) is not None
