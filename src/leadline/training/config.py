"""The configuration of a training run: a YAML file or flags, checked completely before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from leadline.errors import ConfigError, closest
from leadline.training.objectives import Objective
from leadline.training.objectives.supervised import GradientMatching, Silog
from leadline.training.paths import located

if TYPE_CHECKING:
    from collections.abc import Iterator


METRIC: tuple[Objective, ...] = (Silog(), GradientMatching(weight=0.1))  # for networks and data in metres


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Options):
    """One data set of the mix."""

    data: str = Field(description="data set reference, as for `leadline data check`")
    split: str | None = Field(default=None, description="part of it; the format's default where absent")
    share: Annotated[int, Field(ge=1)] = Field(default=1, description="pictures of each batch, relative to the others")
    first: Annotated[int, Field(ge=0)] = Field(default=0, description="index of the first sample used")
    last: int | None = Field(default=None, description="index after the last sample used; negative counts from the end")
    frames: list[int | Literal["stereo"]] = Field(
        default=[], description="neighbours that the losses of self-supervision see, as in [-1, 1] or [stereo]"
    )
    labels: str | None = Field(default=None, description="store of pseudo-labels that become the depth targets")


class Validation(_Options):
    """How the run is watched: a data set (never the test data) and a protocol."""

    data: str
    split: str | None = None
    protocol: str = "nyu-eigen"
    first: Annotated[int, Field(ge=0)] = 0
    last: int | None = None
    every: Annotated[int, Field(ge=1)] = Field(default=500, description="iterations between two validations")


class AugmentationOptions(_Options):
    """How far training pictures are changed; see data/transforms.py."""

    zoom: float = Field(default=1.5, ge=1, le=4)
    roll_deg: float = Field(default=5.0, ge=0, le=45)
    flip: float = Field(default=0.5, ge=0, le=1)
    shift: float = Field(default=1.0, ge=0, le=1)
    colour: float = Field(default=0.4, ge=0, lt=1)
    gamma: float = Field(default=0.1, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=50)
    grey: float = Field(default=0.0, ge=0, le=1)
    jitter: float = Field(default=1.0, ge=0, le=1, description="share of pictures with changed colours; monodepth2 0.5")
    jitter_per_frame: bool = Field(default=False, description="colours of each frame on their own (Lite-Mono's quirk)")


FEW = 8  # pictures; statistics of fewer say more about the pictures than about the data


class CosineRestarts(_Options):
    """The rate falls along a cosine and starts again, lower: Lite-Mono's schedule (SPEC.md 3.5)."""

    kind: Literal["cosine-restarts"]
    every: Annotated[int, Field(ge=1)] = Field(
        description="iterations between two changes of the rate; one epoch there"
    )
    cycle: Annotated[int, Field(ge=1)] = Field(default=31, description="changes from one restart to the next")
    shrink: float = Field(default=0.9, gt=0, le=1, description="factor of the peak at each restart")
    floor: float = Field(default=0.05, ge=0, le=1, description="lowest rate of the network, as a share of the peak")
    auxiliary_floor: float = Field(default=0.1, ge=0, le=1, description="the same for auxiliary modules")


