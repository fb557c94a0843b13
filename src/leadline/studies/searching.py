"""The recipes that `optimize` tries where it may train: few, in order of promise, within a time budget."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.compression import Judged, Target
from leadline.compression.piece_timing import EngineTimer
from leadline.errors import ConfigError, LeadlineError
from leadline.evaluation.complexity import count_parameters
from leadline.output import write_atomic
from leadline.reference import LoadedModel, load_model
from leadline.studies.recipe import Recipe, known_steps
from leadline.studies.recipe_run import run_steps
from leadline.studies.recipe_start import begin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from leadline.studies.recommend import Limits

WARMUP, RUNS = 5, 30
KEPT = (0.5, 0.3, 0.7)  # shares of the MACs that stay, in order of promise
LEAST = 0.1  # smallest share that is tried: below it nothing here keeps its accuracy
INT8_TIME, INT8_SIZE = 0.5, 0.27  # usual shares of FP32 on a CPU (docs/compression.md)
AIMS = "aims.json"  # what the model took when the search began, so that it goes on with the same recipes


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


def aims(limits: Limits, ms: float, mb: float) -> tuple[float, ...]:
    """Three shares of the MACs to aim at, in order of promise.

    First those at which the limits would hold in INT8, then in FP32, with a tenth to spare, in steps of 5 %; the usual
    ones fill up. Shares of 1 or more need no recipe, and those below `LEAST` are raised to it.

    Args:
        limits: the user's.
        ms: of the model in FP32 on the target.
        mb: of its weights in FP32.
    """
    wanted = []
    for time_share, size_share in ((INT8_TIME, INT8_SIZE), (1.0, 1.0)):
        shares = [
            limit / (share * whole)
            for limit, share, whole in ((limits.max_ms, time_share, ms), (limits.max_mb, size_share, mb))
            if limit is not None
        ]
        if shares and min(shares) < 1:
            wanted.append(max(LEAST, round(20 * 0.9 * min(shares)) / 20))
    return tuple(dict.fromkeys((*wanted, *KEPT)))[: len(KEPT)]


def candidates(training: Training, shares: tuple[float, ...] = KEPT) -> list[tuple[str, list[dict[str, Any]]]]:
    """Recipes as (in words, steps), in order of promise; those whose steps this version has.

    Quantisation after training is not among them: `optimize` measures every network in each precision anyway.

    Args:
        training: what they may use.
        shares: of the MACs, or of the time, that they leave, in order of promise.
    """
    tuned = {"step": "finetune", "iterations": training.iterations}
    first, aware = shares[0], {"step": "qat", "iterations": training.iterations}
    phases = {"warmup": max(1, training.iterations // 2), "iterations": 2 * training.iterations}
    phases["finetune"] = training.iterations
    listed: list[tuple[str, list[dict[str, Any]]]] = [
        *((f"channels of {share:.0%} MACs", [{"step": "prune-channels", "macs": share}, tuned]) for share in shares),
        ("fine-tuned", [tuned]),
        (f"channels of {first:.0%} MACs, INT8-aware", [{"step": "prune-channels", "macs": first}, tuned, aware]),
        ("INT8-aware", [aware]),
        (f"netadapt to {first:.0%} time", [{"step": "netadapt", "budget": first}, tuned]),
        (f"search to {first:.0%} MACs", [{"step": "search-channels", "targets": {"macs": first}, **phases}]),
    ]
    known = known_steps()
    return [
        (words, steps)
        for words, steps in listed
        if all(one["step"] in known for one in steps)
        and (training.validation is not None or not any(known[one["step"]].judges for one in steps))
    ]


def search(
    model: str,
    training: Training,
    target: Target,
    out: Path,
    say: Callable[[str], None],
    limits: Limits | None = None,
) -> Found:
    """Carry out recipe after recipe until the budget ends; run again, finished steps are taken as they are.

    Args:
        model: reference.
        training: data and budget.
        target: engine whose latency steps look at.
        out: folder of all recipes; what they share is done once.
        say: takes each line of progress.
        limits: the user's: recipes aim at what would keep to them.

    Raises:
        ConfigError: the model is none of our architectures, which cannot be trained.
        DataError, KindError: the training data cannot be used, whatever the recipe.
    """
    loaded = load_model(model)
    if loaded.architecture is None:
        why = "only the architectures of `leadline models` can be trained and saved"
        raise ConfigError("cannot search over recipes", where=model, why=why, mend="leave --train-data out")
    end = time.monotonic() + 60 * training.minutes
    found = Found()

    def may_go_on() -> None:
        if time.monotonic() > end:
            say(f"the budget of {training.minutes:g} min is over")
            raise _OverError

    shares = KEPT if limits is None else _aims(loaded, target, limits, out, say)
    begun = None
    for words, steps in candidates(training, shares):
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


def _aims(
    loaded: LoadedModel, target: Target, limits: Limits, out: Path, say: Callable[[str], None]
) -> tuple[float, ...]:
    """`aims` of a model, whose time is taken once and kept in `out`."""
    if limits.max_ms is None and limits.max_mb is None:
        return KEPT
    mb = 4 * count_parameters(loaded.model) / 1e6
    path = out / AIMS
    if path.is_file():
        ms = float(json.loads(path.read_bytes())["ms"])
    else:
        size = target.size or (loaded.contract.input.height, loaded.contract.input.width)
        with EngineTimer(target.runtime, target.options).network(loaded, size) as timed:
            timed.run(WARMUP)
            ms = float(np.median(timed.run(RUNS)))
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"ms": ms}).encode())
    found = aims(limits, ms, mb)
    listed = ", ".join(f"{share:.0%}" for share in found)
    say(f"FP32 takes {ms:.3g} ms and {mb:.3g} MB; by the limits, recipes aim at {listed} of it")
    return found
