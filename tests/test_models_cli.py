"""`leadline models`: what is packaged, what can be built, and one model in detail."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from leadline import reference
from leadline.checkpoint import save_checkpoint
from leadline.cli import app
from leadline.cli.models import _accuracy, figures
from leadline.cli.terminal import folded
from leadline.models.fastdepth import Config, build, contract

SMALL = Config(encoder_widths=(8,) * 14, decoder_widths=(8,) * 5, depthwise=True, skip="add")
CARD = """# Small

| protocol | d1 | AbsRel |
|---|---|---|
| nyu-eigen | 0.731 | 0.175 |
| fastdepth-224 | 0.742 | 0.170 |

| other | table |
|---|---|
| 1 | 2 |
"""


def command(*words):
    done = CliRunner().invoke(app, ["models", *map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    torch.manual_seed(0)
    facts = contract(SMALL).model_copy(update={"name": "house", "licence": "Apache-2.0"})
    folder = tmp_path / "house"
    save_checkpoint(
        folder,
        build(SMALL),
        architecture="fastdepth",
        config=SMALL,
        contract=facts,
        card=CARD,
        half=True,
        lineage=[{"step": "train", "epochs": 3}],
    )
    monkeypatch.setattr(reference, "zoo", lambda: {"house": folder})
    return folder


def test_figures_are_the_rows_of_the_cards_table():
    assert figures(CARD) == [
        {"protocol": "nyu-eigen", "d1": "0.731", "AbsRel": "0.175"},
        {"protocol": "fastdepth-224", "d1": "0.742", "AbsRel": "0.170"},
    ]
    assert figures("# nothing\n") == []


def test_list_as_json(packaged):
    listed = json.loads(command("--json"))
    (model,) = listed["models"]
    assert (model["name"], model["licence"], model["kind"], model["unit"]) == (
        "house",
        "Apache-2.0",
        "metric_depth",
        "m",
    )
    assert model["parameters"] == sum(value.numel() for value in build(SMALL).parameters())
    assert model["bytes"] == (packaged / "weights.safetensors").stat().st_size
    assert model["figures"][0]["d1"] == "0.731"
    names = {row["name"]: row for row in listed["variants"]}
    assert names["fastdepth-pruned"]["kind"] == "metric_depth"
    assert names["depth-anything-v2-small"]["kind"] == "relative_disparity"


def test_list_as_text_never_cuts_a_name(packaged):
    for columns in ("80", "200"):
        done = CliRunner().invoke(app, ["models"], env={"COLUMNS": columns})
        assert done.exit_code == 0
        assert "depth-anything-v2-metric-outdoor-large" in done.stdout
        assert "house" in done.stdout


def test_the_list_fits_80_columns(packaged):
    """The names of models are short; a licence may be long, and folds on a terminal only."""
    lines = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    nyu-eigen: d1 0.731, AbsRel 0.175" in lines
    (first,) = [line for line in lines if line.startswith("  house")]
    assert "input 224x224" in first


def test_a_card_with_a_row_per_metric_shows_the_models_own_figures():
    rows = [
        {"protocol": "`nyu-eigen`", "metric": "d1", "house": "0.768 [0.732, 0.803]", "other": "0.745"},
        {"protocol": "`nyu-eigen`", "metric": "AbsRel", "house": "0.166 [0.148, 0.187]", "other": "0.198"},
        {"protocol": "`ddad`", "metric": "d1", "house": "0.5", "other": "0.6"},
    ]
    assert _accuracy({"name": "house", "figures": rows}) == ["nyu-eigen: d1 0.768, AbsRel 0.166", "ddad: d1 0.5"]


def test_long_text_folds_at_words_on_a_terminal_only(monkeypatch):
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert folded("label  ", text) == "label  " + text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert folded("label  ", text).splitlines() == [
        "label  one two three four five six seven",
        "       eight nine ten eleven twelve",
    ]


def test_one_packaged_model(packaged):
    shown = command("house")
    assert "Apache-2.0" in shown
    assert "made by  train" in shown
    assert "| nyu-eigen | 0.731 | 0.175 |" in shown
    details = json.loads(command("house", "--json"))
    assert details["lineage"] == [{"step": "train", "epochs": 3}]
    assert details["contract"]["name"] == "house"


def test_one_variant():
    details = json.loads(command("fastdepth-pruned", "--json"))
    assert details["parameters"] == 1_360_786  # SPEC.md 1.2
    assert details["config"]["encoder_widths"][0] == 16
    assert "without weights" in details["what"]


def test_unknown_name_is_corrected(packaged):
    done = CliRunner().invoke(app, ["models", "hose"])
    assert done.exit_code == 2
    assert "Did you mean 'house'" in done.stderr


@pytest.mark.parametrize("verb", ["models", "convert"])
def test_help_ends_in_commands(verb):
    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert f"leadline {verb}" in done.stdout.split("Examples:")[1]


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (("models", "EMPTY"), "See `leadline models`"),
        (("models", "no/where"), "Check the path"),
        (("export", "EMPTY", "-r", "torch"), "Give a name from `leadline models`"),
        (("predict", "a.png", "-m", "EMPTY"), "Give a name from `leadline models`"),
        (("predict", "a.png", "-m", "TEXT"), "Give a name from `leadline models`"),
        (("predict", "a.png", "-m", "no/where"), "Check the path"),
        (("predict", "a.png", "-m", ""), "Give a name from `leadline models`"),
        (("predict", "a.png", "-m", "https://huggingface.co/a/b"), "For a Hugging Face model write hf:OWNER/NAME"),
        (("predict", "a.png", "-m", "hf:nonsense"), "Write hf:OWNER/NAME"),
        (("predict", ""), "Name a picture"),
        (("predict", "a.png", "--threads", "9999"), "See leadline predict --help"),
        (("convert", "TEXT", "--out", "c"), "Give a .pth"),
        (("convert", "no.pth", "--out", "c"), "Check the path"),
        (("evaluate", "x", "--data", "rendered", "--protocol", "nyu"), "Did you mean 'nyu-eigen'"),
    ],
)
def test_a_wrong_name_is_one_line_with_its_mend(tmp_path, monkeypatch, words, mend):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "a.png").write_bytes(b"")
    known = {"EMPTY": "empty", "TEXT": "text.txt"}
    done = CliRunner().invoke(app, [known.get(word, word) for word in words], prog_name="leadline")
    assert (done.exit_code, done.stdout) == (2, "")
    assert mend in done.stderr
    assert done.stderr.count("\n") == 1