class TrainConfig(_Options):
    """A complete training run."""

    model: str = Field(description="architecture variant, or a model reference to start from")
    network: dict[str, Any] = Field(
        default_factory=dict, description="keys of a variant's own configuration that differ, as in {kind: ...}"
    )
    name: str | None = Field(
        default=None, description="name of the result; the variant's, or the start's and `-finetuned`, where absent"
    )
    truncate_from: str | None = Field(
        default=None, description="teacher whose weights are cut to a variant's size: leading slices, blocks evenly"
    )
    imagenet: bool = Field(default=False, description="start the encoder from ImageNet weights")
    sources: list[Source] = Field(min_length=1)
    objectives: list[Objective] = Field(
        default_factory=lambda: list(METRIC), min_length=1, description="`leadline train` chooses by kinds where absent"
    )
    validation: Validation | None = None
    augmentation: AugmentationOptions = AugmentationOptions()
    size: tuple[int, int] | None = Field(default=None, description="(height, width); the contract's where absent")
    resize: Literal["stretch", "keep_aspect"] | None = Field(
        default=None, description="how the result brings pictures to its size; the contract's where absent"
    )
    camera: tuple[float, float] | None = Field(
        default=None, description="(fx / width, fy / height) that a metric network learns; the contract's if absent"
    )
    iterations: Annotated[int, Field(ge=1)] = 2000
    batch: Annotated[int, Field(ge=2)] = 16
    learning_rate: float = Field(default=1e-3, gt=0, lt=10)
    encoder_factor: float = Field(default=0.3, gt=0, le=1, description="the encoder's share of the learning rate")
    auxiliary_rate: float = Field(
        default=1.0, gt=0, le=100, description="rate of what objectives train beside the network, as a factor"
    )
    weight_decay: float = Field(default=1e-2, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: Annotated[int, Field(ge=0)] = 100
    decay: float = Field(default=0.3, ge=0, le=1, description="final share of the run in which the rate falls to zero")
    schedule: CosineRestarts | None = Field(default=None, description="another course of the rate; no warmup and decay")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        default=1, description="pieces that a batch is cut into where it does not fit into memory at once"
    )
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    norm_statistics: Literal["auto", "learn", "keep"] = Field(
        default="auto",
        description=f"of batch normalisation; auto keeps those of a trained start below {FEW} pictures at once",
    )
    ema: float = Field(default=0.998, ge=0, lt=1, description="decay of the averaged weights; 0 keeps none")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = Field(default=True, description="memory order of pictures and weights")
    compile: bool = Field(default=False, description="compile the network (needs a C++ compiler; slow to start)")
    device: str = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    save_every: Annotated[int, Field(ge=1)] = 200
    max_bad_batches: Annotated[int, Field(ge=1)] = Field(default=5, description="NaN losses in a row before stopping")
    cache_mb: Annotated[int, Field(ge=0)] = Field(default=4000, description="memory for decoded pictures")
    skip_bad: bool = Field(default=False, description="leave incomplete and damaged samples out (counted)")
    half: bool = Field(default=False, description="store the resulting checkpoint as float16")
    card: Path | None = Field(default=None, description="model card (Markdown) to put beside the weights")
    licence: str | None = Field(default=None, description="licence of the resulting weights, for contract and card")
    training_data: list[str] = Field(default_factory=list, description="data and terms, for contract and card")

    @field_validator("objectives", mode="before")
    @classmethod
    def _earlier_form(cls, value: Any) -> Any:
        """Leave out what every objective once had in saved configurations, where it says nothing."""
        silent = {"variance_focus": (0.5, "silog"), "scales": (4, "gradient")}
        if not isinstance(value, list):
            return value
        return [
            {
                key: option
                for key, option in each.items()
                if key not in silent or option != silent[key][0] or each.get("loss") == silent[key][1]
            }
            if isinstance(each, dict) and each.get("loss") in ("l1", "berhu", "silog", "ssi", "gradient")
            else each
            for each in value
        ]


def load_config(path: Path | None, changes: dict[str, Any]) -> TrainConfig:
    """Read a YAML file, apply `changes` (flags) over it, and check everything.

    Relative paths in the file count from the current folder, else from the file's folder, else from the one above it.

    Raises:
        ConfigError: the file is missing, is no mapping, has an unknown key or a wrong value, or a path leads nowhere.
    """
    values = {} if path is None else read_yaml(path)
    values |= changes
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("bad training configuration", where=path, **explain(error, TrainConfig)) from error
    return config if path is None else located(config, path, changes.keys())


class _Once(yaml.SafeLoader):
    """Plain YAML in which no mapping says a key twice: the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is said twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, is not valid YAML, or holds no mapping.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except OSError as error:
        raise ConfigError("cannot read the configuration", where=path, why=error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not valid YAML", where=path, why=str(error)) from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError("a configuration must be a mapping", where=path, mend="start with `model: leadline-s`")
    return loaded


_FORMS = {  # how values of pydantic's kinds are written
    **dict.fromkeys(("tuple_type", "list_type"), "write a list, as in [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "write a mapping, as in {key: value}"),
}


def explain(error: ValidationError, model: type[BaseModel]) -> dict[str, str]:
    """`why` and `mend` for one fault that pydantic found, with `did you mean` for an unknown key or name.

    An unknown key goes first: it may be the misspelt one that is missing.
    """
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return {
            "why": f"unknown key {place!r}",
            "mend": closest(str(first["loc"][-1]), _keys_at(model, first["loc"][:-1])),
        }
    if first["type"] == "missing":
        return {"why": f"{place!r} is missing", "mend": f"add `{place}: ...`"}
    if first["type"] == "union_tag_invalid":
        tags = [name.strip(" '") for name in first["ctx"]["expected_tags"].split(",")]
        return {"why": f"{place}: no {first['ctx']['tag']!r}", "mend": closest(first["ctx"]["tag"], tags)}
    if first["type"] == "union_tag_not_found":
        return {"why": f"{place} does not say which", "mend": f"add {first['ctx']['discriminator']}: ..."}
    said = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    return {"why": f"{place}: {said}" if place else said, "mend": _FORMS.get(first["type"], "")}


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """The keys that are known at a place of the configuration, as pydantic names it: fields, indices, union names."""
    inside: list[type[BaseModel]] = []
    for part in place:
        field = model.model_fields.get(str(part))
        if field is not None:
            inside = list(_models_in(field.annotation))
            model = inside[0] if inside else model
        elif isinstance(part, str):
            model = next((each for each in inside if part in _names_of(each)), model)
    return set(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configuration models inside an annotation such as `list[Annotated[A | B, ...]] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _names_of(model: type[BaseModel]) -> set[str]:
    return {
        name for field in model.model_fields.values() for name in get_args(field.annotation) if isinstance(name, str)
    }
