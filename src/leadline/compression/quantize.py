"""Quantisation after training as a step: a bundle of narrower arithmetic, and in words what it costs and brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from leadline.bundle import Bundle, load_bundle, write_bundle
from leadline.compression.base import Place, Step, Target
from leadline.compression.judging import needed
from leadline.compression.mixed_precision import Mixture, mixture
from leadline.compression.sensitivity import order_of_file
from leadline.compression.verdict import accuracy_change, verdict
from leadline.errors import ConfigError
from leadline.manifest import manifest_kind
from leadline.runtimes.base import (
    Calibration,
    ExportOptions,
    Precision,
    check_options,
    refuse_precision,
    required,
)
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.export import export_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.reference import LoadedModel


class Quantize(Step):
    """Export in narrower arithmetic, calibrated and corrected as asked, and say what it costs and brings."""

    bundles: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"validation", "calibration", "target"})

    step: Literal["quantize"] = "quantize"
    runtime: str | None = Field(default=None, description="engine; that of the target where absent")
    precision: Precision = Field(default=Precision.INT8_STATIC, description="arithmetic")
    method: Calibration | None = Field(
        default=None, description="how activation ranges are found; as `calibration` says where absent"
    )
    percentile: float = Field(
        default=99.99, gt=0, le=100, description="of |x| that is kept; given without `method`, it is the method"
    )
    per_channel: bool = Field(default=True, description="one weight scale per output channel, or one for all")
    symmetric: bool = Field(default=False, description="activation ranges symmetric about zero")
    equalise: bool = Field(default=False, description="even out weights along chains of convolutions with ReLU")
    bias_correction: bool = Field(default=False, description="take the mean error of each layer out of its bias")
    smooth: float | None = Field(default=None, ge=0, le=1, description="SmoothQuant's alpha, for transformers")
    exclude: tuple[str, ...] = Field(default=(), description="nodes of the ONNX graph that stay in float")
    max_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="layers leave INT8 until the primary metric on `validation` loses no more than this"
    )
    sensitivity: Path | None = Field(
        default=None,
        description="sensitivity.json of `leadline sensitivity --kind bits`: layers leave in its order; else by what "
        "each alone does to the output on calibration pictures",
    )

    def _method(self, usual: Calibration) -> Calibration:
        return self.method or ("percentile" if "percentile" in self.model_fields_set else usual)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "percentile" in self.model_fields_set and self.method not in (None, "percentile"):
            raise ValueError(f"percentile belongs to method percentile, not to {self.method}")
        if self.max_drop is not None and self.precision is not Precision.INT8_STATIC:
            raise ValueError(f"max_drop chooses layers of int8-static, not of {self.precision}")
        if self.sensitivity is not None and self.max_drop is None:
            raise ValueError("sensitivity orders the layers that max_drop chooses from: give max_drop too")
        try:
            check_options(self._options(self._method("minmax")))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def needs_validation(self) -> bool:
        """To hold a limit of accuracy."""
        return self.max_drop is not None

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse an engine that is missing or cannot hold the precision, and a sensitivity file that cannot be used."""
        self._ranked(source, lambda line: None)
        refuse_precision(required(self.runtime or target.runtime), self._options(self._method("minmax")))

    def apply(self, source: LoadedModel, place: Place) -> Bundle:
        """A bundle in `place.folder / "bundle"`, its `details["verdict"]` in words and figures.

        Raises:
            ConfigError: the engine or the network does not take the options, `max_drop` without validation data, or
                INT8 cannot meet `max_drop`.
            DataError: the calibration set is empty or unreadable.
            ParityError: the result is no longer the same network.
            UnavailableError: the engine is missing.
        """
        name = self.runtime or place.target.runtime
        static = self.precision is Precision.INT8_STATIC
        method = self._method(place.calibration.method) if static else "minmax"
        options = replace(self._options(method), size=place.target.size, cache=place.folder / "graphs")
        adapter = required(name)
        refuse_precision(adapter, options)
        if self.max_drop is not None:
            needed(place)
        if static:
            pictures = place.calibration
            place.say(f"reading at most {pictures.count} pictures to calibrate with")
            inputs = calibration_inputs(
                pictures.data, source.contract, options.size, pictures.count, split=pictures.split
            )
            options = replace(options, calibration=inputs)
        place.say(f"exporting FP32 and {self.precision} to {name}")
        reference = _exported_once(
            source, name, replace(ExportOptions(), size=options.size, cache=options.cache), place
        )
        mixed: Mixture | None = None
        if self.max_drop is not None:
            place.say(f"trying how many layers must leave INT8 for a loss of at most {self.max_drop:g}")
            measure = accuracy_change(reference, place)
            ranked = self._ranked(source, place.say)
            mixed = mixture(source, adapter, options, place, self.max_drop, measure, ranked)
            options = mixed.options
        bundle = export_bundle(source, name, options, place.folder / "bundle", pictures=place.calibration.data)
        place.say("measuring against FP32")
        told = verdict(bundle, reference, place)
        details = {**bundle.details, "verdict": told}
        if mixed is not None:
            details["mixed_precision"] = {"in_float": list(mixed.out), "layers": mixed.layers}
            told["words"].append(f"{len(mixed.out)} of {mixed.layers} layers left INT8 for a loss of {self.max_drop:g}")
        for line in told["words"]:
            place.say(line)
        return write_bundle(
            bundle.folder,
            runtime=bundle.runtime,
            precision=bundle.precision,
            contract=bundle.contract,
            size=bundle.size,
            dynamic=bundle.dynamic,
            lineage=bundle.lineage,
            details=details,
        )

    def _ranked(self, source: LoadedModel, say: Callable[[str], None]) -> list[str]:
        """Module paths of the sensitivity file, the most sensitive first; empty without one."""
        if self.sensitivity is None:
            return []
        ranked = order_of_file(self.sensitivity, source.name, say)
        if not set(ranked) & {name for name, _ in source.model.named_modules()}:
            mend = "make it of this network: leadline sensitivity REF --kind bits"
            raise ConfigError(
                "the sensitivity file names no layer of", where=source.name, why=f"it has {ranked[0]}, ...", mend=mend
            )
        return ranked

    def _options(self, method: Calibration) -> ExportOptions:
        return ExportOptions(
            precision=self.precision,
            method=method,
            percentile=self.percentile,
            per_channel=self.per_channel,
            symmetric=self.symmetric,
            exclude=self.exclude,
            equalise=self.equalise,
            bias_correction=self.bias_correction,
            smooth=self.smooth,
        )


def _exported_once(source: LoadedModel, name: str, options: ExportOptions, place: Place) -> Bundle:
    """The FP32 bundle of the same engine, which size, time and accuracy are compared with."""
    folder = place.folder / "fp32"
    if manifest_kind(folder) == "bundle":
        return load_bundle(folder)
    return export_bundle(source, name, options, folder)
