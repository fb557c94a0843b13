"""What a bundle costs and brings against FP32 in the same engine: accuracy, size and time, in figures and in words."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.data.dataset import Subset, open_dataset
from leadline.evaluation.bootstrap import FEW, Interval, interval, resampled_means
from leadline.evaluation.evaluate import evaluate, paired
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import compare
from leadline.evaluation.protocols import get_protocol
from leadline.predictor import Predictor
from leadline.runtimes.base import Precision, SessionOptions, required
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.parity import compare_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.bundle import Bundle
    from leadline.compression.base import Judged, Place
    from leadline.evaluation.evaluate import Evaluation
    from leadline.runtimes.base import Session

RUNS, WARMUP, ROUNDS = 30, 5, 6
FIDELITY_PICTURES, FIDELITY_SEED = 32, 700_000
NAMES = {"delta1": "δ1", "agreement": "agreement"}


def verdict(bundle: Bundle, reference: Bundle, place: Place) -> dict[str, Any]:
    """Compare a bundle with the same network in FP32.

    Args:
        bundle: the narrower one.
        reference: FP32 in the same engine.
        place: its validation data where there are any, otherwise pictures like those of calibration and fidelity; its
            target's threads.

    Returns:
        `accuracy` (metric, value, low, high, n, what it is), `size_ratio`, `latency` (ratio, low, high, ms) or its
        failure, and `words`: a list of sentences.
    """
    words: list[str] = []
    accuracy = _accuracy(bundle, reference, place, words)
    size = bundle.size_bytes / reference.size_bytes
    words.append(f"{bundle.size_bytes / 1e6:.2f} MB, {size:.3f} of FP32")
    latency = _latency(bundle, reference, place, words)
    return {"accuracy": accuracy, "size_ratio": round(size, 4), "latency": latency, "words": words}


def accuracy_change(reference: Bundle, place: Place) -> Callable[[Bundle], Interval]:
    """A function that measures a bundle's change of the primary metric against FP32 on the validation data.

    Under `fidelity` FP32 itself is the truth, and the change is the agreement less 1.

    Raises:
        ConfigError: the recipe names no validation data.
    """
    from leadline.compression.judging import needed

    judged, options = needed(place), place.target.options_of(reference.runtime)
    if get_protocol(judged.protocol).truth == "model":

        def lost(bundle: Bundle) -> Interval:
            found = _scored(bundle, judged, options, reference).summary()["agreement"]
            return Interval(found.value - 1, found.low - 1, found.high - 1, found.n)

        return lost
    known: list[Evaluation] = []  # scored when the first bundle asks for it: a resumed search may need none

    def changed(bundle: Bundle) -> Interval:
        if not known:
            known.append(_scored(reference, judged, options))
        mine = _scored(bundle, judged, options)
        return paired(mine, known[0], mine.protocol.primary)

    return changed


def _accuracy(bundle: Bundle, reference: Bundle, place: Place, words: list[str]) -> dict[str, Any]:
    if place.validation is None:
        found = _fidelity(bundle, reference, place)
        where = place.calibration.data or "rendered scenes"
        ends = f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
        words.append(
            f"fidelity: δ1 {ends} against its own FP32 on {found.n} pictures of {where}; no ground truth asked"
        )
        return {"metric": "delta1", "what": "fidelity to FP32", **found.as_dict()}
    change = accuracy_change(reference, place)(bundle)
    protocol = get_protocol(place.validation.protocol)
    few = f"; {FEW} or more make a verdict" if change.n < FEW else ""
    ends = f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
    words.append(f"{NAMES[protocol.primary]} changes by {ends} on {change.n} pictures ({protocol.label}){few}")
    return {"metric": protocol.primary, "what": f"change against FP32, {protocol.label}", **change.as_dict()}


def _latency(bundle: Bundle, reference: Bundle, place: Place, words: list[str]) -> dict[str, Any]:
    threads = place.target.threads
    device = place.target.options_of(bundle.runtime).device
    jobs = [Job(str(one.folder), threads, device) for one in (reference, bundle)]
    first, timing = compare(jobs[0], jobs[1:], runs=RUNS, warmup=WARMUP, rounds=ROUNDS)
    found = timing.ratio
    if found is None or timing.latency is None:
        failure = timing.failure or first.failure
        words.append(f"its time is not known: {failure}")
        return {"failure": failure}
    name = "INT8" if bundle.precision.startswith("int8") else bundle.precision.upper()
    if found.low > 1:
        verdict_on_time = f"{name} is slower here"
    elif found.high < 1:
        verdict_on_time = f"{name} is faster here"
    else:
        verdict_on_time = f"{name} brings no time here"
    ms = f"{timing.latency.p50:.2f} ms, {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of FP32"
    words.append(f"{verdict_on_time}: {ms} in {bundle.runtime} in turn, {threads or 'its own'} threads")
    words.append(f"it computes in {timing.precision_ran}")
    words += [f"caution: {said}" for said in dict.fromkeys([*first.cautions, *timing.cautions])]
    return {"ratio": found.value, "low": found.low, "high": found.high, "ms": timing.latency.p50, "threads": threads}


def _scored(bundle: Bundle, judged: Judged, options: SessionOptions, truth: Bundle | None = None) -> Evaluation:
    dataset = Subset(open_dataset(judged.data, judged.split), judged.first, judged.last)
    with Predictor(_opened(bundle, options)) as one:
        if truth is None:
            return evaluate(one, dataset, judged.protocol, limit=judged.limit, name=bundle.precision)
        with Predictor(_opened(truth, options)) as other:
            return evaluate(one, dataset, judged.protocol, limit=judged.limit, reference=other, name=bundle.precision)


def _fidelity(bundle: Bundle, reference: Bundle, place: Place) -> Interval:
    """δ1 against FP32 per picture, without any ground truth."""
    data, split = place.calibration.data, place.calibration.split
    inputs = calibration_inputs(data, bundle.contract, None, FIDELITY_PICTURES, seed=FIDELITY_SEED, split=split)
    options = place.target.options_of(bundle.runtime)
    with (
        closing(_opened(bundle, options)) as one,
        closing(_opened(reference, options)) as two,
    ):
        shares = np.array([[compare_outputs(one.run(values), two.run(values)).delta1] for values in inputs])
    return interval(float(shares.mean()), resampled_means(shares)[:, 0], len(shares))


def _opened(bundle: Bundle, options: SessionOptions) -> Session:
    assert bundle.precision in list(Precision)
    return required(bundle.runtime).open(bundle, options)
