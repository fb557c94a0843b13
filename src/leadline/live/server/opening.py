"""Models as a server opens them: a reference in one engine, with sizes and batches left open where they may be."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.errors import ConfigError, UnavailableError
from leadline.manifest import manifest_kind
from leadline.output import cache_folder
from leadline.reference import check_reference, load_exportable, open_session, zoo
from leadline.runtimes.base import ExportOptions, SessionOptions, required, runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.contract import Contract
    from leadline.runtimes.base import Session

FASTEST = ("openvino", "onnxruntime", "torch")  # on CPUs, as `leadline optimize` measures it; the first that works
AUTOMATIC, OWN = "auto", ""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Wanted:
    """A model to serve.

    Args:
        name: what clients call it.
        ref: model reference.
        runtimes: engines to offer it in, the default one first; OWN: the file's.
        threads: of each engine.
        folder: the checkpoint or bundle, which may be replaced while it is served; None for all else.
    """

    name: str
    ref: str
    runtimes: tuple[str, ...] = (AUTOMATIC,)
    threads: int = 1
    folder: Path | None = None


def wanted_model(name: str, ref: str, runtimes: Sequence[str], threads: int) -> Wanted:
    """A model to serve in these engines, or in its own where it is a bundle or an ONNX file.

    Raises:
        ModelReferenceError: the reference names nothing.
    """
    check_reference(ref)
    kind = None if ref in zoo() else manifest_kind(Path(ref))
    is_file = ref not in zoo() and Path(ref).suffix == ".onnx"
    engines = (OWN,) if kind == "bundle" or is_file else tuple(dict.fromkeys(runtimes)) or (AUTOMATIC,)
    return Wanted(name, ref, engines, threads, Path(ref) if kind is not None else None)


def wanted_models(texts: Sequence[str], runtimes: Sequence[str], threads: int) -> list[Wanted]:
    """`REF` and `NAME=REF` as models to serve.

    Raises:
        ConfigError: two of one name, a name that no address can hold, or an unknown runtime.
        ModelReferenceError: a reference names nothing.
    """
    for name in runtimes:
        if name != AUTOMATIC:
            runtime(name)
    models: dict[str, Wanted] = {}
    for text in texts:
        name, mark, ref = text.partition("=")
        if not mark or Path(text).exists():
            name, ref = Path(text).name.removesuffix(".onnx"), text
            name = text.replace(":", "-").replace("/", "-") if text.startswith(("hf:", "random:")) else name
        if not NAME.fullmatch(name):
            why = "letters, digits, dots, dashes and underscores make a name"
            raise ConfigError("cannot serve a model as", where=name, why=why, mend=f"write NAME={ref}")
        if name in models:
            raise ConfigError("two models of one name", where=name, mend=f"write OTHER_NAME={ref}")
        models[name] = wanted_model(name, ref, runtimes, threads)
    return list(models.values())


def open_wanted(wanted: Wanted, engine: str) -> Session:
    """A model in one of its engines, proven on a picture.

    Args:
        wanted: the model.
        engine: of `wanted.runtimes`.

    Raises:
        LeadlineError: it cannot be opened, or returns what its contract does not allow.
    """
    options = SessionOptions(threads=wanted.threads)
    if engine in (OWN, "torch"):
        session = open_session(wanted.ref, options)
    elif engine == AUTOMATIC:
        session = _fastest(wanted.ref, options)
    else:
        session = _exported(wanted.ref, engine, options)
    try:
        prove(session)
    except BaseException:
        session.close()
        raise
    return session


def prove(session: Session) -> None:
    """Run a picture of waves through a model.

    Raises:
        LeadlineError: NaN, infinity, or another shape than one map.
    """
    y, x = np.mgrid[0:120, 0:160]
    planes = [127 + 120 * np.sin(x / (7 + 3 * band)) * np.cos(y / (11 - band)) for band in range(3)]
    picture = np.stack(planes, axis=2).astype(np.uint8)
    contract: Contract = session.contract
    contract.restore(session.run(contract.prepare(picture)), (120, 160))


def _fastest(ref: str, options: SessionOptions) -> Session:
    notes: list[str] = []
    for name in FASTEST[:-1]:
        try:
            session = _exported(ref, name, options)
            session.notes.extend(notes)
            return session
        except UnavailableError as error:  # the engine is missing, or lacks an operator
            notes.append(str(error))
    session = open_session(ref, options)
    session.notes.extend(notes)
    return session


def _exported(ref: str, name: str, options: SessionOptions) -> Session:
    adapter = required(name)
    if reason := adapter.availability().export_only:
        raise UnavailableError(f"{name} cannot run here", why=reason, mend=f"known to run: {', '.join(FASTEST)}")
    model = load_exportable(ref)
    is_open = adapter.dynamic and model.contract.input.dynamic
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        wanted = ExportOptions(dynamic=is_open, cache=_graphs())
        bundle = adapter.export(model, wanted, Path(folder))
        return adapter.open(bundle, options)


def _graphs() -> Path | None:
    """Where float graphs are kept from one start to the next, since exporting costs seconds; None: not to be had."""
    folder = cache_folder() / "graphs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
