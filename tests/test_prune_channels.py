"""The step that removes channels: widths, counts, importance, rounds, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import tiny_models
from leadline.checkpoint import save_checkpoint
from leadline.compression import AnyStep, Place
from leadline.compression.base import Pictures
from leadline.compression.channels import PruneChannels
from leadline.compression.graph import groups, keep
from leadline.compression.importance import scores, strongest
from leadline.compression.measure import gradients, mean_activations
from leadline.errors import ConfigError, DataError
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.models import fastdepth, lite_mono, registry
from leadline.reference import LoadedModel

DATA = "rendered:room,count=4,height=48,width=64"
SIZE = (64, 96)


def place(folder: Path, lines: list[str] | None = None, **more: Any) -> Place:
    say = (lambda line: None) if lines is None else lines.append
    return Place(folder, say=say, calibration=Pictures(count=2), **more)


def train(**changes: Any) -> dict[str, Any]:
    options = {"sources": [{"data": DATA}], "objectives": [{"loss": "silog"}], "size": [32, 64], "batch": 2}
    return {**options, "warmup": 0, "decay": 0, "threads": 1, "save_every": 1, "ema": 0.0, **changes}


def widths(source: LoadedModel) -> dict[str, int]:
    return {group.name: group.width for group in groups(source)}


def closed_form(encoder: tuple[int, ...], decoder: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """(MACs, parameters) of MobileNet-NNConv5dw with lateral skips at 8, 4 and 2 and a biased head (SPEC.md 1.1)."""
    area = size[0] * size[1]
    strides = (2, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)
    macs, parameters = area // 4 * 27 * encoder[0], 27 * encoder[0] + 2 * encoder[0]
    for inputs, outputs, stride in zip(encoder, encoder[1:], strides[1:], strict=False):
        macs += area // stride**2 * (9 * inputs + inputs * outputs)
        parameters += 9 * inputs + inputs * outputs + 2 * inputs + 2 * outputs
    for inputs, outputs, stride in zip((encoder[13], *decoder), decoder, (32, 16, 8, 4, 2), strict=False):
        macs += area // stride**2 * (25 * inputs + inputs * outputs)
        parameters += 25 * inputs + inputs * outputs + 2 * inputs + 2 * outputs
    for feature, outputs, stride in (
        (encoder[5], decoder[1], 8),
        (encoder[3], decoder[2], 4),
        (encoder[1], decoder[3], 2),
    ):
        macs += area // stride**2 * feature * outputs
        parameters += feature * outputs + 2 * outputs
    return macs + area * decoder[4], parameters + decoder[4] + 1


def counted(source: LoadedModel) -> tuple[int, int]:
    return count_macs(source.model, SIZE), count_parameters(source.model)


def test_a_ratio_removes_that_share_of_every_group_and_the_counts_are_those_of_the_closed_form(tmp_path):
    source, lines = tiny_models.cnn(), []
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    assert counted(source) == closed_form(source.config.encoder_widths, source.config.decoder_widths, SIZE)
    result = PruneChannels(ratio=0.5, multiple=4, min_width=4).apply(source, place(tmp_path, lines))
    encoder, decoder = (4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 12, 12, 16, 16), (12, 8, 8, 4, 4)
    assert result.config == source.config.model_copy(update={"encoder_widths": encoder, "decoder_widths": decoder})
    macs, parameters = closed_form(encoder, decoder, SIZE)
    assert counted(result) == (macs, parameters)
    assert lines[0].split() == ["group", "before", "after"]
    assert lines[1].split() == ["mobilenet.0.0", "8", "4"]
    assert lines[-2].startswith(f"MACs at 64 x 96: {counted(source)[0]:,} -> {macs:,} (")
    assert lines[-1].startswith(f"parameters: {counted(source)[1]:,} -> {parameters:,} (")
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())
    assert (result.contract, result.name, result.lineage) == (source.contract, source.name, source.lineage)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratio": 0.5, "multiple": 8, "min_width": 8}, 16),  # 12 is as near to 8 as to 16: the larger
        ({"ratio": 0.6, "multiple": 8, "min_width": 8}, 8),
        ({"ratio": 0.9, "multiple": 1, "min_width": 5}, 5),
        ({"ratio": 0.3, "multiple": 1, "min_width": 1}, 17),
        ({"ratio": 0.9, "multiple": 16, "min_width": 1}, 16),
    ],
)
def test_widths_are_multiples_and_never_below_the_least(tmp_path, options, expected):
    result = PruneChannels(**options).apply(tiny_models.cnn(), place(tmp_path))
    assert widths(result)["mobilenet.8.3"] == expected  # of 24


@pytest.mark.parametrize("share", [0.4])
def test_a_target_of_macs_is_met_by_the_weakest_of_all_groups(tmp_path, share):
    source = tiny_models.cnn()
    strong = keep(source, {})
    strong.model.get_submodule("mobilenet.8.3").weight.data[:23] *= 100  # only its last is weak
    strong.model.get_submodule("mobilenet.8.3").weight.data[23] = 0
    result = PruneChannels(macs=share, multiple=1, min_width=1).apply(strong, place(tmp_path))
    kept = counted(result)[0] / counted(source)[0]
    assert share - 0.05 < kept <= share
    found = {group.name: group for group in groups(strong)}
    normal = {name: scores(strong, group) / scores(strong, group).mean() for name, group in found.items()}
    assert widths(result)["mobilenet.8.3"] < 24
    removed = {name: group.width - widths(result)[name] for name, group in found.items()}
    gone = torch.cat([values.sort().values[: removed[name]] for name, values in normal.items()])
    free = [name for name in found if widths(result)[name] > 1]  # a group's last channel stays whatever it is worth
    stay = torch.cat([normal[name].sort().values[removed[name] :] for name in free])
    assert gone.max() <= stay.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": {"mobilenet.8.4": 8}}, r"no such group of channels 'mobilenet.8.4'.*Did you mean"),
        ({"plan": {"mobilenet.8.3": 25}}, r"cannot keep 25 channels 'mobilenet.8.3': it has 24. Choose one of 1, 2"),
        ({"plan": {"decoder.conv2.1.0": 8, "decoder.lateral.8.0": 6}}, "two widths for one group.*6 and 8"),
        ({"plan": {"mobilenet.8.3": 24}}, "nothing to remove"),
        ({"ratio": 0.1}, "nothing to remove 'tiny-cnn': no group loses a channel at multiples of 8"),
        ({"ratio": 0.5, "exclude": ("decodr",)}, r"nothing to exclude 'decodr'"),
        ({"macs": 0.05}, r"cannot keep so few multiply-accumulates 0.05.*smallest allowed network keeps 0\.\d+"),
        ({"ratio": 0.5, "importance": "taylor"}, "this step trains"),
        ({"ratio": 0.5, "iterations": 5}, "this step trains"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        PruneChannels(**options).apply(tiny_models.cnn(), place(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of ratio, macs and plan"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one of ratio, macs and plan"),
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": 0.5, "rounds": 2}, "set iterations"),
        ({"ratio": 0.5, "fallback": "l1"}, "beside bn-scale"),
        ({"macs": 0.5, "sensitivity": "x.json"}, "shares out a `ratio`"),
        ({"ratio": 0.5, "importanc": "l1"}, "Extra inputs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyStep).validate_python({"step": "prune-channels", **options})


def test_excluded_modules_stay_as_wide(tmp_path):
    result = PruneChannels(ratio=0.5, multiple=4, min_width=4, exclude=("decoder",)).apply(
        tiny_models.cnn(), place(tmp_path)
    )
    assert result.config.decoder_widths == tiny_models.cnn().config.decoder_widths
    assert result.config.encoder_widths[-1] == 16


def test_heads_leave_whole_and_one_always_stays(tmp_path):
    config = lite_mono.Config(widths=(12, 16, 20), dilations=((1,), (2,), (1, 3)), heads=(3, 2, 1), height=64, width=96)
    source = LoadedModel(lite_mono.build(config).eval(), lite_mono.contract(config), "lm", (), "lite-mono", config)
    result = PruneChannels(ratio=0.6, multiple=2, min_width=2).apply(source, place(tmp_path))
    assert result.config.heads == (1, 1, 1)
    assert result.config.head_widths == config.head_widths
    for group in groups(source):
        if group.name.endswith("qkv"):
            assert group.multiple == config.head_widths[int(group.name.split(".")[2])]
            with pytest.raises(ConfigError, match="in bundles of"):
                strongest(group, torch.ones(group.width), group.multiple - 1)
            with pytest.raises(ConfigError, match="a bundle is torn"):
                keep(source, {group.name: [0]})


def test_networks_of_one_channel_everywhere_run_and_refuse_to_shrink(tmp_path):
    config = fastdepth.Config(
        encoder_widths=(1,) * 14, decoder_widths=(1,) * 5, depthwise=True, skip="add", height=64, width=96
    )
    source = LoadedModel(fastdepth.build(config).eval(), fastdepth.contract(config), "one", (), "fastdepth", config)
    assert set(widths(source).values()) == {1}
    assert keep(source, {group.name: [0] for group in groups(source)}).config == config
    with pytest.raises(ConfigError, match="nothing to remove"):
        PruneChannels(ratio=0.9, multiple=1, min_width=1).apply(source, place(tmp_path))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"mobilenet.9": [0]}, "no such group of channels 'mobilenet.9'"),
        ({"mobilenet.8.3": []}, "no channel would stay"),
        ({"mobilenet.8.3": [1, 1]}, "not ascending and distinct"),
        ({"mobilenet.8.3": [3, 24]}, "no such channel 'mobilenet.8.3': 24 of 24"),
        ({"mobilenet.8.3": [-1, 2]}, "no such channel 'mobilenet.8.3': -1 of 24"),
    ],
)
def test_impossible_choices_are_refused(chosen, message):
    with pytest.raises(ConfigError, match=message):
        keep(tiny_models.cnn(), chosen)


def test_batch_norm_scales_rank_where_there_are_batch_norms():
    source = keep(tiny_models.cnn(), {})
    group = next(group for group in groups(source) if group.name == "decoder.conv2.1.0")
    assert group.producers == ("decoder.conv2.1.0", "decoder.lateral.8.0")
    source.model.get_submodule("decoder.conv2.1.1").weight.data = torch.arange(16.0)
    source.model.get_submodule("decoder.lateral.8.1").weight.data = torch.full((16,), -12.0)
    expected = torch.tensor([(channel**2 + 144) ** 0.5 for channel in range(16)], dtype=torch.float64)
    torch.testing.assert_close(scores(source, group, "bn-scale"), expected)
    vit = tiny_models.vit()
    block = next(group for group in groups(vit) if group.name.endswith("mlp.fc1"))
    with pytest.raises(ConfigError, match=r"bn-scale says nothing about 'pretrained\.blocks\.0\.mlp\.fc1'.*`fallback`"):
        scores(vit, block, "bn-scale")
    assert torch.equal(scores(vit, block, "bn-scale", fallback="l1"), scores(vit, block, "l1"))


def test_random_scores_are_those_of_the_seed():
    source = tiny_models.cnn()
    first, second = groups(source)[3:5]
    assert torch.equal(scores(source, first, "random", seed=1), scores(source, first, "random", seed=1))
    assert not torch.equal(scores(source, first, "random", seed=1), scores(source, first, "random", seed=2))
    assert not torch.equal(scores(source, first, "random", seed=1), scores(source, second, "random", seed=1)[:16])


def test_activations_are_means_of_what_the_next_layers_read():
    source = tiny_models.cnn()
    pictures = tiny_models.pictures(3)
    found = mean_activations(source, pictures)
    assert set(found) == set(widths(source))
    with torch.no_grad():
        for_hand = torch.zeros(24, dtype=torch.float64)
        for x in pictures:
            y = torch.from_numpy(x)
            for layer in range(9):
                y = source.model.mobilenet[layer](y)
            spread = source.model.mobilenet[9][:3](y.clone())  # depthwise; both it and the pointwise layer behind read
            for_hand += (y.abs().mean((0, 2, 3)) + spread.abs().mean((0, 2, 3))).double() / 6
    torch.testing.assert_close(found["mobilenet.8.3"], for_hand, rtol=1e-5, atol=1e-7)
    group = next(group for group in groups(source) if group.name == "mobilenet.8.3")
    assert torch.equal(scores(source, group, "activation", found), found["mobilenet.8.3"])
    with pytest.raises(ConfigError, match=r"activation needs what pictures showed.*mean_activations"):
        scores(source, group, "activation")
    with pytest.raises(DataError, match="no pictures"):
        mean_activations(source, [])
    assert set(mean_activations(tiny_models.vit(), [tiny_models.picture(0, tiny_models.VIT_SIZE)])) == set(
        widths(tiny_models.vit())
    )


def test_taylor_predicts_the_loss_without_a_channel(tmp_path, monkeypatch):
    """For a loss that is linear in the output of a linear network, the first order is the whole change."""
    source = keep(tiny_models.cnn(), {})
    found = gradients(source, place(tmp_path, train=train()), 2)
    assert {name: values.shape for name, values in found.items()} == {n: (w,) for n, w in widths(source).items()}
    assert all(values.min() >= 0 for values in found.values())
    last = next(group for group in groups(source) if group.name == "decoder.conv5.1.0")
    silent = keep(source, {})
    for part in ("weight", "bias"):
        getattr(silent.model.get_submodule("decoder.conv5.1.1"), part).data[3] = 0
    again = gradients(silent, place(tmp_path, train=train()), 2)["decoder.conv5.1.0"]
    assert again[3] == 0
    assert (again > 0).sum() >= last.width // 2
    assert all(parameter.grad is None for parameter in source.model.parameters())


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_every_importance_makes_a_network(tmp_path, importance):
    step = PruneChannels(ratio=0.5, multiple=4, min_width=4, importance=importance, batches=1)
    result = step.apply(tiny_models.cnn(), place(tmp_path, train=train()))
    assert result.config.encoder_widths[-1] == 16


def test_rounds_remove_a_part_each_train_between_and_end_at_the_same_widths(tmp_path):
    lines: list[str] = []
    step = PruneChannels(ratio=0.5, multiple=4, min_width=4, rounds=2, iterations=1)
    result = step.apply(tiny_models.cnn(), place(tmp_path, lines, train=train()))
    once = PruneChannels(ratio=0.5, multiple=4, min_width=4).apply(tiny_models.cnn(), place(tmp_path / "once"))
    assert result.config == once.config
    rows = [line.split() for line in lines if line.startswith("mobilenet.8.3")]
    assert rows == [["mobilenet.8.3", "24", "18"], ["mobilenet.8.3", "18", "12"]]
    again = step.apply(tiny_models.cnn(), place(tmp_path, train=train()))  # both rounds' states are there
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_shares_by_group_come_from_a_sensitivity_file(tmp_path):
    source = tiny_models.cnn()
    rows = []
    for group in groups(source):
        for share in (0.25, 0.5):
            lost = 0.0 if group.name == "mobilenet.12.3" else share
            figure = {"value": -lost, "low": -lost, "high": -lost, "n": 2}
            base = {"part": group.name, "scope": "layer", "layers": group.producers, "change": "channels"}
            rows.append({**base, "value": share, "weights": 100, "figure": figure, "difference": figure})
    says = {"kind": "channels", "model": "tiny-cnn", "fingerprint": "", "settings": {}, "metric": "delta1"}
    says |= {"higher_is_better": True, "base": {"value": 1.0, "low": 1.0, "high": 1.0, "n": 2}, "finished": True}
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps({**says, "rows": rows}))
    share = 0.5 / len(groups(source))  # what the one insensitive group can give alone
    step = PruneChannels(ratio=share, multiple=1, min_width=1, sensitivity=path)
    result = step.apply(source, place(tmp_path))
    changed = {n: w for n, w in widths(result).items() if w != widths(source)[n]}
    assert changed == {"mobilenet.12.3": 16}
    path.write_text(json.dumps({**says, "rows": [{**rows[0], "part": "other"}, *rows[1:]]}))
    with pytest.raises(ConfigError, match="sensitivity file of another network"):
        step.apply(source, place(tmp_path))


FRESH = """
import sys, numpy as np, torch
from pathlib import Path
from leadline.checkpoint import load_checkpoint
for folder in map(Path, sys.argv[1:]):
    x = torch.from_numpy(np.load(folder.parent / (folder.name + "-x.npy")))
    with torch.no_grad():
        np.save(folder.parent / (folder.name + "-y.npy"), load_checkpoint(folder).model()(x).numpy())
