"""Published files to checkpoints without executing them (FAULTS.md rows 26 and 27)."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from leadline.checkpoint import load_checkpoint
from leadline.cli import app
from leadline.convert import convert, recognise
from leadline.depth import Kind
from leadline.errors import CheckpointError, ConfigError
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


def test_files_of_pytorch_before_0_4_1_have_no_step_counters(tmp_path):
    state = {key: value for key, value in build(SMALL).state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "old.pth")
    saved, _ = convert(tmp_path / "old.pth", tmp_path / "out")
    assert saved.model().state_dict()["conv0.1.num_batches_tracked"] == 0


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
