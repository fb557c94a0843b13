"""Files of PyTorch are read and never executed: hostile, forged, damaged ones (FAULTS.md rows 26 and 27)."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from leadline.cli import app
from leadline.errors import CheckpointError, LeadlineError
from leadline.torch_files import read_torch_file

PREAMBLE = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def zipped(path, data: bytes, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key, content in storages:
            archive.writestr(f"archive/data/{key}", content)


def streamed(path, data: bytes, storages=()):
    parts = [pickle.dumps(value, protocol=2) for value in PREAMBLE]
    parts += [data, pickle.dumps([key for key, _ in storages], protocol=2)]
    parts += [struct.pack("<q", len(content) // 4) + content for _, content in storages]
    path.write_bytes(b"".join(parts))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(size, stride, offset=0, numel=4, key="0", kind="FloatStorage") -> bytes:
    """Opcodes of a state dict with one tensor `w`."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02}" + text("w") + rebuilt + b"\x89ccollections\nOrderedDict\n)RtRs."


@pytest.mark.parametrize("zip_form", [True, False])
def test_every_stored_type_and_every_view(tmp_path, zip_form):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        **{str(kind): torch.ones(3, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int8)},
        **{str(kind): torch.tensor([1, 0]).to(kind) for kind in (torch.int16, torch.int32, torch.uint8, torch.bool)},
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2],
        "scalar": torch.tensor(5),
        "empty": torch.empty(0, 3),
    }
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zip_form)
    found = read_torch_file(tmp_path / "w.pt").state
    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in state.items()}
    assert all(torch.equal(found[key], value) for key, value in state.items())


HOSTILE = {
    "os.system": b"\x80\x02cos\nsystem\n" + text("touch ran") + b"\x85R.",
    "posix.system": b"\x80\x02}" + text("w") + b"cposix\nsystem\n" + text("touch ran") + b"\x85Rs.",
    "builtins.eval": b"\x80\x02c__builtin__\neval\n" + text("open('ran', 'w')") + b"\x85R.",
    "builtins.getattr": b"\x80\x04" + text("builtins") + text("getattr") + b"\x93.",
    "subprocess.Popen": b"\x80\x02" + b"(" + text("touch ran") + b"isubprocess\nPopen\n.",
    "torch.hub.load": b"\x80\x02ctorch.hub\nload\n" + text("x/y") + text("z") + b"\x86R.",
    "torch.load": b"\x80\x02ctorch\nload\n" + text("other.pth") + b"\x85R.",
    "numpy.testing._private.utils.runstring": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n}" + b"\x86R.",
    "the pickle instruction EXT1": b"\x80\x02\x82\x01.",
    "evil\\nname.x": b"\x80\x04" + text("evil\nname") + text("x") + b"\x93.",
}


@pytest.mark.parametrize("form", [zipped, streamed])
@pytest.mark.parametrize("named", HOSTILE)
def test_pickles_that_run_code_are_refused_in_words(tmp_path, monkeypatch, named, form):
    """FAULTS.md row 26."""
    monkeypatch.chdir(tmp_path)
    form(tmp_path / "evil.pth", HOSTILE[named])
    done = command("convert", "evil.pth", "--out", "out")
    assert done.exit_code == 2
    assert f"refused to read 'evil.pth': it uses {named}, which is no tensor" in done.stderr
    assert "nothing in it was executed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


def test_the_hostile_pickle_is_real(tmp_path):
    """The same bytes do run under Python's own unpickler, so the refusals above are not empty."""
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    (tmp_path / "evil.pkl").write_bytes(HOSTILE["os.system"])
    subprocess.run([sys.executable, "-c", code, "evil.pkl"], cwd=tmp_path, check=True)
    assert (tmp_path / "ran").exists()


