"""Published files to checkpoints without executing them (FAULTS.md rows 26 and 27)."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from leadline.checkpoint import load_checkpoint
from leadline.cli import app
from leadline.convert import convert, recognise
from leadline.depth import Kind
from leadline.errors import CheckpointError, ConfigError, LeadlineError
from leadline.models.depth_anything import VARIANTS as DEPTH_ANYTHING
from leadline.models.fastdepth import VARIANTS, Config, build
from leadline.models.fastdepth_names import config_from_shapes
from leadline.torch_files import read_torch_file

SMALL = Config(encoder_widths=(8,) * 14, decoder_widths=(8,) * 5, depthwise=True, skip="add")
PRUNED = SMALL.model_copy(
    update={"encoder_widths": (4, 8, 12, 8, 16, 8, 24, 8, 8, 8, 8, 8, 8, 20), "decoder_widths": (12, 8, 8, 8, 4)}
)

# Written by a process of its own, whose modules are named as the authors' are; the test process never has them.
WHOLE_MODULE = """
import sys, torch
from torch import nn
from leadline.models.fastdepth import Config, build
import models, metrics
ours = build(Config.model_validate_json(sys.argv[1]))
theirs = models.MobileNetSkipAdd()
for name, child in ours.named_children():
    theirs.add_module(name, child)
torch.save(ours.state_dict(), "state.pth")
for name, zipped in (("zip", True), ("stream", False)):
    torch.save(theirs, f"bare-{name}.pth.tar", _use_new_zipfile_serialization=zipped)
    whole = {"epoch": 3, "best_result": metrics.Result(), "model": nn.DataParallel(theirs), "args": {"lr": 0.01}}
    torch.save(whole, f"dict-{name}.pth.tar", _use_new_zipfile_serialization=zipped)
