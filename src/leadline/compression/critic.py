"""Compressor and critic: which elements a network can do without, learned from its own loss (DeepIoT; SPEC.md 8).

The critic is the network with every unit switched on or off at random; the compressor (compressor.py) says how likely
each is on. They learn in turn, the critic from the task, the compressor from the critic's loss alone (REINFORCE). A
threshold rises meanwhile: units that fall below it are on half as often, and in the end are gone.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from leadline.compression.base import Place, Step
from leadline.compression.compressor import Baseline, Compressor, log_likelihood, lowered, threshold_at
from leadline.compression.graph import keep, output_axis, per_channel, wiring_of
from leadline.compression.maskable import exact_map, input_size
from leadline.compression.masks import attach, detach
from leadline.compression.pricing import Costs, Counted
from leadline.compression.tuning import configured, tune
from leadline.errors import CheckpointError, ConfigError, NumericalError
from leadline.models.outputs import outputs
from leadline.output import write_atomic
from leadline.training.batches import Mix, ahead
from leadline.training.objectives import Seen, total_loss

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from leadline.compression.channel_map import ChannelMap
    from leadline.reference import LoadedModel
    from leadline.training.batches import Batch
    from leadline.training.config import TrainConfig

STATE, REPORT = "compressor.safetensors", "compressor.json"
CRITIC_L2 = 5e-4


class DeepIoT(Step):
    """Let a compressor network learn which channels go, until the resource goal holds."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train"})

    step: Literal["deepiot"] = "deepiot"
    resource: Counted = Field(default="params", description="what the goal counts: params or macs")
    target: float = Field(default=0.5, gt=0, lt=1, description="share of the network that may stay")
    threshold: float = Field(default=0.825, gt=0, lt=1, description="keep probability below which a unit goes, at last")
    steps: Annotated[int, Field(ge=1)] = Field(default=33, description="in which the threshold rises to it")
    every: Annotated[int, Field(ge=1)] = Field(default=500, description="iterations of each")
    start: float = Field(default=0.5, gt=0, lt=1, description="keep probability at the beginning")
    critic_rate: float = Field(default=1e-4, gt=0, lt=10, description="learning rate of the network (Adam)")
    compressor_rate: float = Field(default=1e-3, gt=0, lt=10, description="of the compressor (RMSProp)")
    finetune: Annotated[int, Field(ge=0)] = Field(default=500, description="iterations after it")
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate of the fine-tuning")
    exclude: list[str] = Field(default=[], description="groups of channels that stay whole, by name")
    seed: Annotated[int, Field(ge=0)] = 0

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The network with the units that are kept.

        Raises:
            ConfigError: nothing to choose from, a target that no choice meets, or no training data.
            NumericalError: the critic's loss is not finite.
        """
        config = configured(source, place, {"iterations": self.every * (self.steps + 1)})
        chart = exact_map(source, self.exclude, place)
        costs = Costs(source.model, chart, input_size(source))
        whole = float(costs.of(self.resource, torch.ones(chart.units)))
        self._check(costs, chart, whole)
        pair = _Pair(source, chart, self, config)
        done = _resume(place.folder / STATE, pair, self)
        kept = pair.above(threshold_at(max(done - 1, 0), self.steps, self.threshold))
        while done <= self.steps and float(costs.of(self.resource, kept)) > self.target * whole:
            pair.learn(done, config)
            threshold = threshold_at(done, self.steps, self.threshold)
            kept = pair.above(threshold)
            done += 1
            _save(place.folder / STATE, pair, done, self)
            share = float(costs.of(self.resource, kept)) / whole
            place.say(f"threshold {threshold:.3f}: {self.resource} {share:.3f}, critic's loss {pair.baseline.mean:.4f}")
        least = self._least(chart, costs, whole, pair.probabilities(), kept)
        if not torch.equal(least, kept):
            place.say("the last threshold takes more than was asked: the likeliest of what it takes stay")
        kept = least
        self._report(chart, costs, whole, kept, place)
        found = keep(replace(source, model=pair.released()), chart.named(kept))
        if not self.finetune:
            return found
        changes = {"iterations": self.finetune, "learning_rate": self.learning_rate}
        return tune(found, place, changes, folder=place.folder / "fine-tune")

    def _check(self, costs: Costs, chart: ChannelMap, whole: float) -> None:
        least = torch.zeros(chart.units)
        least[[span.start for span in chart.spans]] = 1.0
        lowest = float(costs.of(self.resource, least)) / whole
        if lowest > self.target:
            why = f"one unit in each of {len(chart.spans)} groups still costs {lowest:.4f} of the network"
            raise ConfigError(f"target {self.resource} {self.target:g} cannot be met", why=why, mend="raise the target")

    def _least(self, chart: ChannelMap, costs: Costs, whole: float, probabilities: Tensor, kept: Tensor) -> Tensor:
        """Of what the last threshold would remove only so much that the goal holds: the least likely units."""
        goal = self.target * whole
        if float(costs.of(self.resource, kept)) > goal:
            return kept
        cuts = probabilities[~kept].sort().values
        low, high = 0, len(cuts)
        while low < high:  # the fewest removed that meet the goal
            middle = (low + high) // 2
            met = float(costs.of(self.resource, _strong(chart, probabilities, float(cuts[middle]), inclusive=False)))
            low, high = (low, middle) if met <= goal else (middle + 1, high)
        return kept if low == len(cuts) else _strong(chart, probabilities, float(cuts[low]), inclusive=False)

    def _report(self, chart: ChannelMap, costs: Costs, whole: float, kept: Tensor, place: Place) -> None:
        cost = float(costs.of(self.resource, kept))
        missed = ": lower `start`, or more iterations in `every`, come closer" if cost > self.target * whole else ""
        place.say(f"{self.resource} {cost / whole:.3f} of the network, asked for {self.target:.3f}{missed}")
        widths = {
            span.name: [int(kept[span.start : span.start + span.count].sum()) * span.bundle, span.count * span.bundle]
            for span in chart.spans
        }
        document = {"resource": self.resource, "before": whole, "after": cost, "target": self.target, "widths": widths}
        write_atomic(place.folder / REPORT, json.dumps(document, indent=1).encode())


@dataclass
class _Draws:
    """Which units are on."""

    row: Tensor

    def on(self) -> Tensor:
        """1.0 or 0.0 per unit."""
        return self.row


class _Pair:
    """Critic and compressor with their optimisers.

    Args:
        source: stays as it is.
        chart: its row of units.
        options: of the step.
        config: of the training.
    """

    def __init__(self, source: LoadedModel, chart: ChannelMap, options: DeepIoT, config: TrainConfig) -> None:
        import copy

        self.source, self.chart, self.options = source, chart, options
        self.critic = copy.deepcopy(source.model)
        self.draws = _Draws(torch.ones(chart.units))
        wiring = wiring_of(source)
        spaces = {space.name: space for space in wiring.spaces}
        self._producers = [
            [(path, output_axis(wiring, spaces[span.name], path)) for path in spaces[span.name].producers]
            for span in chart.spans
        ]
        self._axes = wiring.axes
        shapes = [(span.count, kernel.shape[1]) for span, kernel in zip(chart.spans, self.kernels(), strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.compressor = Compressor(shapes, options.start)
            self.beside = nn.ModuleDict()
            for objective in config.objectives:
                for name, module in objective.modules_for(self.critic, source.contract).items():
                    if name not in self.beside:
                        self.beside[name] = module
        attach(self.critic, self.draws, chart)
        learned = [*self.critic.parameters(), *self.beside.parameters()]
        self.critic_optimizer = torch.optim.Adam(learned, lr=options.critic_rate, weight_decay=CRITIC_L2)
        self.compressor_optimizer = torch.optim.RMSprop(self.compressor.parameters(), lr=options.compressor_rate)
        self.baseline = Baseline()
        self.mix = Mix(config, source.contract, config.size or input_size(source))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Both, by the name of their moments."""
        return {"critic-moments": self.critic_optimizer, "compressor-moments": self.compressor_optimizer}

    def kernels(self) -> list[Tensor]:
        """What makes each group's units: units x (weights and biases of all producers), without masks or gradient."""
        self.draws.row = torch.ones_like(self.draws.row)
        found = []
        for span, producers in zip(self.chart.spans, self._producers, strict=True):
            rows = []
            for path, axis in producers:
                module = self.critic.get_submodule(path)
                weight, bias = module.weight, module.bias
                assert isinstance(weight, torch.Tensor)
                rows.append(per_channel(weight.detach(), axis, self._axes[f"{path}.weight"][axis]))
                if isinstance(bias, torch.Tensor) and bias.numel() == rows[-1].shape[0]:
                    rows.append(bias.detach()[:, None])
            found.append(torch.cat(rows, 1).reshape(span.count, -1))
        return found

    def probabilities(self) -> Tensor:
        """Of keeping each unit, as learned, without gradient."""
        with torch.no_grad():
            return self.compressor(self.kernels())  # type: ignore[no-any-return]

    def above(self, threshold: float) -> Tensor:
        """The units whose probability is at least the threshold, bool."""
        return _strong(self.chart, self.probabilities(), threshold)

    def learn(self, number: int, config: TrainConfig) -> None:
        """One step of the threshold: critic and compressor in turn, `every` times."""
        threshold = threshold_at(number, self.options.steps, self.options.threshold)
        first = number * self.options.every
        self.critic.train()
        for iteration, batch in enumerate(ahead(self.mix, first, first + self.options.every), start=first):
            torch.manual_seed((self.options.seed << 32) + iteration)
            kernels = self.kernels()
            with torch.no_grad():
                self.draws.row = lowered(self.compressor(kernels), threshold).bernoulli()
            loss = self._loss(batch, config)
            if not math.isfinite(float(loss.detach())):
                mend = "lower critic_rate, or check the training data"
                raise NumericalError("the critic's loss is not finite", where=f"iteration {iteration}", mend=mend)
            self.critic_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), config.clip)
            self.critic_optimizer.step()
            probabilities = lowered(self.compressor(kernels), threshold)
            self.draws.row = probabilities.detach().bernoulli()
            with torch.no_grad():
                reward = float(self._loss(batch, config))
            loss = self.baseline.advantage(reward) * log_likelihood(probabilities, self.draws.row)
            self.compressor_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.compressor_optimizer.step()
        self.critic.eval()

    def _loss(self, batch: Batch, config: TrainConfig) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            said = outputs(self.critic, batch.image)
        kind = self.source.contract.output.kind
        seen = Seen(said.float(), kind, batch, self.beside, self.critic)
        return total_loss(config.objectives, seen)[0]

    def released(self) -> nn.Module:
        """The critic as a plain network."""
        detach(self.critic)
        return self.critic.eval()


