"""Accuracy of a model on a data set under a protocol: per picture, in sum with intervals, and paired."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from leadline.data.dataset import Sample
from leadline.depth import Kind
from leadline.errors import ConfigError, ContractError, DataError, KindError, LeadlineError, NumericalError
from leadline.evaluation.alignment import Alignment
from leadline.evaluation.protocols import Protocol, get_protocol
from leadline.evaluation.results import FAILED, SCORED, UNMEASURED, Evaluation, Row, paired, paired_differences
from leadline.evaluation.scoring import check_truth, score

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol as Interface

    import numpy as np
    from numpy.typing import NDArray

    from leadline.contract import Contract
    from leadline.data.dataset import Dataset
    from leadline.depth import Depth, Intrinsics

    class Predicts(Interface):
        """What evaluation needs of a predictor; `leadline.predictor.Predictor` is one."""

        @property
        def contract(self) -> Contract:
            """What the network expects and returns."""

        def predict(self, image: NDArray[np.uint8], intrinsics: Intrinsics | None = None) -> Depth:
            """Depth of a picture, H x W x 3 uint8 RGB, at its size."""


__all__ = ["Evaluation", "evaluate", "paired", "paired_differences"]

_COARSER = ("fp32", "bf16", "fp16", "int8")  # how precisions that ran begin, ever coarser
_NO_DEPTH = "the picture has no depth"


def evaluate(
    predictor: Predicts | str,
    dataset: Dataset | str,
    protocol: Protocol | str,
    *,
    split: str | None = None,
    limit: int | None = None,
    reference: Predicts | str | None = None,
    threads: int = 1,
    size: tuple[int, int] | None = None,
    focal_correction: bool = True,
    skip_bad: bool = False,
    name: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model's accuracy.

    A picture that cannot be read or predicted becomes a row with its reason, and the others go on; a picture without
    valid ground truth becomes a row without figures.

    Args:
        predictor: an opened model, or a model reference.
        dataset: an opened data set, or a data set reference.
        protocol: how to count, or its name with variants, as `nyu-eigen` or `nyu-eigen/median`.
        split: of a data set given by reference; None takes `test` where the default would mix it with others.
        limit: at most so many pictures (1 or more), spread evenly over the data set.
        reference: under `fidelity` the model that counts as truth, usually the uncompressed one.
        threads: of models given by reference.
        size: (height, width) of the network's input in pixels, for models given by reference.
        focal_correction: give the pictures' cameras to the model; metric depth is then corrected for them.
        skip_bad: leave pictures out that the data set cannot read, with a note; otherwise they are failed rows.
        name: of the model; None takes the reference, or the contract's name.
        on_progress: called after each picture with (done, total).

    Raises:
        KindError: the protocol does not accept the model's kind, or the data set's; nothing is scored then.
        ConfigError: unknown protocol, `fidelity` without a reference, or the reverse.
        DataError: the data set is empty, cannot be read or has no depth at all.
        NumericalError: an engine returned NaN or infinity; the message names engine and picture.
    """
    name = name or (predictor if isinstance(predictor, str) else predictor.contract.name)
    notices: list[str] = []
    if isinstance(dataset, str):
        from leadline.data.dataset import open_dataset
        from leadline.evaluation.splits import choose_split

        split, chosen = choose_split(dataset, split)
        dataset = open_dataset(dataset, split)
        notices = [chosen] if chosen else []
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    pinned = protocol
    protocol = pinned.for_data(dataset.max_depth)
    with ExitStack() as models:
        predictor = opened(predictor, threads, size, models)
        reference = None if reference is None else opened(reference, threads, size, models)
        kind = predictor.contract.output.kind
        _check(protocol, kind, name, dataset, reference=reference, limit=limit)

        total = len(dataset) if limit is None else min(limit, len(dataset))
        titles = dataset.names()
        rows: list[Row] = []
        unread: list[str] = []
        sizes: Counter[tuple[int, int]] = Counter()
        for done in range(total):
            i = done * len(dataset) // total
            sample = _read(dataset, i, protocol)
            if isinstance(sample, Sample):
                sizes[sample.image.shape[0], sample.image.shape[1]] += 1
                rows.append(_row(predictor, sample, titles[i], protocol, reference, focal_correction))
            elif skip_bad:
                unread.append(f"{titles[i]}: {sample}")
            else:
                rows.append({"name": titles[i], "status": FAILED, "reason": str(sample)})
            if on_progress is not None:
                on_progress(done + 1, total)
    if not rows:
        raise DataError("no picture can be read", where=dataset.name, why=f"the first: {unread[0]}")
    if protocol.truth == "data" and all(row["reason"] == _NO_DEPTH for row in rows):
        mend = "compare with the uncompressed model: --protocol fidelity, for `evaluate` with --against REF"
        raise DataError("no ground truth in the data set", where=dataset.name, mend=mend)
    notes = notices + pinned.misfits(dataset.max_depth, sizes.most_common(1)[0][0] if sizes else None)
    notes += _notes(dataset, total, focal_correction)
    notes += _exchanged(predictor, reference)
    notes += _short(name, predictor.contract, protocol, dataset)
    if unread:
        notes.append(f"{len(unread)} x damaged, left out; the first: {unread[0]}")
    return Evaluation(name, kind, dataset.name, protocol, rows, notes)


