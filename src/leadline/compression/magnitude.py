"""Magnitude pruning as a step: the smallest weights become 0, at once or in rounds with training between.

Zeros alone make no file smaller and no dense engine faster (SPEC.md 7.3 point 5); they compress in an archive, and they
are what fine-tuning under a mask and PQK start from. `prune-channels` is the step that makes networks faster.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from leadline.compression.base import Place, Step, _Options
from leadline.compression.tuning import tune
from leadline.compression.weighted import LAYER_KINDS, LayerKind
from leadline.compression.zeros import UNSTRUCTURED, Cut, Rule, kept_of, pruned, pruned_onnx
from leadline.errors import ConfigError
from leadline.runtimes.base import ExportOptions
from leadline.runtimes.export import export_bundle
from leadline.runtimes.onnx_source import OnnxNetwork

if TYPE_CHECKING:
    from leadline.bundle import Bundle
    from leadline.reference import LoadedModel


class Gradual(_Options):
    """Prune a little, train, prune more: the share of zeros grows along a cubic curve, fast first (Zhu & Gupta)."""

    rounds: Annotated[int, Field(ge=1, le=100)] = Field(default=4, description="prunings, each with training after it")
    iterations: Annotated[int, Field(ge=1)] = Field(default=200, description="of training after each pruning")
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate of each training")


class PruneMagnitude(Step):
    """Put zeros where the weights are smallest by |w| (L1)."""

    uses: ClassVar[frozenset[str]] = frozenset({"train", "target"})

    step: Literal["prune-magnitude"] = "prune-magnitude"
    amount: float | None = Field(default=None, gt=0, lt=1, description="share of the weights that become 0")
    scope: Literal["global", "layer", "sensitivity"] = Field(
        default="global", description="all layers ranked together, each on its own, or shares from a sensitivity file"
    )
    sensitivity: Path | None = Field(default=None, description="sensitivity.json of `leadline sensitivity`")
    pattern: str = Field(default=UNSTRUCTURED, description="`unstructured`, or N:M along input channels, as in 2:4")
    layers: tuple[LayerKind, ...] = Field(default=LAYER_KINDS, min_length=1, description="kinds of layers")
    exclude: tuple[str, ...] = Field(default=(), description="layers or modules that stay as they are, by path")
    output_layer: bool = Field(default=False, description="prune the last layers too, as study A did")
    gradual: Gradual | None = Field(default=None, description="in rounds with training between; needs `train`")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        try:
            patterned = kept_of(self.pattern) is not None
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if patterned and (self.amount is not None or self.scope != "global" or self.gradual is not None):
            raise ValueError(f"pattern {self.pattern} fixes the amount: leave amount, scope and gradual out")
        if not patterned and self.amount is None:
            raise ValueError("say how much becomes 0, as in `amount: 0.5`")
        if (self.scope == "sensitivity") != (self.sensitivity is not None):
            raise ValueError("scope sensitivity and a sensitivity file belong together")
        return self

    @field_validator("pattern", mode="before")
    @classmethod
    def _sexagesimal(cls, value: object) -> object:
        """YAML reads 2:4 without quotes as minutes and seconds, 124."""
        return f"{value // 60}:{value % 60}" if isinstance(value, int) and not isinstance(value, bool) else value

    def needs_train(self) -> bool:
        """To train between rounds."""
        return self.gradual is not None

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel | Bundle:
        """The network with zeros; of an ONNX file, a bundle for the target's engine.

        Raises:
            ConfigError: an unknown layer, nothing to prune, or training between rounds without `train` or of a network
                that is not in the registry.
            DataError: the sensitivity file cannot be used.
        """
        rule = self._rule(source, place)
        if isinstance(source.model, OnnxNetwork):
            return self._bundle(source, source.model, rule, place)
        if self.gradual is None:
            return _cut_one(source, rule, place)
        if source.architecture is None:
            mend = "leave `gradual` out"
            raise ConfigError("cannot train between rounds", where=source.name, why="it is not our network", mend=mend)
        changes = {"iterations": self.gradual.iterations, "learning_rate": self.gradual.learning_rate}
        for number, share in enumerate(cubic(self.gradual.rounds), start=1):
            place.say(f"round {number} of {self.gradual.rounds}")
            source = _cut_one(source, _weakened(rule, share), place)
            source = tune(source, place, changes, folder=place.folder / f"round-{number:02d}", keep_zeros=True)
        return source

    def _rule(self, source: LoadedModel, place: Place) -> Rule:
        if self.sensitivity is None:
            return Rule(
                amount=self.amount or 0.0,
                scope="layer" if self.scope == "layer" else "global",
                pattern=self.pattern,
                layers=self.layers,
                exclude=self.exclude,
                output_layer=self.output_layer,
            )
        from leadline.compression.sensitivity import amounts_of_file

        assert self.amount is not None
        amounts = amounts_of_file(self.sensitivity, self.amount, source.name, place.say)
        return Rule(amounts=amounts, layers=self.layers, exclude=self.exclude, output_layer=self.output_layer)

    def _bundle(self, source: LoadedModel, file: OnnxNetwork, rule: Rule, place: Place) -> Bundle:
        if self.gradual is not None:
            raise ConfigError("cannot train an ONNX file", where=file.path, mend="leave `gradual` out")
        proto, done = pruned_onnx(file.proto(), rule)
        _tell(done, place)
        place.folder.mkdir(parents=True, exist_ok=True)
        path = place.folder / "pruned.onnx"
        path.write_bytes(proto.SerializeToString(deterministic=True))
        network = replace(source, model=OnnxNetwork(path, source.contract))
        options = ExportOptions(size=place.target.size)
        return export_bundle(network, place.target.runtime, options, place.folder / "bundle")


def cubic(rounds: int) -> list[float]:
    """Shares of the final amount after each of `rounds` rounds: 1 - (1 - k / rounds)^3 (Zhu & Gupta 2017, eq. 1)."""
    return [1 - (1 - number / rounds) ** 3 for number in range(1, rounds + 1)]


def _cut_one(source: LoadedModel, rule: Rule, place: Place) -> LoadedModel:
    spec = source.contract.input
    model, done = pruned(source.model, rule, torch.zeros(1, 3, spec.height, spec.width))
    _tell(done, place)
    return replace(source, model=model)


def _tell(done: Cut, place: Place) -> None:
    place.say(f"{done.share:.2%} of the weights of {len(done.masks)} layers are 0")
    if done.dense:
        some = ", ".join(f"{name} ({inputs})" for name, inputs in list(done.dense.items())[:4])
        more = f" and {len(done.dense) - 4} more" if len(done.dense) > 4 else ""
        place.say(f"left dense, for the pattern does not fit their inputs: {some}{more}")


def _weakened(rule: Rule, share: float) -> Rule:
    amounts = None if rule.amounts is None else {name: share * amount for name, amount in rule.amounts.items()}
    return replace(rule, amount=share * rule.amount, amounts=amounts)
