"""The step `quantize`: its options, its verdict in words, mixed precision, and a run that was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import tiny_datasets
from leadline.bundle import load_bundle
from leadline.compression import AnyStep, Judged, Pictures, Place, Target, mixed_precision, verdict
from leadline.compression.mixed_precision import STATE, _fewest, mixture
from leadline.compression.quantize import Quantize
from leadline.errors import ConfigError, DataError, UnavailableError
from leadline.evaluation.bootstrap import Interval
from leadline.evaluation.latency import CROWDED, Latency, Ratio, Timing
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, Precision, bundle_contract, runtime
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_points import Naming
from leadline.runtimes.onnx_quantize import calibrated, prepared
from leadline.runtimes.onnx_source import OnnxNetwork
from tiny_models import cnn, exported, pictures


def timed(ratio: float, low: float, high: float, waited: float | None = None) -> Any:
    latency = Latency(p50=2.0, p95=3.0, p99=3.0, iqr=0.1, minimum=1.9, runs=30, warmup=5, threads=1, pre=0, post=0)
    answer = Timing("x", latency, Ratio(ratio, low, high, 1.0), engine="onnxruntime", precision_ran="int8")
    return lambda *_, **__: [Timing("reference", latency, waited=waited), answer]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(verdict, "compare", timed(0.5, 0.4, 0.6))
    monkeypatch.setattr(verdict, "FIDELITY_PICTURES", 3)
    folder = tmp_path / "step"
    folder.mkdir()
    return Place(folder, calibration=Pictures(count=4), target=Target(size=(64, 96)))


def change(value: float) -> Interval:
    return Interval(value, value - 0.001, value + 0.001, 40)


class TestOptions:
    def test_it_is_found_by_its_name(self) -> None:
        step = TypeAdapter(AnyStep).validate_python({"step": "quantize", "method": "percentile", "percentile": 99.9})
        assert isinstance(step, Quantize)
        assert step.percentile == 99.9

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"precision": "fp16", "max_drop": 0.01}, "max_drop chooses layers of int8-static"),
            ({"method": "mse", "percentile": 99.9}, "percentile belongs to method percentile"),
            ({"precision": "int8-weights", "equalise": True}, "equalise belongs to int8-static"),
            ({"precision": "bf16", "exclude": ["a"]}, "nothing to exclude"),
            ({"smooth": 2}, "less than or equal to 1"),
            ({"max_drop": -0.1}, "greater than or equal to 0"),
            ({"sensitivity": "s.json"}, "give max_drop too"),
            ({"precision": "fp16", "percentile": 99.9}, "method percentile belongs to int8-static"),
            ({"bits": 4}, "Extra inputs are not permitted"),
        ],
    )
    def test_contradictions_are_refused(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            Quantize.model_validate(values)

    def test_a_percentile_alone_is_the_method(self, place: Place) -> None:
        bundle = Quantize(percentile=99.9).apply(cnn(), place)
        assert bundle.details["calibration"] == "percentile"
        assert bundle.details["percentile"] == 99.9

    def test_a_limit_needs_validation_data(self, place: Place) -> None:
        with pytest.raises(ConfigError, match="no `validation`"):
            Quantize(max_drop=0.01).apply(cnn(), place)

    def test_bf16_on_onnxruntime_is_refused_with_the_reason(self, place: Place) -> None:
        with pytest.raises(ConfigError, match="onnxruntime has no precision 'bf16': its convolutions"):
            Quantize(precision=Precision.BF16).apply(cnn(), place)

    def test_a_missing_engine_says_how_to_get_it(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """FAULTS.md row 51."""
        import importlib.util

        monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
        with pytest.raises(UnavailableError, match="pip install"):
            Quantize(runtime="openvino").apply(cnn(), place)

    def test_empty_calibration_is_refused(self, place: Place, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        empty = Place(place.folder, calibration=Pictures(data=str(tmp_path / "none")), target=place.target)
        with pytest.raises(DataError, match="no pictures to calibrate with"):
            Quantize().apply(cnn(), empty)

    def test_an_unknown_node_is_named(self, place: Place) -> None:
        with pytest.raises(ConfigError, match="no such node to exclude 'conv_x'"):
            Quantize(exclude=("conv_x",)).apply(cnn(), place)
        assert not (place.folder / "bundle").exists()


class TestVerdict:
    def test_a_bundle_with_figures_and_words(self, place: Place) -> None:
        said: list[str] = []
        talking = Place(place.folder, calibration=place.calibration, target=place.target, say=said.append)
        bundle = Quantize(method="mse", bias_correction=True).apply(cnn(), talking)
        assert bundle.folder == place.folder / "bundle"
        assert load_bundle(bundle.folder).details == bundle.details
        told = bundle.details["verdict"]
        assert told["latency"]["ratio"] == 0.5
        assert told["accuracy"]["n"] == 3
        assert told["accuracy"]["value"] > 0.9
        reference = load_bundle(place.folder / "fp32")
        assert told["size_ratio"] == pytest.approx(bundle.size_bytes / reference.size_bytes, abs=1e-4)
        assert said[-len(told["words"]) :] == told["words"]
        assert "INT8 is faster here" in " ".join(said)
        assert CROWDED not in " ".join(said)
        assert bundle.lineage[-1]["step"] == "export"
        assert bundle.lineage[-1]["bias_correction"] is True
        assert all(step["step"] != "quantize" for step in bundle.lineage)

    def test_times_of_a_crowded_machine_are_doubted(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verdict, "compare", timed(0.5, 0.4, 0.6, waited=0.3))
        words = Quantize(precision="fp16").apply(cnn(), place).details["verdict"]["words"]
        assert words[-1] == f"caution: {CROWDED}"

    @pytest.mark.parametrize(
        ("figures", "words"),
        [((1.5, 1.2, 1.8), "INT8 is slower here"), ((1.0, 0.9, 1.1), "INT8 brings no time here")],
    )
    def test_it_says_when_int8_brings_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, figures: tuple[float, float, float], words: str
    ) -> None:
        monkeypatch.setattr(verdict, "compare", timed(*figures))
        pair = exported("cnn", "onnxruntime", "int8-static"), exported("cnn", "onnxruntime", "fp32")
        told = verdict.verdict(*pair, place)
        assert words in " ".join(told["words"])

    def test_an_engine_that_fails_is_told(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = [Timing("reference"), Timing("x", failure="onnxruntime ended by SIGSEGV")]
        monkeypatch.setattr(verdict, "compare", lambda *_, **__: broken)
        pair = exported("cnn", "onnxruntime", "int8-static"), exported("cnn", "onnxruntime", "fp32")
        told = verdict.verdict(*pair, place)
        assert told["latency"] == {"failure": "onnxruntime ended by SIGSEGV"}
        assert "its time is not known: onnxruntime ended by SIGSEGV" in told["words"]

    def test_ground_truth_gives_a_paired_change(self, place: Place, tmp_path: Path) -> None:
        data = tiny_datasets.folder(tmp_path / "data", 4)
        judged = Judged(data=str(data), limit=3)
        place = Place(place.folder, validation=judged, calibration=place.calibration, target=place.target)
        int8, fp32 = exported("cnn", "onnxruntime", "int8-static"), exported("cnn", "onnxruntime", "fp32")
        told = verdict.verdict(int8, fp32, place)["accuracy"]
        assert (told["metric"], told["n"]) == ("delta1", 3)
        assert verdict.accuracy_change(fp32, place)(fp32) == Interval(0.0, 0.0, 0.0, 3)

    def test_fidelity_needs_no_ground_truth(self, place: Place, tmp_path: Path) -> None:
        data = tiny_datasets.folder(tmp_path / "data", 3)
        place = Place(place.folder, validation=Judged(data=str(data), protocol="fidelity"), target=place.target)
        int8, fp32 = exported("cnn", "onnxruntime", "int8-static"), exported("cnn", "onnxruntime", "fp32")
        assert verdict.accuracy_change(fp32, place)(fp32).value == 0
        found = verdict.accuracy_change(fp32, place)(int8)
        assert -0.5 < found.value <= 0

    @pytest.mark.parametrize("precision", ["fp16", "int8-weights"])
    def test_other_precisions(self, place: Place, precision: str) -> None:
        bundle = Quantize(precision=Precision(precision)).apply(cnn(), place)
        assert bundle.precision == precision
        assert bundle.details["verdict"]["accuracy"]["value"] > 0.95

    def test_a_network_that_is_only_an_onnx_file(self, place: Place) -> None:
        bundle = exported("cnn", "onnxruntime", "fp32")
        network = OnnxNetwork(bundle.file("model.onnx"), bundle.contract)
        made = Quantize(equalise=True).apply(LoadedModel(network, bundle.contract, "foreign"), place)
        assert made.details["quantised_layers"] == 40
        assert made.details["equalised"]["pairs"] > 3

    @pytest.mark.slow
    def test_with_real_times(self, tmp_path: Path) -> None:
        place = Place(tmp_path, calibration=Pictures(count=4), target=Target(size=(64, 96)))
        bundle = Quantize().apply(cnn(), place)
        assert bundle.details["verdict"]["latency"]["ratio"] > 0


class TestMixedPrecision:
    @pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13, 39])
    def test_the_fewest_layers_are_found_in_few_trials(self, needed: int) -> None:
        tried: list[int] = []

        def attempt(count: int) -> Interval:
            tried.append(count)
            return change(-0.01 if count >= needed else -0.02)

        count, found = _fewest(40, attempt, 0.01, "x")
        assert (count, found.value) == (needed, -0.01)
        assert len(set(tried)) <= 13

    @pytest.mark.parametrize("layers", [0, 1, 40])
    def test_it_says_when_int8_cannot(self, layers: int) -> None:
        with pytest.raises(ConfigError, match=r"INT8 cannot meet the limit 'x'.*Allow more with max_drop"):
            _fewest(layers, lambda _: change(-0.5), 0.01, "x")

    def test_the_ruined_layer_leaves_first_and_a_kill_costs_one_trial(self, tmp_path: Path) -> None:
        """With its range cut to a thousandth, one layer's input ruins the map: it must be found."""
        options = ExportOptions(precision=Precision.INT8_STATIC, size=(64, 96), calibration=pictures(3))
        place = Place(tmp_path)
        tried: list[tuple[str, ...]] = []

        def measured(bundle: Any) -> Interval:
            tried.append(tuple(bundle.details["excluded"]))
            if len(tried) == 2:
                raise KeyboardInterrupt
            return change(-0.001 if tried[-1] else -0.1)

        with pytest.raises(KeyboardInterrupt):
            mixture(cnn(), runtime("onnxruntime"), options, place, 0.01, measured)
        state = json.loads((tmp_path / STATE).read_bytes())
        assert len(state["losses"]) == 40
        assert list(state["trials"]) == ["0"]
        found = mixture(cnn(), runtime("onnxruntime"), options, place, 0.01, measured)
        worst = max(state["losses"], key=lambda name: state["losses"][name])
        assert found.out == (worst,)
        assert worst in found.options.exclude
        assert found.layers == 40
        assert len(tried) == 3

    def test_losses_rank_what_quantising_does(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        options = ExportOptions(precision=Precision.INT8_STATIC, size=(64, 96), calibration=pictures(3))
        real = calibrated
        ruined: list[str] = []

        def cut(ready: Any, options: ExportOptions) -> dict[str, tuple[float, float]]:
            """The input of one layer clipped to a hundredth of its range."""
            ranges = real(ready, options)
            layer = [node for node in ready.graph.node if node.op_type == "Conv"][20]
            ruined.append(layer.name)
            low, high = ranges[layer.input[0]]
            return ranges | {layer.input[0]: (low / 100, high / 100)}

        monkeypatch.setattr(mixed_precision, "calibrated", cut)
        place, changes = Place(tmp_path), iter([change(-2.0), change(0.0)])
        mixture(cnn(), runtime("onnxruntime"), options, place, 1.0, lambda _: next(changes))
        losses = json.loads((tmp_path / STATE).read_bytes())["losses"]
        assert max(losses, key=lambda name: losses[name]) == ruined[0]
        assert losses[ruined[0]] > 3 * float(np.median(list(losses.values())))

    def test_a_sensitivity_file_gives_the_order(self, tmp_path: Path) -> None:
        """The layers that it names leave in its order, before those that it does not name."""
        source, said = cnn(), list[str]()
        place, options = Place(tmp_path, say=said.append), ExportOptions(Precision.INT8_STATIC, calibration=pictures(2))
        ranked = ["decoder.conv2.1.0", "mobilenet.3.0", "not.of.this.network"]
        drops = iter([change(-0.1), change(-0.1), change(-0.001)])
        found = mixture(
            source, runtime("onnxruntime"), replace(options, size=(64, 96)), place, 0.01, lambda _: next(drops), ranked
        )
        model = dict(source.model.named_modules())
        assert all(path in model for path in ranked[:2])
        proto = export_onnx(source.model, bundle_contract(source.contract, (64, 96), False))
        naming = Naming(prepared(proto, options, name="cnn")[0], source.model)
        paths = [naming.weight(node) for node in naming.nodes for name in found.out if node.name == name]
        assert found.out
        assert set(paths) == {f"{path}.weight" for path in ranked[:2]}
        assert "2 layers leave in the order of the sensitivity file; 38 others leave last" in said
        assert not json.loads((tmp_path / STATE).read_bytes())["losses"]  # nothing was ranked

    def test_a_sensitivity_file_is_read_before_anything_is_done(self, tmp_path: Path) -> None:
        figure = {"value": 0.5, "low": None, "high": None, "n": 1}
        facts = {"model": "x", "fingerprint": "f", "settings": {}, "metric": "delta1", "higher_is_better": True}
        path = tmp_path / "sensitivity.json"
        path.write_text(json.dumps({"kind": "pruning", **facts, "base": figure, "finished": True}))
        step = Quantize(max_drop=0.01, sensitivity=path)
        with pytest.raises(ConfigError, match="a sensitivity file of pruning"):
            step.check(cnn(), Target())
        row = {
            "part": "blocks.0",
            "scope": "layer",
            "layers": ["blocks.0"],
            "change": "weights",
            "value": 8,
            "weights": 1,
        }
        rows = [{**row, "figure": figure, "difference": figure}]
        path.write_text(json.dumps({"kind": "bits", **facts, "base": figure, "finished": True, "rows": rows}))
        with pytest.raises(ConfigError, match=r"names no layer of .*: it has blocks\.0, "):
            step.check(cnn(), Target())
        path.write_text(json.dumps({"kind": "bits", **facts, "base": figure, "finished": True}))
        with pytest.raises(DataError, match="an empty sensitivity file"):
            step.check(cnn(), Target())
        with pytest.raises(DataError, match="no sensitivity file"):
            Quantize(max_drop=0.01, sensitivity=tmp_path / "none.json").check(cnn(), Target())

    def test_through_the_step(self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mixed_precision, "RANKED_ON", 2)
        data = tiny_datasets.folder(tmp_path / "data", 3)
        place = Place(
            place.folder, validation=Judged(data=str(data)), calibration=place.calibration, target=place.target
        )
        bundle = Quantize(max_drop=1.0).apply(cnn(), place)
        assert bundle.details["mixed_precision"] == {"in_float": [], "layers": 40}
        assert "0 of 40 layers left INT8" in bundle.details["verdict"]["words"][-1]
