"""Fine-tuning as a step: the recipe's training data, for some iterations, zeros kept where pruning left them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from leadline.compression.base import Place, Step
from leadline.compression.tuning import tune

if TYPE_CHECKING:
    from leadline.reference import LoadedModel


class FineTune(Step):
    """Train further on the recipe's `train`."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train"})

    step: Literal["finetune"] = "finetune"
    iterations: Annotated[int, Field(ge=1)] = 500
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate; lower than that of training")
    keep_zeros: bool = Field(default=True, description="weights that pruning set to 0 stay 0")

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The network after `iterations` more."""
        changes = {"iterations": self.iterations, "learning_rate": self.learning_rate}
        return tune(source, place, changes, keep_zeros=self.keep_zeros)
