"""What a device of the farm does: it keeps bundles by content hash, and times and scores them in isolated processes."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import BundleError, LeadlineError
from leadline.output import cache_folder, sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable


def perform(task: str, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order; a failure comes back as `error` and `kind`, so that no exception has to travel."""
    try:
        return TASKS[task](**order)
    except LeadlineError as error:
        return {"error": str(error), "kind": type(error).__name__}


def hello() -> dict[str, Any]:
    """The machine, the version of Leadline, and the engines."""
    from leadline import __version__
    from leadline.evaluation.machine import fingerprint
    from leadline.runtimes.base import RUNTIMES, runtime

    engines = {name: asdict(runtime(name).availability()) for name in RUNTIMES}
    return {"machine": fingerprint(), "leadline": __version__, "engines": engines}


def lacks(*, name: str) -> dict[str, Any]:
    """Whether a bundle has to be sent: it is not here, or no longer whole."""
    from leadline.bundle import load_bundle

    place = _place(name)
    try:
        load_bundle(place)
    except LeadlineError:
        return {"lacks": True}
    return {"lacks": content_hash(place) != name}


def receive(*, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Keep a bundle.

    Args:
        name: its content hash.
        files: by name.

    Raises:
        BundleError: a name leads outside the folder, or the files are not those of the hash.
        OutputError: the cache cannot be written.
    """
    from leadline.bundle import load_bundle
    from leadline.manifest import checked_name
    from leadline.output import atomic_folder

    place = _place(name)
    shutil.rmtree(place, ignore_errors=True)  # of a bundle that is no longer whole
    with atomic_folder(place) as folder:
        for path, data in files.items():
            target = folder / checked_name(path, folder, BundleError)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if content_hash(folder) != name:
            raise BundleError("a bundle arrived that is not the one of its hash", where=name)
        load_bundle(folder)
    return {}


def time(
    *, jobs: list[dict[str, Any]], threads: int, runs: int, warmup: int, rounds: int, timeout: float
) -> dict[str, Any]:
    """Time the last of one or two bundles, in turn with the first, each in a process of its own.

    Args:
        jobs: `name` (content hash), `batch` and `device` of each.
        threads: of the engines.
        runs: timed runs.
        warmup: runs before them.
        rounds: turns.
        timeout: seconds until an engine counts as hanging.
    """
    from leadline.evaluation.isolation import Job
    from leadline.evaluation.latency import compare

    first, *others = (
        Job(str(_place(job["name"])), threads, device=job["device"] or "cpu", batch=job["batch"]) for job in jobs
    )
    timings = compare(first, others, runs=runs, warmup=warmup, rounds=rounds, timeout=timeout)
    return {"timing": timings[-1].as_dict()}


def score(*, name: str, order: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of a bundle that only this device can run; the data must be here.

    Args:
        name: content hash.
        order: of `leadline.studies.jobs.evaluate`, but for the bundle's place.
    """
    from leadline.studies.isolated import run_isolated

    return run_isolated("evaluate", order | {"ref": str(_place(name))}, threads=order["threads"])


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "hello": hello,
    "lacks": lacks,
    "receive": receive,
    "time": time,
    "score": score,
}


def content_hash(bundle: Path) -> str:
    """What a bundle is called in the caches of devices: SHA-256 of its manifest, which lists that of every file."""
    return sha256_file(bundle / "manifest.json")


def packed(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle by name, without its measurements, which are of another machine."""
    from leadline.manifest import MANIFEST, MEASUREMENTS, read_manifest

    names = [MANIFEST, *read_manifest(bundle, "bundle", BundleError)["files"]]
    return {name: (bundle / name).read_bytes() for name in names if name != MEASUREMENTS}


def _place(name: str) -> Path:
    if len(name) != 64 or not all(letter in "0123456789abcdef" for letter in name):
        raise BundleError("not a content hash", where=name)
    return cache_folder() / "bundles" / name
