"""The authors' Lite-Mono files to a checkpoint (FAULTS.md rows 26 to 29)."""

from __future__ import annotations

import collections
import shutil

import pytest
import torch
from typer.testing import CliRunner

from leadline.checkpoint import load_checkpoint
from leadline.cli import app
from leadline.convert import convert
from leadline.depth import Kind
from leadline.errors import CheckpointError, ConfigError
from leadline.models import lite_mono
from leadline.models.pose import PoseNetwork, to_official


def build(variant: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return lite_mono.build(lite_mono.VARIANTS[variant]).eval()


def write(folder, model, *, height=192, width=640, counters=0):
    """`encoder.pth` and `depth.pth` as the authors' trainer saves them."""
    folder.mkdir()
    encoder = collections.OrderedDict(model.encoder.state_dict())
    for index in range(counters):
        encoder[f"stages.0.{index}.total_ops"] = torch.zeros(1, dtype=torch.float64)
    encoder |= {"height": height, "width": width, "use_stereo": False}
    torch.save(encoder, folder / "encoder.pth")
    torch.save(model.depth.state_dict(), folder / "depth.pth")
    return folder


@pytest.fixture(scope="module")
def tiny():
    return build("lite-mono-tiny")


@pytest.fixture(scope="module")
def official(tmp_path_factory, tiny):
    return write(tmp_path_factory.mktemp("official") / "weights", tiny, counters=3)


@pytest.fixture
def copy(official, tmp_path):
    return shutil.copytree(official, tmp_path / "weights")


def test_the_authors_folder(official, tiny, tmp_path):
    done = CliRunner().invoke(app, ["convert", str(official), "--out", str(tmp_path / "out"), "--licence", "MIT"])
    assert done.exit_code == 0, done.stderr
    assert "lite-mono-tiny: 2,147,659 parameters, scaled_disparity, input 192,640" in done.output
    assert "3 of thop's operation counters left out" in done.output
    saved = load_checkpoint(tmp_path / "out")
    assert saved.config == lite_mono.VARIANTS["lite-mono-tiny"]
    assert saved.contract.output.kind is Kind.SCALED_DISPARITY
    assert set(saved.lineage[0]["files"]) == {"encoder.pth", "depth.pth"}
    assert "depth.pth, SHA-256 " in saved.contract.provenance
    assert saved.auxiliary() == {}
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(saved.model()(x), tiny(x))


@pytest.mark.parametrize(
    ("size", "variant", "note"),
    [
        ((320, 1024), "lite-mono-tiny-1024", ""),
        ((192, 640), "lite-mono-tiny", ""),
        ((224, 320), "lite-mono-tiny", "made for 224,320; dilations and input size are those of lite-mono-tiny"),
    ],
)
def test_the_size_in_the_file_decides_the_dilations(tiny, tmp_path, size, variant, note):
    folder = write(tmp_path / "weights", tiny, height=size[0], width=size[1])
    saved, notes = convert(folder, tmp_path / "out")
    assert saved.config == lite_mono.VARIANTS[variant]
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_a_named_variant_wins(official, tmp_path):
    saved, _ = convert(official, tmp_path / "out", variant="lite-mono-tiny-1024")
    assert saved.config.dilations == lite_mono.VARIANTS["lite-mono-tiny-1024"].dilations


def test_the_pose_network_goes_beside_the_weights(copy, tmp_path):
    torch.manual_seed(1)
    pose = PoseNetwork()
    encoder, head = to_official(pose)
    encoder |= {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}
    torch.save(encoder, copy / "pose_encoder.pth")
    torch.save(head, copy / "pose.pth")
    saved, _ = convert(copy, tmp_path / "out")
    kept = saved.auxiliary()["pose"]
    assert kept.keys() == pose.state_dict().keys()
    assert torch.equal(kept["net.3.weight"], pose.state_dict()["net.3.weight"])
    (copy / "pose.pth").unlink()
    with pytest.raises(CheckpointError, match=r"pose_encoder\.pth and pose\.pth"):
        convert(copy, tmp_path / "other")


def test_half_a_network_is_refused(copy, tmp_path):
    for name in ("encoder.pth", "depth.pth"):
        with pytest.raises(CheckpointError, match="half a Lite-Mono network") as error:
            convert(copy / name, tmp_path / "out")
        assert "Give the folder" in str(error.value)
    (copy / "encoder.pth").unlink()
    with pytest.raises(CheckpointError, match=r"only depth\.pth found"):
        convert(copy, tmp_path / "out")
    (copy / "depth.pth").unlink()
    with pytest.raises(CheckpointError, match="it is a folder"):
        convert(copy, tmp_path / "out")


def test_missing_extra_and_misshapen_tensors_are_named(copy, tiny, tmp_path):
    state = dict(tiny.depth.state_dict())
    torch.save({**state, "stranger": torch.zeros(1)}, copy / "depth.pth")
    with pytest.raises(CheckpointError, match=r"1 extra \(depth\.stranger\)"):
        convert(copy, tmp_path / "out")
    bias = state.pop("decoder.8.conv.bias")
    torch.save(state, copy / "depth.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(depth\.decoder\.8\.conv\.bias\)"):
        convert(copy, tmp_path / "out")
    torch.save({**state, "decoder.8.conv.bias": bias.repeat(2)}, copy / "depth.pth")
    with pytest.raises(CheckpointError, match=r"depth\.decoder\.8\.conv\.bias has shape \(2,\)"):
        convert(copy, tmp_path / "out")


def test_code_damage_and_misplaced_options_are_refused(copy, tmp_path):
    with pytest.raises(ConfigError, match="--metric-max-depth"):
        convert(copy, tmp_path / "out", metric_max_depth=10)
    with pytest.raises(ConfigError, match="unknown architecture variant"):
        convert(copy, tmp_path / "out", variant="lite-mono-huge")
    (copy / "depth.pth").write_bytes((copy / "depth.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        convert(copy, tmp_path / "out")
    torch.save({"decoder.0.conv.conv.weight": torch.zeros(1), "hook": shutil.rmtree}, copy / "depth.pth")
    with pytest.raises(CheckpointError, match="refused to read"):
        convert(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", [None, "lite-mono-attention"])
def test_the_imagenet_backbone_is_a_start(tmp_path, variant):
    model = build("lite-mono")
    classifier = {"norm.weight": torch.ones(128), "head.weight": torch.ones(1000, 128), "head.bias": torch.ones(1000)}
    torch.save({"model": {**model.encoder.state_dict(), **classifier}, "epoch": 3}, tmp_path / "pretrain.pth")
    saved, notes = convert(tmp_path / "pretrain.pth", tmp_path / "out", variant=variant)
    assert saved.config == lite_mono.VARIANTS[variant or "lite-mono"]
    assert "untrained" in notes[0]
    loaded = saved.model().state_dict()
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(loaded[f"encoder.{key}"], value)


def test_a_backbone_of_another_size_is_refused(tmp_path):
    state = {**build("lite-mono-tiny").encoder.state_dict(), "norm.weight": torch.ones(128)}
    torch.save({"model": state}, tmp_path / "pretrain.pth")
    with pytest.raises(CheckpointError, match="do not fit"):
        convert(tmp_path / "pretrain.pth", tmp_path / "out", variant="lite-mono")
