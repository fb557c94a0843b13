"""A study: one model over runtimes, precisions and input sizes on one data set and protocol; resumable per cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.errors import ConfigError
from leadline.runtimes.base import Precision, runtime, usual_runtimes
from leadline.studies.measurement import candidate_name, folder_name
from leadline.studies.precisions import left_out, linear_share, usual_precisions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leadline.contract import Contract
    from leadline.reference import LoadedModel
    from leadline.studies.measurement import Measurement

# Of candidates: what is true of each stands in its cell. And what decides no figure.
_CHOICE = ("runtimes", "precisions", "sizes", "networks", "batches", "devices", "on", "timeout")
_WHERE_SAID = ("reference_device", "both_alignments")  # count where they are not the default
REFERENCE_RUNTIME, REFERENCE_PRECISION = "torch", "fp32"
CPU = "cpu"  # the device of a session for which none is named
HERE = "here"  # this machine, among those of a farm


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Args:
        model: reference of the model.
        data: data set reference.
        split: part of it.
        protocol: by name, variants included.
        limit: at most so many pictures.
        runtimes: engines; empty takes all that run here and are quick to export to.
        precisions: empty takes those of each engine that may bring time; one that it lacks becomes a skipped row.
        sizes: (height, width) of the network's input; empty takes the contract's, and a smaller one where it is open.
        threads: of each engine.
        runs: timed runs per candidate.
        calibration: data set reference for static INT8; None calibrates on rendered scenes.
        calibration_count: pictures for static INT8.
        networks: what recipes made of the model, as (in words, checkpoint folder); each is a candidate like the model.
        batches: pictures that an engine is given at once; accuracy is of one picture and measured once for all.
        devices: of each engine, by its own names; empty takes the CPU. An engine given as `torch on cuda` has its own.
        on: machines of the device farm; empty for this machine, which is also called `here`.
        reference_device: that PyTorch runs the reference on.
        both_alignments: score metric depth with and without alignment.
        timeout: seconds after which an engine counts as hanging; None takes what jobs and timing have themselves.
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
    batches: tuple[int, ...] = (1,)
    devices: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    reference_device: str = ""
    both_alignments: bool = False
    timeout: float | None = None

    @property
    def batch(self) -> int:
        """The largest batch, for which bundles are exported."""
        return max(self.batches)


@dataclass(frozen=True)
class Cell:
    """One candidate of a study: of the model itself, or of what a recipe made of it."""

    runtime: str
    precision: str
    size: tuple[int, int]
    made: str = ""
    batch: int = 1
    device: str = ""
    on: str = ""

    @property
    def folder(self) -> str:
        """Name of its bundle's folder, which it shares with its other batches and machines."""
        return folder_name(self.made, self.runtime, self.precision, self.size, self.device)

    @property
    def name(self) -> str:
        """What people call it."""
        return candidate_name(self.made, self.runtime, self.precision, self.size, self.batch, self.device, self.on)

    @property
    def exported(self) -> Cell:
        """The cell whose bundle and accuracy this one shares: one picture, here."""
        return replace(self, batch=1, on="")


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

    def on(self, machine: str) -> Outcome:
        """What was measured on one machine of the study."""
        return replace(self, rows=[row for row in self.rows if row.on == machine])


