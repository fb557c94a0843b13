"""Atomic writes, locks and early checks: nothing finished is lost, whatever stops the program."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from leadline.errors import OutputError
from leadline.models.fastdepth import Config, build
from leadline.output import (
    atomic_folder,
    check_named,
    check_writable,
    output_lock,
    refuse_finished,
    sha256_file,
    write_atomic,
    write_named,
)

SMALL = Config(encoder_widths=(8,) * 14, decoder_widths=(8,) * 5, depthwise=True, skip="add")
HOLD = """
import sys, time
from pathlib import Path
from leadline.output import output_lock
with output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180


def test_write_atomic_replaces_and_makes_parents(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


def test_a_named_file_replaces_only_its_like(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    check_named(path, b"a,b", "table")
    write_named(path, b"a,b,c\n1,2,3\n")
    check_named(path, b"a,b", "table")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(OutputError, match=r"will not replace.*photo\.png.*not a table"):
        check_named(tmp_path / "photo.png", b"a,b", "table")
    with pytest.raises(OutputError, match="cannot write"):
        check_named(tmp_path, b"a,b", "table")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_a_named_link_and_pipe_are_written_through(tmp_path):
    import threading

    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    check_named(tmp_path / "link", b"a", "table")
    write_named(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_bytes() == b"one"
    os.mkfifo(tmp_path / "pipe")
    check_named(tmp_path / "pipe", b"a", "table")
    writer = threading.Thread(target=write_named, args=(tmp_path / "pipe", b"two"))
    writer.start()
    assert (tmp_path / "pipe").read_bytes() == b"two"
    writer.join()
    assert (tmp_path / "pipe").is_fifo()
    write_named(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()


def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_new_files_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder") as place:
            write_atomic(place / "inner", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_folder_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as place:
        write_atomic(place / "manifest.json", b'{"kind": "bundle"}')
        assert not path.exists()
    assert names(path) == ["manifest.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_old_folder_survives_a_failure_of_the_new(tmp_path, fault):
    path = tmp_path / "out"
    with atomic_folder(path, replaces="bundle") as place:
        write_atomic(place / "manifest.json", b'{"kind": "bundle", "v": 1}')

    def replace() -> None:
        with atomic_folder(path, replaces="bundle") as place:
            write_atomic(place / "manifest.json", b'{"kind": "bundle", "v": 2}')
            raise fault

    with pytest.raises(type(fault)):
        replace()
    assert (path / "manifest.json").read_bytes() == b'{"kind": "bundle", "v": 1}'
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_recognised_inside_engines_errors(tmp_path, fault):
    with pytest.raises(OutputError, match="disk full"), atomic_folder(tmp_path / "out"):
        raise fault
    assert names(tmp_path) == []


def test_other_errors_of_the_block_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()


def test_folders_of_others_are_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(OutputError, match="will not replace"), atomic_folder(tmp_path / "photos"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "photos") == ["one.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "replaces"),
    [
        ("manifest.json", '{"kind": "checkpoint"}', "bundle"),
        ("manifest.json", '{"kind": "bundle"}', "checkpoint"),
        ("dataset.json", "{}", "bundle"),
        ("dataset.json", "{}", None),
    ],
)
def test_what_was_finished_is_replaced_only_by_its_like(tmp_path, name, text, replaces):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(OutputError, match="will not replace"), atomic_folder(tmp_path / "out", replaces=replaces):
        pytest.fail("nothing may be written")
    assert (tmp_path / "out" / name).read_text() == text


def test_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as place:
        write_atomic(place / "a", b"1")
    assert names(tmp_path / "out") == ["a"]


def test_second_run_fails_and_names_the_first_ones_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {first.pid}"), output_lock(tmp_path):
            pytest.fail("the lock was given twice")
        first.send_signal(signal.SIGKILL)
    with output_lock(tmp_path):  # the dead process's file is still there, its lock is not
        assert (tmp_path / ".leadline.lock").read_text() == f"{os.getpid()}\n"
    assert names(tmp_path) == []


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with output_lock(tmp_path / "new"):
        pass
    assert names(tmp_path) == []


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        check_writable(tmp_path / "file" / "b")


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(build(SMALL).state_dict(), path)
    return path


def run(*words: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """The real command; `limit` bounds the size of each file in bytes, as a full disk would."""
    start = [sys.executable, "-m", "leadline"]
    if limit is not None:
        bound = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        start = [sys.executable, "-c", f"{bound}from leadline.cli import main; main()"]
    return subprocess.run([*start, *map(str, words)], capture_output=True, text=True, check=False)


def test_command_on_a_full_disk_keeps_the_old_checkpoint(tmp_path, weights):
    """FAULTS.md row 39."""
    out = tmp_path / "models" / "small"
    assert run("convert", weights, "--out", out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = run("convert", weights, "--out", out, "--name", "second", limit=4096)
    assert again.returncode == 2
    assert "disk full" in again.stderr
    assert "Traceback" not in again.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names(tmp_path / "models") == ["small"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write")
def test_command_refuses_a_read_only_output_before_any_work(tmp_path):
    """FAULTS.md row 43: the output is tried before the (here missing) source is even opened."""
    done = run("convert", tmp_path / "missing.pth", "--out", "/proc/leadline")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to '/proc/leadline'")


def test_a_finished_folder_takes_no_study_and_what_lies_in_it_is_not_lost(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "manifest.json").write_text('{"kind": "bundle", "files": {"model.onnx": {}}}')
    with pytest.raises(OutputError, match="holds a bundle"):
        refuse_finished(bundle)
    refuse_finished(tmp_path)
    (bundle / "study.sqlite").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"'study\.sqlite' beside a bundle"), atomic_folder(bundle, replaces="bundle"):
        pass
    (bundle / "study.sqlite").unlink()
    with atomic_folder(bundle, replaces="bundle") as folder:
        (folder / "new").write_bytes(b"y")
    assert [path.name for path in bundle.iterdir()] == ["new"]
