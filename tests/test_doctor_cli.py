"""`leadline doctor`: what is here, and what each missing runtime needs."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from leadline.cli import app, doctor
from leadline.evaluation.machine import Machine
from leadline.runtimes import core_ml, open_vino, torch_compile
from leadline.runtimes.base import RUNTIMES, Availability


def test_json_lists_every_runtime_and_the_machine() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert [row["name"] for row in values["runtimes"]] == list(RUNTIMES)
    versions = {row["name"]: row["version"] for row in values["runtimes"]}
    assert versions["torch"] == importlib.metadata.version("torch")
    assert values["machine"]["cores"] >= 1
    assert len(values["machine"]["id"]) == 12


def test_a_missing_runtime_says_why_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS.md row 51."""
    missing = Availability(False, reason="openvino is not installed", install=open_vino.INSTALL)
    monkeypatch.setattr(open_vino.RUNTIME, "availability", lambda: missing, raising=False)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("openvino "))
    assert "skipped: openvino is not installed" in line
    assert 'pip install "leadline[openvino]"' in line
    assert next(line for line in result.stdout.splitlines() if line.startswith("torch ")).split()[1] == "yes"


def test_what_an_engine_found_stands_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compile, "compiler", lambda: "/opt/bin/g++-14")
    there = Availability(True, "9.0", export_only="it runs on a Mac")
    monkeypatch.setattr(core_ml.RUNTIME, "availability", lambda: there, raising=False)
    lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    for name, below in (
        ("torch-compile", "compiles with /opt/bin/g++-14"),
        ("coreml", "exports only: it runs on a Mac"),
    ):
        at = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
        assert lines[at].split()[1] == "yes"
        assert lines[at + 1].strip() == below
    monkeypatch.setattr(torch_compile, "compiler", lambda: None)
    lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    assert "needs a C++ compiler" in next(line for line in lines if line.startswith("torch-compile no"))


@pytest.mark.parametrize(
    ("sets", "words"),
    [(("avx2",), ["no INT8 dot product", "no BF16"]), (("avx512_vnni",), ["no BF16"]), (("i8mm", "bf16"), [])],
)
def test_advice_follows_the_instruction_sets(sets: tuple[str, ...], words: list[str]) -> None:
    machine = Machine("cpu", 1, 1, sets, 8, "Linux", "3.11", {})
    advice = doctor._advice(machine)
    assert len(advice) == len(words)
    assert all(word in line for word, line in zip(words, advice, strict=True))
