"""Quantisation-aware training as a step: the network learns in the INT8 arithmetic that it will be exported to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from leadline.compression.base import Place, Step
from leadline.compression.qat_start import calibrated_start, schedule, train
from leadline.compression.quantised_network import Training
from leadline.compression.tuning import configured
from leadline.runtimes.base import Calibration

if TYPE_CHECKING:
    from leadline.reference import LoadedModel


class QuantisationAwareTraining(Step):
    """Train with INT8 rounding, from a calibrated start with batch norms folded and frozen."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train", "calibration"})

    step: Literal["qat"] = "qat"
    iterations: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="a tenth of the network's training where absent (Wu et al. 2020), else 500"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, lt=10, description="peak; a hundredth of that of its training where absent, else 1e-5"
    )
    ranges: Literal["fixed", "learned"] = Field(
        default="fixed", description="after calibration: fixed, or steps of weights and activations learned (LSQ)"
    )
    freeze_after: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="iterations after which learned steps stay; to the end where absent"
    )
    method: Calibration | None = Field(
        default=None, description="how ranges are found at the start; as `calibration` says where absent"
    )
    percentile: float = Field(
        default=99.99, gt=0, le=100, description="of |x| that is kept; given without `method`, it is the method"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.freeze_after is not None and self.ranges == "fixed":
            raise ValueError("freeze_after belongs to `ranges: learned`; fixed ones never move")
        if "percentile" in self.model_fields_set and self.method not in (None, "percentile"):
            raise ValueError(f"percentile belongs to method percentile, not to {self.method}")
        return self

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The network with float weights on INT8 grids, and those grids: exported with them instead of calibrating.

        Raises:
            ConfigError: the network is not of the registry, or the recipe has no training data.
            DataError: no calibration pictures.
            UnavailableError: the network cannot be traced or exported.
            See `leadline.training.fit.fit` for the rest.
        """
        changes = schedule(source, self.iterations, self.learning_rate)
        pieces = configured(source, place, changes).accumulate
        frozen = None if self.freeze_after is None else self.freeze_after * pieces
        training = Training(learns=self.ranges == "learned", freeze_after=frozen)
        method = self.method or ("percentile" if "percentile" in self.model_fields_set else None)
        start = calibrated_start(source, place, training, method=method, percentile=self.percentile)
        trained, _ = train(source, start, place, changes, place.folder / "training")
        return trained
