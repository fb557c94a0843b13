r"""Does a search find networks that beat the hand-made family, in accuracy and latency both, at equal budgets?

    python benchmarks/compression/search.py --out ../runs/search

Three parts. (1) `search-configs`: hand-made members and configurations drawn by NSGA-II, each trained equally briefly
on the first 658 pictures of NYU's training split and judged on the other 137 (pictures stand in the order of their
scenes, and between these two lie test pictures: no scene is torn).
(2) The members, and the found networks that beat one of them there, are trained equally long. (3) These are scored on
the test split, which nothing before has seen, and timed in turn with the member that each should beat.

Every network starts alike: ImageNet encoder, fresh decoder, one seed. Stop it at any time (Ctrl-C): the same command
goes on where it was. With the defaults about 30 different networks of 300 iterations and up to 8 of 1,000: some 17,000
iterations of 16 pictures, 0.5 to 1 s each on two cores, so 6 to 10 core-hours.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "learning"))

from experiment import Evaluation, evaluate, opened, said, started, trained

from leadline.compression.base import Judged, Place, Target
from leadline.compression.configurations import SIZE
from leadline.compression.front import Point, front
from leadline.compression.sampling import SearchConfigs
from leadline.errors import ConfigError
from leadline.evaluation.complexity import count_macs
from leadline.evaluation.evaluate import paired
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import Timing, compare
from leadline.evaluation.machine import this_machine
from leadline.manifest import manifest_kind
from leadline.models.registry import variants
from leadline.reference import LoadedModel, load_model
from leadline.runtimes.base import ExportOptions, runtime
from leadline.training.config import TrainConfig, load_config
from leadline.training.run import starting_point

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "leadline-s-indoor.yaml"
MEMBERS = ("leadline-xs", "leadline-s", "leadline-m")  # efficientnet decoders made by hand
SPACE: dict[str, list[Any]] = {
    "encoder": ["efficientnet-lite0", "efficientnet-lite0-short", "efficientnet-lite1"],
    "kernel": [3, 5],
    "decoder_widths.0": [128, 96, 56, 40],
    "decoder_widths.1": [96, 64, 40],
    "decoder_widths.2": [64, 48, 32],
    "decoder_widths.3": [48, 24, 16],
    "decoder_widths.4": [32, 20, 16],
    "skip_strides": [[16, 8, 4, 2], [8, 4, 2]],
    SIZE: [[224, 288], [192, 256], [192, 224], [160, 224]],
}


@dataclass(frozen=True)
class Entry:
    """A network of the final table."""

    name: str
    chosen: dict[str, Any]
    beats: tuple[str, ...] = ()  # members, in the search


def member(name: str) -> dict[str, Any]:
    """A hand-made network as a configuration of the space."""
    _, config = variants()[name]
    values = config.model_dump(mode="json") | {SIZE: [config.height, config.width]}  # type: ignore[attr-defined]
    return {key: _at(values, key) for key in SPACE}


def _at(values: dict[str, Any], key: str) -> Any:
    name, _, index = key.partition(".")
    return values[name][int(index)] if index else values[name]


def base(options: argparse.Namespace) -> dict[str, Any]:
    """What all trainings share: the configuration's recipe, on the first pictures of NYU alone."""
    config = load_config(options.config, {})
    values = config.model_dump(mode="json", exclude_unset=True)
    for key in ("model", "name", "imagenet", "validation", "card", "half", "licence", "training_data", "size"):
        values.pop(key, None)
    data, _, split = options.train.partition("#")
    values["sources"] = [{"data": data, "split": split or None, "first": 0, "last": options.cut}]
    return values | {"threads": options.threads, "batch": options.batch}


def searched(options: argparse.Namespace, shared: dict[str, Any]) -> list[Point]:
    """All configurations that the search judged."""
    start = starting_point(TrainConfig.model_validate({**shared, "model": "random:leadline-s"}))
    source = LoadedModel(start.model.eval(), start.contract, "leadline-s", (), start.architecture, start.config)
    step = SearchConfigs(
        space=SPACE,
        first=[member(name) for name in options.member],
        trials=options.trials,
        population=options.population,
        iterations=options.iterations,
        learning_rate=shared.get("learning_rate", 1e-3),
        inherit=False,
        imagenet=not options.no_imagenet,
        seed=options.seed,
    )
    data, _, split = options.train.partition("#")
    judged = Judged(data=data, split=split or None, first=options.cut, protocol=options.protocol, limit=options.limit)
    target = Target(runtime=options.runtime, threads=options.engine_threads)
    place = Place(options.out / "search", train=shared, validation=judged, target=target, say=_say)
    step.apply(source, place)
    document = json.loads((place.folder / "front.json").read_text())
    return [Point(**each) for each in document["points"]]


def entries(points: list[Point], options: argparse.Namespace) -> list[Entry]:
    """The members, and of the front the most accurate network that beats each of them in the search."""
    hand = {name: _judged(points, member(name)) for name in options.member}
    chosen: dict[str, Entry] = {}
    for name, theirs in hand.items():
        better = [point for point in front(points) if point.beats(theirs) and point.chosen not in map(member, hand)]
        if not better:
            print(f"nothing in the search beats {name}", file=sys.stderr)
            continue
        best = max(better, key=lambda point: point.accuracy)
        beaten = tuple(other for other, point in hand.items() if best.beats(point))
        chosen[best.name] = Entry(f"found-{best.number}", dict(best.chosen), beaten)
    return [*(Entry(name, member(name)) for name in hand), *chosen.values()]


