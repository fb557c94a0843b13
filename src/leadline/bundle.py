"""A bundle: a folder that a device can run, with the engine's files, contract, manifest and measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.contract import Contract
from leadline.errors import BundleError
from leadline.manifest import (
    MEASUREMENTS,
    checked_name,
    read_manifest,
    read_measurements,
    refuse_links,
    unlisted,
    verify_files,
    write_manifest,
    write_measurements,
)
from leadline.output import LOCK_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONTRACT, EXAMPLE = "contract.json", "example.py"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder.

    Args:
        folder: where it lies.
        runtime: name of the engine adapter that wrote it and runs it.
        precision: the arithmetic asked for.
        contract: what the network expects and returns.
        size: (height, width) of the input in pixels.
        dynamic: height and width are open, within the contract's limits.
        lineage: the steps that made it, oldest first.
        details: what the engine adapter needs to know again; plain JSON values.
        files: names of the engine's files.
    """

    folder: Path
    runtime: str
    precision: str
    contract: Contract
    size: tuple[int, int]
    dynamic: bool
    lineage: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.files:
            raise BundleError("no such file in the bundle", where=name, why=f"it has {', '.join(self.files)}")
        return self.folder / name

    @property
    def size_bytes(self) -> int:
        """Size of the engine's files together, bytes; contract and example are not among them."""
        return sum((self.folder / name).stat().st_size for name in self.files if name not in (CONTRACT, EXAMPLE))

    def write_measurements(self, values: Mapping[str, Any]) -> None:
        """Write (or replace) `measurements.json`; plain JSON values, no NaN."""
        write_measurements(self.folder, values)

    def measurements(self) -> dict[str, Any]:
        """What `write_measurements` wrote last; empty if nothing.

        Raises:
            BundleError: the file is not valid JSON.
        """
        return read_measurements(self.folder, BundleError)


def write_bundle(
    folder: Path,
    *,
    runtime: str,
    precision: str,
    contract: Contract,
    size: tuple[int, int],
    dynamic: bool,
    lineage: Sequence[dict[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make a bundle of a folder in which the engine's files already lie: adds contract and manifest.

    Args:
        folder: holds the engine's files.
        runtime: name of the engine adapter.
        precision: the arithmetic asked for.
        contract: what the network expects and returns.
        size: (height, width) of the input in pixels.
        dynamic: height and width are open.
        lineage: the steps that made it, oldest first.
        details: what the adapter needs to know again; plain JSON values.

    Raises:
        OutputError: the place is full or not writable.
    """
    contract.save(folder / CONTRACT)
    fields = {
        "runtime": str(runtime),
        "precision": str(precision),
        "size": [int(side) for side in size],
        "dynamic": bool(dynamic),
        "details": dict(details or {}),
        "lineage": list(lineage),
    }
    write_manifest(folder, "bundle", fields, leave_out=(MEASUREMENTS, LOCK_NAME))
    return _bundle(folder, read_manifest(folder, "bundle", BundleError))


def load_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle folder.

    Raises:
        BundleError: a file is missing, damaged, edited or unlisted; a link; a name or an ONNX external-data path that
            leads outside the folder.
        ContractError: the contract is not valid.
    """
    folder = Path(folder)
    entries = read_manifest(folder, "bundle", BundleError)
    for name in entries["files"]:
        checked_name(name, folder, BundleError)
    refuse_links(folder, BundleError)
    verify_files(folder, entries, BundleError, required=(CONTRACT,))
    strangers = [name for name in unlisted(folder, entries) if name not in (MEASUREMENTS, LOCK_NAME)]
    if strangers:
        why = "its manifest does not list this file"
        raise BundleError("refused", where=folder / strangers[0], why=why, mend="move it out of the bundle")
    for name in entries["files"]:
        if name.endswith(".onnx"):
            check_external_data(folder / name)
    return _bundle(folder, entries)


def check_external_data(path: Path) -> None:
    """Refuse an ONNX file whose tensors lie in files outside its own folder.

    Raises:
        BundleError: a location is absolute, climbs out, is a link or is missing, or the file is no ONNX model.
    """
    data = path.read_bytes()
    if b"location" not in data:  # the key of every external-data entry
        return
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BundleError("unreadable ONNX file", where=path, why=str(error)) from error
    graphs = [model.graph, *model.functions]
    for location in {place for graph in graphs for place in _external_locations(graph)}:
        name = checked_name(location, path.parent, BundleError)
        if (path.parent / name).is_symlink() or not (path.parent / name).is_file():
            raise BundleError("refused external data", where=location, why=f"of {path}: a link, or missing")
        if (path.parent / name).stat().st_nlink > 1:
            raise BundleError("refused external data", where=location, why=f"of {path}: a hard link")


def _external_locations(graph: Any) -> Iterator[str]:
    tensors = list(getattr(graph, "initializer", ()))
    for sparse in getattr(graph, "sparse_initializer", ()):
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                yield from _external_locations(inner)
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield entry.value


def _bundle(folder: Path, entries: dict[str, Any]) -> Bundle:
    try:
        height, width = entries["size"]
        return Bundle(
            folder,
            str(entries["runtime"]),
            str(entries["precision"]),
            Contract.load(folder / CONTRACT),
            (int(height), int(width)),
            bool(entries["dynamic"]),
            tuple(entry for entry in entries["lineage"] if isinstance(entry, dict)),
            dict(entries["details"]),
            tuple(entries["files"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("not a bundle manifest", where=folder, why=f"bad or missing entry: {error}") from error
