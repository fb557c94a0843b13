"""What the processes of a study do: `python -m leadline.studies.jobs`, orders on stdin, the answer in a file."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.errors import LeadlineError
from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.data.dataset import Dataset
    from leadline.predictor import Predictor

PANEL_PICTURES = 3


def export(
    *, model: str, runtime: str, precision: str, size: list[int] | None, calibration: str | None, count: int, out: str
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

    Returns:
        `parity`, the figures of the check.
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
    options = ExportOptions(precision=wanted, size=shape, calibration=inputs, cache=graphs)
    bundle = export_bundle(loaded, runtime, options, Path(out))
    return {"parity": bundle.details.get("parity", {})}


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

    Returns:
        `rows` per picture, `precision_ran`, `label`, `kind` and `notes`.
    """
    from leadline.data.dataset import Subset, open_dataset
    from leadline.evaluation.evaluate import evaluate as score
    from leadline.predictor import Predictor
    from leadline.reference import open_session
    from leadline.runtimes.base import SessionOptions

    session = open_session(ref, SessionOptions(threads=threads))
    predictor = Predictor(session)
    whole = open_dataset(data, split)
    dataset = Subset(whole, first, last) if first or last is not None else whole
    result = score(predictor, dataset, protocol, limit=limit, reference=reference, threads=threads)
    if panel is not None:
        _keep_maps(Path(panel), predictor, dataset)
    return {
        "rows": result.rows,
        "precision_ran": session.precision_ran,
        "label": result.label,
        "kind": result.kind.value,
        "notes": [*session.notes, *result.notes],
        "metrics": {name: asdict(value) for name, value in result.summary().items()},
    }


def export_and_evaluate(*, export_order: dict[str, Any], evaluate_order: dict[str, Any]) -> dict[str, Any]:
    """Both jobs one after the other, in one process."""
    return export(**export_order) | evaluate(**evaluate_order)


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
