"""A checkpoint: a folder with contract, configuration, weights and manifest; no pickle anywhere."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.contract import Contract
from leadline.errors import CheckpointError, ConfigError, closest
from leadline.manifest import read_manifest, read_measurements, verify_files, write_manifest, write_measurements
from leadline.models.quantization import Quantization
from leadline.models.registry import ARCHITECTURES, architecture, parse_config
from leadline.output import atomic_folder, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from pydantic import BaseModel
    from torch import nn

    State = Mapping[str, torch.Tensor]

CONTRACT, CONFIG, WEIGHTS, CARD = "contract.json", "config.json", "weights.safetensors", "README.md"
AUXILIARY, QUANTIZATION = "auxiliary.safetensors", "quantization.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder.

    Args:
        folder: where it lies.
        architecture: name in the registry.
        config: everything that decides the graph, channel counts included.
        contract: what the network expects and returns.
        lineage: the steps that made it, oldest first.
    """

    folder: Path
    architecture: str
    config: BaseModel
    contract: Contract
    lineage: tuple[dict[str, Any], ...] = field(default=())

    @property
    def name(self) -> str:
        """The contract's name."""
        return self.contract.name

    @property
    def card(self) -> str:
        """The model card (Markdown), empty if there is none."""
        path = self.folder / CARD
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def write_measurements(self, values: Mapping[str, Any]) -> None:
        """Write (or replace) `measurements.json`, which the manifest does not list; plain JSON values, no NaN."""
        write_measurements(self.folder, values)

    def measurements(self) -> dict[str, Any]:
        """What `write_measurements` wrote last; empty if nothing.

        Raises:
            CheckpointError: the file is not valid JSON.
        """
        return read_measurements(self.folder, CheckpointError)

    @property
    def parameters(self) -> int:
        """Number of trained values, without the batch norms' statistics; read from the file's header."""
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        shapes = check_safetensors(self.folder / WEIGHTS)
        return sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(statistics))

    def model(self) -> nn.Module:
        """The network with its weights: float32, eval mode, N x 3 x H x W to N x 1 x H x W.

        Raises:
            CheckpointError: the weights do not fit the configuration; the message names the keys or the tensor and
                proposes the variant that fits.
        """
        network = architecture(self.architecture).build(self.config)
        load_state(network, read_safetensors(self.folder / WEIGHTS), where=self.folder)
        return network.eval()

    def auxiliary(self) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors by name of the modules that were trained beside the network (a pose network); empty if none were.

        Raises:
            CheckpointError: their file is damaged.
        """
        path = self.folder / AUXILIARY
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in read_safetensors(path).items() if path.is_file() else ():
            module, _, name = key.partition(".")
            found.setdefault(module, {})[name] = value
        return found

    def quantization(self) -> Quantization | None:
        """The INT8 grids that quantisation-aware training left; None where there are none.

        Raises:
            CheckpointError: their file is damaged.
        """
        path = self.folder / QUANTIZATION
        return Quantization.of(read_safetensors(path), where=path) if path.is_file() else None


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    architecture: str,
    config: BaseModel,
    contract: Contract,
    lineage: Sequence[dict[str, Any]] = (),
    card: str | None = None,
    half: bool = False,
    auxiliary: Mapping[str, nn.Module] | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Write a checkpoint folder atomically; an older checkpoint at the same place stays until this one is complete.

    Args:
        folder: to be made or replaced.
        model: the network; only its state dict is written.
        architecture: name in the registry.
        config: configuration that rebuilds exactly this graph.
        contract: what the network expects and returns.
        lineage: the steps that made it, oldest first; plain JSON values.
        card: model card in Markdown.
        half: store floating tensors as float16 where their values allow it; they load as float32.
        auxiliary: modules trained beside the network, which a run that starts here goes on with; names without dots.
        quantization: INT8 grids of the network; left out where its weights no longer lie on them, as after training.

    Raises:
        CheckpointError: the model does not have the tensors that `config` describes.
        OutputError: the place is full or not writable.
    """
    from safetensors.torch import save

    if architecture not in ARCHITECTURES:
        raise ConfigError("unknown architecture", where=architecture, mend=closest(architecture, ARCHITECTURES))
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    _check_fit(_shapes(_meta_state(architecture, config)), _shapes(state), where=folder)
    stored = {key: _stored(value, half).contiguous().clone() for key, value in state.items()}
    description = {"architecture": architecture, "config": config.model_dump(mode="json")}
    with atomic_folder(folder, replaces="checkpoint") as place:
        contract.save(place / CONTRACT)
        write_atomic(place / CONFIG, (json.dumps(description, indent=2) + "\n").encode())
        write_atomic(place / WEIGHTS, save(stored))
        if auxiliary:
            write_atomic(place / AUXILIARY, save(_joined(auxiliary, half)))
        if quantization is not None and quantization.fits(model):
            write_atomic(place / QUANTIZATION, save(quantization.tensors()))
        if card is not None:
            write_atomic(place / CARD, card.encode())
        write_manifest(place, "checkpoint", {"lineage": list(lineage)})


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder; its weights are built into a network by `Checkpoint.model`.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or edited, or it is no checkpoint.
        ContractError: the contract is not valid.
        ConfigError: the configuration is not valid, or of an architecture that this version does not have.
    """
    folder = Path(folder)
    entries = read_manifest(folder, "checkpoint", CheckpointError)
    verify_files(folder, entries, CheckpointError, required=(CONTRACT, CONFIG, WEIGHTS))
    check_safetensors(folder / WEIGHTS)
    try:
        description = json.loads((folder / CONFIG).read_bytes())
        name, values = description["architecture"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("unreadable configuration", where=folder / CONFIG, why=str(error)) from error
    lineage = tuple(entry for entry in entries.get("lineage", ()) if isinstance(entry, dict))
    return Checkpoint(folder, name, parse_config(name, values), Contract.load(folder / CONTRACT), lineage)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; floating ones as float32.

    Raises:
        CheckpointError: the file is missing, truncated, has trailing bytes or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_safetensors(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError("unreadable weights", where=path, why=str(error)) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Check the header of a safetensors file against the file's size, without reading the tensors.

    Returns:
        Key to shape.

    Raises:
        CheckpointError: it is truncated, has trailing bytes, or is no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError("no weights", where=path, why="the file does not exist")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if size >= 8 and length <= min(size - 8, _HEADER_LIMIT) else None
    if header is None:
        why = f"truncated, or not a safetensors file: {size} bytes"
        raise CheckpointError("unreadable weights", where=path, why=why, mend="copy or convert it again")
    try:
        entries = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
        shapes = {key: tuple(int(side) for side in entry["shape"]) for key, entry in entries.items()}
        expected = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError("unreadable weights", where=path, why="not a safetensors file") from error
    if size != expected:
        why = f"truncated: {size} of {expected} bytes" if size < expected else f"{size - expected} trailing bytes"
        raise CheckpointError("damaged weights", where=path, why=why, mend="copy or convert it again")
    return shapes


def load_state(model: nn.Module, state: State, *, where: object) -> None:
    """Put tensors into a network, strictly: every key, every shape.

    Args:
        model: receives the tensors.
        state: key to tensor.
        where: the file or folder, for the message.

    Raises:
        CheckpointError: keys are missing or left over, or a shape differs; the message proposes the variant that fits.
    """
    _check_fit(_shapes(model.state_dict()), _shapes(state), where=where)
    model.load_state_dict(dict(state), strict=True)


def fitting_variants(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the variants in the registry whose tensors have exactly these keys and shapes."""
    from leadline.models.registry import variants

    wanted = dict(shapes)
    return [name for name in variants() if _variant_shapes(name) == wanted]


