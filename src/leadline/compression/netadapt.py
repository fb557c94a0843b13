"""NetAdapt (Yang et al., ECCV 2018; SPEC.md 2): narrow the group that costs least accuracy, until the budget is met.

The loop is `netadapt_loop`, the carrying out and judging of a proposal `proposals`, the resource `resources`. Here they
meet a network, the recipe's data, and a folder in which every finished proposal and turn survives a kill.
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from leadline.compression.base import Place, Step, Target
from leadline.compression.channel_plan import Bar, draw_plan
from leadline.compression.finetune import with_term
from leadline.compression.graph import groups
from leadline.compression.judging import needed
from leadline.compression.measure import scored
from leadline.compression.netadapt_loop import Adaptation, Narrowing, Proposal, Rule, Schedule, Turn, ranked
from leadline.compression.proposals import (
    CHECKPOINT,
    Task,
    in_processes,
    in_this_process,
    on_ray,
    save,
    save_tensors,
    work,
)
from leadline.compression.recalibrate import norms_of, pictures
from leadline.compression.resources import (
    Latency,
    Macs,
    Resource,
    ResourceName,
    Weights,
    latency_on,
    narrowed,
    shapes_of,
)
from leadline.compression.tuning import configured, tune
from leadline.errors import ConfigError, DataError, closest, one_line
from leadline.evaluation.metrics import LABELS
from leadline.output import write_atomic
from leadline.reference import load_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leadline.compression.importance import Importance
    from leadline.reference import LoadedModel

HISTORY, SUMMARY, PLAN = "history.json", "summary.json", "plan"
NEAR = 0.1  # how far a predicted latency may be from the measured one
START, RANKING, PICTURES = "start", "ranking.safetensors", "pictures.safetensors"


class NetAdapt(Step):
    """Narrow groups of channels one after the other, each time the one that costs least accuracy.

    The defaults are the published ones. On a CPU, 10 iterations for each of some 35 groups (the published scripts take
    500) cost most of an hour per turn: with `shortlist` only the proposals that are best without them are fine-tuned,
    with `iterations: 0` none is, and `winner_iterations` lets the chosen network recover instead. A larger `ratio`
    makes fewer turns.
    """

    trains: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train", "validation", "target"})
    models: ClassVar[tuple[str, ...]] = ("teacher",)
    made: ClassVar[tuple[str, ...]] = ("table",)

    step: Literal["netadapt"] = "netadapt"
    resource: ResourceName = Field(default="latency", description="on the recipe's target, or counted")
    budget: float = Field(default=0.5, gt=0, lt=1, description="share of the first network's resource to end at")
    ratio: float = Field(default=0.025, gt=0, lt=1, description="share of it that the first iteration takes away")
    decay: float = Field(default=0.96, gt=0, le=1, description="factor of that from one iteration to the next")
    max_iterations: Annotated[int, Field(ge=1)] = Field(default=40, description="at most so many")
    rule: Rule = Field(default="ratio", description="accuracy lost per resource gained, or accuracy alone (the paper)")
    reaching: bool = Field(default=False, description="groups that miss the target alone only where all of them do")
    multiple: Annotated[int, Field(ge=1)] = Field(default=8, description="widths are multiples of so many channels")
    groups: tuple[str, ...] = Field(default=(), description="that may be narrowed; all where absent")
    importance: Literal["l1", "l2", "bn-scale", "taylor"] = Field(
        default="l2", description="which channels of a group stay; l2 is the published rule, taylor reads gradients"
    )
    batches: Annotated[int, Field(ge=1)] = Field(default=10, description="training batches of `taylor`, each turn")
    recalibrate: Annotated[int, Field(ge=0)] = Field(
        default=0, description="training batches that batch norms take new statistics from in each narrowed network"
    )
    iterations: Annotated[int, Field(ge=0)] = Field(default=10, description="short fine-tuning of each proposal")
    shortlist: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="fine-tune only so many, the best ones before it; all where absent"
    )
    winner_iterations: Annotated[int, Field(ge=0)] = Field(
        default=0, description="further fine-tuning of the proposal that was chosen"
    )
    final_iterations: Annotated[int, Field(ge=0)] = Field(default=1000, description="long fine-tuning at the end")
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate of all of these")
    final_rate: float | None = Field(default=None, gt=0, lt=10, description="of the long one, where it differs")
    teacher: str | None = Field(default=None, description="model reference that the long fine-tuning follows, too")
    metric: str | None = Field(default=None, description="of the validation's protocol; delta1 where it has it")
    # a plain text: the file grows while the step runs, and what it holds decides nothing that the options do not
    table: str | None = Field(default=None, description="file of measured pieces; in the step's folder where absent")
    ray: bool = Field(default=False, description="proposals on a Ray cluster that sees the same folder")
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in LABELS:
            raise ValueError(f"no such metric {metric!r}: {closest(metric, LABELS)}")
        return metric

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse groups that the network does not have, and `recalibrate` without batch norm."""
        if source.architecture is None:
            return
        known = {group.name for group in groups(source)}
        if unknown := set(self.groups) - known:
            name = min(unknown)
            raise ConfigError("no such group of channels", where=name, mend=closest(name, known))
        if self.recalibrate:
            norms_of(source.model, source.name)

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The adapted network, fine-tuned; plan.svg, plan.png, history.json and summary.json in the place's folder."""
        if source.architecture is None:
            why = "channels are taken out of the architectures of `leadline models`"
            raise ConfigError("cannot adapt", where=source.name, why=why)
        needed(place)
        self.check(source, place.target)
        if self.iterations or self.winner_iterations or self.final_iterations or self.importance == "taylor":
            configured(source, place, self._brief(1, 0))
        if self.recalibrate:
            configured(source, place, {})
        size = source.contract.checked_size(place.target.size or _size(source))
        with ExitStack() as stack:
            resource = self._resource(place, size, stack)
            work = _Networks(self, source, place, resource)
            history = work.begun()
            network = work.current(history)
            schedule = Schedule(self.budget, self.ratio, self.decay, self.max_iterations, self.rule, self.reaching)
            network = Adaptation(work, schedule, place.say).run(network, history, work.keep)
            self._conclude(source, network, history, place, resource)
        if self.final_iterations:
            place.say(f"long fine-tuning: {self.final_iterations} iterations")
            network = tune(network, place, self._final(source, place), folder=place.folder / "final")
        return replace(source, model=network.model, config=network.config, contract=network.contract)

    def _resource(self, place: Place, size: tuple[int, int], stack: ExitStack) -> Resource:
        if self.resource == "macs":
            return Macs(size)
        if self.resource == "weights":
            return Weights()
        return latency_on(place, size, self.table, stack)

    def _brief(self, iterations: int, turn: int) -> dict[str, Any]:
        """A training so short that warm-up, the fall of the rate and an average of weights would swallow it."""
        says = {"warmup": min(5, iterations // 2), "decay": 0.0, "ema": 0.0, "schedule": None, "imagenet": False}
        return {"iterations": iterations, "learning_rate": self.learning_rate, "seed": self.seed + turn, **says}

    def _final(self, source: LoadedModel, place: Place) -> dict[str, Any]:
        warmup = min(configured(source, place, {}).warmup, self.final_iterations // 10)
        rate = self.final_rate or self.learning_rate
        says: dict[str, Any] = {"warmup": warmup, "learning_rate": rate, "seed": self.seed, "imagenet": False}
        if self.teacher is not None:
            says |= with_term(source, place, {"loss": "teacher", "teacher": self.teacher})
        return {"iterations": self.final_iterations, **says}

    def _conclude(
        self, source: LoadedModel, network: LoadedModel, history: list[Turn], place: Place, resource: Resource
    ) -> None:
        """The summary and the picture of what became of each group."""
        now = {group.name: group.width for group in groups(network)}
        bars = [Bar(group.name, group.width, now[group.name], group.producers) for group in groups(source)]
        first, last = history[0], history[-1]
        says: dict[str, Any] = {
            "resource": resource.name,
            "unit": resource.unit,
            "first": first.resource,
            "last": last.resource,
            "predicted_last": last.predicted if len(history) > 1 else first.resource,
            "predicted_from_start": resource.from_start(source, network, first.resource),
            "accuracy": [first.accuracy, last.accuracy],
            "widths": {bar.name: [bar.before, bar.after] for bar in bars},
            "producers": {bar.name: list(bar.layers) for bar in bars},
        }
        write_atomic(place.folder / SUMMARY, (json.dumps(says, indent=2) + "\n").encode())
        title = f"{source.name}: {last.resource / first.resource:.0%} of the {resource.name}"
        for ending in ("svg", "png"):
            draw_plan(bars, place.folder / f"{PLAN}.{ending}", title)
        place.say(
            f"{resource.name} {first.resource:.6g} -> {last.resource:.6g} {resource.unit}, {place.folder / PLAN}.svg"
        )
        if isinstance(resource, Latency):
            place.say(_as_predicted(says["predicted_last"], says["predicted_from_start"], last.resource))


def _as_predicted(corrected: float, alone: float, measured: float) -> str:
    """How near the table was to the last network's measured time; beyond `NEAR` its choices are doubtful."""
    off, far = corrected / measured - 1, alone / measured - 1
    said = f"predicted {corrected:.6g} ms, {off:+.1%} of what was measured (by the table alone {far:+.1%})"
    if abs(off) <= NEAR:
        return said
    return f"{said}; beyond {NEAR:.0%} the table misleads: measure it again on an idle machine (another `table`)"


@dataclass
class _Networks:
    """`netadapt_loop.Work` on networks of the registry, with its state in the place's folder."""

    options: NetAdapt
    source: LoadedModel
    place: Place
    resource: Resource

    def __post_init__(self) -> None:
        self.allowed = set(self.options.groups) or {group.name for group in groups(self.source)}
        self.history: list[Turn] = []
        self._shapes: tuple[LoadedModel, LoadedModel] | None = None

    def begun(self) -> list[Turn]:
        """The history so far; of a new loop, the accuracy and the resource of the network that it begins with."""
        path = self.place.folder / HISTORY
        if path.is_file():
            self.history = _read(path)
            return self.history
        start = self.place.folder / START
        if not (start / CHECKPOINT / "manifest.json").is_file():
            save(self.source, start / CHECKPOINT)
        outcome = work(self._task(start, start / CHECKPOINT, "", 0, None), self.place.say)
        if outcome.accuracy is None:
            raise ConfigError("the network cannot be judged", where=self.source.name, why=outcome.failure)
        measured = self.resource.measure(self.source)
        self.place.say(f"start: accuracy {outcome.accuracy:.4f}, {measured:.6g} {self.resource.unit}")
        self.keep([Turn(iteration=0, accuracy=outcome.accuracy, resource=measured, source=f"{START}/{CHECKPOINT}")])
        return self.history

    def current(self, history: list[Turn]) -> LoadedModel:
        """The network that the last turn left, and the resource set to what was measured of it."""
        self.resource.refer(self.source, history[0].resource)
        network = load_model(str(self.place.folder / history[-1].source))
        if len(history) > 1:
            self.resource.refer(network, history[-1].resource)
        return network

    def keep(self, history: list[Turn]) -> None:
        """Write the history, then remove what the turns before it did not choose."""
        self.history = history
        text = json.dumps({"turns": [turn.model_dump() for turn in history]}, indent=2) + "\n"
        write_atomic(self.place.folder / HISTORY, text.encode())
        for turn in history[1:]:
            for checkpoint in self._iteration(turn.iteration).glob(f"*/*/{CHECKPOINT}"):
                if checkpoint != self.place.folder / turn.source:
                    shutil.rmtree(checkpoint)

    def groups(self, network: LoadedModel) -> Mapping[str, tuple[int, int]]:
        """Groups that may be narrowed."""
        return {
            group.name: (group.width, math.lcm(self.options.multiple, group.multiple))
            for group in groups(network)
            if group.name in self.allowed
        }

    def estimate(self, network: LoadedModel, widths: Mapping[str, int]) -> float:
        """The resource of a candidate, from shapes alone."""
        if self._shapes is None or self._shapes[0] is not network:
            self._shapes = network, shapes_of(network)
        chosen = {name: range(width) for name, width in widths.items()}
        return self.resource.estimate(narrowed(self._shapes[1], chosen))

    def proposals(self, network: LoadedModel, iteration: int, narrowings: Sequence[Narrowing]) -> list[Proposal]:
        """All of them judged as they are; then those of the shortlist after a short fine-tuning."""
        count, shortlist = self.options.iterations, self.options.shortlist
        changes = self.options._brief(count, iteration) if count else None
        if changes is None or shortlist is None:
            return self._judged(iteration, narrowings, changes, "tuned" if changes else "plain")
        plain = self._judged(iteration, narrowings, None, "plain")
        best = ranked(plain, self.history[-1], self.options.rule, reaching=self.options.reaching)[:shortlist]
        return self._judged(iteration, [each.narrowing for each in best], changes, "tuned")

    def adopted(self, network: LoadedModel, iteration: int, proposal: Proposal) -> tuple[Proposal, LoadedModel, float]:
        """The proposal's network, trained further where asked for, and its resource."""
        if self.options.winner_iterations:
            folder = self._iteration(iteration) / proposal.narrowing.group / "winner"
            changes = self.options._brief(self.options.winner_iterations, iteration)
            outcome = work(self._task(folder, self.place.folder / proposal.source, "", 0, changes), self.place.say)
            if outcome.accuracy is not None:
                proposal = replace(proposal, accuracy=outcome.accuracy, source=self._relative(folder / CHECKPOINT))
        chosen = load_model(str(self.place.folder / proposal.source))
        return proposal, chosen, self.resource.measure(chosen)

    def _judged(
        self, iteration: int, narrowings: Sequence[Narrowing], changes: dict[str, Any] | None, how: str
    ) -> list[Proposal]:
        before = self.place.folder / self.history[-1].source
        seen = {"ranking": self._ranking(iteration, before), "pictures": self._pictures()}
        tasks = {}
        for each in narrowings:
            folder = self._iteration(iteration) / each.group / how
            task = self._task(folder, before, each.group, each.width, changes, **seen)
            tasks[task.folder] = each, task
        if not tasks:
            return []
        many = self.place.processes > 1 and len(tasks) > 1
        run = on_ray if self.options.ray else in_processes if many else in_this_process
        found: dict[Path, Proposal] = {}
        for outcome in run([task for _, task in tasks.values()], self.place.processes):
            each, _ = tasks[outcome.folder]
            if outcome.accuracy is None:
                self.place.say(f"warning: {each.group} {each.before} -> {each.width} left out: {outcome.failure}")
                continue
            source = self._relative(outcome.folder / CHECKPOINT)
            found[outcome.folder] = Proposal(each, outcome.accuracy, source)
            self.place.say(
                f"{iteration}: {each.group} {each.before} -> {each.width} {how}: accuracy {outcome.accuracy:.4f}, "
                f"{each.resource:.6g} {self.resource.unit}{'' if each.reached else ' (above the target)'}"
            )
        return [found[folder] for folder in tasks if folder in found]

    def _ranking(self, iteration: int, network: Path) -> Path | None:
        """The file of scores that a turn's channels are chosen by; None for the joint L2 norm of the weights."""
        importance = self.options.importance
        if importance == "l2":
            return None
        path = self._iteration(iteration) / RANKING
        if not path.is_file():
            before = load_model(str(network))
            fallback: Importance | None = "l2" if importance == "bn-scale" else None
            values = scored(
                before, groups(before), self.place, importance, fallback=fallback, batches=self.options.batches
            )
            save_tensors(values, path)
        return path.resolve()

    def _pictures(self) -> Path | None:
        """The file of batches that batch norms are recalibrated on; None where they are not."""
        if not self.options.recalibrate:
            return None
        path = self.place.folder / PICTURES
        if not path.is_file():
            batches = pictures(self.source, self.place, self.options.recalibrate)
            save_tensors({f"{number:04d}": batch for number, batch in enumerate(batches)}, path)
        return path.resolve()

    def _task(
        self,
        folder: Path,
        network: Path,
        group: str,
        width: int,
        changes: dict[str, Any] | None,
        **seen: Path | None,
    ) -> Task:
        validation = needed(self.place)
        fidelity = validation.protocol.startswith("fidelity")
        single = {"threads": 1} if self.options.ray or self.place.processes > 1 else {}
        return Task(
            folder=folder.resolve(),
            network=network.resolve(),
            group=group,
            width=width,
            changes=changes,
            train={**self.place.train, **single} if self.place.train else {},
            validation=validation,
            target=self.place.target.model_copy(update=single),
            metric=self.options.metric,
            reference=str((self.place.folder / START / CHECKPOINT).resolve()) if fidelity else None,
            **seen,
        )

    def _iteration(self, number: int) -> Path:
        return self.place.folder / f"iteration-{number:03d}"

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.place.folder.resolve()).as_posix()


def _size(source: LoadedModel) -> tuple[int, int]:
    return source.contract.input.height, source.contract.input.width


def _read(path: Path) -> list[Turn]:
    try:
        return [Turn.model_validate(turn) for turn in json.loads(path.read_bytes())["turns"]]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        mend = "remove the step's folder to begin again"
        raise DataError("unreadable history", where=path, why=one_line(error), mend=mend) from error
