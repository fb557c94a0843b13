"""Running a recipe: step after step, each kept by what it was made from, and all of them measured at the end."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.bundle import Bundle, load_bundle, write_bundle
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.compression import Place
from leadline.errors import BundleError, CheckpointError, ConfigError, LeadlineError, OutputError
from leadline.output import check_writable, output_lock, refuse_finished, sha256_file, write_atomic
from leadline.reference import load_model
from leadline.studies.before_after import RUNS, measure
from leadline.studies.recipe_start import begin
from leadline.studies.results import SOURCE, Result
from leadline.studies.study import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.compression import Step
    from leadline.reference import LoadedModel
    from leadline.studies.measurement import Measurement
    from leadline.studies.recipe import Recipe
    from leadline.studies.recipe_start import Beginning

DONE, CHECKPOINT, BUNDLE = "step.json", "checkpoint", "bundle"
_NO_MATTER = {"threads", "cache_mb", "save_every", "device", "compile", "channels_last"}  # of training, to its result


@dataclass(frozen=True)
class Outcome:
    """A recipe that was run.

    Args:
        recipe: as given.
        folder: where everything lies.
        results: the source, and what each step made of the one before.
        rows: the figures of each of them.
        notices: what was chosen for the user, in words.
    """

    recipe: Recipe
    folder: Path
    results: list[Result]
    rows: list[Measurement]
    notices: tuple[str, ...] = ()


def run_recipe(
    recipe: Recipe,
    out: Path,
    on_line: Callable[[str], None] | None = None,
    *,
    processes: int = 1,
    runs: int = RUNS,
) -> Outcome:
    """Do the steps that are not done yet, and measure source and results.

    A finished step is never done again, also where another recipe with the same beginning did it in the same folder;
    an interrupted one goes on where it was.

    Args:
        recipe: model, data and steps.
        out: folder; run again with the same, it continues there.
        on_line: takes each line of progress.
        processes: how many a step may use side by side.
        runs: timed runs of each result.

    Raises:
        OutputError: `out` cannot be written, lies among the data, or another run holds it.
        ConfigError, DataError, KindError: the recipe cannot work with this model or data; found before any work where
            it can be known.
        KeyboardInterrupt: it was interrupted; what is finished, and the state of the step, are kept.
    """
    say = on_line or (lambda line: None)
    check_writable(out)
    refuse_finished(out)
    with output_lock(out):
        start = begin(recipe, out)
        for notice in start.notices:
            say(notice)
        results = run_steps(recipe, start, out, say, processes)
        rows = measure(results, start.score, recipe.target, out, say, runs=runs)
    return Outcome(recipe, out, results, rows, start.notices)


def run_steps(
    recipe: Recipe,
    start: Beginning,
    out: Path,
    say: Callable[[str], None],
    processes: int = 1,
    may_go_on: Callable[[], None] = lambda: None,
) -> list[Result]:
    """The source, and what each step makes of the one before; see `run_recipe`.

    `may_go_on` is asked where a stop loses nothing, and raises to stop: between steps, and at each line of progress of
    a step that trains, since it keeps its state.
    """
    import torch

    threads = torch.get_num_threads()  # a step that predicts may change it, and training is not to notice
    results = [_source(recipe.model, start.source, out)]
    network: LoadedModel | None = start.source
    for number, step in enumerate(recipe.steps, start=1):
        if network is None:
            last = results[-1].step
            why = f"it gave a bundle, which holds no network any more; {step.step} stands behind it"
            raise ConfigError("no step can follow", where=last, why=why, mend=f"put {last} last")

        def tell(line: str, label: str = f"[{number}/{len(recipe.steps)}] {step.step}") -> None:
            say(f"{label}: {line}")

        def heard(line: str, told: Callable[[str], None] = tell, trains: bool = step.needs_train()) -> None:
            told(line)
            if trains:
                may_go_on()

        given = _given(recipe, start, step)
        key = step_key(network, step, given)
        folder = out / f"{number:02d}-{step.step}-{key[:8]}"
        result = _finished(folder, key, number, step)
        if result is None:
            may_go_on()
            tell(f"begins in {folder}" if not folder.exists() else f"goes on in {folder}")
            parts = _parts(recipe, start, step)
            if "train" in parts:
                parts["train"] = {"threads": threads, **parts["train"]}
            place = Place(folder=folder, say=heard, processes=processes, **parts)
            result = _done(step, network, place, given, key, number)
            tell(f"done: {result.ref}")
        else:
            tell(f"done in an earlier run: {result.ref}")
        results.append(result)
        network = None if result.bundle else load_model(str(result.ref))
    return results


def step_key(network: LoadedModel, step: Step, given: dict[str, Any]) -> str:
    """SHA-256 over all that decides what a step makes: the network, the options, the parts of the recipe it reads."""
    files = {key: sha256_file(path) for key, path in step if isinstance(path, Path) and path.is_file()}
    facts = {"leadline": __version__, "network": network_hash(network), "step": step.model_dump(mode="json")}
    models = {ref: network_hash(load_model(ref)) for ref in step.named_models()}
    named = {key: hashes for key, hashes in (("files", files), ("models", models)) if hashes}
    return _hash(facts | {"given": given} | named)


def network_hash(network: LoadedModel) -> str:
    """SHA-256 over weights, contract and configuration; of a network that is not ours, over its printed form too."""
    config = network.config.model_dump(mode="json") if network.config is not None else repr(network.model)
    contract = network.contract.model_dump(mode="json")
    return _hash({"weights": weights_hash(network), "contract": contract, "config": config})


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _source(reference: str, source: LoadedModel, out: Path) -> Result:
    """The network that the recipe starts at, kept as a checkpoint of FP32 weights where it is one of ours."""
    key = network_hash(source)
    folder = out / f"00-{SOURCE}-{key[:8]}"
    if source.architecture is None or source.config is None:
        folder.mkdir(parents=True, exist_ok=True)
        return Result(0, SOURCE, {}, folder, reference, key, bundle=False, reused=False, checkpoint=False)
    place = folder / CHECKPOINT
    kept = (place / "manifest.json").is_file()
    if kept:
        _sound(folder, load_checkpoint, CHECKPOINT)
    else:
        _save(place, source, source.lineage)
    return Result(0, SOURCE, {}, folder, str(place), key, bundle=False, reused=kept)


def _parts(recipe: Recipe, start: Beginning, step: Step) -> dict[str, Any]:
    """The parts of the recipe that a step may read, as its `Place` takes them."""
    every = {
        "train": start.train,
        "validation": recipe.validation,
        "calibration": recipe.calibration,
        "target": recipe.target,
    }
    return {name: part for name, part in every.items() if name in step.needs()}


def _given(recipe: Recipe, start: Beginning, step: Step) -> dict[str, Any]:
    """The same as plain values, without what changes speed alone: for the key and the lineage."""
    plain: dict[str, Any] = {}
    for name, part in _parts(recipe, start, step).items():
        values = part if part is None or isinstance(part, dict) else part.model_dump(mode="json")
        if values:
            plain[name] = {key: value for key, value in values.items() if name != "train" or key not in _NO_MATTER}
    return plain


def _sound(folder: Path, load: Callable[[Path], object], kind: str) -> None:
    """Pass where what lies in a step's folder is what was written there."""
    try:
        load(folder / kind)
    except (BundleError, CheckpointError) as error:
        mend = "remove this folder; the same command makes it again"
        raise type(error)(
            "a finished step is damaged", where=folder, why=f"{error.what}: {error.why}", mend=mend
        ) from error


