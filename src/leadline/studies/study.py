"""A study: one model over runtimes, precisions and input sizes on one data set and protocol; resumable per cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.errors import ConfigError
from leadline.runtimes.base import RUNTIMES, Precision, runtime
from leadline.studies.measurement import folder_name

if TYPE_CHECKING:
    from leadline.contract import Contract
    from leadline.reference import LoadedModel
    from leadline.runtimes.base import Runtime
    from leadline.studies.measurement import Measurement

_CHOICE = ("runtimes", "precisions", "sizes", "networks")  # of candidates; what is true of each stands in its cell
REFERENCE_RUNTIME, REFERENCE_PRECISION = "torch", "fp32"


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Args:
        model: reference of the model.
        data: data set reference.
        split: part of it.
        protocol: by name, variants included.
        limit: at most so many pictures.
        runtimes: engines; empty takes all.
        precisions: empty takes all that an engine has; one that it lacks becomes a skipped row.
        sizes: (height, width) of the network's input; empty takes the contract's, and a smaller one where it is open.
        threads: of each engine.
        runs: timed runs per candidate.
        calibration: data set reference for static INT8; None calibrates on rendered scenes.
        calibration_count: pictures for static INT8.
        networks: what recipes made of the model, as (in words, checkpoint folder); each is a candidate like the model.
    """

    model: str
    data: str = "rendered"
    split: str | None = None
    protocol: str = "plain"
    limit: int | None = None
    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    threads: int = 1
    runs: int = 60
    calibration: str | None = None
    calibration_count: int = 64
    networks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One candidate of a study: of the model itself, or of what a recipe made of it."""

    runtime: str
    precision: str
    size: tuple[int, int]
    made: str = ""

    @property
    def folder(self) -> str:
        """Name of its bundle's folder."""
        return folder_name(self.made, self.runtime, self.precision, self.size)


@dataclass
class Outcome:
    """A finished study.

    Args:
        study: what was compared.
        folder: of the study.
        rows: in the order of its cells, the first of them the reference.
        notices: what was decided for the user, in words.
    """

    study: Study
    folder: Path
    rows: list[Measurement] = field(default_factory=list)
    notices: tuple[str, ...] = ()

    @property
    def reference(self) -> Measurement:
        """The uncompressed model in PyTorch."""
        return self.rows[0]


def cells(study: Study, contract: Contract) -> list[Cell]:
    """All candidates, before them the reference: PyTorch FP32 at the model's own size, whatever sizes are asked for.

    Args:
        study: what is compared.
        contract: of the model.

    Raises:
        ConfigError: an unknown runtime or precision.
    """
    known = {precision.value for precision in Precision}
    for precision in study.precisions:
        if precision not in known:
            raise ConfigError("unknown precision", where=precision, mend=f"known: {', '.join(sorted(known))}")
    own = default_sizes(contract)
    found = [Cell(REFERENCE_RUNTIME, REFERENCE_PRECISION, own[0])]  # another size would hide its own loss from the drop
    networks = ("", *(made for made, _ in study.networks))
    for made, size, name in product(networks, study.sizes or own, study.runtimes or RUNTIMES):
        # INT8 weights alone bring size and no time: asked for by name only
        usual = [precision for precision in runtime(name).precisions if precision is not Precision.INT8_WEIGHTS]
        wanted = study.precisions or usual
        found += [Cell(name, precision.value, size, made) for precision in Precision if precision in wanted]
    return list(dict.fromkeys(found))


def default_sizes(contract: Contract) -> tuple[tuple[int, int], ...]:
    """The contract's own (height, width), and three quarters of it where the network's input is open."""
    spec = contract.input
    own = (spec.height, spec.width)
    n = spec.multiple_of
    small = (max(n, round(0.75 * own[0] / n) * n), max(n, round(0.75 * own[1] / n) * n))
    allowed = spec.dynamic and small != own and min(small) >= spec.min_side
    return (own, small) if allowed else (own,)


def cell_key(study: Study, cell: Cell, loaded: LoadedModel, machine: dict[str, Any]) -> str:
    """Hash of everything that decides a row: weights, contract, engine and version, data, protocol, machine."""
    adapter: Runtime = runtime(cell.runtime)
    facts = {
        "leadline": __version__,
        "weights": weights_hash(loaded),
        "contract": loaded.contract.model_dump(mode="json"),
        "cell": {key: value for key, value in asdict(cell).items() if value},
        "engine": adapter.availability().version,
        "study": {key: value for key, value in asdict(study).items() if key not in _CHOICE},
        "machine": machine,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def weights_hash(loaded: LoadedModel) -> str:
    """SHA-256 over names, shapes and bytes of the network's tensors, and of its INT8 grids where it has some."""
    digest = hashlib.sha256()
    grids = {} if loaded.quantization is None else loaded.quantization.tensors()
    for name, tensor in [*loaded.model.state_dict().items(), *grids.items()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
