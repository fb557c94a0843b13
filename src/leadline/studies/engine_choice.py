"""Which engine a study takes where its file names several in order of preference: the first that is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadline.errors import ConfigError
from leadline.runtimes.base import runtime
from leadline.studies.isolated import JobError, run_isolated
from leadline.studies.study import REFERENCE_RUNTIME, engine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadline.studies.farm import Device

    Probe = Callable[[str, str], str]


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        entry: the engine, with its device where one was named.
        reference_device: that PyTorch runs the reference on; empty for the CPU.
        sentence: what was chosen, by which rule, and why not what stands before it.
    """

    entry: str
    reference_device: str
    sentence: str


def first_available(
    entries: Sequence[str],
    precisions: Sequence[str],
    devices: Sequence[Device] = (),
    probe: Probe | None = None,
) -> Choice:
    """The first engine of a list that is installed, has every precision, and runs on the device that is named.

    The reference runs on the device that the list names for PyTorch, where that is here, so that both sides of a
    comparison run on the same hardware.

    Args:
        entries: `NAME` or `NAME on DEVICE`, in order of preference.
        precisions: that the study asks for.
        devices: machines of the farm that must have the engine, instead of this one.
        probe: tells why an engine cannot use a device, empty where it can; for tests.

    Raises:
        ConfigError: none of them; the message says why of each.
    """
    probe = probe or runs_on
    passed: list[str] = []
    for entry in entries:
        reason = _missing(entry, precisions, devices, probe)
        if not reason:
            rule = f"the first of {', '.join(entries)} that is here with {', '.join(precisions) or 'its precisions'}"
            because = f"; not {'; not '.join(passed)}" if passed else ""
            name, device = engine_of(entry)
            on_it = device if name == REFERENCE_RUNTIME else _reference_device(entries, passed, devices, probe)
            return Choice(entry, on_it, f"Engine: {entry}, {rule}{because}.")
        passed.append(f"{entry}: {reason}")
    raise ConfigError("none of the engines can be used", where="runtime", why="; ".join(passed))


def runs_on(name: str, device: str) -> str:
    """Why an engine cannot use a device here, found in a process of its own; empty where it can."""
    try:
        run_isolated("probe", {"runtime": name, "device": device}, timeout=300.0)
    except JobError as error:
        return str(error)
    return ""


def _missing(entry: str, precisions: Sequence[str], devices: Sequence[Device], probe: Probe) -> str:
    name, device = engine_of(entry)
    adapter = runtime(name)
    state = adapter.availability()
    if not state.available:
        return f"{state.reason} ({state.install})"
    absent = [precision for precision in precisions if precision not in adapter.precisions]
    if absent:
        return f"it has no {', '.join(absent)}"
    for one in devices:
        there = one.engines.get(name, {})
        if not there.get("available") or there.get("export_only"):
            return f"not on {one.name}"
    if devices:  # whether a farm's device has the accelerator, its rows say
        return ""
    return state.export_only or (probe(name, device) if device else "")


def _reference_device(entries: Sequence[str], passed: Sequence[str], devices: Sequence[Device], probe: Probe) -> str:
    """The device that the list names for PyTorch, unless it was found missing."""
    for entry in entries:
        name, device = engine_of(entry)
        if name != REFERENCE_RUNTIME or not device or any(one.startswith(f"{entry}: ") for one in passed):
            continue
        if devices or not probe(name, device):
            return device
    return ""