def _judged(points: list[Point], chosen: dict[str, Any]) -> Point:
    found = [point for point in points if point.chosen == chosen]
    if not found:
        raise ConfigError("a member failed in the search", where=str(chosen), mend="see front.json in OUT/search")
    return found[0]


def finished(entry: Entry, options: argparse.Namespace, shared: dict[str, Any]) -> Path:
    """The checkpoint of a network after the long training."""
    changed = {key: value for key, value in entry.chosen.items() if "." not in key and key != SIZE}
    widths = [entry.chosen[key] for key in SPACE if key.startswith("decoder_widths.")]
    height, width = entry.chosen[SIZE]
    network = {**changed, "decoder_widths": widths, "height": height, "width": width}
    if entry.chosen["encoder"] != "efficientnet-lite0":
        network |= {"encoder_widths": [], "hidden_widths": []}
    values = {
        "model": "random:leadline-s",
        "network": network,
        "imagenet": not options.no_imagenet,
        "size": [height, width],
    }
    values |= {"iterations": options.final_iterations, "name": entry.name}
    return trained(TrainConfig.model_validate({**shared, **values}), options.out / "final" / entry.name)


def exported(checkpoint: Path, options: argparse.Namespace) -> Path:
    """The bundle that is timed."""
    folder = checkpoint.parent / f"bundle-{options.runtime}"
    if manifest_kind(folder) != "bundle":
        folder.mkdir(exist_ok=True)
        runtime(options.runtime).export(load_model(str(checkpoint)), ExportOptions(), folder)
    return folder


def timed(entry: Entry, bundles: dict[str, Path], options: argparse.Namespace) -> dict[str, Timing]:
    """A network in turn with each member that it beat in the search."""
    found = {}
    for name in entry.beats:
        jobs = [Job(str(bundles[each]), threads=max(1, options.engine_threads)) for each in (name, entry.name)]
        found[name] = compare(jobs[0], jobs[1:], runs=options.runs)[1]
    return found


def report(
    found: list[Entry], checkpoints: dict[str, Path], scored: dict[str, Evaluation], verdicts: list[str]
) -> None:
    """The table and the verdicts."""
    print("| network | configuration | G MACs | pictures | delta1 | abs_rel | rmse |\n|---|---|---|---|---|---|---|")
    for entry in found:
        loaded, figures = load_model(str(checkpoints[entry.name])), scored[entry.name].summary()
        size = loaded.contract.input.height, loaded.contract.input.width
        cells = " | ".join(said(figures[metric]) for metric in ("delta1", "abs_rel", "rmse"))
        what = " ".join(f"{value}" for value in entry.chosen.values())
        macs = count_macs(loaded.model, size) / 1e9
        print(f"| {entry.name} | {what} | {macs:.3f} | {scored[entry.name].count('scored')} | {cells} |")
    print("", *(verdicts or ["No network of the search beat a member there."]), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; the same command goes on in it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="training recipe that all share")
    parser.add_argument("--train", default="../shared/data/nyu#train", metavar="DATA#SPLIT")
    parser.add_argument("--cut", type=int, default=658, help="pictures before it are learned, the others decide")
    parser.add_argument("--score", default="../shared/data/nyu#test", metavar="DATA#SPLIT", help="of the final figures")
    parser.add_argument("--protocol", default="nyu-eigen")
    parser.add_argument("--limit", type=int, help="at most so many pictures wherever accuracy is measured")
    parser.add_argument("--member", action="append", choices=MEMBERS, help="hand-made network; all where absent")
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300, help="of each network in the search")
    parser.add_argument("--final-iterations", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--no-imagenet", action="store_true", help="fresh encoders")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--engine-threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each network")
    parser.add_argument("--threads", type=int, default=0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.member = options.member or list(MEMBERS)
    shared = base(options)
    found = entries(searched(options, shared), options)
    checkpoints = {entry.name: finished(entry, options, shared) for entry in found}
    bundles = {name: exported(checkpoint, options) for name, checkpoint in checkpoints.items()}
    dataset = opened(options.score)
    scored = {
        name: evaluate(str(checkpoint), dataset, options.protocol, limit=options.limit, name=name)
        for name, checkpoint in checkpoints.items()
    }
    verdicts = []
    for entry in found:
        for name, timing in timed(entry, bundles, options).items():
            change = paired(scored[entry.name], scored[name], "delta1")
            if timing.ratio is None:
                verdicts.append(f"{entry.name} could not be timed against {name}: {timing.failure}")
                continue
            better = change.value > 0 and timing.ratio.high < 1
            sure = ", beyond the interval" if better and change.excludes_zero else ""
            verdicts.append(
                f"{entry.name} {'beats' if better else 'does not beat'} {name}{sure}: delta1 {said(change, '+')}, "
                f"time {timing.ratio.value:.2f} [{timing.ratio.low:.2f}, {timing.ratio.high:.2f}]"
            )
    print(f"{this_machine()}; {options.runtime}, {options.engine_threads} thread, batch 1; seed {options.seed}")
    budgets = f"{options.iterations} iterations in the search, {options.final_iterations} for the table"
    print(f"{budgets}, of {options.batch} pictures each; {options.score}, {options.protocol}; 95 % intervals\n")
    report(found, checkpoints, scored, verdicts)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    started(main)
