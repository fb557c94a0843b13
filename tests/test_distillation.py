"""Distillation: losses against numpy and closed forms, objectives in the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import tiny_datasets
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.losses.features import feature_alignment
from leadline.losses.scale_invariant import (
    gradient_matching,
    median_centred_l1,
    scale_and_shift_invariant,
    trimmed_scale_and_shift_invariant,
)
from leadline.models import depth_anything
from leadline.models.outputs import Outputs, outputs
from leadline.training.batches import Batch
from leadline.training.config import TrainConfig
from leadline.training.objectives import Objective, Seen, distillation
from leadline.training.run import run, starting_point
from tiny_models import cnn, vit

READINGS = ("median-scale", "mad-minmax", "minmax")


def random_maps(seed, n=3, h=14, w=18):
    """Prediction, target and mask; each picture has another scale, shift and share of holes."""
    rng = np.random.default_rng(seed)
    prediction = rng.uniform(0.5, 5, (n, 1, h, w)) * rng.uniform(0.2, 8, (n, 1, 1, 1))
    target = rng.gamma(2.0, 10.0, (n, 1, h, w))
    valid = rng.uniform(size=(n, 1, h, w)) > rng.uniform(0, 0.6, (n, 1, 1, 1))
    return prediction.astype(np.float32), target.astype(np.float32), valid


def tensors(prediction, target, valid):
    """As tensors, with NaN where nothing is known: it must never be looked at."""
    spoiled = np.where(valid, target, np.nan).astype(np.float32)
    return torch.from_numpy(prediction), torch.from_numpy(spoiled), torch.from_numpy(valid)


# --- oracles: numpy in float64, one picture at a time, written from SPEC.md 6.4 and 5.2 ---


def lower_median(values):
    return np.sort(values)[(len(values) - 1) // 2]


def by_median_and_deviation(values):
    centred = values - lower_median(values)
    return centred / np.abs(centred).mean()


def to_unit_range(values):
    return (values - values.min()) / (values.max() - values.min())


def pairs(prediction, target, valid):
    """The valid values of each picture, float64."""
    for p, t, v in zip(prediction, target, valid, strict=True):
        yield p[v].astype(np.float64), t[v].astype(np.float64)


def ssi_oracle(prediction, target, valid):
    errors = [
        np.abs(by_median_and_deviation(p) - by_median_and_deviation(t)) for p, t in pairs(prediction, target, valid)
    ]
    return np.concatenate(errors).mean()


def gradient_oracle(prediction, target, valid, scales):
    total = 0.0
    for k in range(scales):
        along = {"x": [], "y": []}
        for p, t, v in zip(prediction[:, 0], target[:, 0], valid[:, 0], strict=True):
            r = np.full(p.shape, np.nan)
            r[v] = by_median_and_deviation(p[v].astype(float)) - by_median_and_deviation(t[v].astype(float))
            r = r[:: 2**k, :: 2**k]
            for row in range(r.shape[0]):
                for column in range(r.shape[1]):
                    for name, dy, dx in (("x", 0, 1), ("y", 1, 0)):
                        if row + dy < r.shape[0] and column + dx < r.shape[1]:
                            difference = r[row + dy, column + dx] - r[row, column]
                            if np.isfinite(difference):
                                along[name].append(abs(difference))
        total += np.mean(along["x"]) + np.mean(along["y"])
    return total


def trimmed_oracle(prediction, target, valid, trim, cell):
    kept = []
    for p, t, v in zip(prediction[:, 0], target[:, 0], valid[:, 0], strict=True):
        error = np.full(p.shape, np.nan)
        error[v] = np.abs(by_median_and_deviation(p[v].astype(float)) - by_median_and_deviation(t[v].astype(float)))
        places = [
            error[y : y + cell, x : x + cell][v[y : y + cell, x : x + cell]]
            for y in range(0, p.shape[0], cell)
            for x in range(0, p.shape[1], cell)
        ]
        places = sorted((place for place in places if place.size), key=np.mean)
        kept += places[: len(places) - int(trim * len(places))]
    return np.concatenate(kept).mean()


def centred_oracle(prediction, target, valid, reading, clip):
    def centred(values):
        if reading == "median-scale":
            return values / lower_median(values)
        if reading == "mad-minmax":
            values = by_median_and_deviation(values)
            values = values if clip is None else np.clip(values, -clip, clip)
        return to_unit_range(values)

    errors = [np.abs(centred(p) - centred(t)) for p, t in pairs(prediction, target, valid)]
    return np.concatenate(errors).mean()


@pytest.mark.parametrize("seed", range(3))
def test_ssi_equals_its_formula(seed):
    maps = random_maps(seed)
    assert scale_and_shift_invariant(*tensors(*maps)).item() == pytest.approx(ssi_oracle(*maps), rel=1e-4)


@pytest.mark.parametrize("scales", [1, 4])
def test_gradient_matching_equals_its_formula(scales):
    maps = random_maps(7)
    expected = gradient_oracle(*maps, scales)
    assert gradient_matching(*tensors(*maps), scales).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cell", [1, 4])
@pytest.mark.parametrize("trim", [0.0, 0.1, 0.2])
def test_trimmed_ssi_equals_its_formula(trim, cell):
    maps = random_maps(11)
    expected = trimmed_oracle(*maps, trim, cell)
    assert trimmed_scale_and_shift_invariant(*tensors(*maps), trim, cell).item() == pytest.approx(expected, rel=1e-4)


def test_trimming_forgives_a_wrong_corner_of_the_label():
    target = torch.linspace(1, 5, 400).reshape(1, 1, 20, 20)
    wrong = target.clone()
    wrong[..., :4, :4] += 40.0
    valid = torch.ones_like(target, dtype=torch.bool)
    plain = scale_and_shift_invariant(target, wrong, valid)
    trimmed = trimmed_scale_and_shift_invariant(target, wrong, valid, trim=0.1, cell=4)
    assert trimmed < 0.5 * plain


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("clip", [None, 1.5])
def test_median_centred_l1_equals_its_formula(reading, clip):
    maps = random_maps(13)
    expected = centred_oracle(*maps, reading, clip)
    assert median_centred_l1(*tensors(*maps), reading, clip=clip).item() == pytest.approx(expected, rel=1e-4)


def test_the_second_reading_is_the_third_unless_it_is_clipped():
    maps = tensors(*random_maps(17))
    third = median_centred_l1(*maps, "minmax")
    assert median_centred_l1(*maps, "mad-minmax").item() == pytest.approx(third.item(), rel=1e-4)
    assert median_centred_l1(*maps, "mad-minmax", clip=1.5).item() != pytest.approx(third.item(), rel=1e-2)


@pytest.mark.parametrize(("reading", "shift"), [("median-scale", 0.0), ("mad-minmax", 3.0), ("minmax", 3.0)])
def test_readings_forgive_the_scale_and_the_affine_ones_the_shift(reading, shift):
    _, target, valid = tensors(*random_maps(19))
    prediction = torch.where(valid, target, 1.0) * 0.07 + shift
    assert median_centred_l1(prediction, target, valid, reading).item() == pytest.approx(0.0, abs=1e-4)


def test_a_sigmoid_is_compared_as_it_is():
    target = torch.tensor([[[[10.0, 20.0, 30.0]]]])  # 0, 0.5 and 1 after min-max
    prediction = torch.tensor([[[[0.1, 0.5, 0.8]]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    found = median_centred_l1(prediction, target, valid, "minmax", normalise_prediction=False)
    assert found.item() == pytest.approx((0.1 + 0.0 + 0.2) / 3, abs=1e-6)


LOSSES = {
    "trimmed": trimmed_scale_and_shift_invariant,
    "trimmed-cells": lambda p, t, v: trimmed_scale_and_shift_invariant(p, t, v, 0.1, 4),
    **{reading: lambda p, t, v, reading=reading: median_centred_l1(p, t, v, reading) for reading in READINGS},
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_is_zero_with_a_gradient(name):
    prediction = torch.rand(2, 1, 8, 8, requires_grad=True)
    loss = LOSSES[name](prediction, torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2, 1, 8, 8, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_prediction_has_a_finite_gradient(name):
    prediction = torch.full((2, 1, 8, 8), 0.3, requires_grad=True)
    target = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    loss = LOSSES[name](prediction, target, torch.ones(2, 1, 8, 8, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def test_feature_alignment_is_one_minus_the_mean_cosine_of_the_places_beyond_the_margin():
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(size=(2, 2, 5, 4, 6)).astype(np.float32)
    dot = (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
    for margin in (1.0, 0.3):
        expected = (1 - dot[dot <= margin]).mean()
        found = feature_alignment(torch.from_numpy(ours), torch.from_numpy(theirs), margin)
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_features_within_the_margin_cost_nothing_and_the_teacher_gets_no_gradient():
    ours = torch.rand(1, 4, 3, 3, requires_grad=True)
    theirs = (2 * ours.detach()).requires_grad_()
    loss = feature_alignment(ours, theirs, 0.85)
    loss.backward()
    assert loss.item() == 0
    assert theirs.grad is None
    assert torch.equal(ours.grad, torch.zeros_like(ours))


# --- objectives ---


def seen(maps, target, kinds, *, kind=Kind.RELATIVE_DISPARITY, valid=None, image=None, modules=None, features=()):
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    image = torch.zeros(len(kinds), 3, *target.shape[-2:]) if image is None else image
    batch = Batch(image, target, valid, kinds, ("",) * len(kinds))
    said = Outputs(tuple(maps), features=tuple(features))
    return Seen(said, kind, batch, torch.nn.ModuleDict(modules or {}), torch.nn.Identity())


def objective(**options):
    return TypeAdapter(Objective).validate_python(options)


def test_zeros_of_the_teacher_are_left_out_or_not():
    target = torch.tensor([[[[0.0, 1.0, 2.0, 4.0]]]])
    prediction = torch.tensor([[[[9.0, 1.0, 2.0, 4.0]]]])
    look = seen([prediction], target, (Kind.RELATIVE_DISPARITY,))
    masked = objective(loss="median-centred", reading="minmax")
    assert masked.term(look).item() == pytest.approx(0.0, abs=1e-6)
    assert masked.count(look.batch) == 3
    # all four: target 0, 1/4, 1/2, 1; prediction 1, 0, 1/8, 3/8
    whole = objective(loss="median-centred", reading="minmax", mask_zero=False)
    assert whole.term(look).item() == pytest.approx((1 + 1 / 4 + 3 / 8 + 5 / 8) / 4, abs=1e-6)


def test_every_map_can_be_supervised():
    target = torch.linspace(1, 2, 64).reshape(1, 1, 8, 8)
    coarse = torch.full((1, 1, 4, 4), 1.0)
    look = seen([target, coarse], target, (Kind.SCALED_DISPARITY,), kind=Kind.SCALED_DISPARITY)
    finest = objective(loss="median-centred", reading="median-scale")
    assert finest.term(look).item() == pytest.approx(0.0, abs=1e-6)
    both = objective(loss="median-centred", reading="median-scale", all_maps=True)
    median = np.sort(target.numpy().ravel())[31]
    expected = np.abs(target.numpy() / median - 1).mean() / 2
    assert both.term(look).item() == pytest.approx(expected, rel=1e-4)


def test_a_metric_network_learns_relative_labels_in_disparity():
    depth = torch.linspace(1, 10, 96).reshape(1, 1, 8, 12)
    look = seen([depth], 3 / depth + 5, (Kind.RELATIVE_DISPARITY,), kind=Kind.METRIC_DEPTH)
    assert objective(loss="ssi-trimmed").term(look).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"loss": "ssi-trimmed", "trim": 1.0}, {"loss": "median-centred", "reading": "mean"}, {"loss": "features"}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        objective(**options)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "vit"
    model = vit()
    save_checkpoint(folder, model.model, architecture="depth-anything-v2", config=model.config, contract=model.contract)
    return str(folder)


def test_the_live_teacher_sees_the_picture_that_the_network_sees(teacher):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    ours, theirs = cnn().contract, vit().contract
    bgr = ours.model_copy(update={"input": ours.input.model_copy(update={"channels": "bgr", "value_max": 255.0})})
    for contract in (ours, bgr):
        given = torch.from_numpy(contract.normalise(pixels))[None]
        found = distillation.for_teacher(given, contract, theirs)
        assert np.allclose(found[0].numpy(), theirs.normalise(pixels), atol=1e-4)
    given = torch.zeros(1, 3, 64, 96)  # to multiples of 14
    assert distillation.for_teacher(given, ours, theirs).shape[-2:] == (70, 98)


def test_features_of_the_teacher_itself_are_aligned(teacher):
    term = objective(loss="features", teacher=teacher, level=-1, margin=1.0)
    model, contract = vit().model, vit().contract
    modules = term.modules_for(model, contract)
    (projection,) = modules.values()
    torch.nn.init.dirac_(projection.convolution.weight)
    torch.nn.init.zeros_(projection.convolution.bias)
    image = torch.rand(2, 3, 56, 84)
    features = outputs(model, image).features
    target = torch.zeros(2, 1, 56, 84)
    look = seen([target], target, (Kind.METRIC_DEPTH,) * 2, image=image, modules=modules, features=features)
    assert term.term(look).item() == pytest.approx(0.0, abs=1e-4)
    torch.nn.init.dirac_(projection.convolution.weight).data.neg_()
    assert term.term(look).item() == pytest.approx(2.0, abs=1e-4)


def test_a_level_that_does_not_exist_is_named(teacher):
    term = objective(loss="features", teacher=teacher, teacher_level=4)
    with pytest.raises(ConfigError, match=r"level 4.*it has 4"):
        term.modules_for(cnn().model, cnn().contract)


def run_config(teacher, data, **changes):
    return TrainConfig.model_validate(
        {
            "model": "fastdepth-pruned",
            "size": [64, 96],
            "sources": [{"data": data}],
            "objectives": [
                {"loss": "ssi-trimmed", "trim": 0.1, "cell": 4},
                {"loss": "gradient", "weight": 2.0},
                {"loss": "median-centred", "reading": "mad-minmax", "clip": 3.0},
                {"loss": "features", "teacher": teacher, "weight": 0.5},
            ],
            "iterations": 3,
            "batch": 2,
            "threads": 1,
            "save_every": 2,
            **changes,
        }
    )


@pytest.fixture
def labelled(tmp_path):
    """A folder of pictures with relative disparity, as `pseudo:` reads it."""
    rng = np.random.default_rng(4)
    for number in range(4):
        tiny_datasets.picture(tmp_path / "pictures" / f"{number}.png", 64, 96, number)
        tiny_datasets.png16(tmp_path / "labels" / f"{number}.png", rng.integers(1, 60000, (64, 96)))
    return f"pseudo:{tmp_path / 'pictures'},{tmp_path / 'labels'}"


def test_a_run_distils_trains_the_projection_and_resumes_bit_exactly(teacher, labelled, tmp_path):
    whole, _ = run(run_config(teacher, labelled), tmp_path / "whole")
    run(run_config(teacher, labelled, iterations=2), tmp_path / "cut")
    resumed, folder = run(run_config(teacher, labelled), tmp_path / "cut")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    (name,) = resumed.auxiliary
    assert torch.equal(resumed.auxiliary[name].convolution.weight, whole.auxiliary[name].convolution.weight)
    start = run_config(teacher, labelled).objectives[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # the run's seed 0, moved aside by one
        fresh = start.modules_for(whole.model, whole.contract)[name]
    assert not torch.equal(fresh.convolution.weight, resumed.auxiliary[name].convolution.weight)
    assert set(load_checkpoint(folder).auxiliary()) == {name}


def test_a_student_starts_as_a_cut_of_its_teacher_and_says_so(teacher, monkeypatch):
    monkeypatch.setitem(depth_anything.VARIANTS, "depth-anything-v2-tiny", vit().config)
    config = run_config(teacher, "rendered", model="depth-anything-v2-tiny", truncate_from=teacher)
    start = starting_point(config)
    for name, value in vit().model.state_dict().items():
        assert torch.equal(start.model.state_dict()[name], value), name
    assert start.lineage[-1]["step"] == "truncate"
    assert start.lineage[-1]["fresh"] == 0
    with pytest.raises(ConfigError, match="`truncate_from` needs fresh weights"):
        starting_point(config.model_copy(update={"model": teacher}))
