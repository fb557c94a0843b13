"""Sensitivity: what matters is found where it was put, and what follows from it agrees with a closed form."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import tiny_datasets
import tiny_models
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.compression import sensitivity_analysis
from leadline.compression.base import Judged, Place
from leadline.compression.magnitude import PruneMagnitude
from leadline.compression.sensitivity import Figure, Row, Sensitivity, amounts_of_file, order, per_layer_amounts
from leadline.compression.sensitivity_analysis import analyse
from leadline.compression.sensitivity_report import markdown, write_report
from leadline.compression.sensitivity_trials import input_ranges, rounded_input, rounded_weights
from leadline.compression.zeros import zeros
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import ConfigError, DataError
from leadline.reference import LoadedModel


class Mean(nn.Module):
    """Depth is 2.1 m everywhere, if `matters` says so; `idle` adds what `gate` throws away."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.matters = nn.Conv2d(8, 1, 1, bias=False)
        with torch.no_grad():
            for layer in (self.block[0], self.block[2]):
                layer.weight.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
                layer.bias.zero_()  # type: ignore[union-attr, operator]
            self.matters.weight.copy_(torch.tensor([1.0, 0.5, 0.3, 0.2, 0.05, 0.03, 0.015, 0.005]).view(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones_like(x[:, :1]).expand(-1, 8, -1, -1)
        return self.matters(ones + 0.0 * self.block(x))


def network() -> LoadedModel:
    torch.manual_seed(0)
    spec = InputSpec(height=12, width=16, mean=(0, 0, 0), std=(1, 1, 1))
    contract = Contract(name="mean", input=spec, output=OutputSpec(kind=Kind.METRIC_DEPTH))
    return LoadedModel(Mean().eval(), contract, "mean")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, 2.0, 2.1 and 2.2 m away."""
    return tiny_datasets.folder(tmp_path_factory.mktemp("data") / "pairs")


def place(folder: Path, data: Path, **more: object) -> Place:
    return Place(folder, validation=Judged(data=str(data), **more))  # type: ignore[arg-type]


def rows_of(found: Sensitivity, part: str) -> dict[tuple[str, float], Row]:
    return {(row.change, row.value): row for row in found.rows if row.part == part}


def test_without_ground_truth_the_unchanged_network_is_the_truth(tmp_path: Path, data: Path) -> None:
    source = tiny_models.cnn()
    found = analyse(source, place(tmp_path, data, protocol="fidelity"), "pruning", values=(0.9,), blocks=False)
    assert (found.metric, found.base.value) == ("agreement", 1.0)
    assert min(row.figure.value for row in found.rows) < 1.0


def test_the_layer_that_matters_is_found_with_its_exact_loss(tmp_path: Path, data: Path) -> None:
    """Without its 4 smallest weights the output is 2.0, without 6 it is 1.5: AbsRel by hand on 2.0, 2.1 and 2.2 m."""
    said: list[str] = []
    where = replace(place(tmp_path, data), say=said.append)
    found = analyse(network(), where, "pruning", values=(0.75, 0.5), metric="abs_rel")

    def error(depth: float) -> float:
        return sum(abs(depth - truth) / truth for truth in (2.0, 2.1, 2.2)) / 3

    assert found.base.value == pytest.approx(error(2.1), abs=1e-6)
    rows = rows_of(found, "matters")
    assert rows["zeros", 0.5].figure.value == pytest.approx(error(2.0), abs=1e-6)
    assert rows["zeros", 0.5].difference.value == pytest.approx(error(2.0) - error(2.1), abs=1e-6)
    assert rows["zeros", 0.75].difference.value == pytest.approx(error(1.5) - error(2.1), abs=1e-6)
    assert found.loss(rows["zeros", 0.75]) > 0.2
    lines: list[str] = []
    for name in ("mean", "other"):
        amounts_of_file(tmp_path, 0.5, name, lines.append)
    assert lines == ["the sensitivity file is of mean, the network is other"]
    for part in ("block.0", "block.2", "block"):
        assert all(row.difference.value == 0 for row in rows_of(found, part).values())
    assert rows_of(found, "block")["zeros", 0.5].weights == 3 * 8 + 8 * 8
    assert rows_of(found, "block")["zeros", 0.5].layers == ("block.0", "block.2")
    assert order(found, "pruning")[0] == "matters"
    assert said[0].startswith("8 changes x 3 pictures = 24 forward passes; ")
    assert "about" in said[0]


def test_bits_cost_what_the_rounding_makes_of_the_output(tmp_path: Path, data: Path) -> None:
    found = analyse(network(), place(tmp_path, data), "bits", values=(8, 3), metric="mae")
    rows = rows_of(found, "matters")
    assert set(rows) == {("weights", 8.0), ("weights", 3.0), ("activations", 8.0)}
    # 3 bits: levels 0, 1/3, 2/3, 1. 1 stays; 0.5 is 1.5 steps and goes to the even 2; 0.3 and 0.2 go to 1 step.
    depth = 1 + 2 / 3 + 1 / 3 + 1 / 3
    wanted = sum(abs(depth - truth) for truth in (2.0, 2.1, 2.2)) / 3
    assert rows["weights", 3.0].figure.value == pytest.approx(wanted, abs=1e-5)
    assert rows["activations", 8.0].difference.value == pytest.approx(0, abs=1e-6)  # ones are a level of 0 .. 1
    assert order(found) == ["matters", "block.0", "block.2"]
    with pytest.raises(ConfigError, match="pruning is needed"):
        per_layer_amounts(found, 0.5)


def test_the_network_is_whole_after_every_trial(tmp_path: Path, data: Path) -> None:
    source = network()
    before = {key: value.clone() for key, value in source.model.state_dict().items()}
    analyse(source, place(tmp_path / "bits", data), "bits", values=(2,))
    again = analyse(source, place(tmp_path / "a", data), "pruning", values=(0.9,), only=("matters",))
    after = analyse(source, place(tmp_path / "b", data), "pruning", values=(0.9,))
    assert rows_of(again, "matters") == rows_of(after, "matters")
    assert all(torch.equal(value, before[key]) for key, value in source.model.state_dict().items())


def test_rounding_agrees_with_float64_arithmetic() -> None:
    weight = torch.tensor([[0.7, -0.31, 0.1], [0.0, 0.0, 0.0], [1e-3, 2e-3, -3e-3]])
    by_hand = [[0.7, round(-0.31 / 0.1) * 0.1, 0.1], [0, 0, 0], [1e-3 * 7 / 3, 2e-3, -3e-3]]
    by_hand[2] = [round(value / (3e-3 / 7)) * 3e-3 / 7 for value in (1e-3, 2e-3, -3e-3)]
    torch.testing.assert_close(rounded_weights(weight, 4, 0), torch.tensor(by_hand))
    torch.testing.assert_close(rounded_weights(weight.T, 4, 1), torch.tensor(by_hand).T)
    values = torch.tensor([-2.0, -1.0, 0.0, 0.501, 3.0])
    step = 3 / 255
    wanted = [round(max(min(v, 2.0), -1.0) / step) * step for v in values.tolist()]
    torch.testing.assert_close(rounded_input(values, -1.0, 2.0), torch.tensor(wanted), atol=1e-6, rtol=0)
    assert torch.equal(rounded_input(torch.zeros(3), 0.0, 0.0), torch.zeros(3)), "a constant activation"
    assert float(rounded_input(torch.zeros(1), 1.0, 2.0)) == 0, "0 is a level"


def test_ranges_are_those_of_all_pictures() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        model[0].weight.fill_(2.0)  # type: ignore[union-attr, operator]
    pictures = [torch.tensor([[[[-1.0, 0.5]]]]), torch.tensor([[[[0.25, 3.0]]]])]
    assert input_ranges(model, pictures) == {"0": (-1.0, 3.0), "2": (0.0, 6.0)}


def test_a_stopped_analysis_goes_on_and_measures_nothing_twice(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sensitivity_analysis.judge, []

    def counted(*arguments: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity_analysis, "judge", counted)
    with pytest.raises(KeyboardInterrupt):
        analyse(network(), place(tmp_path, data), "pruning", values=(0.5,))
    with pytest.raises(DataError, match="stopped after 2 rows"):
        Sensitivity.load(tmp_path)
    found = analyse(network(), place(tmp_path, data), "pruning", values=(0.5,))
    assert len(calls) == 4 + 1 + 2  # the whole network again, then what was missing of 4
    assert Sensitivity.load(tmp_path) == found
    wider = analyse(network(), place(tmp_path, data), "pruning", values=(0.5, 0.9))
    assert len(calls) == 7 + 1 + 4
    assert len(wider.rows) == 8
    with pytest.raises(ConfigError, match=r"another limit\. Choose another --out"):
        analyse(network(), place(tmp_path, data, limit=2), "pruning", values=(0.5,))
    other = network()
    with torch.no_grad():
        other.model.matters.weight[0] = 0.1  # type: ignore[union-attr, index, operator]
    with pytest.raises(ConfigError, match="another fingerprint"):
        analyse(other, place(tmp_path, data), "pruning", values=(0.5,))


def made(**losses: list[tuple[float, float]]) -> Sensitivity:
    """An analysis by hand: layers of 100 weights with (share, loss of AbsRel)."""
    figure = Figure(value=0.1, low=0.1, high=0.1, n=5)
    rows = [
        Row(
            part=name,
            scope="layer",
            layers=(name,),
            change="zeros",
            value=share,
            weights=100,
            figure=figure,
            difference=Figure(value=loss, low=loss, high=loss, n=5),
        )
        for name, points in losses.items()
        for share, loss in points
    ]
    return Sensitivity(
        kind="pruning",
        model="made",
        fingerprint="",
        settings={},
        metric="abs_rel",
        higher_is_better=False,
        base=figure,
        finished=True,
        rows=tuple(rows),
    )


def test_shares_have_one_loss_and_make_the_target() -> None:
    """Losses a = 0.1 s and b = 0.3 s: equal losses make a three times b, so 0.4 on average is 0.6 and 0.2."""
    found = per_layer_amounts(made(a=[(0.5, 0.05), (0.9, 0.09)], b=[(0.5, 0.15), (0.9, 0.27)]), 0.4)
    assert found == pytest.approx({"a": 0.6, "b": 0.2}, abs=1e-9)


def test_layers_without_loss_go_first_and_chance_gains_count_as_none() -> None:
    analysis = made(a=[(0.5, -0.01), (0.9, 0.0)], b=[(0.5, 0.1), (0.9, 0.1)])
    assert per_layer_amounts(analysis, 0.2) == pytest.approx({"a": 0.4, "b": 0.0}, abs=1e-9)
    assert per_layer_amounts(analysis, 0.45) == pytest.approx({"a": 0.9, "b": 0.0}, abs=1e-9)
    assert per_layer_amounts(analysis, 0.9) == pytest.approx({"a": 0.9, "b": 0.9})
    flat = per_layer_amounts(analysis, 0.8)  # b reaches 0.1 at 0.5 and is flat from there on
    assert (flat["a"] + flat["b"]) / 2 == pytest.approx(0.8)
    assert 0.5 <= flat["b"] <= 0.9
    assert order(analysis, "pruning") == ["b", "a"]


@pytest.mark.parametrize("target", [0.0, 0.91, float("nan")])
def test_a_target_beyond_the_measured_shares_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=r"most is 0\.9"):
        per_layer_amounts(made(a=[(0.9, 0.1)], b=[(0.9, 0.2)]), target)


def test_the_file_drives_pruning(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    names = [name for name in zeros(source.model) if name != "decoder.conv6.0"][:2]
    first, second = (zeros(source.model)[name][1] for name in names)
    analysis = made(**{names[0]: [(0.8, 0.0)], names[1]: [(0.8, 1.0)]})
    rows = tuple(row.model_copy(update={"weights": zeros(source.model)[row.part][1]}) for row in analysis.rows)
    analysis.model_copy(update={"rows": rows}).save(tmp_path)
    share = 0.5 * first / (first + second)
    step = PruneMagnitude(amount=share, scope="sensitivity", sensitivity=tmp_path / "sensitivity.json")
    result = step.apply(source, Place(tmp_path / "work"))
    assert isinstance(result, LoadedModel)
    counts = {name: gone for name, (gone, _) in zeros(result.model).items() if gone}
    assert counts == {names[0]: round(0.5 * first)}


def test_channels_of_a_group_leave_the_network(tmp_path: Path, data: Path) -> None:
    source = tiny_models.cnn()
    path = str(tiny_datasets.folder(tmp_path / "pairs"))
    found = analyse(
        source, place(tmp_path / "out", Path(path)), "channels", values=(0.5,), only=("decoder.conv4",), metric="mae"
    )
    (row,) = found.rows
    assert row.change == "channels"
    assert row.part.startswith("decoder.conv4")
    assert row.difference.value != 0


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("pruning", {"values": (0.5, 1.0)}, "shares above 0 and below 1"),
        ("pruning", {"values": ()}, "bad values"),
        ("bits", {"values": (8, 1)}, "whole bits from 2 to 8"),
        ("bits", {"values": (4.5,)}, "whole bits"),
        ("pruning", {"only": ("blok",)}, "Did you mean 'block'"),
        ("pruning", {"metric": "delta"}, "Did you mean 'delta"),
    ],
)
def test_wrong_questions_are_refused(
    tmp_path: Path, data: Path, kind: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        analyse(network(), place(tmp_path, data), kind, **options)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_what_is_no_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leadline sensitivity REF"):
        Sensitivity.load(tmp_path / "sensitivity.json")
    (tmp_path / "sensitivity.json").write_text('{"kind": "pruning"}')
    with pytest.raises(DataError, match="not a sensitivity file"):
        Sensitivity.load(tmp_path)
    with pytest.raises(ConfigError, match="no `validation`"):
        analyse(network(), Place(tmp_path), "pruning")


def test_table_and_picture_show_every_part(tmp_path: Path, data: Path) -> None:
    found = analyse(network(), place(tmp_path, data), "bits", values=(8, 4))
    table = markdown(found)
    assert table.count("\n| ") == 1 + 4
    assert "| block block | 88 |" in table
    assert "| 8 bit inputs | 8 bit weights | 4 bit weights |" in table
    assert "n = 3" in table
    files = write_report(found, tmp_path)
    assert [path.name for path in files] == ["sensitivity.md", "sensitivity.svg", "sensitivity.png"]
    shown = ET.fromstring((tmp_path / "sensitivity.svg").read_text())
    words = "".join(shown.itertext())
    assert all(part in words for part in ("block.0", "block.2", "matters", "[block]"))
    with Image.open(tmp_path / "sensitivity.png") as picture:
        assert min(picture.size) > 100


def test_the_verb_says_what_it_will_cost_and_goes_on(tmp_path: Path, data: Path) -> None:
    source = tiny_models.cnn()
    assert source.architecture is not None
    assert source.config is not None
    facts = {"architecture": source.architecture, "config": source.config, "contract": source.contract}
    save_checkpoint(tmp_path / "network", source.model, **facts)  # type: ignore[arg-type]
    line = ["sensitivity", str(tmp_path / "network"), "--data", str(data), "--kind", "pruning", "--values", "0.5"]
    line += ["--only", "decoder", "--out", str(tmp_path / "out"), "--limit", "2"]
    first = CliRunner().invoke(app, line)
    assert first.exit_code == 0, first.output
    assert "forward passes" in first.stderr.splitlines()[0]
    assert "decoder.conv1.0" in first.stdout
    assert "n 2" in first.stdout
    again = CliRunner().invoke(app, [*line, "--json"])
    assert again.exit_code == 0, again.output
    assert again.stderr.startswith("0 changes x 2 pictures")
    assert json.loads(again.stdout)["finished"] is True
    wrong = CliRunner().invoke(app, [*line[:5], "prunning", "--out", str(tmp_path / "out")])
    assert wrong.exit_code == 2
    assert "Did you mean 'pruning'" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
