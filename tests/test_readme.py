"""The README's examples are run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in block.strip().splitlines()])
def test_command(command: str, place: Path) -> None:
    words = command.split()
    assert words[0] == "leadline"
    done = subprocess.run(
        [sys.executable, "-m", "leadline", *[word.strip('"') for word in words[1:]]],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_python(place: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("metric_depth m (240, 320)")


def test_there_are_five_examples() -> None:
    assert len(blocks("bash")) == 5