"""


def test_a_fresh_process_computes_the_same_from_the_checkpoint_of_every_architecture(tmp_path):
    config = lite_mono.Config(widths=(12, 16, 20), dilations=((1,), (2,), (1, 3)), heads=(3, 2, 4), bins="adaptive")
    lite = LoadedModel(lite_mono.build(config).eval(), lite_mono.contract(config), "lm", (), "lite-mono", config)
    expected = {}
    for source, size in ((tiny_models.cnn(), SIZE), (tiny_models.vit(), tiny_models.VIT_SIZE), (lite, SIZE)):
        result = PruneChannels(ratio=0.4, multiple=2, min_width=2).apply(source, place(tmp_path))
        folder = tmp_path / source.name
        save_checkpoint(
            folder, result.model, architecture=result.architecture, config=result.config, contract=result.contract
        )
        x = tiny_models.picture(5, size)
        np.save(tmp_path / f"{source.name}-x.npy", x)
        expected[folder] = tiny_models.expected(result, x)
        assert expected[folder].std() > 0
    subprocess.run([sys.executable, "-c", FRESH, *map(str, expected)], check=True)
    for folder, values in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{folder.name}-y.npy"), values, rtol=0, atol=1e-6)


def test_every_architecture_says_which_channels_belong_together():
    from leadline.models.wiring import size

    for name in ("fastdepth", "leadline-xs", "lite-mono-tiny", "depth-anything-v2-mini"):
        architecture, config = registry.variants()[name]
        module = registry.architecture(architecture)
        with torch.device("meta"):
            state = module.build(config).state_dict()
        axes = module.wiring(config).axes
        assert {key for key in state if not key.endswith("num_batches_tracked")} == set(axes)
        for key, told in axes.items():
            assert tuple(state[key].shape[: len(told)]) == tuple(map(size, told)), key
