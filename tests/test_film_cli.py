"""`leadline predict FILM` as it is typed: several films, wrong words, outputs that must not be replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

import tiny_films as tiny
from leadline.cli import app
from leadline.output import output_lock
from predicting import write_model

if TYPE_CHECKING:
    from typer.testing import Result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def predict(model: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", "--model", str(model), "--threads", "1", *map(str, arguments)])


def test_films_and_what_became_of_them(tmp_path: Path, model: Path) -> None:
    tiny.film(tmp_path / "a b.mp4", 6)
    (tmp_path / "bad.mp4").write_bytes(b"junk" * 50)
    out = tmp_path / "out"
    result = predict(model, tmp_path / "*.mp4", "--out", out, "--flicker", "--json")
    assert result.exit_code == 1, result.output
    first, second = json.loads(result.stdout)["films"]
    assert (first["status"], first["frames"], second["status"]) == ("done", 6, "failed")
    assert first["flicker"]["with smoothing"] <= first["flicker"]["without smoothing"]
    assert "1 of 2 films failed" in result.stderr
    again = predict(model, tmp_path / "a b.mp4", "--out", out, "--flicker", "--no-smooth", "--range", "0,10")
    assert again.exit_code == 0, again.output
    assert "6 frames ->" in again.stdout
    assert "of the depth's spread (over 4 of 6 frames" in again.stdout
    assert json.loads((out / "a b.json").read_text())["display"]["range"] == [0.0, 10.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("in.mp4", "in.png"), "cannot predict together"),
        (("in.mp4", "--save", "png16"), "unknown format to save of a film"),
        (("in.mp4", "--view", "depht"), "Did you mean 'depth'"),
        (("in.mp4", "--range", "3,1"), "upside down"),
        (("in.mp4", "--range", "3"), "two numbers are needed"),
        (("in.png", "--flicker"), "only films have '--flicker"),
        (("in.png", "--view", "side"), "only films have '--view"),
        (("nothing-*.mp4",), "no films match"),
        (("http://x/in.mp4",), "it is a URL"),
    ],
)
def test_wrong_words_are_explained(tmp_path: Path, model: Path, arguments: tuple[str, ...], says: str) -> None:
    tiny.film(tmp_path / "in.mp4", 2)
    words = [str(tmp_path / word) if word[-4:] in (".mp4", ".png") and "/" not in word else word for word in arguments]
    result = predict(model, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_output_is_neither_the_source_nor_in_use(tmp_path: Path, model: Path) -> None:
    film = tiny.film(tmp_path / "x_depth.mp4", 2)
    film.rename(tmp_path / "x.mp4")
    tiny.film(tmp_path / "x_depth.mp4", 2)
    result = predict(model, tmp_path / "x.mp4", tmp_path / "x_depth.mp4", "--out", tmp_path)
    assert (result.exit_code, "will not overwrite" in result.stderr) == (2, True), result.output
    with output_lock(tmp_path / "out"):
        result = predict(model, tmp_path / "x.mp4", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"process {os.getpid()}" in result.stderr
