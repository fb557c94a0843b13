"""The form of every step: typed options, and what it makes of a network.

A step is one module of this package with a frozen class that names itself by `step: Literal["..."]`; it is listed in
the union of `leadline.compression`. Steps know each other only through what they take and give.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from leadline.runtimes.base import Calibration, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from leadline.bundle import Bundle
    from leadline.reference import LoadedModel


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Judged(_Options):
    """Pictures with ground truth, and how accuracy is counted on them."""

    data: str = Field(description="data set reference, as for `leadline data check`")
    split: str | None = Field(default=None, description="part of it; the format's default where absent")
    first: Annotated[int, Field(ge=0)] = Field(default=0, description="index of the first sample used")
    last: int | None = Field(default=None, description="index after the last sample used; negative counts from the end")
    protocol: str = Field(default="plain", description="by name; `fidelity` needs no ground truth")
    limit: Annotated[int, Field(ge=1)] | None = Field(default=None, description="at most so many pictures")


class Pictures(_Options):
    """Pictures that show a network its usual activations."""

    data: str | None = Field(default=None, description="data set reference or folder; rendered scenes where absent")
    split: str | None = Field(default=None, description="part of it")
    count: Annotated[int, Field(ge=1)] = Field(default=100, description="at most so many")
    method: Calibration = Field(default="minmax", description="how ranges are found, where a step does not say")


class Target(_Options):
    """The device and engine that latency is measured on: this machine."""

    runtime: str = Field(default="onnxruntime", description="engine whose time counts")
    threads: Annotated[int, Field(ge=0)] = Field(default=1, description="of the engine; 0 is its own choice")
    size: tuple[int, int] | None = Field(default=None, description="(height, width); the contract's where absent")
    device: str = Field(default="cpu", description="by the target engine's own name: cuda, GPU, vulkan, ...")

    @property
    def options(self) -> SessionOptions:
        """How the engine opens what is measured."""
        return self.options_of(self.runtime)

    def options_of(self, runtime: str) -> SessionOptions:
        """The same for any engine: devices have other names in others, which therefore take the CPU."""
        return SessionOptions(threads=self.threads, device=self.device if runtime == self.runtime else "cpu")


@dataclass(frozen=True)
class Place:
    """Where a step works, and what the recipe lets it use.

    Args:
        folder: the step's own. What lies there is of an interrupted call of the same step on the same network: a step
            that takes long keeps its state there and goes on from it.
        train: values of a training configuration without `model` (sources, objectives, size, ...); empty if none.
        validation: on what a step decides; never the data of the final figures. None where the recipe names none.
        calibration: pictures for quantisation.
        target: device and engine.
        say: takes one line of progress.
        processes: how many may work side by side.
    """

    folder: Path
    train: Mapping[str, Any] = field(default_factory=dict)
    validation: Judged | None = None
    calibration: Pictures = field(default_factory=Pictures)
    target: Target = field(default_factory=Target)
    say: Callable[[str], None] = lambda line: None
    processes: int = 1


class Step(_Options):
    """Something done to a network; a subclass names itself with `step: Literal["..."] = "..."`."""

    trains: ClassVar[bool] = False  # needs `train` in the recipe, whatever the options
    judges: ClassVar[bool] = False  # needs `validation` likewise
    bundles: ClassVar[bool] = False  # gives a bundle, which no further step takes
    # Parts of the recipe that the result may depend on: `place` holds these alone, and a change of them does the step
    # again. All that a step does not read is better left out, or a new target repeats hours of training.
    uses: ClassVar[frozenset[str]] = frozenset({"train", "validation", "calibration", "target"})

    rebuilds: ClassVar[bool] = False  # gives another configuration, whose layers may have other names
    models: ClassVar[tuple[str, ...]] = ()  # options that name other models, one or a list of them
    made: ClassVar[tuple[str, ...]] = ()  # options that name files which the step may make itself

    step: str

    def named_models(self) -> list[str]:
        """The model references among the options."""
        said = [getattr(self, key) for key in self.models]
        return [ref for one in said if one for ref in ([one] if isinstance(one, str) else one)]

    def needs(self) -> frozenset[str]:
        """Of `uses`, and perhaps more, what the step reads with these options."""
        return self.uses

    def needs_train(self) -> bool:
        """Whether the step, with these options, needs `train` in the recipe."""
        return self.trains

    def needs_validation(self) -> bool:
        """Whether the step, with these options, needs `validation` in the recipe."""
        return self.judges

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse what is wrong whatever the steps before do, before any of them begins.

        Args:
            source: the network that the recipe begins with; no step between changes names, or adds channels.
            target: engine and device of the recipe.

        Raises:
            ConfigError, UnavailableError: as `apply` would, later.
        """

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel | Bundle:
        """What the step makes of a network; `source` itself stays as it is.

        Args:
            source: the network, float32, with its contract, configuration and lineage.
            place: where to work.

        Returns:
            Another network, or a bundle in `place.folder / "bundle"`. Neither carries this step in its lineage: the
            recipe adds it.

        Raises:
            ConfigError: the options contradict each other, the network or the recipe.
            DataError: data is missing or unusable.
        """
        raise NotImplementedError(type(self).__name__)
