"""Hugging Face folders: equality with transformers, contracts from their own files, refusal of what is unsafe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import CheckpointError, ContractError, KindError, ModelReferenceError, UnavailableError
from leadline.models.depth_anything import SIZES, build
from leadline.models.depth_anything_weights import from_hugging_face, is_supported
from leadline.models.hugging_face import TransformersDepth, load_hugging_face, load_hugging_face_folder
from leadline.models.hugging_face_contract import hugging_face_contract, output_kind

transformers = pytest.importorskip("transformers")

KEYS = Path(__file__).parent / "keys"
BACKBONE = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 126,
    "patch_size": 14,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
    "model_type": "dinov2",
}
PROCESSOR = {
    "size": {"height": 126, "width": 126},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


def depth_anything_network(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(**BACKBONE),
        reassemble_hidden_size=48,
        neck_hidden_sizes=[8, 16, 16, 24],
        fusion_hidden_size=16,
        head_hidden_size=8,
        **changes,
    )
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    for parameter in network.parameters():  # the published LayerScale and biases are not 1 and 0 either
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.constant_(network.head.conv3.bias, 0.5)
    return network


def write_folder(folder: Path, network: torch.nn.Module, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "tiny-depth", depth_anything_network())


def copied(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def greatest_difference(ours: torch.nn.Module, theirs: torch.nn.Module, size: tuple[int, int]) -> float:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(pixel_values=image).predicted_depth[:, None]
        assert float(expected.std()) > 1e-3  # a constant would prove nothing
        return float((ours(image) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("names", ["hf_v4hub_vits", "hf_v5_vits"])
def test_both_generations_of_names_give_the_official_keys_and_shapes(names: str) -> None:
    rows = [line.split("\t") for line in (KEYS / f"dav2_{names}.txt").read_text().splitlines()]
    shapes = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape in rows}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    values = {
        "model_type": "depth_anything",
        "backbone_config": {"model_type": "dinov2", "num_attention_heads": 6, "out_indices": [3, 6, 9, 12]},
    }
    config, state = from_hugging_face(values, tensors, "scale_factor_offset")
    official = [line.split("\t") for line in (KEYS / "dav2_vits.txt").read_text().splitlines()]
    assert {key: str(tuple(value.shape)) for key, value in state.items()} == dict(official)
    assert config == SIZES["small"]


def test_own_network_equals_transformers_at_every_size_under_the_size_rule(folder: Path) -> None:
    found, theirs = load_hugging_face_folder(folder), depth_anything_network()
    assert found.architecture == "depth-anything-v2"
    for size in ((126, 126), (126, 168), (98, 42), (252, 196)):
        assert greatest_difference(found.model, theirs, size) < 1e-5


def test_the_authors_rule_differs_from_transformers_away_from_the_learned_size_only(folder: Path) -> None:
    found, theirs = load_hugging_face_folder(folder, positions="scale_factor_offset"), depth_anything_network()
    assert greatest_difference(found.model, theirs, (126, 126)) < 1e-5
    assert 1e-5 < greatest_difference(found.model, theirs, (98, 168)) < 0.1


def test_metric_networks_equal_transformers_and_say_their_range(tmp_path: Path) -> None:
    theirs = depth_anything_network(depth_estimation_type="metric", max_depth=20)
    found = load_hugging_face_folder(write_folder(tmp_path / "metric", theirs))
    assert found.contract.output.kind is Kind.METRIC_DEPTH
    assert found.contract.output.maximum == 20
    assert greatest_difference(found.model, theirs, (126, 168)) < 1e-5


@pytest.mark.slow
def test_small_equals_transformers_at_518_and_stays_within_the_known_distance_elsewhere() -> None:
    torch.manual_seed(0)
    backbone = {**BACKBONE, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}
    inner = transformers.Dinov2Config(**{**backbone, "out_indices": [3, 6, 9, 12]})
    theirs = transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(backbone_config=inner)
    ).eval()
    for module in theirs.modules():
        if hasattr(module, "reset_parameters"):  # torch's own start, wider than transformers' 0.02
            module.reset_parameters()
    torch.nn.init.constant_(theirs.head.conv3.bias, 0.5)
    expected = {}
    for size in ((518, 518), (252, 336)):
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected[size] = image, theirs(pixel_values=image).predicted_depth
        assert float(expected[size][1].std()) > 1e-3  # a constant would prove nothing
    weights = theirs.state_dict()
    apart = {}
    for rule, size in (("scale_factor_offset", (518, 518)), ("scale_factor_offset", (252, 336)), ("size", (252, 336))):
        config, state = from_hugging_face(theirs.config.to_dict(), weights, rule)
        ours = build(config).eval()
        ours.load_state_dict(state)
        image, depth = expected[size]
        with torch.inference_mode():
            apart[rule, size] = float((ours(image)[:, 0] - depth).abs().max())
    print(apart)
    assert apart["scale_factor_offset", (518, 518)] < 1e-5
    assert apart["size", (252, 336)] < 1e-5
    assert 1e-6 < apart["scale_factor_offset", (252, 336)] < 1e-3  # SPEC.md 6.2: 1.0 to 1.6e-4


def test_contract_says_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    place = copied(folder, tmp_path)
    (place / "README.md").write_text("---\nlibrary_name: transformers\nlicense: cc-by-nc-4.0\n---\nlicense: none\n")
    contract = load_hugging_face_folder(place, name="someone/tiny").contract
    assert contract.licence == "cc-by-nc-4.0"
    assert contract.provenance == "https://huggingface.co/someone/tiny"
    assert contract.output == OutputSpec(kind=Kind.RELATIVE_DISPARITY, minimum=0.0, align_corners=True)
    spec = contract.input
    assert (spec.height, spec.width, spec.multiple_of, spec.dynamic) == (126, 126, 14, True)
    assert (spec.resize, spec.interpolation, spec.antialias) == ("keep_aspect", "bicubic", True)
    assert spec.value_max == pytest.approx(1.0)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert contract.size_for(480, 640) == (126, 168)


def dpt_network(backbone: str = "vit") -> torch.nn.Module:
    torch.manual_seed(0)
    plan = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "use_auxiliary_head": False}
    widths = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
    if backbone == "dinov2":
        inner = transformers.Dinov2Config(**{**BACKBONE, "reshape_hidden_states": False})
        config = transformers.DPTConfig(backbone_config=inner, **plan)
    else:
        indices = [0, 1, 2, 3]
        config = transformers.DPTConfig(
            **plan, **widths, intermediate_size=64, backbone_out_indices=indices, is_hybrid=False
        )
    network = transformers.DPTForDepthEstimation(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.constant_(network.head.head[4].bias, 0.5)
    return network


def test_any_other_network_runs_through_transformers(tmp_path: Path) -> None:
    theirs = dpt_network()
    size = {"height": 64, "width": 64}
    processor = {
        "size": size,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
    }
    found = load_hugging_face_folder(write_folder(tmp_path / "dpt", theirs, processor))
    assert found.architecture is None
    assert found.contract.output.kind is Kind.RELATIVE_DISPARITY
    assert found.contract.input.resize == "stretch"
    assert greatest_difference(found.model, theirs, (64, 64)) == 0
    picture = np.full((30, 50, 3), 255, np.uint8)
    np.testing.assert_allclose(found.contract.prepare(picture), np.ones((1, 3, 64, 64)), atol=1e-6)


def test_glpn_keeps_the_pictures_range_and_says_metres(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": true, "do_resize": true, "size_divisor": 32}')
    contract = hugging_face_contract(tmp_path, {"model_type": "glpn"}, "vinvino02/glpn-nyu")
    assert contract.output.kind is Kind.METRIC_DEPTH
    assert contract.input.mean == (0, 0, 0)
    assert contract.input.std == (1, 1, 1)
    assert contract.input.multiple_of == 32


def test_depth_pro_becomes_metres_by_its_own_field_of_view() -> None:
    class Canonical(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            inverse = torch.full((2, 4, 4), 0.25)
            return SimpleNamespace(predicted_depth=inverse, field_of_view=torch.tensor([90.0, 60.0]))

    metres = TransformersDepth(Canonical(), "depth_pro")(torch.zeros(2, 3, 4, 4))
    assert metres.shape == (2, 1, 4, 4)
    # depth = f / (width * inverse), and f / width is 1 / (2 tan(fov / 2)): 0.5 at 90 degrees, sqrt(3) / 2 at 60
    torch.testing.assert_close(metres[0], torch.full((1, 4, 4), 2.0))
    torch.testing.assert_close(metres[1], torch.full((1, 4, 4), 2 * 3**0.5))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "depth_anything"}, Kind.RELATIVE_DISPARITY),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, Kind.METRIC_DEPTH),
        ({"model_type": "dpt"}, Kind.RELATIVE_DISPARITY),
        ({"model_type": "dpt", "backbone_config": {"model_type": "beit"}}, Kind.RELATIVE_DISPARITY),
        ({"model_type": "zoedepth"}, Kind.METRIC_DEPTH),
        ({"model_type": "depth_pro", "use_fov_model": True}, Kind.METRIC_DEPTH),
    ],
)
def test_known_model_types_have_a_kind(values: dict[str, Any], expected: Kind, tmp_path: Path) -> None:
    assert output_kind(values, tmp_path) is expected


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "tipsv2_dpt"},
        {"model_type": "dpt", "backbone_config": {"model_type": "dinov2"}},  # DINOv2's own heads: NYU and KITTI, metres
        {"model_type": "depth_pro"},
    ],
)
def test_an_unknown_kind_is_never_guessed(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KindError, match=r"unknown output kind .*Put a contract.json that says it"):
        output_kind(values, tmp_path)
    assert output_kind(values, tmp_path, Kind.METRIC_DEPTH) is Kind.METRIC_DEPTH


def test_a_kind_that_contradicts_the_table_is_refused(folder: Path) -> None:
    with pytest.raises(KindError, match="this network returns relative_disparity, not metric_depth"):
        load_hugging_face_folder(folder, kind=Kind.METRIC_DEPTH)


def test_a_written_contract_settles_what_the_folder_does_not_say(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "nyu", dpt_network("dinov2"), processor=None)
    with pytest.raises(KindError, match="unknown output kind"):
        load_hugging_face_folder(place)
    spec = InputSpec(height=126, width=126)
    Contract(name="nyu", input=spec, output=OutputSpec(kind=Kind.METRIC_DEPTH)).save(place / "contract.json")
    found = load_hugging_face_folder(place)
    assert found.contract.output.kind is Kind.METRIC_DEPTH
    with torch.inference_mode():
        assert found.model(torch.zeros(1, 3, 126, 126)).shape[:2] == (1, 1)


def test_a_missing_processor_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no processor file .*preprocessor_config.json"):
        hugging_face_contract(tmp_path, {"model_type": "dpt"}, "dpt")


def test_registers_and_swiglu_are_left_to_transformers() -> None:
    values = {"model_type": "depth_anything", "backbone_config": dict(BACKBONE)}
    assert is_supported(values)
    assert not is_supported({**values, "backbone_config": {**BACKBONE, "use_swiglu_ffn": True}})
    assert not is_supported({**values, "backbone_config": {**BACKBONE, "model_type": "dinov2_with_registers"}})
    assert not is_supported({**values, "reassemble_factors": [4, 2, 1, 1]})


def test_sharded_weights_load(folder: Path, tmp_path: Path) -> None:
    place = copied(folder, tmp_path)
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, place / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert greatest_difference(load_hugging_face_folder(place).model, depth_anything_network(), (126, 126)) < 1e-5


def test_an_index_that_points_outside_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    place = copied(folder, tmp_path)
    (place / "model.safetensors").rename(place / "other.safetensors")
    (place / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../stolen.safetensors"}}')
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        load_hugging_face_folder(place)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    place = copied(folder, tmp_path)
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which can run code"):
        load_hugging_face_folder(place)


@pytest.mark.parametrize("damage", ["truncate", "drop", "reshape"])
def test_damaged_weights_are_named(folder: Path, tmp_path: Path, damage: str) -> None:
    place = copied(folder, tmp_path)
    weights = place / "model.safetensors"
    tensors = load_file(weights)
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "drop":
        save_file({key: value for key, value in tensors.items() if not key.startswith("head.conv3")}, weights)
    else:
        save_file(tensors | {"head.conv3.bias": torch.zeros(2)}, weights)
    message = {"truncate": "unreadable weights", "drop": "output_conv2.2.weight", "reshape": "output_conv2.2.bias"}
    with pytest.raises(CheckpointError, match=message[damage]) as caught:
        load_hugging_face_folder(place)
    assert "\n" not in str(caught.value)


def test_incomplete_weights_of_another_network_are_not_filled_with_noise(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "dpt", dpt_network(), {"size": 64})
    weights = place / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if not key.startswith("head.")}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="incomplete weights"):
        load_hugging_face_folder(place)


def test_a_place_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match="neither a folder nor owner/name"):
        load_hugging_face("../../etc/passwd")
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        load_hugging_face(str(tmp_path))


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"cannot fetch .*owner/nothing.*copy the model's folder") as caught:
        load_hugging_face("owner/nothing")
    assert "\n" not in str(caught.value)
