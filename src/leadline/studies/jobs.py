"""What the processes of a study do: `python -m leadline.studies.jobs`, orders on stdin, the answer in a file."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import LeadlineError
from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.data.dataset import Dataset
    from leadline.depth import Depth, Intrinsics, Kind
    from leadline.predictor import Predictor

PANEL_PICTURES = 3
PROBE_SIZE = (224, 224)


def export(
    *,
    model: str,
    runtime: str,
    precision: str,
    size: list[int] | None,
    calibration: str | None,
    count: int,
    out: str,
    batch: int = 1,
) -> dict[str, Any]:
    """Export a model to a bundle with its parity check.

    Args:
        model: reference.
        runtime: engine.
        precision: asked for.
        size: [height, width], or None for the contract's.
        calibration: data set reference for static INT8; None takes rendered scenes.
        count: number of calibration pictures.
        out: folder of the bundle.
        batch: pictures that the bundle should take at once.

    Returns:
        `parity`, the figures of the check, and `exported_notes`.
    """
    from leadline.reference import load_exportable
    from leadline.runtimes.base import ExportOptions, Precision
    from leadline.runtimes.calibration import calibration_inputs
    from leadline.runtimes.export import export_bundle

    wanted = Precision(precision)
    shape = (size[0], size[1]) if size else None
    loaded = load_exportable(model)
    inputs = (
        calibration_inputs(calibration, loaded.contract, shape, count=count) if wanted is Precision.INT8_STATIC else ()
    )
    graphs = Path(out).parents[1] / ".graphs"  # the costly float graph, shared by all precisions of a size
    options = ExportOptions(precision=wanted, size=shape, batch=batch, calibration=inputs, cache=graphs)
    bundle = export_bundle(loaded, runtime, options, Path(out))
    return {"parity": bundle.details.get("parity", {}), "exported_notes": bundle.details.get("notes", [])}


def evaluate(
    *,
    ref: str,
    data: str,
    split: str | None,
    protocol: str,
    limit: int | None,
    threads: int,
    reference: str | None,
    panel: str | None = None,
    first: int = 0,
    last: int | None = None,
    device: str = "",
    both: bool = False,
) -> dict[str, Any]:
    """Score a bundle or model, and keep its depth of the first pictures for the report.

    Args:
        ref: bundle folder or model reference.
        data: data set reference.
        split: of it.
        protocol: by name.
        limit: at most so many pictures.
        threads: of the engine.
        reference: under `fidelity` the model that counts as truth.
        panel: .npz file for the depth maps of the first pictures; None keeps none.
        first: index of the first sample used.
        last: index after the last one; negative counts from the end.
        device: of the engine; empty takes its CPU.
        both: score with and without alignment, where the model's metres allow both.

    Returns:
        `rows` per picture, `metrics` over them, `precision_ran`, `label`, `kind`, `notes`, `one_by_one`, and with
        `both` what the other alignment gives.
    """
    from leadline.data.dataset import Subset, open_dataset
    from leadline.evaluation.evaluate import evaluate as score
    from leadline.predictor import Predictor
    from leadline.reference import open_session
    from leadline.runtimes.base import SessionOptions

    session = open_session(ref, SessionOptions(threads=threads, device=device or "cpu"))
    predictor = Predictor(session)
    whole = open_dataset(data, split)
    dataset = Subset(whole, first, last) if first or last is not None else whole
    further: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="leadline-maps-") as place:
        other = other_alignment(protocol, session.contract.output.kind) if both else ""
        seen = Remembering(predictor, Path(place)) if other else predictor
        result = score(seen, dataset, protocol, limit=limit, reference=reference, threads=threads)
        if other:
            again = score(seen, dataset, other, limit=limit, threads=threads)
            totals = {name: asdict(value) for name, value in again.summary().items()}
            further = {"other_protocol": again.label, "other": totals}
    if panel is not None:
        _keep_maps(Path(panel), predictor, dataset)
    return further | {
        "rows": result.rows,
        "precision_ran": session.precision_ran,
        "label": result.label,
        "kind": result.kind.value,
        "notes": [*session.notes, *result.notes],
        "one_by_one": session.one_by_one,
        "metrics": {name: asdict(value) for name, value in result.summary().items()},
    }


def other_alignment(protocol: str, kind: Kind) -> str:
    """The protocol with alignment where it has none, and without where it has some; empty where only one makes sense.

    Metres can be scored both ways (SPEC.md 7.3, flaw 1); what has no unit means nothing before it is aligned.
    """
    from leadline.depth import Kind
    from leadline.evaluation.alignment import Alignment
    from leadline.evaluation.protocols import get_protocol

    rule = get_protocol(protocol)
    if rule.truth == "model" or kind is not Kind.METRIC_DEPTH:
        return ""
    exchanged = Alignment.MEDIAN if rule.alignment_for(kind) is Alignment.NONE else Alignment.NONE
    plain = [part for part in rule.variants if part not in list(Alignment)]
    if exchanged is Alignment.MEDIAN and "or-mask" in plain:
        return ""
    return "/".join((rule.name, *plain, exchanged.value))


class Remembering:
    """A predictor whose maps are kept on the disk, so that a second protocol costs no second inference.

    Args:
        predictor: the model.
        folder: where the maps may lie; whoever makes it removes it.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.predictor, self.folder = predictor, folder
        self.contract, self.session = predictor.contract, predictor.session
        self.first: Depth | None = None

    def predict(self, image: Any, intrinsics: Intrinsics | None = None) -> Depth:
        """The map of a picture, from the disk where it was asked for before."""
        pixels = np.ascontiguousarray(image)
        name = hashlib.sha256(f"{pixels.shape} {intrinsics}".encode() + pixels.tobytes()).hexdigest()
        place = self.folder / f"{name}.npy"
        if place.is_file() and self.first is not None:
            return replace(self.first, values=np.load(place, allow_pickle=False), intrinsics=intrinsics)
        depth = self.predictor.predict(image, intrinsics)
        np.save(place, depth.values, allow_pickle=False)
        self.first = depth
        return depth