@functools.cache
def _variant_shapes(name: str) -> dict[str, tuple[int, ...]]:
    from leadline.models.registry import variants

    return _shapes(_meta_state(*variants()[name]))


def _check_fit(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], *, where: object) -> None:
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    different = [key for key in wanted if key in found and wanted[key] != found[key]]
    if not missing and not extra and not different:
        return
    fits = fitting_variants(found)
    mend = f"these tensors fit the architecture {' or '.join(fits)}" if fits else "no variant of the registry fits them"
    if missing or extra:
        both = (("missing", missing), ("extra", extra))
        parts = [f"{len(keys)} {word} ({_first(keys)})" for word, keys in both if keys]
        raise CheckpointError("tensors do not fit the architecture", where=where, why=", ".join(parts), mend=mend)
    key = different[0]
    more = f", and {len(different) - 1} more" if len(different) > 1 else ""
    why = f"{key} has shape {found[key]}, the architecture needs {wanted[key]}{more}"
    raise CheckpointError("tensors do not fit the architecture", where=where, why=why, mend=mend)


def _first(keys: Iterable[str], count: int = 3) -> str:
    names = list(keys)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _meta_state(name: str, config: BaseModel) -> State:
    import torch

    with torch.device("meta"):
        return architecture(name).build(config).state_dict()


def _joined(modules: Mapping[str, nn.Module], half: bool) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": _stored(value.detach().cpu(), half).contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def _stored(value: torch.Tensor, half: bool) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    value = value.float()
    halved = value.half()
    return halved if half and bool(halved.isfinite().all()) else value
