"""Fine-tuning as a step: the recipe's training data, for some iterations, zeros kept where pruning left them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from leadline.compression.base import Place, Step
from leadline.compression.tuning import configured, tune

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leadline.reference import LoadedModel


class FineTune(Step):
    """Train further on the recipe's `train`."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    models: ClassVar[tuple[str, ...]] = ("teacher",)

    step: Literal["finetune"] = "finetune"
    iterations: Annotated[int, Field(ge=1)] = 500
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate; lower than that of training")
    keep_zeros: bool = Field(default=True, description="weights that pruning set to 0 stay 0")
    teacher: str | None = Field(
        default=None, description="model reference to follow on the same pictures, such as the uncompressed network"
    )
    teacher_weight: float = Field(default=1.0, gt=0, description="factor of the distance to the teacher in the loss")

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The network after `iterations` more."""
        changes: dict[str, Any] = {"iterations": self.iterations, "learning_rate": self.learning_rate}
        if self.teacher is not None:
            term = {"loss": "teacher", "teacher": self.teacher, "weight": self.teacher_weight}
            changes |= with_term(source, place, term)
        return tune(source, place, changes, keep_zeros=self.keep_zeros)


def with_term(source: LoadedModel, place: Place, term: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's objectives and one more, as a change of its training configuration."""
    given = configured(source, place, {}).objectives
    return {"objectives": [*(one.model_dump(mode="json") for one in given), dict(term)]}