def export_and_evaluate(*, export_order: dict[str, Any], evaluate_order: dict[str, Any]) -> dict[str, Any]:
    """Both jobs one after the other, in one process."""
    return export(**export_order) | evaluate(**evaluate_order)


def probe(*, runtime: str, device: str) -> dict[str, Any]:
    """Run a small network on an engine's device, to learn whether the device is there.

    Args:
        runtime: engine.
        device: by the engine's own name.
    """
    from leadline.reference import load_model
    from leadline.runtimes.base import ExportOptions, Precision, SessionOptions, required

    adapter, loaded = required(runtime), load_model("random:fastdepth-pruned")
    precision = Precision.FP32 if Precision.FP32 in adapter.precisions else adapter.precisions[0]
    with tempfile.TemporaryDirectory(prefix="leadline-probe-") as place:
        bundle = adapter.export(loaded, ExportOptions(precision, size=PROBE_SIZE), Path(place))
        session = adapter.open(bundle, SessionOptions(device=device))
        session.run(np.zeros((1, 3, *PROBE_SIZE), np.float32))
        session.close()
    return {}


def _keep_maps(panel: Path, predictor: Predictor, dataset: Dataset) -> None:
    maps = {}
    for index in range(min(PANEL_PICTURES, len(dataset))):
        sample = dataset[index]
        maps[sample.name] = predictor.predict(sample.image, sample.intrinsics).values.astype(np.float16)
    with zipfile.ZipFile(panel, "w", zipfile.ZIP_DEFLATED) as archive:  # an .npz, whatever the pictures are called
        for name, values in maps.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def main() -> None:
    """Read one order from stdin and write its answer."""
    order = json.load(sys.stdin)
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "probe": probe,
        "export": export,
        "evaluate": evaluate,
        "export_and_evaluate": export_and_evaluate,
    }
    try:
        answer = jobs[order["job"]](**order["arguments"])
    except LeadlineError as error:
        answer = {"error": str(error), "cause": type(error).__name__}
    write_atomic(Path(order["answer"]), json.dumps(answer).encode())


if __name__ == "__main__":
    main()
