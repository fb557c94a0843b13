"""Differentiable channel search with the cost of the network in the loss (SPEC.md 8; DNAS, the method PIT of PLiNIO).

Three phases: the network is trained a little (warm-up), then together with a mask on every channel while the loss
counts what the network costs beyond its targets (search), then without the channels whose masks went off (fine-tune).
"""

from __future__ import annotations

import csv
import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from leadline.compression.base import Place, Step
from leadline.compression.graph import keep
from leadline.compression.latency_price import LatencyPrice
from leadline.compression.maskable import exact_map, input_size
from leadline.compression.masks import Masks
from leadline.compression.pricing import Costs, Resource, Searched, Terms
from leadline.compression.resources import latency_on, narrowed, shapes_of
from leadline.compression.tuning import configured, tune
from leadline.errors import ConfigError, DataError
from leadline.output import write_atomic
from leadline.training.fit import LOG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from torch import Tensor

    from leadline.compression.channel_map import ChannelMap
    from leadline.reference import LoadedModel

REPORT, WHOLE = "search.json", "latency.json"

Share = Annotated[float, Field(gt=0, lt=1)]
Strength = Annotated[float, Field(gt=0)]


class SearchChannels(Step):
    """Learn which channels a network can do without, under a bound on what it costs."""

    trains: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"train"})  # and the target, where latency is priced

    step: Literal["search-channels"] = "search-channels"
    targets: dict[Resource, Share] = Field(
        default={}, description="share of the network's macs, params or latency to stay, as in {macs: 0.5}"
    )
    strengths: dict[Resource, Strength] = Field(
        default={}, description="instead of targets: factor of the raw cost in the loss, as in {macs: 1.0e-9}"
    )
    warmup: Annotated[int, Field(ge=1)] = Field(default=200, description="iterations before the search")
    iterations: Annotated[int, Field(ge=1)] = Field(default=1000, description="of the search")
    finetune: Annotated[int, Field(ge=0)] = Field(default=500, description="iterations after it")
    learning_rate: float = Field(default=3e-4, gt=0, lt=10, description="peak rate of the weights, in all phases")
    mask_rate: float = Field(
        default=0.01, gt=0, lt=10, description="peak rate of the masks, and of what objectives train beside the network"
    )
    discrete: bool = Field(default=True, description="cost counts channels that are on; false: how much each is on")
    multiple: Annotated[int, Field(ge=1)] = Field(default=1, description="widths are rounded up to multiples of it")
    exclude: list[str] = Field(default=[], description="groups of channels that stay whole, by name")
    # a plain text: the file grows while the step runs, and what it holds decides nothing that the options do not
    table: str | None = Field(default=None, description="file of measured pieces; in the step's folder where absent")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.targets) == bool(self.strengths):
            raise ValueError("give `targets` or `strengths`, as in targets: {macs: 0.5}")
        if self.mask_rate > 100 * self.learning_rate:
            raise ValueError("mask_rate may be at most 100 times the learning_rate")
        return self

    def needs(self) -> frozenset[str]:
        """The target as well, where latency is priced."""
        return self.uses | ({"target"} if "latency" in {**self.targets, **self.strengths} else set())

    def apply(self, source: LoadedModel, place: Place) -> LoadedModel:
        """The network with the channels that were found.

        Raises:
            ConfigError: no group to choose from, unknown group, a target that no choice of channels meets, or no
                training data.
            UnavailableError: latency is priced, and the target's engine is not installed.
        """
        configured(source, place, {})
        chart = exact_map(source, self.exclude, place)
        with ExitStack() as stack:
            price = self._latency(source, chart, place, stack)
            self._check_reachable(Costs(source.model, chart, input_size(source), price), chart)
            warmed = tune(source, place, self._changes(self.warmup), folder=place.folder / "warm-up")
            task_loss = _late_loss(place.folder / "warm-up" / LOG)
            searched = self._search(warmed, chart, price, task_loss, place)
            kept = _rounded(chart, searched.masks, self.multiple)
            self._report(searched, chart, kept, place)
        found = keep(replace(warmed, model=searched.release()), chart.named(kept))
        if not self.finetune:
            return found
        return tune(found, place, self._changes(self.finetune), folder=place.folder / "fine-tune")

    def _latency(self, source: LoadedModel, chart: ChannelMap, place: Place, stack: ExitStack) -> LatencyPrice | None:
        """The price of milliseconds on the target's engine, where it is asked for."""
        if "latency" not in {**self.targets, **self.strengths}:
            return None
        size = place.target.size or input_size(source)
        resource = latency_on(place, size, self.table, stack)
        kept = place.folder / WHOLE
        if kept.is_file():  # measured before an interruption: measured again, all that follows would differ
            resource.refer(source, json.loads(kept.read_bytes())["ms"])
        else:
            write_atomic(kept, json.dumps({"ms": resource.measure(source)}).encode())
        shapes = shapes_of(source)

        def estimate(widths: Mapping[str, int]) -> float:
            return resource.estimate(narrowed(shapes, {name: range(width) for name, width in widths.items()}))

        return LatencyPrice(chart, estimate, self.iterations * configured(source, place, {}).accumulate)

    def _search(
        self, warmed: LoadedModel, chart: ChannelMap, price: LatencyPrice | None, task_loss: float, place: Place
    ) -> Searched:
        config = configured(warmed, place, {})
        costs = Costs(warmed.model, chart, input_size(warmed), price)
        initial = _priced(costs, chart, self.targets or self.strengths)
        terms = Terms(
            initial, self.targets, self.strengths, task_loss, self.iterations, config.accumulate, self.discrete
        )
        start = Searched(warmed.model, chart, costs, terms)
        changes = self._changes(self.iterations) | {
            "objectives": [*(each.model_dump(mode="json") for each in config.objectives), {"loss": "cost"}],
            "auxiliary_rate": self.mask_rate / self.learning_rate,
            "ema": 0.0,  # the average of masks that move is no network that was trained
        }
        found = tune(replace(warmed, model=start), place, changes, folder=place.folder / "search").model
        assert isinstance(found, Searched)
        return found

    def _changes(self, iterations: int) -> dict[str, Any]:
        return {"iterations": iterations, "learning_rate": self.learning_rate}

    def _check_reachable(self, costs: Costs, chart: ChannelMap) -> None:
        """What cannot be done is refused here, before hours of training."""
        least = torch.zeros(chart.units)
        least[[span.start for span in chart.spans]] = 1.0
        for resource, share in self.targets.items():
            lowest = costs.exact(resource, least) / _priced(costs, chart, [resource])[resource]
            if lowest > share:
                why = f"one channel in each of {len(chart.spans)} groups still costs {lowest:.4f} of the network"
                mend = "raise the target" + (", or exclude less" if self.exclude else "")
                raise ConfigError(f"target {resource} {share:g} cannot be met", why=why, mend=mend)

    def _report(self, searched: Searched, chart: ChannelMap, kept: Tensor, place: Place) -> None:
        """Say what was found, and leave it in the step's folder."""
        figures = {}
        for resource, initial in searched.terms.initial.items():
            cost = searched.costs.exact(resource, kept)
            figures[resource] = {"before": initial, "after": cost, "share": cost / initial}
            wanted = self.targets.get(resource)
            if wanted is not None:
                figures[resource]["target"] = wanted
            missed = wanted is not None and cost > wanted * initial
            asked = f", asked for {wanted:.3f}" if wanted is not None else ""
            longer = ": more iterations, or a higher mask_rate, come closer" if missed else ""
            place.say(f"{resource} {cost / initial:.3f} of the network{asked}{longer}")
        widths = {
            span.name: [int(kept[span.start : span.start + span.count].sum()) * span.bundle, span.count * span.bundle]
            for span in chart.spans
        }
        place.say(f"{int(kept.sum())} of {chart.units} units stay in {len(widths)} groups")
        text = json.dumps({"resources": figures, "task_loss": searched.terms.task_loss, "widths": widths}, indent=1)
        write_atomic(place.folder / REPORT, text.encode())


def _rounded(chart: ChannelMap, masks: Masks, multiple: int) -> Tensor:
    """The units that stay: those that were on, and the strongest of the others up to the next multiple of channels."""
    kept = masks.kept()
    ranks = kept + masks.lately + masks.theta().detach() / 1e6
    for span in chart.spans:
        part = slice(span.start, span.start + span.count)
        channels = math.ceil(int(kept[part].sum()) * span.bundle / multiple) * multiple
        count = min(span.count, math.ceil(channels / span.bundle))
        ranked = ranks[part].argsort(descending=True, stable=True)
        kept[span.start + ranked[:count]] = True
    return kept


def _priced(costs: Costs, chart: ChannelMap, resources: Mapping[Resource, float] | list[Resource]) -> dict[Any, float]:
    everything = torch.ones(chart.units)
    return {resource: costs.exact(resource, everything) for resource in resources}


def _late_loss(log: Path) -> float:
    """Mean loss over the last tenth of a run."""
    with log.open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    late = [loss for loss in losses[-max(1, len(losses) // 10) :] if math.isfinite(loss)]
    if not late:
        raise DataError("the warm-up gave no loss", where=log, mend="run it again with a lower learning rate")
    return fmean(late)
