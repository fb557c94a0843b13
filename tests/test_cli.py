"""The command line as such: start-up, exit statuses, one-line errors."""

from __future__ import annotations

import signal
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

import leadline
from leadline.cli import VERBS, app
from leadline.cli.options import parse_size
from leadline.errors import ConfigError, ImageReadError, NumericalError

HEAVY = ("torch", "numpy", "PIL", "pydantic", "onnx", "onnxruntime", "openvino", "transformers", "matplotlib", "h5py")


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leadline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, leadline; from leadline.cli import main; sys.argv[1:] = ['--help']\n"
        "try: main()\n"
        f"finally: print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "LOADED []" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


def test_public_names_are_loaded_on_first_use() -> None:
    assert set(leadline.__all__) <= set(dir(leadline))
    assert leadline.Kind.METRIC_DEPTH == "metric_depth"
    for name in leadline.__all__:
        assert getattr(leadline, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        leadline.nonsense  # noqa: B018


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"leadline {leadline.__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_ends_in_commands(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0, result.output
    below_the_options = result.output.rpartition("╯")[2]
    assert f"leadline {verb}" in " ".join(below_the_options.split())


@pytest.mark.parametrize(
    ("arguments", "named", "place"),
    [
        (["nonsense"], "nonsense", "leadline"),
        (["modls"], "Did you mean 'models'", "leadline"),
        (["--nonsense"], "--nonsense", "leadline"),
        (["predict", "--nonsense"], "--nonsense", "leadline predict"),
        (["predict"], "SOURCE", "leadline predict"),
        (["predict", "a.jpg", "--fov", "wide"], "--fov", "leadline predict"),
        (["predict", "a.jpg", "--size"], "--size", "leadline predict"),
        (["export", "x"], "--runtime", "leadline export"),
        (["data", "nonsense"], "nonsense", "leadline data"),
        (["data", "render", "--count", "few"], "--count", "leadline data render"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it_and_where_help_is(arguments: list[str], named: str, place: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "40"}, prog_name="leadline")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    assert result.stderr.endswith(f" See {place} --help\n")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_arguments_show_the_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output
    assert "error:" not in result.output


def fault(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `leadline doctor` raise."""

    def command() -> None:
        raise error

    module = types.ModuleType("leadline.cli.doctor")
    module.command = command
    monkeypatch.setitem(sys.modules, "leadline.cli.doctor", module)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ImageReadError("no such file", where="a.jpg", mend="check the path"), 2, "error: no such file a.jpg. Check"),
        (NumericalError("NaN in", where="engine x"), 1, "error: NaN in engine x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("boom\nboom"), 70, "error: unexpected ValueError: boom boom. Run again with --debug"),
    ],
)
def test_an_error_is_one_line_with_its_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    fault(monkeypatch, error)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr.replace("'", "") for word in message.split())


@pytest.mark.parametrize("arguments", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    fault(monkeypatch, ValueError("boom"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert 'ValueError("boom")' not in CliRunner().invoke(app, ["doctor"]).stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_program_with_their_status_after_cleaning_up(number: int, status: int) -> None:
    code = (
        "import sys, time, types; import leadline.cli as cli\n"
        "def command():\n"
        "    try: print('ready', flush=True); time.sleep(60)\n"
        "    finally: print('cleaned', flush=True)\n"
        "module = types.ModuleType('leadline.cli.doctor'); module.command = command\n"
        "sys.modules['leadline.cli.doctor'] = module; sys.argv[1:] = ['doctor']; cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert out == "cleaned\n"
    assert "Traceback" not in err


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1)\nfrom leadline.cli import main; main()", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["224", "a,b", "axb", "1,2,3", "1x2x3", "-1,5", "", "x", "²,2"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Write height,width"):
        parse_size(text)


@pytest.mark.parametrize("text", ["224, 320", "224x320", "224 X 320", "224×320"])
def test_a_size_is_height_and_width(text: str) -> None:
    assert parse_size(text) == (224, 320)
    assert parse_size(None) is None