def _strong(chart: ChannelMap, probabilities: Tensor, threshold: float, *, inclusive: bool = True) -> Tensor:
    """Units at (or, not inclusive, above) the threshold, and the likeliest of each group, bool."""
    kept = probabilities >= threshold if inclusive else probabilities > threshold
    for span in chart.spans:
        kept[span.start + probabilities[span.start : span.start + span.count].argmax()] = True
    return kept


def _save(path: Path, pair: _Pair, done: int, options: DeepIoT) -> None:
    """Everything that the next step of the threshold depends on."""
    from safetensors.torch import save

    tensors = {
        f"{part}.{key}": value
        for part, module in (("critic", pair.critic), ("compressor", pair.compressor), ("beside", pair.beside))
        for key, value in module.state_dict().items()
    }
    for part, optimizer in pair.optimizers().items():
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{number}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    facts = {"done": done, "baseline": asdict(pair.baseline), "options": options.model_dump(mode="json")}
    plain = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    write_atomic(path, save(plain, metadata={"leadline": json.dumps(facts)}))


def _resume(path: Path, pair: _Pair, options: DeepIoT) -> int:
    """Steps of the threshold that are done, their state put back.

    Raises:
        CheckpointError: the file is damaged.
        ConfigError: it was made with other options.
    """
    if not path.is_file():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["leadline"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        mend = "delete it to start again"
        raise CheckpointError("unreadable state of the compressor", where=path, why=str(error), mend=mend) from error
    if facts["options"] != options.model_dump(mode="json"):
        mend = "remove the folder, or give the options of before"
        raise ConfigError("cannot continue", where=path.parent, why="it was begun with other options", mend=mend)

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    pair.critic.load_state_dict(part("critic."))
    pair.compressor.load_state_dict(part("compressor."))
    pair.beside.load_state_dict(part("beside."))
    for name, optimizer in pair.optimizers().items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part(f"{name}.").items():
            number, _, moment = key.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    pair.baseline = Baseline(**facts["baseline"])
    return int(facts["done"])
