"""Every engine that runs here against eager PyTorch FP32: one thread, in turn, in one run; and against the floor.

    python benchmarks/runtimes/engines.py --out runs/engines                                  # leadline-s
    python benchmarks/runtimes/engines.py --out runs/engines-da --model depth-anything-v2-small --size 252,336
    python benchmarks/runtimes/engines.py --out runs/engines --data ../shared/data/nyu        # and accuracy

Exports each engine and precision once into `--out` (again only where it is missing), each in a process of its own,
then times each in turn with PyTorch and prints a Markdown table: ratio with its quartiles, share of the machine's
floor, size, agreement with PyTorch on rendered pictures, and with `--data` the paired change of accuracy. An engine
that cannot be exported or run is a line with its reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from leadline.bundle import load_bundle
from leadline.data.dataset import open_dataset
from leadline.errors import LeadlineError
from leadline.evaluation.complexity import count_macs, count_parameters
from leadline.evaluation.evaluate import Evaluation, evaluate, paired
from leadline.evaluation.isolation import Job
from leadline.evaluation.latency import Timing, compare
from leadline.evaluation.machine import this_machine
from leadline.evaluation.roofline import count_activations, roofline_of, share_of_floor
from leadline.predictor import Predictor
from leadline.reference import load_model, open_session
from leadline.runtimes.base import RUNTIMES, Precision, runtime
from leadline.studies.isolated import run_isolated

FIRST = ("torch", Precision.FP32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s")
    parser.add_argument("--size", help="H,W; the contract's where absent")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runtime", action="append", help="only this one; may be given again")
    parser.add_argument("--precision", action="append", help="only this one; may be given again")
    parser.add_argument("--data", help="data set with ground truth")
    parser.add_argument("--split", default="test")
    parser.add_argument("--protocol", default="zero-shot-disparity")
    parser.add_argument("--calibration", help="pictures for static INT8; rendered ones where absent")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    loaded = load_model(options.model)
    spec = loaded.contract.input
    size = tuple(int(side) for side in options.size.split(",")) if options.size else (spec.height, spec.width)
    bundles, refused = exported(options, size)
    macs, parameters = count_macs(loaded.model, size), count_parameters(loaded.model)
    activations = count_activations(loaded.model, size)
    machine = this_machine()
    roofline = roofline_of(machine)
    timings = compare(Job(str(bundles[0])), [Job(str(folder)) for folder in bundles[1:]], runs=options.runs)
    scores = {folder: score(options, folder) for folder in bundles} if options.data else {}
    print(f"{options.model} {size[0]}x{size[1]}, {macs / 1e9:.3f} G MACs, {machine}, one thread, batch 1,")
    print(f"{options.runs} runs of each in turn with PyTorch. Floor: the machine's own peak, {roofline.date[:10]}.\n")
    columns = [
        "engine",
        "asked",
        "ran",
        "ms (IQR)",
        "ratio to PyTorch",
        "of its floor",
        "MB",
        "relative",
        "δ1 to PyTorch",
    ]
    columns += [f"change of {options.protocol} AbsRel"] if options.data else []
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for folder, timing in zip(bundles, timings, strict=True):
        bundle = load_bundle(folder)
        if timing.latency is None:
            refused.append((f"{bundle.runtime} {bundle.precision}", timing.failure))
            continue
        counts = {"macs": macs, "parameters": parameters, "activations": activations}
        share = share_of_floor(roofline, timing.latency, timing.precision_ran, **counts)
        parity = bundle.details.get("parity", {})
        cells = [bundle.runtime, bundle.precision, timing.precision_ran, said(timing), ratio(timing)]
        cells += [f"{share:.0%}" if share else "-", f"{bundle.size_bytes / 1e6:.2f}"]
        cells += [f"{parity['relative']:.2%}", f"{parity['delta1']:.4f}"] if parity else ["-", "-"]
        cells += [changed(scores[folder], scores[bundles[0]])] if options.data else []
        print("| " + " | ".join(cells) + " |")
    print()
    for name, reason in refused:
        print(f"- {name}: {reason}")


def exported(options: argparse.Namespace, size: tuple[int, int]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Bundles, PyTorch FP32 first, and what could not be made, with its reason."""
    wanted = [FIRST]
    refused: list[tuple[str, str]] = []
    for name in options.runtime or RUNTIMES:
        state = runtime(name).availability()
        if not state.available or state.export_only:
            refused.append((name, state.export_only or f"{state.reason}; {state.install}"))
            continue
        asked = [p for p in runtime(name).precisions if p in (options.precision or Precision)]
        wanted += [(name, precision) for precision in asked]
    folders = []
    for name, precision in dict.fromkeys(wanted):
        folder = options.out / "bundles" / f"{name}-{precision}-{size[0]}x{size[1]}"
        try:
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                order = {"model": options.model, "runtime": name, "precision": str(precision), "size": list(size)}
                order |= {"calibration": options.calibration, "count": options.count, "out": str(folder)}
                run_isolated("export", order)
            folders.append(folder)
        except LeadlineError as error:
            refused.append((f"{name} {precision}", str(error)))
    return folders, refused


def score(options: argparse.Namespace, folder: Path) -> Evaluation:
    """Accuracy of a bundle."""
    predictor = Predictor(open_session(str(folder)))
    found = evaluate(predictor, open_dataset(options.data, options.split), options.protocol)
    predictor.close()
    return found


def said(timing: Timing) -> str:
    assert timing.latency is not None
    return f"{timing.latency.p50:.2f} ({timing.latency.iqr:.2f})"


def ratio(timing: Timing) -> str:
    found = timing.ratio
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found else "1"


def changed(candidate: Evaluation, reference: Evaluation) -> str:
    change = paired(candidate, reference, "abs_rel")
    return f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}], n {change.n}"


if __name__ == "__main__":
    main()
