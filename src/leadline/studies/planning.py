"""The plan of a study: each cell with its row as far as it is known beforehand, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadline.studies.measurement import Measurement, Status
from leadline.studies.precisions import linear_share
from leadline.studies.study import Cell, Study, cell_key, cells, weights_hash

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from leadline.studies.farm import Device

SPARSE = 0.05  # share of zeros among the weights from which on a network counts as pruned


@dataclass(frozen=True)
class Candidate:
    """A cell on its way to a row.

    Args:
        cell: what it is.
        base: the row with everything that is known beforehand, status failed.
        bundle: folder of the export, shared by batches and machines.
        answer: file that keeps what export and accuracy said, should the study be interrupted before the speed.
        panel: file for the depth maps of the report.
        activations: numbers between its layers for one picture.
        weights: hash of its network's weights.
    """

    cell: Cell
    base: Measurement
    bundle: Path
    answer: Path
    panel: Path
    activations: int = 0
    weights: str = ""


def plan_of(study: Study, out: Path, devices: Mapping[str, Device] | None = None) -> list[Candidate]:
    """Every cell of a study.

    Args:
        study: what is compared.
        out: its folder.
        devices: what the machines of the farm told about themselves; one that is missing here could not be reached.

    Raises:
        KindError: the protocol does not take the model's kind of depth.
        LeadlineError: a network cannot be read, or a size is not allowed.
    """
    from leadline.evaluation.complexity import count_macs, count_parameters
    from leadline.evaluation.machine import fingerprint
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.roofline import count_activations
    from leadline.reference import load_model

    loaded = load_model(study.model)
    get_protocol(study.protocol).alignment_for(loaded.contract.output.kind, study.model)  # refused before any export
    here = fingerprint()
    machines = {"": here} | {name: device.machine for name, device in (devices or {}).items()}
    sets = {name: machine["instruction_sets"] for name, machine in machines.items() if "instruction_sets" in machine}
    plan = cells(study, loaded.contract, linear=linear_share(loaded.model), sets=sets)
    networks = {"": loaded} | {made: load_model(folder) for made, folder in study.networks}
    places = {(one.made, one.size) for one in plan}
    macs = {place: count_macs(networks[place[0]].model, place[1]) for place in places}
    between = {place: count_activations(networks[place[0]].model, place[1]) for place in places}
    hashes = {made: weights_hash(network) for made, network in networks.items()}
    empty = {made: zero_share(network.model) for made, network in networks.items()}
    shared: dict[Cell, str] = {}
    found = []
    for cell in plan:
        network = networks[cell.made]
        if cell.exported not in shared:
            shared[cell.exported] = cell_key(study, cell.exported, network, here, weights=hashes[cell.made])
        machine, engine = here, None
        if cell.on:
            device = (devices or {}).get(cell.on)
            machine = device.machine if device else {"name": cell.on}
            engine = device.engines.get(cell.runtime, {}).get("version", "") if device else ""
        base = Measurement(
            key=cell_key(study, cell, network, machine, engine, hashes[cell.made]),
            model=study.model,
            made=cell.made,
            runtime=cell.runtime,
            precision=cell.precision,
            height=cell.size[0],
            width=cell.size[1],
            batch=cell.batch,
            device=cell.device,
            on=cell.on,
            status=Status.FAILED,
            macs=macs[cell.made, cell.size],
            parameters=count_parameters(network.model),
            zeros=empty[cell.made],
            machine=machine,
        )
        name = f"{cell.folder}-{shared[cell.exported][:8]}"
        paths = (out / "bundles" / name, out / "cells" / f"{name}.json", out / "panel" / f"{cell.folder}.npz")
        found.append(Candidate(cell, base, *paths, between[cell.made, cell.size], hashes[cell.made]))
    return found


def zero_share(model: nn.Module) -> float:
    """Share of exact zeros among the weights of layers; biases and statistics do not count."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def ended(base: Measurement, status: Status, reason: str, **more: Any) -> Measurement:
    """The row of a cell that has no figures."""
    return base.model_copy(update={"status": status, "reason": reason, **more})