def _finished(folder: Path, key: str, number: int, step: Step) -> Result | None:
    """What an earlier run made here, verified; None where it did not end."""
    path = folder / DONE
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_bytes())
        same, kind = said["key"] == key, said["result"]
    except (ValueError, KeyError, TypeError) as error:
        mend = "remove the folder to do the step again"
        raise OutputError("unreadable record of a step", where=path, why=str(error), mend=mend) from error
    if not same:
        raise OutputError("will not replace", where=folder, why="it holds another step", mend="choose another --out")
    _sound(folder, load_bundle if kind == BUNDLE else load_checkpoint, kind)
    options = step.model_dump(mode="json", exclude={"step"})
    return Result(number, step.step, options, folder, str(folder / kind), key, bundle=kind == BUNDLE, reused=True)


def _done(step: Step, network: LoadedModel, place: Place, given: dict[str, Any], key: str, number: int) -> Result:
    """Do a step, keep its result with its lineage, and write down that it is done."""
    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        made = step.apply(network, place)
    except LeadlineError:
        if not any(place.folder.iterdir()):
            place.folder.rmdir()  # refused at once: there is nothing to go on with
        raise
    options = step.model_dump(mode="json", exclude={"step"})
    entry = {
        "step": step.step,
        "options": options,
        "leadline": __version__,
        "from": {"model": network.name, "sha256": network_hash(network)},
        "given": given,
    }
    if isinstance(made, Bundle):
        assert made.folder == place.folder / BUNDLE, "a step's bundle lies in its own folder"
        _complete(made, entry)
    else:
        _save(place.folder / CHECKPOINT, made, (*made.lineage, entry))
    kind = BUNDLE if isinstance(made, Bundle) else CHECKPOINT
    record = {"key": key, "result": kind, "step": step.step, "options": options}
    write_atomic(place.folder / DONE, (json.dumps(record, indent=2) + "\n").encode())
    ref = str(place.folder / kind)
    return Result(number, step.step, options, place.folder, ref, key, bundle=kind == BUNDLE, reused=False)


def _save(folder: Path, network: LoadedModel, lineage: tuple[dict[str, Any], ...]) -> None:
    """A network as a checkpoint.

    Raises:
        ConfigError: it is none of our architectures, so that nothing could build it again.
    """
    if network.architecture is None or network.config is None:
        why = "it gave a network that is none of the architectures of `leadline models`, so nothing could load it again"
        mend = "end with a step that gives a bundle (quantize), or start at one of those architectures"
        raise ConfigError("cannot keep the result of a step", where=network.name, why=why, mend=mend)
    save_checkpoint(
        folder,
        network.model,
        architecture=network.architecture,
        config=network.config,
        contract=network.contract,
        lineage=lineage,
        quantization=network.quantization,
    )


def _complete(bundle: Bundle, entry: dict[str, Any]) -> None:
    """Add the step to a bundle's lineage."""
    write_bundle(
        bundle.folder,
        runtime=bundle.runtime,
        precision=bundle.precision,
        contract=bundle.contract,
        size=bundle.size,
        dynamic=bundle.dynamic,
        lineage=[*bundle.lineage, entry],
        details=bundle.details,
    )
