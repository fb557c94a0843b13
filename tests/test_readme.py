"""The README's examples are run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_examples_run_in_their_order(tmp_path: Path) -> None:
    def ran(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        return done.stdout

    for command in "".join(blocks("bash")).strip().splitlines():
        words = shlex.split(command, comments=True)
        assert words[0] in ("leadline", "python")
        ran(*(["-m", *words] if words[0] == "leadline" else words[1:]))
    (code,) = blocks("python")
    assert ran("-c", code).startswith("metric_depth m (240, 320)")


def test_no_example_is_overlooked() -> None:
    """A block of another language, or of none, is not run."""
    assert len(blocks("bash")) == 7
