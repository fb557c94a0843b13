"""Checkpoints: written whole, verified on loading, faults named (FAULTS.md rows 28 to 32)."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from leadline.checkpoint import fitting_variants, load_checkpoint, save_checkpoint
from leadline.cli import app
from leadline.errors import CheckpointError, ConfigError
from leadline.models.fastdepth import VARIANTS, Config, build, contract

SMALL = Config(encoder_widths=(8,) * 14, decoder_widths=(8,) * 5, depthwise=True, skip="add")


def make(folder, config=SMALL, **options):
    torch.manual_seed(1)
    model = build(config)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.uniform_(-1, 1)
    save_checkpoint(folder, model, architecture="fastdepth", config=config, contract=contract(config), **options)
    return model


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "model", lineage=[{"step": "train", "seed": 1}], card="# Card\n")
    return tmp_path / "model"


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_round_trip_is_exact(tmp_path):
    model = make(tmp_path / "m", lineage=[{"step": "train"}], card="# Card\n")
    loaded = load_checkpoint(tmp_path / "m")
    again = loaded.model()
    assert not again.training
    assert (loaded.architecture, loaded.config, loaded.lineage) == ("fastdepth", SMALL, ({"step": "train"},))
    assert loaded.contract == contract(SMALL)
    assert loaded.card == "# Card\n"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert loaded.parameters == sum(value.numel() for value in model.parameters())


def test_half_is_stored_as_float16_and_loads_as_float32(tmp_path):
    model = make(tmp_path / "m", half=True)
    with safe_open(tmp_path / "m" / "weights.safetensors", "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  not a dict
    assert kinds == {"F16", "I64"}
    loaded = load_checkpoint(tmp_path / "m").model()
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().to(value.dtype))


def test_half_keeps_values_that_float16_cannot_hold(tmp_path):
    model = build(SMALL)
    model.state_dict()["conv0.1.running_var"].fill_(1e6)
    save_checkpoint(tmp_path / "m", model, architecture="fastdepth", config=SMALL, contract=contract(SMALL), half=True)
    assert load_checkpoint(tmp_path / "m").model().state_dict()["conv0.1.running_var"].eq(1e6).all()


def test_nothing_but_text_and_tensors_is_written(folder):
    """FAULTS.md row 30: no path, scalar or Namespace object can stand in JSON and safetensors."""
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "contract.json",
        "manifest.json",
        "weights.safetensors",
    ]
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {
        "README.md",
        "config.json",
        "contract.json",
        "weights.safetensors",
    }


def test_saving_a_model_under_another_configuration_is_refused(tmp_path):
    wider = SMALL.model_copy(update={"decoder_widths": (16, 8, 8, 8, 8)})
    with pytest.raises(CheckpointError, match=re.escape("(8, 8, 1, 1)")):
        save_checkpoint(tmp_path / "m", build(SMALL), architecture="fastdepth", config=wider, contract=contract(wider))
    assert not (tmp_path / "m").exists()


def test_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'fastdepth'"):
        save_checkpoint(tmp_path / "m", build(SMALL), architecture="fastdept", config=SMALL, contract=contract(SMALL))


def test_flipped_byte_in_the_weights(folder):
    """FAULTS.md row 32: safetensors alone does not notice."""
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    load_file(path)
    done = command("models", folder)
    assert done.exit_code == 2
    assert "SHA-256" in done.stderr
    assert "weights.safetensors" in done.stderr


@pytest.mark.parametrize("name", ["contract.json", "config.json", "weights.safetensors"])
def test_an_edited_file_is_said_to_differ_from_the_manifest(folder, name):
    """A shorter contract was edited more likely than cut, so no message may call it truncated."""
    path = folder / name
    path.write_bytes(path.read_bytes()[:-3])
    done = command("models", folder)
    assert done.exit_code == 2
    assert "file differs from the manifest" in done.stderr
    assert "edited, cut short or damaged" in done.stderr
    assert name in done.stderr
    assert "truncated" not in done.stderr


@pytest.mark.parametrize(("change", "message"), [(-100, "cut short"), (7, "bytes, manifest.json says")])
def test_truncated_and_trailing_bytes(folder, change, message):
    """FAULTS.md row 31, within a checkpoint."""
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    done = command("models", folder)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "truncated, or not a safetensors file: 0 bytes"),
        (lambda data: data[:200], "truncated"),
        (lambda data: data[:-100], "truncated"),
        (lambda data: data + bytes(7), "7 trailing bytes"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated"),
        (lambda data: data[:8] + b"\0" * (len(data) - 8), "not a safetensors file"),
    ],
)
def test_damaged_safetensors_files(tmp_path, damage, message):
    """FAULTS.md row 31, a file on its own."""
    path = tmp_path / "weights.safetensors"
    save_file(build(SMALL).state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    done = command("convert", path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_edited_configuration_is_noticed(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("relu6", "relu\x20"))
    done = command("models", folder)
    assert done.exit_code == 2
    assert "edited" in done.stderr
    assert "config.json" in done.stderr


def test_missing_file_and_missing_manifest(folder):
    (folder / "contract.json").unlink()
    assert "contract.json' the file is missing" in command("models", folder).stderr.replace(":", "")
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        load_checkpoint(folder)


def test_manifest_cannot_point_outside(folder):
    path = folder / "manifest.json"
    entries = json.loads(path.read_text())
    entries["files"]["../secret"] = {"sha256": "0", "size": 0}
    path.write_text(json.dumps(entries))
    done = command("models", folder)
    assert done.exit_code == 2
    assert "outside the folder" in done.stderr


def test_newer_schema_says_so(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(CheckpointError, match="schema version 2"):
        load_checkpoint(folder)


def test_missing_and_extra_keys_are_listed(tmp_path):
    """FAULTS.md row 28."""
    state = build(SMALL).state_dict()
    del state["conv0.0.weight"], state["conv3.3.weight"]
    save_file({**state, "stranger.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    done = command("convert", tmp_path / "w.safetensors", "--out", tmp_path / "o", "--architecture", "fastdepth")
    assert done.exit_code == 2
    assert "2 missing (conv0.0.weight, conv3.3.weight)" in done.stderr
    assert "1 extra (stranger.weight)" in done.stderr


def test_the_architecture_that_fits_is_proposed(tmp_path):
    """FAULTS.md rows 28 and 29: the tensor, both shapes, and the variant that has them."""
    save_file(build(VARIANTS["fastdepth-pruned"]).state_dict(), tmp_path / "w.safetensors")
    done = command("convert", tmp_path / "w.safetensors", "--out", tmp_path / "o", "--architecture", "fastdepth")
    assert done.exit_code == 2
    assert "conv0.0.weight has shape (16, 3, 3, 3), the architecture needs (32, 3, 3, 3)" in done.stderr
    assert "fit the architecture fastdepth-pruned" in done.stderr


def test_fitting_variants_compares_keys_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in build(VARIANTS["fastdepth-concat"]).state_dict().items()}
    assert fitting_variants(shapes) == ["fastdepth-concat"]
    del shapes["conv0.0.weight"]
    assert fitting_variants(shapes) == []
