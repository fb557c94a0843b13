"""A recipe: a model, its data, and the steps that make it small; YAML, checked completely before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from leadline.compression import AnyStep, Judged, Pictures, Step, Target
from leadline.errors import ConfigError, closest
from leadline.reference import HUGGING_FACE, RANDOM, zoo
from leadline.training.config import TrainConfig, explain, load_config, read_yaml
from leadline.training.paths import beside, located, located_data, located_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# Keys of a training configuration that choose the network that a run begins with: here a step's own.
OF_THE_START = {"model", "network", "name", "truncate_from", "imagenet", "half", "card", "validation"}
NAMELESS = "recipe"  # stands for the model where training data is checked on its own


class Recipe(BaseModel):
    """What is done to a network, with what, and how the result is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, description="model reference: what the first step takes")
    train: dict[str, Any] = Field(
        default_factory=dict, description="training configuration without `model`, or the path of one"
    )
    validation: Judged | None = Field(default=None, description="pictures that steps decide on")
    calibration: Pictures = Field(default_factory=Pictures, description="pictures that quantisation looks at")
    score: Judged | None = Field(default=None, description="pictures of the figures before and after")
    target: Target = Field(default_factory=Target, description="engine and threads whose time counts")
    steps: list[SerializeAsAny[Step]] = Field(min_length=1, description="what is done, in order")

    @field_validator("steps", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [one if isinstance(one, Step) else parse_step(one, f"steps.{at}") for at, one in enumerate(value)]

    @field_validator("train")
    @classmethod
    def _trainable(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "validation" in value:
            mend = "put `validation` beside `train`"
            raise ConfigError("bad training configuration", where="train", why="a recipe has one of its own", mend=mend)
        if foreign := sorted(OF_THE_START & value.keys()):
            why = f"{foreign[0]!r} belongs to the start of a training run; here each step starts at what it is given"
            raise ConfigError("bad training configuration", where="train", why=why, mend=f"leave {foreign[0]!r} out")
        if value:
            checked(value)
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for one in self.steps:
            if one.needs_train() and not self.train:
                mend = "add `train: FILE.yaml`, or `train: {sources: [{data: DATA}]}`; --train-data DATA of `compress`"
                raise ConfigError("a step trains", where=one.step, why="the recipe has no `train`", mend=mend)
            if one.needs_validation() and self.validation is None:
                mend = "add `validation: {data: DATA}`, pictures that are neither learned nor finally scored; "
                mend += "--validation DATA of `compress`"
                raise ConfigError("a step decides by accuracy", where=one.step, why="no `validation`", mend=mend)
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if before.bundles:
                why = f"it gives a bundle, which holds no network any more; {after.step} stands behind it"
                raise ConfigError("no step can follow", where=before.step, why=why, mend=f"put {before.step} last")
        return self


def known_steps() -> dict[str, type[Step]]:
    """The classes of the union of steps, by name."""
    inside = get_args(AnyStep)[0]
    return {str(one.model_fields["step"].default): one for one in get_args(inside) or (inside,)}


def parse_step(values: Any, where: str) -> Step:
    """One entry of `steps`.

    Args:
        values: a mapping with `step: NAME` and its options, or the bare name.
        where: the entry's place, for messages.

    Raises:
        ConfigError: an unknown step or option, or a wrong value.
    """
    values = {"step": values} if isinstance(values, str) else values
    known = known_steps()
    if not isinstance(values, dict) or not isinstance(values.get("step"), str):
        mend = f"write {{step: NAME, ...}}; {closest('', known)}"
        raise ConfigError("not a step", where=where, why=f"got {values!r}", mend=mend)
    name = values["step"]
    if name not in known:
        raise ConfigError("unknown step", where=name, why=f"at {where}", mend=closest(name, known))
    try:
        return known[name].model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"bad option of step {name}", where=where, **explain(error, known[name])) from error


def load_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML file; its relative paths are looked for as those of a training configuration.

    Raises:
        ConfigError: the file is missing or no mapping, has an unknown key, step or option, a wrong value, a path that
            leads nowhere, or a step without the data that it needs.
    """
    values = read_yaml(path)
    if "train" in values:
        values["train"] = _train_of(values["train"], path)
    if isinstance(values.get("model"), str):
        values["model"] = _model_of(values["model"], path)
    if isinstance(values.get("steps"), list):
        values["steps"] = [parse_step(one, f"{path}, steps.{at}") for at, one in enumerate(values["steps"])]
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError("bad recipe", where=path, **explain(error, Recipe)) from error
    changes: dict[str, Any] = {"steps": [_located(one, path) for one in recipe.steps]}
    for key in ("validation", "score", "calibration"):
        part = getattr(recipe, key)
        if part is not None and part.data is not None:
            changes[key] = part.model_copy(update={"data": located_data(part.data, path)})
    return recipe.model_copy(update=changes)


def _located(step: Step, file: Path) -> Step:
    """A step whose files are looked for as the recipe's other paths are."""
    changes: dict[str, Any] = {}
    for key, value in step:
        if isinstance(value, Path):
            changes[key] = Path(located_path(str(value), file))
        elif value and key in step.models:
            changes[key] = _model_of(value, file) if isinstance(value, str) else [_model_of(one, file) for one in value]
        elif value and key in step.made:
            changes[key] = beside(value, file)
    return step.model_copy(update=changes)


def train_file(path: Path) -> dict[str, Any]:
    """What a training configuration's file says of data, losses and length: all but the start.

    Raises:
        ConfigError: it is not valid, or a path of it leads nowhere.
    """
    said = load_config(path, {} if "model" in read_yaml(path) else {"model": NAMELESS})
    return said_values(said, drop=OF_THE_START)


def checked(train: Mapping[str, Any]) -> TrainConfig:
    """The training configuration that a recipe's `train` makes, for a model without a name.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    try:
        return TrainConfig.model_validate({**train, "model": NAMELESS})
    except ValidationError as error:
        raise ConfigError("bad training configuration", where="train", **explain(error, TrainConfig)) from error


def _train_of(value: Any, file: Path) -> Any:
    """The mapping of a recipe's `train`, with its paths located."""
    if isinstance(value, str):
        return train_file(Path(located_path(value, file)))
    if not isinstance(value, dict) or not value or OF_THE_START & value.keys():
        return value  # what is wrong with it is said when the recipe is checked
    return said_values(located(checked(value), file, ()), drop={"model"})


def said_values(config: TrainConfig, drop: Collection[str]) -> dict[str, Any]:
    """The keys of a training configuration that were said, as plain values, but for some."""
    values = config.model_dump(mode="json")
    return {key: values[key] for key in values if key in config.model_fields_set and key not in drop}


def _model_of(reference: str, file: Path) -> str:
    """A model reference of a file: names stay, and so does what leads nowhere, which opening it explains."""
    if reference in zoo() or reference.startswith((HUGGING_FACE, RANDOM)):
        return reference
    try:
        return located_path(reference, file)
    except ConfigError:
        return reference
