"""Search over configurations with two goals, accuracy and cost, by NSGA-II (Deb et al. 2002; Optuna does the sampling).

Every trial builds the network of a configuration, gives it what fits of the source's weights, trains it shortly,
scores it on the recipe's validation data and measures what it costs. All budgets are equal.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression.base import Place, Step, Target
from leadline.compression.configurations import Space, checked_space, count, label, network
from leadline.compression.front import Point, choose, front, write
from leadline.compression.judging import judge, needed
from leadline.compression.resources import Macs, ResourceName, Weights
from leadline.compression.tuning import configured, tune
from leadline.errors import ConfigError, DataError, LeadlineError, OutputError, UnavailableError, sides
from leadline.evaluation.protocols import get_protocol
from leadline.output import write_atomic
from leadline.training.batches import Mix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from leadline.compression.piece_timing import EngineTimer
    from leadline.reference import LoadedModel

STORAGE, SCALE = "search.db", "yardstick.json"
UNITS = {"latency": "ms", "macs": "MACs", "weights": "weights"}
LIMITS = {"trials", "max_resource", "references", "finetune"}  # what may change while a search goes on


class SearchConfigs(Step):
    """Sample configurations of the network's architecture, and take one from the front of accuracy and cost."""

    trains: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train", "validation", "target"})
    rebuilds: ClassVar[bool] = True
    models: ClassVar[tuple[str, ...]] = ("references",)

    step: Literal["search-configs"] = "search-configs"
    space: dict[str, list[Any]] = Field(
        default={},
        description="choices by key of the configuration; `decoder_widths.0` is one width, `size` a pair; absent: "
        "encoders, kernels, decoder widths and sizes of FastDepth's family, which are said",
    )
    first: list[dict[str, Any]] = Field(
        default=[], description="configurations that are tried first, such as those of hand-made networks"
    )
    trials: Annotated[int, Field(ge=1)] = Field(
        default=30, description="different configurations; all of a smaller space"
    )
    population: Annotated[int, Field(ge=2)] = Field(default=10, description="configurations of a generation")
    iterations: Annotated[int, Field(ge=0)] = Field(
        default=300, description="training of each; 0: the source's weights, with statistics of batch norms anew"
    )
    learning_rate: float = Field(default=1e-3, gt=0, lt=10, description="peak rate of this training")
    inherit: bool = Field(default=True, description="start from leading slices of the source's weights where they fit")
    imagenet: bool = Field(default=False, description="start other encoders from ImageNet weights where there are any")
    resource: ResourceName = Field(default="latency", description="what counts beside accuracy")
    max_resource: float | None = Field(
        default=None, gt=0, description="most accurate within it (ms, MACs or weights); the knee where absent"
    )
    references: list[str] = Field(default=[], description="models to compare the front with, as they are")
    finetune: Annotated[int, Field(ge=0)] = Field(default=0, description="iterations of the chosen network at the end")
    seed: Annotated[int, Field(ge=0)] = 0

    def check(self, source: LoadedModel, target: Target) -> None:
        """Refuse a space that makes no sense for the network; Optuna must be here."""
        _optuna()
        self._refuse_outside(checked_space(source, self.space))

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The chosen network of the front.

        Raises:
            ConfigError: a space that makes no sense, a folder with another search, no data, or a bound that no network
                meets.
            UnavailableError: Optuna is not installed.
        """
        optuna = _optuna()
        space = checked_space(source, self.space)
        self._check(source, place, space)
        meter = _Meter(self.resource, place)
        given = self._given(place, meter)
        with _study(optuna, place.folder / STORAGE, self._facts(source, space)) as study:
            self._resume(optuna, study, space)
            while _tried(optuna, study) < min(self.trials, count(space)):
                study.sampler = self._sampler(optuna, study)
                self._trial(optuna, study, study.ask(), space, source, place, meter)
            points, failed = _results(optuna, study, space)
        if not points:
            why = f"all {len(failed)} failed; the first: {next(iter(failed.values()))}"
            raise ConfigError("no trial of the search could be judged", where=str(place.folder), why=why)
        best = choose(front(points), self.max_resource, UNITS[self.resource])
        axes = _accuracy(place), f"{self.resource}, {UNITS[self.resource]}"
        write(place.folder, [*points, *given], best, axes, failed)
        beaten = [other.name for other in given if best.beats(other)]
        place.say(f"chosen: {best.name}, {axes[0]} {best.accuracy:.4f}, {best.resource:.4g} {UNITS[self.resource]}")
        if given:
            names = ", ".join(beaten)
            place.say(f"better in both than {names}" if beaten else "it beats none of the given models in both")
        saved = load_checkpoint(_folder(place, best.chosen) / "checkpoint")
        found = replace(source, model=saved.model(), contract=saved.contract, config=saved.config)
        if not self.finetune:
            return found
        return tune(found, place, self._changes(found, self.finetune), folder=place.folder / "fine-tune")

    def _check(self, source: LoadedModel, place: Place, space: Space) -> None:
        configured(source, place, {})
        protocol = get_protocol(needed(place).protocol)
        if protocol.truth == "model":
            mend = "name a validation set with depth, and a protocol such as `plain`"
            raise ConfigError("a search needs ground truth", where=protocol.label, mend=mend)
        self._refuse_outside(space)
        if not self.space:
            place.say(f"no `space` is given: {'; '.join(f'{key}: {choices}' for key, choices in space.items())}")
        trials = min(self.trials, count(space))
        place.say(f"{count(space)} configurations, {trials} trials of {self.iterations} iterations")

    def _refuse_outside(self, space: Space) -> None:
        for values in self.first:
            for key, value in values.items():
                if key not in space or value not in space[key]:
                    mend = f"add it to the choices of {key}"
                    raise ConfigError("not in the space", where=key, why=f"`first` has {value}", mend=mend)
        if len(set(map(_key, self.first))) < len(self.first):
            raise ConfigError("`first` names a configuration twice")

    def _facts(self, source: LoadedModel, space: Space) -> dict[str, Any]:
        """What must stay the same for a search to go on."""
        assert source.config is not None
        options = self.model_dump(mode="json", exclude=LIMITS | {"space"})
        return {**options, "space": space, "source": source.config.model_dump(mode="json")}

    def _sampler(self, optuna: Any, study: Any) -> Any:
        """Seeded by the trial's number, so that a search that was interrupted draws what it would have drawn."""
        seed = 1_000_003 * self.seed + _tried(optuna, study)
        return optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)

    def _resume(self, optuna: Any, study: Any, space: Space) -> None:
        """Put what is to come first into the queue; a trial that was cut off is tried again."""
        if not study.trials:
            for values in self.first:
                study.enqueue_trial({key: json.dumps(value) for key, value in values.items()})
        for cut in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(cut.number, state=optuna.trial.TrialState.FAIL)
            if cut.params.keys() == space.keys():
                study.enqueue_trial(cut.params)

    def _trial(
        self, optuna: Any, study: Any, trial: Any, space: Space, source: LoadedModel, place: Place, meter: _Meter
    ) -> None:
        drawn = {
            key: json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in choices]))
            for key, choices in space.items()
        }
        earlier = _same(optuna, study, trial)
        if earlier is not None:
            place.say(f"trial {trial.number}: {label(drawn)}: as trial {earlier.number}")
            study.enqueue_trial(self._untried(optuna, study, space))
            trial.set_user_attr("same_as", earlier.number)
            for name, value in earlier.user_attrs.items():
                trial.set_user_attr(name, value)
            study.tell(trial, earlier.values, state=earlier.state)
            return
        try:
            values = self._judged(source, drawn, place, meter)
        except (DataError, OutputError):
            raise  # of the recipe, not of this network
        except LeadlineError as error:
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            place.say(f"trial {trial.number}: {label(drawn)}: failed: {error}")
            return
        accuracy, low, high, resource = values
        trial.set_user_attr("interval", [low, high])
        study.tell(trial, [accuracy, resource])
        place.say(f"trial {trial.number}: {label(drawn)}: {accuracy:.4f}, {resource:.4g} {UNITS[self.resource]}")

    def _untried(self, optuna: Any, study: Any, space: Space) -> dict[str, str]:
        """A random configuration that no trial has judged yet, instead of one that was drawn again."""
        known = [trial.params for trial in _ended(optuna, study)]
        draw = random.Random(f"{self.seed} {len(known)}")
        while True:  # ends: the search does before all are known
            found = {key: json.dumps(draw.choice(choices)) for key, choices in space.items()}
            if found not in known:
                return found

    def _judged(
        self, source: LoadedModel, drawn: Mapping[str, Any], place: Place, meter: _Meter
    ) -> tuple[float, float, float, float]:
        """Accuracy with its interval, and cost, of one configuration; its checkpoint stays in its folder."""
        folder = _folder(place, drawn)
        child = network(source, drawn, seed=self.seed, inherit=self.inherit, imagenet=self.imagenet)
        resource = meter(child)
        if self.iterations:
            child = tune(child, place, self._changes(child, self.iterations), folder=folder / "training")
        else:
            _settle(child, place, self._changes(child, 1))
        figure = judge(child.model, child.contract, place).summary()[_metric(place)]
        assert child.architecture is not None
        assert child.config is not None
        save_checkpoint(
            folder / "checkpoint",
            child.model,
            architecture=child.architecture,
            config=child.config,
            contract=child.contract,
        )
        shutil.rmtree(folder / "training", ignore_errors=True)  # moments and average, three times the network
        return figure.value, figure.low, figure.high, resource

    def _changes(self, network: LoadedModel, iterations: int) -> dict[str, Any]:
        size = (network.contract.input.height, network.contract.input.width)
        return {"iterations": iterations, "learning_rate": self.learning_rate, "size": size}

    def _given(self, place: Place, meter: _Meter) -> list[Point]:
        """The models to compare with, judged as they are."""
        from leadline.reference import load_model

        points = []
        for reference in self.references:
            loaded = load_model(reference)
            figure = judge(loaded.model, loaded.contract, place).summary()[_metric(place)]
            points.append(Point(loaded.name, figure.value, figure.low, figure.high, meter(loaded), {}))
            size = sides((loaded.contract.input.height, loaded.contract.input.width))
            cost = f"{points[-1].resource:.4g} {UNITS[self.resource]}"
            place.say(f"given, at its own {size}: {loaded.name}: {figure.value:.4f}, {cost}")
        return points