def _read(dataset: Dataset, index: int, protocol: Protocol) -> Sample | LeadlineError:
    """The sample as the protocol shows it, or why it cannot be read."""
    try:
        return protocol.prepare(dataset[index])
    except KindError:  # true of the whole data set, not of this picture
        raise
    except LeadlineError as error:
        return error


def _row(
    predictor: Predicts, sample: Sample, title: str, protocol: Protocol, reference: Predicts | None, focal: bool
) -> Row:
    try:
        truth = sample.depth if reference is None else _predicted(reference, sample, focal)
        if truth is None:
            return {"name": title, "status": UNMEASURED, "reason": _NO_DEPTH}
        scored = score(_predicted(predictor, sample, focal), truth, protocol)
    except NumericalError as error:
        why = f"{error.why}, picture {title}"
        raise NumericalError(error.what, where=error.where, why=why, mend=error.mend) from error
    except KindError:  # true of the whole data set, not of this picture
        raise
    except LeadlineError as error:
        return {"name": title, "status": FAILED, "reason": str(error)}
    row: Row = {"name": title, "status": SCORED, "reason": "", **asdict(scored)}
    figures = row.pop("metrics")
    if figures is None:
        return {"name": title, "status": UNMEASURED, "reason": "fewer than 10 valid pixels", "pixels": scored.pixels}
    row.update(figures)
    return row


def _predicted(predictor: Predicts, sample: Sample, focal_correction: bool) -> Depth:
    return predictor.predict(sample.image, sample.intrinsics if focal_correction else None)


def opened(predictor: Predicts | str, threads: int, size: tuple[int, int] | None, models: ExitStack) -> Predicts:
    """A model given by reference, open until `models` closes; an opened one as it is.

    Raises:
        ContractError: it does not take the size; the message names the model, for two may share one size.
        LeadlineError: it cannot be opened.
    """
    if not isinstance(predictor, str):
        return predictor
    from leadline.predictor import load

    try:
        return models.enter_context(load(predictor, threads=threads, size=size))
    except ContractError as error:
        if size is None:
            raise
        what = f"{predictor} does not take the input size"
        raise ContractError(what, where=error.where, why=error.why, mend=error.mend) from error


def _check(
    protocol: Protocol, kind: Kind, model: str, dataset: Dataset, *, reference: Predicts | None, limit: int | None
) -> None:
    protocol.alignment_for(kind, model)
    check_truth(dataset.kind, protocol)
    if protocol.truth == "model" and reference is None:
        raise ConfigError("protocol fidelity needs a reference", mend="name the uncompressed model: --against REF")
    if protocol.truth == "data" and reference is not None:
        why = f"{protocol.label} takes its truth from the data set"
        raise ConfigError("a reference model belongs to fidelity only", why=why)
    if limit is not None and limit < 1:
        raise ConfigError("nothing to evaluate", where=f"limit {limit}", mend="use 1 or more")
    if len(dataset) == 0:
        raise DataError("the data set is empty", where=dataset.name)


def _exchanged(predictor: Predicts, reference: Predicts | None) -> list[str]:
    """A note where the model that counts as truth computes more coarsely than the one that is measured."""
    if reference is None:
        return []
    ran = [getattr(getattr(one, "session", None), "precision_ran", "") for one in (predictor, reference)]
    ours, truth = (next((rank for rank, name in enumerate(_COARSER) if said.startswith(name)), None) for said in ran)
    if ours is None or truth is None or truth <= ours:
        return []
    what = f"the truth here is a model in {ran[1]}, the one measured runs in {ran[0]}"
    return [f"{what}: are --against and REF exchanged?"]


def _short(name: str, contract: Contract, protocol: Protocol, dataset: Dataset) -> list[str]:
    """A model whose metres end below those that count, in words."""
    ends, counts = contract.output.maximum, min(protocol.cap, dataset.max_depth or math.inf)
    unscaled = contract.output.kind is Kind.METRIC_DEPTH and protocol.alignments[Kind.METRIC_DEPTH] is Alignment.NONE
    if protocol.truth == "model" or not unscaled or ends is None or not ends < counts:
        return []
    far = f"{counts:g} m" if math.isfinite(counts) else "any depth"
    return [f"{name} ends at {ends:g} m, and ground truth up to {far} counts: what lies beyond, it cannot say"]


def _notes(dataset: Dataset, total: int, focal_correction: bool) -> list[str]:
    notes = []
    if total < len(dataset):
        notes.append(f"{total} of {len(dataset)} pictures, spread evenly")
    if not focal_correction:
        notes.append("without the correction for the pictures' focal length")
    found = Counter(problem.what for problem in dataset.problems())
    notes.extend(f"{count} x {what}" for what, count in found.items())
    return notes
