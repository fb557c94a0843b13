"""A study as a YAML file: what is compared, checked completely before any work."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leadline.errors import ConfigError, LeadlineError, closest
from leadline.evaluation.protocols import get_protocol
from leadline.reference import HUGGING_FACE, RANDOM, zoo
from leadline.runtimes.base import RUNTIMES, Precision
from leadline.studies.recommend import Limits
from leadline.studies.study import engine_of
from leadline.training.config import explain, read_yaml
from leadline.training.paths import located_data, located_path

if TYPE_CHECKING:
    from collections.abc import Iterator

Size = tuple[int, int]


class LimitsFile(BaseModel):
    """What the recommended candidate must keep to."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_drop: float = Field(default=0.01, ge=0, description="largest loss of the primary metric")
    max_ms: float | None = Field(default=None, gt=0, description="largest median of a run, ms")
    max_mb: float | None = Field(default=None, gt=0, description="largest size on disk, MB")


class StudyFile(BaseModel):
    """What a study compares: engines x precisions x sizes x batches, on one data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, description="model reference")
    data: str = Field(default="rendered", min_length=1, description="data set reference")
    split: str | None = Field(default=None, description="part of the data set")
    protocol: str | None = Field(default=None, description="how accuracy is counted; plain, or fidelity without truth")
    alignments: Literal["both", "one"] = Field(
        default="both", description="metres with and without alignment, or as the protocol says"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many pictures")
    runtime: tuple[str, ...] = Field(default=(), description="engines in order of preference: the first that is here")
    runtimes: tuple[str, ...] = Field(default=(), description="engines, all of them; `NAME` or `NAME on DEVICE`")
    precisions: tuple[str, ...] = Field(default=(), description="fp32, fp16, bf16, int8-static ...")
    sizes: tuple[Size, ...] = Field(default=(), description="of the network's input, HEIGHTxWIDTH")
    batches: tuple[int, ...] = Field(default=(1,), min_length=1, description="pictures given to an engine at once")
    devices: tuple[str, ...] = Field(default=(), description="of the engines, by their own names")
    machines: tuple[str, ...] = Field(default=(), description="of the device farm; `here` is this one")
    threads: int = Field(default=1, ge=0, le=256, description="of each engine; 0: its own choice")
    runs: int = Field(default=60, ge=5, description="timed runs of each candidate")
    calibration: str | None = Field(default=None, description="pictures for static INT8; rendered ones by default")
    calibration_count: int = Field(default=64, ge=1, description="how many of them")
    limits: LimitsFile = Field(default_factory=LimitsFile, description="what the recommended one must keep to")
    timeout: float | None = Field(default=None, gt=0, description="seconds until an engine counts as hanging")
    terms: str = Field(default="", description="terms of the weights, printed with the figures")

    @field_validator("runtime", "runtimes", "precisions", "devices", "machines", "batches", "sizes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("precisions", mode="after")
    @classmethod
    def _small(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower() for name in value)

    @field_validator("sizes", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return [_size(one) for one in (value if isinstance(value, list | tuple) else [value])]

    @field_validator("batches")
    @classmethod
    def _counted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= one <= 64 for one in value):
            raise ValueError("a batch holds 1 to 64 pictures")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.runtime and self.runtimes:
            raise ValueError("`runtime` takes the first that is here, `runtimes` all: write one of them")
        return self

    @property
    def bounds(self) -> Limits:
        """The limits as the recommendation takes them."""
        return Limits(self.limits.max_drop, self.limits.max_ms, self.limits.max_mb)


def load_study(path: Path, overrides: dict[str, Any] | None = None) -> StudyFile:
    """Read a study's YAML file; its relative paths are looked for as those of a training configuration.

    Args:
        path: the file.
        overrides: keys that flags set; their paths count from the current folder.

    Raises:
        ConfigError: the file is missing or no mapping, has an unknown key or a wrong value, names an engine, precision
            or protocol that there is not, or a path of it leads nowhere.
    """
    said = {key: value for key, value in (overrides or {}).items() if value is not None}
    values = read_yaml(path)
    try:
        file = StudyFile.model_validate(values | said)
    except ValidationError as error:
        raise ConfigError("bad study", where=path, **explain(error, StudyFile)) from error
    _check_names(file, path)
    changes: dict[str, Any] = {}
    if "data" not in said:
        changes["data"] = located_data(file.data, path)
    if file.calibration is not None:
        changes["calibration"] = located_data(file.calibration, path)
    if "model" not in said and not _is_name(file.model):
        changes["model"] = _found(file.model, path)
    return file.model_copy(update=changes)


def _check_names(file: StudyFile, path: Path) -> None:
    """Refuse names that stand for nothing, with the file and the key."""
    for key in ("runtime", "runtimes"):
        for entry in getattr(file, key):
            with said_in(path, key):
                name, _ = engine_of(entry)
                if name not in RUNTIMES:
                    raise ConfigError("unknown engine", where=name, mend=closest(name, RUNTIMES))
    known = [precision.value for precision in Precision]
    for name in file.precisions:
        with said_in(path, "precisions"):
            if name not in known:
                raise ConfigError("unknown precision", where=name, mend=closest(name, known))
    if file.protocol is not None:
        with said_in(path, "protocol"):
            get_protocol(file.protocol)


@contextmanager
def said_in(path: Path | None, key: str) -> Iterator[None]:
    """Put the file and its key before what is wrong with the key's value."""
    try:
        yield
    except LeadlineError as error:
        if path is None:
            raise
        what = f"{path}: {key}: {error.what}"
        raise type(error)(what, where=error.where, why=error.why, mend=error.mend) from error


def _is_name(reference: str) -> bool:
    return reference in zoo() or reference.startswith((HUGGING_FACE, RANDOM))


def _found(reference: str, file: Path) -> str:
    """A folder beside the file; what leads nowhere stays, and opening it says so in its own words."""
    try:
        return located_path(reference, file)
    except ConfigError:
        return reference


def _size(value: Any) -> Any:
    """(height, width) of `672x448`, `672,448` or [672, 448]."""
    if isinstance(value, str):
        parts = [part.strip() for part in re.split("[,x×]", value.lower())]
        if len(parts) == 2 and all(part.isdecimal() and part.isascii() for part in parts):
            return int(parts[0]), int(parts[1])
    elif isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value):
        return tuple(value)
    raise ValueError(f"{value!r} is no size; write HEIGHTxWIDTH, as in 224x320")