class _Meter:
    """What a network costs, at its contract's size."""

    def __init__(self, resource: ResourceName, place: Place) -> None:
        self._resource, self._place = resource, place
        self._timer: EngineTimer | None = None

    def __call__(self, network: LoadedModel) -> float:
        size = network.contract.input.height, network.contract.input.width
        if self._resource == "macs":
            return Macs(size).measure(network)
        if self._resource == "weights":
            return Weights().measure(network)
        if self._timer is None:
            from leadline.compression.piece_timing import EngineTimer

            self._timer = EngineTimer(self._place.target.runtime, self._place.target.options)
            path = self._place.folder / SCALE  # trials of another day stay comparable
            known = json.loads(path.read_text())["milliseconds"] if path.is_file() else None
            write_atomic(path, json.dumps({"milliseconds": self._timer.scale(known)}).encode())
        return self._timer.alone(network, size)


def _settle(network: LoadedModel, place: Place, changes: Mapping[str, Any], batches: int = 10) -> None:
    """Let batch norms take the statistics of some training batches, in place."""
    norms = [module for module in network.model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    config = configured(network, place, changes)
    assert config.size is not None
    mix = Mix(config, network.contract, config.size)
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    network.model.train()
    with torch.no_grad():
        for number in range(batches):
            network.model(mix.batch(number).image)
    network.model.eval()
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        mend = "install it: pip install 'leadline[search]'"
        raise UnavailableError("Optuna is not installed", mend=mend) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _study(optuna: Any, path: Path, facts: dict[str, Any]) -> Iterator[Any]:
    """Optuna's study in a SQLite file; what is fixed for a search is stored with it.

    Raises:
        ConfigError: the file holds another search.
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("cannot write to", where=path, why=error.strerror or str(error)) from error
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.create_study(
            storage=storage, study_name="search", directions=["maximize", "minimize"], load_if_exists=True
        )
        stored = study.user_attrs.get("facts")
        if stored is None:
            study.set_user_attr("facts", facts)
        else:
            for key, value in json.loads(json.dumps(facts)).items():
                if stored.get(key) != value:
                    why = f"it was begun with {key} = {stored.get(key)}, now {value}"
                    raise ConfigError(
                        "cannot continue the search", where=path.parent, why=why, mend="remove the folder"
                    )
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _tried(optuna: Any, study: Any) -> int:
    """Configurations that were judged or failed."""
    return len(_ended(optuna, study))


def _ended(optuna: Any, study: Any) -> list[Any]:
    """Trials that were judged or failed, without those that were cut off or drew a configuration again."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    ended = [one for one in study.get_trials(states=states) if "same_as" not in one.user_attrs]
    return [one for one in ended if one.state == states[0] or "failure" in one.user_attrs]


def _same(optuna: Any, study: Any, trial: Any) -> Any:
    """An earlier trial of the same configuration that ended, if there is one."""
    params = study.trials[trial.number].params
    for other in study.trials[: trial.number]:
        ended = other.state == optuna.trial.TrialState.COMPLETE or "failure" in other.user_attrs
        if ended and other.params == params:
            return other
    return None


def _results(optuna: Any, study: Any, space: Space) -> tuple[list[Point], dict[str, str]]:
    """Each configuration once: those that were judged, and why the others failed."""
    points, failed = [], {}
    for trial in study.trials:
        chosen = {key: json.loads(trial.params[key]) for key in space if key in trial.params}
        if "same_as" in trial.user_attrs:
            continue
        if trial.state == optuna.trial.TrialState.COMPLETE:
            accuracy, resource = trial.values
            low, high = trial.user_attrs["interval"]
            points.append(Point(label(chosen), accuracy, low, high, resource, chosen, trial.number))
        elif "failure" in trial.user_attrs:
            failed[label(chosen)] = trial.user_attrs["failure"]
    return points, failed


def _key(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _folder(place: Place, drawn: Mapping[str, Any]) -> Path:
    """Of a configuration: the same for every trial of it, so that training that was cut off goes on."""
    return place.folder / f"config-{_key(drawn)}"


def _metric(place: Place) -> str:
    return get_protocol(needed(place).protocol).primary


def _accuracy(place: Place) -> str:
    wanted = needed(place)
    return f"{_metric(place)} ({wanted.protocol})"
