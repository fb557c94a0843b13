"""A training run from its configuration to a checkpoint: start, fit, validate, card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.data.dataset import Subset, open_dataset
from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.manifest import manifest_kind
from leadline.models.registry import architecture, parse_config, variants
from leadline.reference import RANDOM, fresh_variant
from leadline.training.fit import Start, evaluating, fit
from leadline.training.paths import refuse_data_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from leadline.contract import Contract
    from leadline.training.config import TrainConfig
    from leadline.training.fit import Result
    from leadline.training.log import Progress
    from leadline.training.objectives import Term

FINETUNED = "-finetuned"


def run(
    config: TrainConfig,
    out: Path,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    start: Start | None = None,
) -> tuple[Result, Path]:
    """Train as configured and write `out/checkpoint` (the averaged weights where an average is kept).

    Args:
        config: the run.
        out: folder of the run; run again, it continues there.
        on_progress: called after each iteration.
        start: what `read_for(objectives, starting_point(config))` gave, where it was asked before.

    Returns:
        How the run ended, and the checkpoint's folder. An interrupted run has a checkpoint too; of several processes
        one writes it.

    Raises:
        ConfigError: unknown model, or ImageNet weights for an architecture that has none.
        OutputError: `out` is, or lies inside, a folder of data.
        See `fit` for the rest.
    """
    card = _card(config)
    refuse_data_folder(config, out)
    start = start or read_for(config.objectives, starting_point(config))
    validate = _validator(config) if config.validation else None
    result = fit(config, start, out, validate=validate, on_progress=on_progress)
    folder = out / "checkpoint"
    if not result.leads:
        return result, folder
    step = {
        "step": "train",
        "leadline": __version__,
        "iterations": result.iteration,
        "config": config.model_dump(mode="json"),
    }
    save_checkpoint(
        folder,
        result.model,
        architecture=start.architecture,
        config=start.config,
        contract=result.contract,
        lineage=[*start.lineage, step],
        card=card,
        half=config.half,
        auxiliary=result.auxiliary,
    )
    return result, folder


def starting_point(config: TrainConfig) -> Start:
    """The network that `config.model` names: a variant with fresh weights, or any model reference.

    Raises:
        ConfigError: ImageNet weights were asked for an architecture that has none; `network` has a key or value that
            the architecture does not know; it, `imagenet` or `truncate_from` stands beside trained weights.
        ModelReferenceError: the name is neither.
        CheckpointError: the teacher that the network is to be cut from has nothing that fits.
    """
    import torch

    variant = fresh_variant(config.model)
    if variant is not None:
        name, chosen = variants()[variant]
        if config.network:
            chosen = parse_config(name, {**chosen.model_dump(mode="json"), **config.network})
        torch.manual_seed(config.seed)
        module = architecture(name)
        model, contract = module.build(chosen), module.contract(chosen)
        contract = contract.model_copy(update={"name": config.name or variant})
        lineage = (_cut_from(config.truncate_from, model),) if config.truncate_from else ()
        start = Start(model, contract, name, chosen, lineage)
    elif config.network or config.truncate_from or config.imagenet:
        key = "network" if config.network else "truncate_from" if config.truncate_from else "imagenet"
        mend = f"leave `{key}` out" + (f", or write {RANDOM}{config.model}" if config.model in variants() else "")
        raise ConfigError(f"`{key}` needs fresh weights", where=config.model, why="it is trained already", mend=mend)
    else:
        from leadline.reference import load_model

        loaded = load_model(config.model)
        if loaded.architecture is None or loaded.config is None:
            why = "only the architectures of `leadline models` can be trained and saved"
            raise ConfigError("cannot train", where=config.model, why=why)
        beside = auxiliary_weights(config.model)
        contract = loaded.contract.model_copy(update={"name": config.name or _renamed(loaded.contract.name, config)})
        start = Start(loaded.model, contract, loaded.architecture, loaded.config, tuple(loaded.lineage), beside)
    if config.imagenet:
        load: Any = getattr(architecture(start.architecture), "load_imagenet", None)
        if load is None:
            raise ConfigError("no ImageNet weights", where=config.model, mend="set `imagenet: false`")
        load(start.model)
    return start


def read_for(objectives: Sequence[Term], start: Start) -> Start:
    """The start as these objectives read its values.

    The geometry of frames knows a scale of disparity and no shift: where they teach, relative disparity of at least 0
    is scaled disparity from here on, and training takes away what shift it has.
    """
    output = start.contract.output
    if not any(objective.needs_frames for objective in objectives):
        return start
    if output.kind is not Kind.RELATIVE_DISPARITY or output.minimum is None or output.minimum < 0:
        return start
    scaled = output.model_copy(update={"kind": Kind.SCALED_DISPARITY})
    return replace(start, contract=start.contract.model_copy(update={"output": scaled}))


def _renamed(name: str, config: TrainConfig) -> str:
    """Not the start's own name: what is trained further is another model."""
    return name if name.endswith(FINETUNED) else name[: 200 - len(FINETUNED)] + FINETUNED


def _cut_from(teacher: str, student: nn.Module) -> dict[str, Any]:
    """Fill the student with slices of the teacher's weights; the step of the lineage that says so."""
    from leadline.models.truncation import truncate
    from leadline.reference import load_model

    loaded = load_model(teacher)
    found = truncate(student, loaded.model)
    before = list(loaded.lineage)
    return {"step": "truncate", "from": loaded.name, "copied": found.copied, "fresh": len(found.fresh), "of": before}


def auxiliary_weights(reference: str) -> dict[str, dict[str, Tensor]]:
    """Tensors, by name, of the modules that were trained beside the network; none where it is no checkpoint."""
    from leadline.reference import zoo

    folder = zoo().get(reference, Path(reference))
    return load_checkpoint(folder).auxiliary() if manifest_kind(folder) == "checkpoint" else {}


def _card(config: TrainConfig) -> str | None:
    if config.card is None:
        return None
    try:
        return config.card.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("cannot read the model card", where=config.card, why=error.strerror or str(error)) from error


def _validator(config: TrainConfig) -> Callable[[nn.Module, Contract], dict[str, float]]:
    """Figures of a network on the validation part of the configuration."""
    from leadline.evaluation.evaluate import evaluate
    from leadline.evaluation.protocols import get_protocol
    from leadline.predictor import Predictor
    from leadline.runtimes.base import SessionOptions
    from leadline.runtimes.torch_eager import open_model

    assert config.validation is not None
    wanted = config.validation
    dataset = Subset(open_dataset(wanted.data, wanted.split, skip_bad=config.skip_bad), wanted.first, wanted.last)
    rule = get_protocol(wanted.protocol)

    def validate(model: nn.Module, contract: Contract) -> dict[str, float]:
        with evaluating(model) as quiet:
            session = open_model(quiet, contract, SessionOptions(threads=config.threads))
            summary = evaluate(Predictor(session), dataset, rule).summary()
        return {name: interval.value for name, interval in summary.items()}

    return validate
