"""Magnitude pruning: exact counts and patterns, any module and any ONNX graph, zeros that survive training."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

import tiny_detector
import tiny_models
from leadline.bundle import Bundle
from leadline.compression import AnyStep, Place, Target
from leadline.compression.finetune import FineTune
from leadline.compression.magnitude import Gradual, PruneMagnitude, cubic
from leadline.compression.tuning import settle, tune, zeros_kept
from leadline.compression.weighted import module_layers, output_layers
from leadline.compression.zeros import Rule, cut, prune, prune_onnx, zeros
from leadline.errors import ConfigError, NumericalError
from leadline.reference import LoadedModel
from leadline.runtimes.onnx_source import OnnxNetwork
from leadline.training.average import twin, update

PAIR = "rendered:count=4,height=64,width=96"
EXAMPLE = torch.zeros(1, 3, 32, 48)


def linear(*rows: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def weight(model: nn.Module, path: str = "") -> list[list[float]]:
    values: list[list[float]] = model.get_submodule(path).weight.detach().tolist()  # type: ignore[union-attr]
    return values


def everything(amount: float = 0.5, **more: object) -> Rule:
    return Rule(amount=amount, output_layer=True, **more)  # type: ignore[arg-type]


def test_the_smallest_of_all_layers_go_together_and_of_each_layer_apart() -> None:
    model = nn.Sequential(linear([1.0, -2.0], [3.0, 4.0]), linear([-0.1, 0.2], [-8.0, 9.0]))
    together = prune(model, everything(0.5))
    assert weight(together, "0") == [[0, 0], [3, 4]]
    assert weight(together, "1") == [[0, 0], [-8, 9]]
    apart = prune(model, everything(0.25, scope="layer"))
    assert weight(apart, "0") == [[0, -2], [3, 4]]
    assert weight(apart, "1") == [[0, pytest.approx(0.2)], [-8, 9]]
    uneven = prune(nn.Sequential(linear([1.0, -2.0], [3.0, 4.0]), linear([5.0, 6.0], [7.0, 8.0])), everything(0.5))
    assert weight(uneven, "0") == [[0, 0], [0, 0]]
    assert weight(model, "0") == [[1, -2], [3, 4]], "the source stays"


@pytest.mark.parametrize("amount", [0.0, 0.001, 1 / 3, 0.5, 0.9, 0.999])
def test_exactly_the_rounded_number_of_weights_is_zero(amount: float) -> None:
    model = tiny_detector.detector()
    counts = zeros(prune(model, everything(amount)))
    assert {name: total for name, (_, total) in counts.items()} == tiny_detector.WEIGHTS
    assert sum(gone for gone, _ in counts.values()) == round(amount * sum(tiny_detector.WEIGHTS.values()))
    for gone, total in zeros(prune(model, everything(amount, scope="layer"))).values():
        assert gone == round(amount * total)


def test_among_equals_the_first_go_and_older_zeros_count() -> None:
    tied = nn.Sequential(linear([1.0, -1.0], [1.0, 1.0]), linear([-1.0, 1.0], [1.0, 2.0]))
    result = prune(tied, everything(5 / 8))
    assert (weight(result, "0"), weight(result, "1")) == ([[0, 0], [0, 0]], [[0, 1], [1, 2]])
    before = nn.Sequential(linear([0.0, 3.0, 2.0, 0.0]))
    assert weight(prune(before, everything(0.5)), "0") == [[0, 3, 2, 0]]
    assert not torch.signbit(result[0].weight).any(), "zeros are +0"  # type: ignore[index]


def test_two_of_four_input_channels_stay() -> None:
    layer = linear([1.0, -4.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 1.0, 8.0, 7.0, 6.0, 9.0])
    result = prune(nn.Sequential(layer), everything(pattern="2:4"))
    assert weight(result, "0") == [[0, -4, 0, 3, 5, 5, 0, 0], [0, 0, 0, 1, 8, 0, 0, 9]]
    assert weight(prune(nn.Sequential(layer), everything(pattern="1:8")), "0")[1] == [0, 0, 0, 0, 0, 0, 0, 9]


def test_the_pattern_runs_along_the_inputs_of_every_kind_of_layer() -> None:
    model = tiny_detector.detector()
    done = cut(module_layers(model, None), everything(pattern="2:4"))
    assert done.dense == {"stem.0": 3, "stage2.0": 1}
    assert done.share == 0.5
    result = prune(model, everything(pattern="2:4"))
    conv = result.stage1[0].weight.detach()  # type: ignore[index, union-attr]  # 16 x 8 x 3 x 3
    assert torch.equal((conv.reshape(16, 2, 4, 3, 3) != 0).sum(2), torch.full((16, 2, 3, 3), 2))
    transposed = result.up.weight.detach()  # type: ignore[union-attr]  # 16 inputs x 16 x 2 x 2
    assert torch.equal((transposed.reshape(4, 4, 16, 2, 2) != 0).sum(1), torch.full((4, 16, 2, 2), 2))
    before = model.stage1[0].weight.detach().abs().reshape(16, 2, 4, 3, 3)
    kept = conv.abs().reshape(16, 2, 4, 3, 3)
    assert torch.equal(kept.sum(2), before.topk(2, dim=2).values.sum(2))


def test_what_no_pattern_fits_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no layer has a multiple of 4 input channels"):
        prune(nn.Sequential(linear([1.0, 2.0, 3.0])), everything(pattern="2:4"))


def test_the_heads_of_a_detector_are_found_and_stay_dense() -> None:
    model = tiny_detector.detector()
    assert output_layers(model, EXAMPLE) == tiny_detector.HEADS
    counts = zeros(prune(model, Rule(0.8), EXAMPLE))
    chosen = sum(total for name, total in tiny_detector.WEIGHTS.items() if name not in tiny_detector.HEADS)
    assert {name: gone for name, (gone, _) in counts.items() if name in tiny_detector.HEADS} == dict.fromkeys(
        tiny_detector.HEADS, 0
    )
    assert sum(gone for gone, _ in counts.values()) == round(0.8 * chosen)
    with pytest.raises(ConfigError, match="Give an example input"):
        prune(model, Rule(0.8))


@pytest.mark.parametrize("made", [tiny_models.cnn, tiny_models.vit])
def test_the_output_layer_of_our_networks_is_the_one_of_one_channel(made: object) -> None:
    loaded: LoadedModel = made()  # type: ignore[operator]
    spec = loaded.contract.input
    (name,) = output_layers(loaded.model, torch.zeros(1, 3, spec.height, spec.width))
    assert loaded.model.get_submodule(name).out_channels == 1


def test_a_network_that_looks_at_values_is_run_to_find_its_output_layer() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 1, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y = -y if float(y.sum().detach()) < 0 else y
            return torch.sigmoid(self.last(y))

    assert output_layers(Looking().train(), torch.ones(1, 3, 4, 4)) == {"last"}


def test_kinds_paths_and_one_channel_layers() -> None:
    model = tiny_detector.detector()
    depthwise = zeros(prune(model, everything(0.5, layers=("depthwise",))))
    assert {name for name, (gone, _) in depthwise.items() if gone} == {"stage2.0"}
    assert depthwise["stage2.0"][0] == 72
    without = zeros(prune(model, everything(0.5, exclude=("stage2", "boxes.0"))))
    assert [without[name][0] for name in ("stage2.0", "stage2.2", "boxes.0")] == [0, 0, 0]
    one = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3))
    assert [gone for gone, _ in zeros(prune(one, everything(0.5))).values()] in ([0, 5], [1, 4])
    assert zeros(prune(one, everything(0.5, scope="layer"))) == {"0": (0, 1), "1": (4, 9)}  # round(0.5), round(4.5)
    by_layer = zeros(prune(model, everything(amounts={"stem.0": 0.5, "up": 0.25})))
    assert {name: gone for name, (gone, _) in by_layer.items() if gone} == {"stem.0": 108, "up": 256}


def test_weights_that_two_layers_share_count_once() -> None:
    first = linear([1.0, 2.0], [3.0, 4.0])
    second = nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    result = prune(nn.Sequential(first, second), everything(0.5))
    assert weight(result, "1") == [[0, 0], [3, 4]]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"amount": 1.0}, "a layer without weights says nothing"),
        ({"amount": -0.1}, "bad share of zeros"),
        ({"amount": float("nan")}, "bad share of zeros"),
        ({"pattern": "4:2"}, "Write `unstructured`, or N:M"),
        ({"pattern": "2 of 4"}, "bad pattern"),
        ({"exclude": ("stage3",)}, "no such layer 'stage3'. Did you mean 'stage2'"),
        ({"amounts": {"stem": 0.5}}, "Did you mean 'stem.0'"),
        ({"amounts": {"up": 1.0}}, "up = 1.0"),
        ({"layers": ("linear",)}, "nothing to prune"),
    ],
)
def test_wrong_rules_say_what_is_right(rule: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prune(tiny_detector.detector(), Rule(**rule), EXAMPLE)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_broken_weight_is_named() -> None:
    model = tiny_detector.detector()
    with torch.no_grad():
        model.up.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match="'up'"):
        prune(model, Rule(0.5), EXAMPLE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "amount: 0.5"),
        ({"amount": 1.0}, "less than 1"),
        ({"amount": 0}, "greater than 0"),
        ({"amount": 0.5, "pattern": "2:4"}, "fixes the amount"),
        ({"amount": 0.5, "pattern": "two"}, "bad pattern"),
        ({"amount": 0.5, "scope": "sensitivity"}, "belong together"),
        ({"amount": 0.5, "sensitivity": "x.json"}, "belong together"),
        ({"amount": 0.5, "layers": []}, "at least 1"),
        ({"amount": 0.5, "amonut": 0.5}, "Extra inputs"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(AnyStep).validate_python({"step": "prune-magnitude", **options})
    assert says in str(caught.value)


def test_the_step_leaves_its_source_and_prunes_as_the_study_did(tmp_path: Path) -> None:
    source = tiny_models.vit()
    before = copy.deepcopy(source.model.state_dict())
    said: list[str] = []
    step = PruneMagnitude(amount=0.5, output_layer=True)
    result = step.apply(source, Place(tmp_path, say=said.append))
    assert isinstance(result, LoadedModel)
    counts = zeros(result.model)
    assert sum(gone for gone, _ in counts.values()) == round(0.5 * sum(total for _, total in counts.values()))
    limit = np.sort(np.concatenate([before[f"{name}.weight"].abs().numpy().ravel() for name in counts]))
    threshold = limit[round(0.5 * len(limit)) - 1]
    for name in counts:
        old, new = before[f"{name}.weight"], result.model.state_dict()[f"{name}.weight"]
        assert torch.equal(new != 0, old.abs() > float(threshold))
        assert torch.equal(new[new != 0], old[new != 0])
    assert all(torch.equal(value, before[key]) for key, value in source.model.state_dict().items())
    assert (result.config, result.lineage, result.name) == (source.config, source.lineage, source.name)
    assert said == [f"50.00% of the weights of {len(counts)} layers are 0"]


def test_the_cubic_schedule_is_that_of_the_paper() -> None:
    assert cubic(4) == pytest.approx([37 / 64, 56 / 64, 63 / 64, 1.0])
    assert cubic(1) == [1.0]


def trains(tmp_path: Path, **more: object) -> Place:
    train = {"sources": [{"data": PAIR}], "batch": 2, "threads": 1, "warmup": 0, "cache_mb": 50, **more}
    return Place(tmp_path, train=train)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"precision": "bf16"},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"ema": 0.0},
    ],
    ids=["adam-ema", "bf16", "momentum", "no-ema"],
)
def test_zeros_stay_through_training_and_resuming(tmp_path: Path, how: dict[str, object]) -> None:
    source = tiny_models.cnn()
    spec = source.contract.input
    network = prune(source.model, Rule(0.6), torch.zeros(1, 3, spec.height, spec.width))
    pruned = replace(source, model=network)
    kept = {name: network.get_submodule(name).weight.detach() != 0 for name in zeros(network)}  # type: ignore[operator]
    changes = {"learning_rate": 1e-2, "save_every": 1}
    place = trains(tmp_path, **how)
    tune(pruned, place, {**changes, "iterations": 2}, keep_zeros=True)
    result = tune(pruned, place, {**changes, "iterations": 4}, keep_zeros=True)
    again = tune(pruned, trains(tmp_path / "at once", **how), {**changes, "iterations": 4}, keep_zeros=True)
    moved = 0
    for name, mask in kept.items():
        old, new = network.get_submodule(name).weight, result.model.get_submodule(name).weight
        assert isinstance(old, torch.Tensor)
        assert isinstance(new, torch.Tensor)
        assert not new[~mask].any()
        moved += int((new != old).sum())
        assert torch.equal(new, again.model.get_submodule(name).weight)  # type: ignore[arg-type]
    assert moved > 0.9 * sum(int(mask.sum()) for mask in kept.values())
    assert list(result.model.state_dict()) == list(source.model.state_dict())


def test_zeros_grow_again_where_nobody_keeps_them(tmp_path: Path) -> None:
    source = tiny_models.cnn()
    pruned = PruneMagnitude(amount=0.6).apply(source, Place(tmp_path))
    assert isinstance(pruned, LoadedModel)
    result = FineTune(iterations=1, keep_zeros=False).apply(pruned, trains(tmp_path))
    before, after = zeros(pruned.model), zeros(result.model)
    assert sum(gone for gone, _ in after.values()) < 0.5 * sum(gone for gone, _ in before.values())


def test_momentum_from_before_and_the_average_do_not_move_a_kept_zero() -> None:
    layer = nn.Sequential(linear([2.0, 0.0], [0.0, -3.0]))
    average = twin(layer)
    with zeros_kept(layer):
        average = twin(layer)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
        for iteration in range(5):
            optimiser.zero_grad()
            (layer(torch.ones(1, 2)) ** 2).sum().backward()
            optimiser.step()
            update(average, layer, 0.5, iteration)
        settle(average)
    for model in (layer, average):
        values = model[0].weight.detach()
        assert values[0, 1] == values[1, 0] == 0
        assert 0 < values[0, 0] < 2
        assert type(model[0]) is nn.Linear
        assert list(model.state_dict()) == ["0.weight"]


def test_rounds_train_between_and_go_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PruneMagnitude(amount=0.75, gradual=Gradual(rounds=2, iterations=2))
    source, said = tiny_models.cnn(), []
    place = replace(trains(tmp_path), say=said.append)
    whole = step.apply(source, place)
    assert isinstance(whole, LoadedModel)
    counts = zeros(whole.model)
    assert counts.pop("decoder.conv6.0")[0] == 0
    total = sum(count for _, count in counts.values())
    assert sum(gone for gone, _ in counts.values()) == round(0.75 * total)
    assert [line for line in said if "weights of" in line] == [
        f"{round(0.75 * share * total) / total:.2%} of the weights of {len(counts)} layers are 0"
        for share in (7 / 8, 1)
    ]

    def stopped(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    other = replace(place, folder=tmp_path / "stopped")
    real = tune
    calls: list[int] = []

    def second_stops(*arguments: object, **options: object) -> LoadedModel:
        calls.append(1)
        if len(calls) == 2:
            stopped()
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("leadline.compression.magnitude.tune", second_stops)
    with pytest.raises(KeyboardInterrupt):
        step.apply(source, other)
    resumed = step.apply(source, other)
    assert isinstance(resumed, LoadedModel)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key])


def test_rounds_need_training_data_and_a_network_of_ours(tmp_path: Path) -> None:
    step = PruneMagnitude(amount=0.5, gradual=Gradual())
    with pytest.raises(ConfigError, match="the recipe has no `train`"):
        step.apply(tiny_models.cnn(), Place(tmp_path))
    with pytest.raises(ConfigError, match="it is not our network"):
        step.apply(replace(tiny_models.cnn(), architecture=None), trains(tmp_path))


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """The detector as ONNX, as another tool would export it: BatchNorm folded, nodes named by the exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own advice
        program = torch.onnx.export(tiny_detector.detector(), (EXAMPLE,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto


def held(proto: onnx.ModelProto) -> list[np.ndarray]:
    values = [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    return [value for value in values if value.ndim == 4]


def ran(proto: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: tiny_models.picture(3, (32, 48))})
    return found


def test_an_onnx_detector_is_pruned_exactly_and_keeps_its_heads(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString()
    sizes = [array.size for array in held(graph)]
    assert sorted(sizes) == sorted(tiny_detector.WEIGHTS.values())
    result = prune_onnx(graph, Rule(0.7))
    assert graph.SerializeToString() == before
    heads = [tiny_detector.WEIGHTS[name] for name in tiny_detector.HEADS]
    assert sum(int((array == 0).sum()) for array in held(result)) == round(0.7 * (sum(sizes) - sum(heads)))
    assert not any((array == 0).any() for array in held(result) if array.size in heads)
    assert [each.shape for each in ran(result)] == [each.shape for each in ran(graph)]
    same = prune_onnx(graph, Rule(0.0))
    assert all(np.array_equal(a, b) for a, b in zip(ran(same), ran(graph), strict=True))


def test_the_pattern_in_onnx_is_that_of_the_module(graph: onnx.ModelProto) -> None:
    result = prune_onnx(graph, everything(pattern="2:4"))
    wanted = sum(count for name, count in tiny_detector.WEIGHTS.items() if name not in ("stem.0", "stage2.0")) // 2
    assert sum(int((array == 0).sum()) for array in held(result)) == wanted
    up = next(array for array in held(result) if array.shape == (16, 16, 2, 2))
    assert ((up.reshape(4, 4, 16, 2, 2) != 0).sum(1) == 2).all()


def test_matrix_products_of_any_spelling_lose_inputs_in_fours() -> None:
    """`y = x B`, `y = x C^T` as Gemm, and `y = x (D^T)` with a Transpose node: inputs lie on axes 0, 1 and 1."""
    random = np.random.default_rng(0)
    b, c, d = (random.normal(size=shape).astype(np.float32) for shape in ((8, 3), (5, 8), (6, 8)))
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "b"], ["y"], name="plain"),
        onnx.helper.make_node("Gemm", ["x", "c"], ["z"], name="gemm", transB=1),
        onnx.helper.make_node("Transpose", ["d"], ["e"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "e"], ["w"]),
    ]
    kind = onnx.TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info(name, kind, [1, n]) for name, n in (("y", 3), ("z", 5), ("w", 6))]
    constants = [onnx.numpy_helper.from_array(value, name) for value, name in ((b, "b"), (c, "c"), (d, "d"))]
    inputs = [onnx.helper.make_tensor_value_info("x", kind, [1, 8])]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "products", inputs, outputs, constants))
    result = prune_onnx(proto, everything(pattern="2:4"))
    new = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    assert ((new["b"].reshape(2, 4, 3) != 0).sum(1) == 2).all()
    assert ((new["c"].reshape(5, 2, 4) != 0).sum(2) == 2).all()
    assert ((new["d"].reshape(6, 2, 4) != 0).sum(2) == 2).all()
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        prune_onnx(proto, everything(0.5, exclude=("plane",)))


def test_an_onnx_depth_network_becomes_a_bundle_with_zeros(tmp_path: Path) -> None:
    made = tiny_models.exported("cnn", "onnxruntime", "fp32")
    path = tmp_path / "other.onnx"
    path.write_bytes(made.file("model.onnx").read_bytes())
    source = LoadedModel(OnnxNetwork(path, made.contract), made.contract, "other")
    place = Place(tmp_path / "work", target=Target(runtime="onnxruntime"))
    result = PruneMagnitude(amount=0.5).apply(source, place)
    assert isinstance(result, Bundle)
    assert result.folder == tmp_path / "work" / "bundle"
    assert result.details["parity"]["max_abs"] < 1e-4
    graph = onnx.load(result.file("model.onnx"))
    weights = held(graph)
    head = next(array for array in weights if array.shape[0] == 1)
    assert head.all()
    total = sum(array.size for array in weights) - head.size
    assert sum(int((array == 0).sum()) for array in weights) == round(0.5 * total)
    assert json.loads((result.folder / "contract.json").read_text())["name"] == made.contract.name
    with pytest.raises(ConfigError, match="cannot train an ONNX file"):
        PruneMagnitude(amount=0.5, gradual=Gradual()).apply(source, place)