"""
PREAMBLE = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_replacing_an_earlier_checkpoint_is_said(tmp_path):
    save_file(build(SMALL).state_dict(), tmp_path / "net.safetensors")
    words = ("convert", tmp_path / "net.safetensors", "--out", tmp_path / "out")
    said = f"note: this replaces the earlier checkpoint at {tmp_path / 'out'}"
    assert said not in command(*words).stdout
    again = command(*words)
    assert again.exit_code == 0, again.output
    assert said in again.stdout


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


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files as the authors' training script writes them, from modules that this process cannot import."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "models.py").write_text(
        "from torch import nn\nclass MobileNetSkipAdd(nn.Module):\n    output_size = 224\n"
    )
    (folder / "metrics.py").write_text(
        "import numpy\nclass Result:\n    def __init__(self):\n        self.mse, self.gpus = numpy.float64(1), {1, 2}\n"
    )
    (folder / "make.py").write_text(WHOLE_MODULE)
    done = subprocess.run(
        [sys.executable, "make.py", PRUNED.model_dump_json()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["bare-zip", "bare-stream", "dict-zip", "dict-stream"])
def test_whole_module_pickles(published, tmp_path, name):
    done = command("convert", published / f"{name}.pth.tar", "--out", tmp_path / "out", "--licence", "MIT")
    assert done.exit_code == 0, done.stderr
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config == PRUNED
    assert loaded.contract.licence == "MIT"
    assert loaded.lineage[0]["pickled_class"].endswith(
        "DataParallel" if name.startswith("dict") else "MobileNetSkipAdd"
    )
    expected = torch.load(published / "state.pth", weights_only=True)
    state = loaded.model().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert "models" not in sys.modules
    assert "metrics" not in sys.modules


@pytest.mark.parametrize("zip_form", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 1},
        lambda state: {"model": state, "size": torch.Size([2, 3]), "optimizer": {"param_groups": [{"lr": 0.1}]}},
    ],
)
def test_state_dicts_plain_and_nested(tmp_path, wrap, zip_form):
    state = build(SMALL).state_dict()
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zip_form)
    weights = read_torch_file(tmp_path / "w.pth")
    assert list(weights.state) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in weights.state.items())


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


def test_files_of_pytorch_before_0_4_1_have_no_step_counters(tmp_path):
    state = {key: value for key, value in build(SMALL).state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "old.pth")
    saved, _ = convert(tmp_path / "old.pth", tmp_path / "out")
    assert saved.model().state_dict()["conv0.1.num_batches_tracked"] == 0


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
    torch.save(build(SMALL).state_dict(), path, _use_new_zipfile_serialization=zip_form)
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


def test_missing_file_folder_and_nan(tmp_path):
    assert "no such file" in command("convert", tmp_path / "x.pth", "--out", tmp_path / "o").stderr
    assert "it is a folder" in command("convert", tmp_path, "--out", tmp_path / "o").stderr
    state = build(SMALL).state_dict()
    state["conv0.0.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    assert "conv0.0.weight holds NaN" in command("convert", tmp_path / "w.safetensors", "--out", tmp_path / "o").stderr


def test_strangers_are_told_what_to_do(tmp_path):
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    done = command("convert", tmp_path / "w.pth", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "its tensors begin a.weight" in done.stderr
    assert (
        "Did you mean 'fastdepth'"
        in command("convert", tmp_path / "w.pth", "--out", tmp_path / "o", "--architecture", "fastdept").stderr
    )


@pytest.mark.parametrize(
    "options",
    [
        {"upsampler": "nnconv", "kernel": 3},
        {"upsampler": "deconv"},
        {"upsampler": "deconv", "depthwise": True, "skip": "concat"},
        {"upsampler": "upconv", "skip": "concat"},
        {"upsampler": "upproj"},
        {
            "encoder": "resnet18",
            "bridge": 24,
            "encoder_widths": (8, 12, 16, 20, 24),
            "hidden_widths": tuple(range(4, 12)),
        },
        {"encoder": "resnet50", "encoder_widths": (8, 12, 16, 20, 24), "hidden_widths": tuple(range(4, 36))},
        {"skip": "concat", "depthwise": True},
        {"skip": "add"},
    ],
)
def test_pruned_networks_are_recognised_by_their_shapes(options):
    widths = {"decoder_widths": (12, 8, 8, 8, 4)}
    if "encoder" not in options:
        widths["encoder_widths"] = PRUNED.encoder_widths
    config = Config(**(widths | options))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    assert config_from_shapes(shapes) == config


def test_contradicting_fastdepth_tensors_are_refused():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build(SMALL).state_dict().items()}
    del shapes["conv7.3.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor 'conv7\.3\.weight'"):
        config_from_shapes(shapes)


def test_imagenet_mobilenet_becomes_an_encoder(tmp_path):
    state = {f"model.{key[4:]}": value for key, value in build(SMALL).state_dict().items() if key.startswith("conv")}
    torch.save(
        {
            "state_dict": {f"module.{key}": value for key, value in state.items()}
            | {"module.fc.weight": torch.zeros(9, 8)}
        },
        tmp_path / "w.pth.tar",
    )
    options = ("--architecture", "fastdepth")
    assert command("convert", tmp_path / "w.pth.tar", "--out", tmp_path / "o", *options).exit_code == 2
    weights = read_torch_file(tmp_path / "w.pth.tar").state
    wide = {key: value for key, value in build(VARIANTS["fastdepth"]).state_dict().items() if key.startswith("conv")}
    found = recognise({f"model.{key[4:]}": value for key, value in wide.items()}, tmp_path / "w")
    assert "untrained" in found.notes[0]
    assert all(torch.equal(found.model.state_dict()[key], value) for key, value in wide.items())
    assert set(weights) == {*state, "fc.weight"}


def test_own_variants_are_recognised(tmp_path):
    model = build(VARIANTS["leadline-s"])
    torch.save(model.state_dict(), tmp_path / "w.pth")
    saved, _ = convert(tmp_path / "w.pth", tmp_path / "o", half=True)
    assert saved.config == VARIANTS["leadline-s"]
    assert saved.name == "leadline-s"


def published_tensors(name):
    """Random tensors under the published names of Depth Anything V2 Small (tests/keys)."""
    from pathlib import Path

    torch.manual_seed(0)
    lines = (Path(__file__).parent / "keys" / f"{name}.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines if line.strip())
    return {key: torch.rand([int(n) for n in shape.strip("(,)").split(",") if n.strip()]) for key, shape in pairs}


def test_depth_anything_official_relative_and_metric(tmp_path):
    tensors = published_tensors("dav2_vits")
    found = recognise(tensors, tmp_path / "depth_anything_v2_vits.pth")
    assert found.config == DEPTH_ANYTHING["depth-anything-v2-small"]
    metric = tmp_path / "depth_anything_v2_metric_hypersim_vits.pth"
    with pytest.raises(ConfigError, match="--metric-max-depth 20"):
        recognise(tensors, metric)
    assert (
        recognise(tensors, metric, metric_max_depth=20).config
        == DEPTH_ANYTHING["depth-anything-v2-metric-indoor-small"]
    )
    key = "pretrained.blocks.3.attn.qkv.weight"
    assert torch.equal(found.model.state_dict()[key], tensors[key])


@pytest.mark.parametrize("names", ["v4hub", "v5"])
def test_depth_anything_under_hugging_face_names(tmp_path, names):
    tensors = published_tensors(f"dav2_hf_{names}_vits")
    found = recognise(tensors, tmp_path / "model.safetensors")
    assert found.config == DEPTH_ANYTHING["depth-anything-v2-small"]
    attention = "backbone.encoder.layer.3.attention."
    parts = (
        ("attention.query", "attention.key", "attention.value") if names == "v4hub" else ("q_proj", "k_proj", "v_proj")
    )
    joined = torch.cat([tensors[f"{attention}{part}.bias"] for part in parts])
    assert torch.equal(found.model.state_dict()["pretrained.blocks.3.attn.qkv.bias"], joined)


def test_depth_range_belongs_to_depth_anything_only(tmp_path):
    with pytest.raises(ConfigError, match="--metric-max-depth"):
        recognise(build(SMALL).state_dict(), tmp_path / "w.pth", metric_max_depth=10)


def test_relative_and_metric_contracts(tmp_path):
    save_file(published_tensors("dav2_vits"), tmp_path / "vits.safetensors")
    done = command(
        "convert", tmp_path / "vits.safetensors", "--out", tmp_path / "o", "--metric-max-depth", "80", "--half"
    )
    assert done.exit_code == 0, done.stderr
    contract = load_checkpoint(tmp_path / "o").contract
    assert (contract.output.kind, contract.output.maximum) == (Kind.METRIC_DEPTH, 80)
    assert contract.licence == "Apache-2.0"
    assert contract.provenance.startswith("converted from vits.safetensors, SHA-256 ")


@pytest.mark.data
def test_reference_weights_keep_the_authors_prediction(shared_weights, tmp_path):
    """The folded reference file becomes a checkpoint whose prediction is the authors' within 0.0121 m."""
    source = shared_weights / "fastdepth_pruned_fp32_bnfolded.safetensors"
    saved, _ = convert(source, tmp_path / "o")
    assert saved.parameters == 1_360_786  # SPEC.md 1.2
    rgb = torch.from_numpy(np.load(shared_weights / "fastdepth_sample_rgb.npy")).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        depth = saved.model()(rgb).numpy()
    assert np.abs(depth - np.load(shared_weights / "fastdepth_sample_pred.npy")).max() < 0.0125


@pytest.mark.data
def test_a_real_stream_file_is_read(shared_weights):
    """TCMonoDepth's published file; PyTorch's own restricted reader gives the expected values."""
    path = shared_weights / "tcmonodepth_small.pt.tar"
    expected = torch.load(path, weights_only=True, map_location="cpu")
    found = read_torch_file(path).state
    assert {key.removeprefix("module."): value.shape for key, value in expected.items()} == {
        key: value.shape for key, value in found.items()
    }
    assert all(torch.equal(found[key.removeprefix("module.")], value) for key, value in expected.items())
