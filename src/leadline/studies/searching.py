"""The recipes that `optimize` tries where it may train: few, in order of promise, within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadline.compression import Judged, Target
from leadline.errors import ConfigError, LeadlineError
from leadline.reference import load_model
from leadline.studies.recipe import Recipe, known_steps
from leadline.studies.recipe_run import run_steps
from leadline.studies.recipe_start import begin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT = (0.5, 0.3, 0.7)  # shares of the MACs that stay, in order of promise


@dataclass(frozen=True)
class Training:
    """What a search over recipes may use.

    Args:
        train: training configuration without `model`.
        validation: pictures that steps decide on; without them, steps that decide are left out.
        minutes: for all recipes together; measuring comes after.
        iterations: of each fine-tuning.
    """

    train: dict[str, Any]
    validation: Judged | None = None
    minutes: float = 60.0
    iterations: int = 500


@dataclass
class Found:
    """What a search made.

    Args:
        networks: as (in words, checkpoint folder), in order of promise.
        notices: of what was not tried or did not work, and why.
    """

    networks: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class _OverError(Exception):
    """The budget ended."""


def candidates(training: Training) -> list[tuple[str, list[dict[str, Any]]]]:
    """Recipes as (in words, steps), in order of promise; those whose steps this version has.

    Quantisation after training is not among them: `optimize` measures every network in each precision anyway.
    """
    tuned = {"step": "finetune", "iterations": training.iterations}
    half, aware = KEPT[0], {"step": "qat", "iterations": training.iterations}
    phases = {"warmup": max(1, training.iterations // 2), "iterations": 2 * training.iterations}
    phases["finetune"] = training.iterations
    listed: list[tuple[str, list[dict[str, Any]]]] = [
        *((f"channels of {share:.0%} MACs", [{"step": "prune-channels", "macs": share}, tuned]) for share in KEPT),
        ("fine-tuned", [tuned]),
        (f"channels of {half:.0%} MACs, INT8-aware", [{"step": "prune-channels", "macs": half}, tuned, aware]),
        ("INT8-aware", [aware]),
        (f"netadapt to {half:.0%} time", [{"step": "netadapt", "budget": half}, tuned]),
        (f"search to {half:.0%} MACs", [{"step": "search-channels", "targets": {"macs": half}, **phases}]),
    ]
    known = known_steps()
    return [
        (words, steps)
        for words, steps in listed
        if all(one["step"] in known for one in steps)
        and (training.validation is not None or not any(known[one["step"]].judges for one in steps))
    ]


def search(model: str, training: Training, target: Target, out: Path, say: Callable[[str], None]) -> Found:
    """Carry out recipe after recipe until the budget ends; run again, finished steps are taken as they are.

    Args:
        model: reference.
        training: data and budget.
        target: engine whose latency steps look at.
        out: folder of all recipes; what they share is done once.
        say: takes each line of progress.

    Raises:
        ConfigError: the model is none of our architectures, which cannot be trained.
        DataError, KindError: the training data cannot be used, whatever the recipe.
    """
    if load_model(model).architecture is None:
        why = "only the architectures of `leadline models` can be trained and saved"
        raise ConfigError("cannot search over recipes", where=model, why=why, mend="leave --train-data out")
    end = time.monotonic() + 60 * training.minutes
    found = Found()

    def may_go_on() -> None:
        if time.monotonic() > end:
            say(f"the budget of {training.minutes:g} min is over")
            raise _OverError

    begun = None
    for words, steps in candidates(training):
        recipe = Recipe.model_validate(
            {
                "model": model,
                "train": training.train,
                "validation": training.validation,
                "target": target,
                "steps": steps,
            }
        )
        begun = begun or begin(recipe, out)
        if time.monotonic() > end:
            found.notices.append(f"{words}: not tried, the budget of {training.minutes:g} min was over.")
            continue
        say(f"recipe: {words}")
        try:
            found.networks.append((words, run_steps(recipe, begun, out, say, may_go_on=may_go_on)[-1].ref))
        except _OverError:
            again = "the same command again goes on there"
            found.notices.append(f"{words}: not finished within {training.minutes:g} min; {again}.")
        except LeadlineError as error:
            found.notices.append(f"{words}: {error}")
    return found
