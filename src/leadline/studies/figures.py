"""From what the jobs of a study said to the figures of a measurement."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leadline.depth import Kind
from leadline.studies.measurement import Accuracy, Figure, Latency

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from leadline.evaluation.latency import Ratio, Timing

_CHUNK = 1 << 20
# Parts of a bundle or checkpoint that no engine reads.
PAPERWORK = {"contract.json", "manifest.json", "measurements.json", "config.json", "README.md", "example.py"}


def accuracy_of(found: dict[str, Any], protocol: str, data: str, reference: Mapping[str, str] | None) -> Accuracy:
    """The figures of an evaluation job, and their paired change against the reference's pictures.

    Args:
        found: what the job answered.
        protocol: by name.
        data: data set reference, for people.
        reference: the reference's figures as JSON by picture; None for the reference itself.
    """
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.results import Evaluation, paired_differences

    rows, rule, kind = found["rows"], get_protocol(protocol), Kind(found["kind"])
    metrics = {name: Figure(**values) for name, values in found["metrics"].items()}
    change: dict[str, Figure] = {}
    if reference is not None:
        ours = Evaluation("candidate", kind, data, rule, rows)
        theirs = Evaluation("reference", kind, data, rule, [json.loads(text) for text in reference.values()])
        change = {name: Figure(**asdict(value)) for name, value in paired_differences(ours, theirs).items()}
    states = [row["status"] for row in rows]
    return Accuracy(
        protocol=found["label"],
        data=data,
        primary=rule.primary,
        metrics=metrics,
        change=change,
        scored=states.count("scored"),
        unmeasured=states.count("n/a"),
        failed=states.count("failed"),
        degenerate=sum(bool(row.get("degenerate")) for row in rows),
        inverted=sum(bool(row.get("inverted")) for row in rows),
        other_protocol=found.get("other_protocol", ""),
        other={name: Figure(**values) for name, values in found.get("other", {}).items()},
    )


def latency_of(timing: Timing) -> Latency:
    """A successful timing as a row keeps it; the reference is compared with itself."""
    found = timing.latency
    assert found is not None
    return Latency(
        p50=found.p50,
        p95=found.p95,
        p99=found.p99,
        iqr=found.iqr,
        runs=found.runs,
        warmup=found.warmup,
        threads=found.threads,
        pre=found.pre,
        post=found.post,
        reference_p50=timing.ratio.reference_p50 if timing.ratio else found.p50,
        batch=found.batch,
        parts=found.parts or {},
        ratio_quartiles=_quartiles(timing.ratio),
    )


def _quartiles(ratio: Ratio | None) -> tuple[float, float] | None:
    return None if ratio is None or not ratio.value else (ratio.low / ratio.value, ratio.high / ratio.value)


def engine_files(folder: Path) -> list[Path]:
    """Files with weights and graph of a bundle or checkpoint, not contract, manifest or figures."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in PAPERWORK]


def engine_mb(folder: Path) -> float:
    """MB (10^6 bytes) of what an engine reads."""
    return sum(path.stat().st_size for path in engine_files(folder)) / 1e6


def packed_mb(files: Sequence[Path]) -> float:
    """MB (10^6 bytes) of files after DEFLATE, each on its own, at zlib's usual level."""
    total = 0
    for path in files:
        packer = zlib.compressobj()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total += len(packer.compress(chunk))
        total += len(packer.flush())
    return total / 1e6
