"""A space of configurations, and the networks in it: built, and filled with what fits of a trained one."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from leadline.errors import CheckpointError, ConfigError, closest
from leadline.models.registry import architecture, parse_config
from leadline.models.truncation import truncate
from leadline.reference import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

Space = dict[str, list[Any]]

SIZE = "size"  # stands for height and width
TRIED = 100  # configurations that a choice is tried in before it is called impossible
FAMILY: Space = {
    "encoder": ["efficientnet-lite0", "efficientnet-lite0-short"],
    "kernel": [3, 5],
    "decoder_widths.0": [48, 64, 96, 128],
    "decoder_widths.1": [40, 64, 96],
    "decoder_widths.2": [32, 48, 64],
    "decoder_widths.3": [16, 24, 48],
    "decoder_widths.4": [16, 24, 32],
    SIZE: [[224, 288], [192, 256], [160, 224]],
}


def checked_space(source: LoadedModel, space: Space) -> Space:
    """The space, or the default one of FastDepth's family where it is empty.

    Args:
        source: whose configuration is varied.
        space: choices by key of the configuration; `KEY.N` is an element of a list, `size` is [height, width].

    Raises:
        ConfigError: unknown key, no choice, a choice twice, or no default.
    """
    if source.architecture is None or source.config is None:
        raise ConfigError("no configuration to vary", where=source.name, why="it is no network of the registry")
    values = source.config.model_dump(mode="json")
    if not space:
        if source.architecture != "fastdepth":
            mend = f"give `space`, choices by key: {', '.join(sorted(values)[:8])}, ..."
            raise ConfigError("no default space", where=source.architecture, mend=mend)
        space = FAMILY | {"encoder": list(dict.fromkeys([values["encoder"], *FAMILY["encoder"]]))}
        if values["skip"] == "add" and not values["lateral"]:
            space = space | {"lateral": [True]}  # decoders of other widths than the encoder's
    for key, choices in space.items():
        name, _, index = key.partition(".")
        known = name in values or (key == SIZE and {"height", "width"} <= values.keys())
        if not known:
            raise ConfigError("unknown key in the space", where=key, mend=closest(name, [*values, SIZE]))
        if index and not (isinstance(values[name], list) and index.isdigit() and int(index) < len(values[name])):
            raise ConfigError("no such element in the space", where=key, why=f"{name} is {values[name]}")
        if not choices or len({json.dumps(choice) for choice in choices}) < len(choices):
            raise ConfigError("choices of a key must be at least one and distinct", where=key, why=f"got {choices}")
    for key, choices in space.items():
        for choice in choices:
            _refuse_impossible(source.architecture, values, space, key, choice)
    return space


def _refuse_impossible(name: str, values: dict[str, Any], space: Space, key: str, choice: Any) -> None:
    """Refuse a choice that no configuration can hold: neither the source's nor any of TRIED drawn from the space."""
    draw = random.Random(0)
    others = ({one: draw.choice(choices) for one, choices in space.items()} for _ in range(TRIED))
    first: ConfigError | None = None
    for other in itertools.chain([{}], others):
        try:
            parse_config(name, _values(values, {**other, key: choice}))
        except ConfigError as error:
            first = first or error
        except (TypeError, ValueError) as error:  # a `size` that is no pair
            raise ConfigError("impossible choice in the space", where=f"{key}: {choice}", why=str(error)) from error
        else:
            return
    assert first is not None
    raise ConfigError("impossible choice in the space", where=f"{key}: {choice}", why=first.why) from first


def count(space: Space) -> int:
    """Number of configurations in a space."""
    total = 1
    for choices in space.values():
        total *= len(choices)
    return total


def network(source: LoadedModel, chosen: Mapping[str, Any], *, seed: int, inherit: bool, imagenet: bool) -> LoadedModel:
    """The network of a choice: fresh weights, over them ImageNet's, over them the source's leading slices.

    Args:
        source: configuration and weights that are varied; stays as it is.
        chosen: a value for each key of the space.
        seed: of the fresh weights.
        inherit: take weights of the source where they fit (models/truncation.py; not where a window differs).
        imagenet: start encoders of published widths from ImageNet, where the architecture has such weights.

    Raises:
        ConfigError: the architecture has no such network.
        UnavailableError: the package with the ImageNet weights is missing.
    """
    assert source.architecture is not None
    assert source.config is not None
    module = architecture(source.architecture)
    config = parse_config(source.architecture, _values(source.config.model_dump(mode="json"), chosen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = module.build(config)
    load: Any = getattr(module, "load_imagenet", None)
    if imagenet and load is not None:
        with contextlib.suppress(CheckpointError):  # other widths than the published ones: fresh weights
            load(model)
    if inherit:
        _inherit(model, source.model)
    made = module.contract(config)
    sides = ("height", "width") if chosen.keys() & {SIZE, "height", "width"} else ()  # else the recipe's
    taken = {key: getattr(made.input, key) for key in (*sides, "mean", "std")}
    changes = {"input": source.contract.input.model_copy(update=taken), "output": made.output}
    contract = source.contract.model_copy(update=changes)
    return replace(source, model=model.eval(), contract=contract, config=config)


def _values(values: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a choice put in; an encoder that changes brings its published widths."""
    values = json.loads(json.dumps(values))
    if chosen.get("encoder", values.get("encoder")) != values.get("encoder"):
        values |= {key: [] for key in ("encoder_widths", "hidden_widths") if key in values}
    for key, value in chosen.items():
        name, _, index = key.partition(".")
        if key == SIZE:
            values["height"], values["width"] = value
        elif index:
            values[name][int(index)] = value
        else:
            values[name] = value
    return values


def _inherit(student: nn.Module, teacher: nn.Module) -> None:
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    theirs = teacher.state_dict()
    try:
        truncate(student, teacher)
    except CheckpointError:
        return  # nothing fits
    ours = student.state_dict()
    for name, value in fresh.items():
        if name in theirs and theirs[name].shape[2:] != value.shape[2:]:  # a corner of a window is another filter
            ours[name] = value
    student.load_state_dict(ours)


def label(chosen: Mapping[str, Any]) -> str:
    """Short words for tables: `encoder=lite0 kernel=3 decoder_widths=128-96-64 size=224x288`."""
    words: dict[str, list[str]] = {}
    for key, value in chosen.items():
        joint = "x" if key == SIZE else "-"
        text = joint.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words.setdefault(key.partition(".")[0], []).append(text.removeprefix("efficientnet-"))
    return " ".join(f"{name}={'-'.join(texts)}" for name, texts in words.items())