def test_objects_with_setstate_or_reduce_stay_records(tmp_path, monkeypatch):
    """A pickled class of an allowed module name is a record: its code is neither imported nor called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "models.py").write_text("open('ran', 'w')\n")
    body = b"\x80\x02cmodels\nEvil\n" + text("x") + b"\x85R}" + text("state") + text("y") + b"sb."
    zipped(tmp_path / "evil.pth", body)
    done = command("convert", "evil.pth", "--out", "out")
    assert done.exit_code == 2
    assert "no tensors were found" in done.stderr
    assert not (tmp_path / "ran").exists()


CONTENT = np.arange(4, dtype="<f4").tobytes()


@pytest.mark.parametrize("form", [zipped, streamed])
def test_handwritten_tensor_is_read(tmp_path, form):
    form(tmp_path / "w.pth", tensor((2, 2), (1, 2)), [("0", CONTENT)])
    assert read_torch_file(tmp_path / "w.pth").state["w"].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize("form", [zipped, streamed])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor((4,), (1,), offset=1), "w reaches beyond its data"),
        (tensor((2,), (100,)), "w reaches beyond its data"),
        (tensor((10**12,), (0,)), "w reaches beyond its data"),
        (tensor((10**6, 10**6), (0, 0)), "w reaches beyond its data"),
        (tensor((-4,), (1,)), "impossible size"),
        (tensor((4,), (-1,)), "impossible size"),
        (tensor((4,), (1,), offset=-1), "impossible offset"),
        (tensor((4,), (1,), numel=10**15), "data 0"),
        (tensor((4,), (1,), kind="QInt8Storage"), "refused"),
        (tensor((1,) * 20, (1,) * 20), "impossible size"),
    ],
)
def test_forged_tensors_are_refused(tmp_path, form, body, message):
    form(tmp_path / "w.pth", body, [("0", CONTENT)])
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "w.pth")


def test_storage_names_cannot_leave_the_archive(tmp_path):
    zipped(tmp_path / "w.pth", tensor((4,), (1,), key="../../secret"), [("0", CONTENT)])
    with pytest.raises(CheckpointError, match="is missing"):
        read_torch_file(tmp_path / "w.pth")


NESTED = b"\x80\x02" + b")" + b"\x85" * 120_000 + b"."
CYCLE = b"\x80\x02]q\x00h\x00a."
LAUGHS = (
    b"\x80\x02" + b"]q\x00(" + b"K\x01" * 1000 + b"e0" + b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R0" * 3000 + b"N."
)
ENDLESS = b"\x80\x02" + b"N0" * 260_000 + b"N."
TUPLE_KEY = b"\x80\x02}" + b")" + b"\x85" * 120_000 + b"Ns."


@pytest.mark.parametrize("form", [zipped, streamed])
@pytest.mark.parametrize(
    "body", [NESTED, CYCLE, LAUGHS, ENDLESS, TUPLE_KEY], ids=["nested", "cycle", "laughs", "endless", "key"]
)
def test_bombs_end_quickly_in_a_typed_error(tmp_path, form, body):
    form(tmp_path / "bomb.pth", body)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_torch_file(tmp_path / "bomb.pth")


def test_compressed_archives_are_refused(tmp_path):
    zipped(tmp_path / "w.pth", tensor((4,), (1,)), [("0", bytes(10**6))], zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_file(tmp_path / "w.pth")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zip_form", [True, False])
def test_truncated_and_empty_files(tmp_path, share, zip_form):
    """FAULTS.md row 27."""
    path = tmp_path / "w.pt"
    torch.save({"a.weight": torch.rand(500, 100)}, path, _use_new_zipfile_serialization=zip_form)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    done = command("convert", path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert ("the file is empty" if share == 0 else "truncated or damaged") in done.stderr
    assert "ownload" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("zip_form", [True, False])
def test_random_damage_never_escapes_as_another_error(tmp_path, zip_form):
    path = tmp_path / "w.pt"
    torch.save(
        {"model": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))},
        path,
        _use_new_zipfile_serialization=zip_form,
    )
    data, chance, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        broken = bytearray(data)
        for place in chance.integers(0, len(data), 3):
            broken[place] ^= 1 << chance.integers(0, 8)
        path.write_bytes(broken)
        try:
            read_torch_file(path)
        except LeadlineError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"GIF89a", "neither"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, message):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "w.pth")