def cells(
    study: Study, contract: Contract, *, linear: float = 1.0, sets: Mapping[str, Sequence[str]] | None = None
) -> list[Cell]:
    """All candidates, machine by machine.

    Before those of each machine stands the reference: PyTorch FP32, one picture at the model's own size, whatever
    sizes and batches are asked for.

    Args:
        study: what is compared.
        contract: of the model.
        linear: share of the network's weights in Linear layers.
        sets: instruction sets by machine (empty for this one), as far as they are known.

    Raises:
        ConfigError: an unknown runtime or precision.
    """
    known = {precision.value for precision in Precision}
    for precision in study.precisions:
        if precision not in known:
            raise ConfigError("unknown precision", where=precision, mend=f"known: {', '.join(sorted(known))}")
    own = default_sizes(contract)
    found = []
    for on in study.on or ("",):
        place = "" if on == HERE else on
        # another size would hide its own loss from the drop
        found.append(Cell(REFERENCE_RUNTIME, REFERENCE_PRECISION, own[0], device=study.reference_device, on=place))
        networks = ("", *(made for made, _ in study.networks))
        for made, size, entry in product(networks, study.sizes or own, study.runtimes or usual_runtimes()[0]):
            name, device = engine_of(entry)
            runtime(name)  # or an error, whatever the precisions
            devices = (device,) if device else study.devices or ("",)
            for precision, where in product(Precision, devices):
                wanted = study.precisions or usual_precisions(name, where, linear=linear, sets=(sets or {}).get(place))
                if precision in wanted:
                    found += [Cell(name, precision.value, size, made, batch, where, place) for batch in study.batches]
    return list(dict.fromkeys(found))


def untried(study: Study) -> list[str]:
    """Notices of the engines and the precisions that a study leaves out of itself, and why."""
    from leadline.evaluation.machine import this_machine
    from leadline.reference import load_model

    engines, said = (study.runtimes, "") if study.runtimes else usual_runtimes()
    notices = [said]
    if not study.precisions:
        linear = linear_share(load_model(study.model).model)
        named = [engine_of(entry) for entry in engines]
        pairs = [(name, device or where) for name, device in named for where in study.devices or ("",)]
        notices.append(left_out(pairs, linear=linear, sets=this_machine().instruction_sets))
    return notices


def engine_of(entry: str) -> tuple[str, str]:
    """(engine, device) of `torch on cuda`; an empty device where none is named.

    Raises:
        ConfigError: nothing stands before or behind `on`.
    """
    name, middle, device = (part.strip() for part in entry.partition(" on "))
    if not name or (middle and not device):
        raise ConfigError("not an engine", where=entry, mend="write NAME, or NAME on DEVICE, as in: torch on cuda")
    return name, device


def default_sizes(contract: Contract) -> tuple[tuple[int, int], ...]:
    """The contract's own (height, width), and three quarters of it where the network's input is open."""
    spec = contract.input
    own = (spec.height, spec.width)
    n = spec.multiple_of
    small = (max(n, round(0.75 * own[0] / n) * n), max(n, round(0.75 * own[1] / n) * n))
    allowed = spec.dynamic and small != own and min(small) >= spec.min_side
    return (own, small) if allowed else (own,)


def cell_key(
    study: Study, cell: Cell, loaded: LoadedModel, machine: dict[str, Any], engine: str | None = None, weights: str = ""
) -> str:
    """Hash of everything that decides a row: weights, contract, engine and version, data, protocol, machine.

    Args:
        study: what is compared.
        cell: the candidate.
        loaded: its network.
        machine: fingerprint of the machine that measures it.
        engine: version of the engine there; None takes that of this machine.
        weights: `weights_hash` of the network where it is known; it takes a second per gigabyte.
    """
    facts = {
        "leadline": __version__,
        "weights": weights or weights_hash(loaded),
        "contract": loaded.contract.model_dump(mode="json"),
        "cell": {key: value for key, value in asdict(cell).items() if value and (key, value) != ("batch", 1)},
        "engine": runtime(cell.runtime).availability().version if engine is None else engine,
        "study": {key: getattr(study, key) for key in _deciding(study)},
        "machine": machine,
    }
    if study.batch > 1:
        facts["batches"] = "open"  # the bundle is another one than for single pictures
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _deciding(study: Study) -> list[str]:
    said = [one.name for one in fields(study) if one.name not in (*_CHOICE, *_WHERE_SAID)]
    return said + [key for key in _WHERE_SAID if getattr(study, key)]


def weights_hash(loaded: LoadedModel) -> str:
    """SHA-256 over names, shapes and bytes of the network's tensors, and of its INT8 grids where it has some."""
    digest = hashlib.sha256()
    grids = {} if loaded.quantization is None else loaded.quantization.tensors()
    for name, tensor in [*loaded.model.state_dict().items(), *grids.items()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
