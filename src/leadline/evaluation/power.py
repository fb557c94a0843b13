"""Where a machine tells what it consumes: RAPL, NVML, Jetson's sensors, macOS powermetrics. Never a guess.

A source either counts joules (RAPL, NVML) or tells watts now (sensors). RAPL counts a whole package, other programs
included; a domain that lies inside another one (core, uncore) is left out, memory beside the package is not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[[tuple[str, ...]], str]  # runs a command and gives what it printed; OSError where it cannot

ROOT = Path("/")
TOTAL_RAILS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN", "5V_IN", "VIN")  # Jetson: what the whole module draws
POWERMETRICS = ("powermetrics", "--samplers", "cpu_power,gpu_power", "-i", "200", "-n", "1")
OUTSIDE_A_PACKAGE = ("package", "psys", "dram")


@dataclass(frozen=True)
class Counter:
    """Joules that have been consumed since some moment.

    Args:
        name: of the part of the machine.
        joules: the counter now.
        wrap: value after which it starts again at 0, joules; 0: it does not.
    """

    name: str
    joules: Callable[[], float]
    wrap: float = 0.0


@dataclass(frozen=True)
class Gauge:
    """Watts that are drawn now."""

    name: str
    watts: Callable[[], float]


@dataclass(frozen=True)
class Sources:
    """What can be read here, and why not the rest.

    Args:
        meters: readable now.
        missing: one reason per kind of source that is not there or may not be read.
    """

    meters: tuple[Counter | Gauge, ...]
    missing: tuple[str, ...]


def find_sources(root: Path = ROOT, ask: Ask | None = None) -> Sources:
    """All sources of this machine.

    Args:
        root: of the file system, for tests.
        ask: runs `nvidia-smi` or `powermetrics`, for tests.
    """
    ask = ask or _printed
    meters: list[Counter | Gauge] = []
    missing: list[str] = []
    for found in (_rapl(root), _jetson(root), _nvidia(ask, use_nvml=root == ROOT), _macos(ask)):
        meters += found.meters
        missing += found.missing
    return Sources(tuple(meters), tuple(missing))


def _rapl(root: Path) -> Sources:
    """Packages and the memory beside them; psys, which holds them all, alone where it is readable."""
    folder = root / "sys/class/powercap"
    zones = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
    if not zones:
        return Sources((), (f"RAPL: there is no {folder}/intel-rapl:*",))
    counters: list[Counter] = []
    missing: list[str] = []
    for zone in zones:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if not name.startswith(OUTSIDE_A_PACKAGE):
                continue
            wrap = _number(zone / "max_energy_range_uj") / 1e6
            counter = Counter(f"{name} (RAPL {zone.name})", _reader(zone / "energy_uj", 1e-6), wrap)
            counter.joules()
            counters.append(counter)
        except PermissionError as error:
            who = "readable by root only: run as root or give yourself the right to read it"
            missing.append(f"RAPL: {error.filename} is {who}")
        except (OSError, ValueError) as error:
            missing.append(f"RAPL: cannot read {zone} ({error})")
    whole = [counter for counter in counters if counter.name.startswith("psys")]
    return Sources(tuple(whole or counters), tuple(missing))


def _jetson(root: Path) -> Sources:
    """INA sensors: the rail of the whole module where one is labelled so, else all rails."""
    rails: dict[str, Gauge] = {}
    missing: list[str] = []
    for name, parts, factor in _rails(root):
        gauge = Gauge(f"{name} (INA sensor)", _product(parts, factor))
        try:
            gauge.watts()
            rails[name] = gauge
        except PermissionError as error:
            missing.append(f"INA sensor: {error.filename} is readable by root only")
        except (OSError, ValueError) as error:
            missing.append(f"INA sensor: cannot read {name} ({error})")
    if not rails and not missing:
        return Sources((), (f"INA sensor: none in {root / 'sys/class/hwmon'}",))
    whole = next((rails[name] for name in TOTAL_RAILS if name in rails), None)
    return Sources((whole,) if whole else tuple(rails.values()), tuple(missing))


def _rails(root: Path) -> Iterator[tuple[str, tuple[Path, ...], float]]:
    """(rail, files whose product it is, factor to watts): Orin's hwmon in mV and mA, and older iio files in mW."""
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        with contextlib.suppress(OSError):
            if not (chip / "name").read_text(encoding="ascii").startswith("ina"):
                continue
            for label in sorted(chip.glob("in*_label")):
                number = label.name.removeprefix("in").removesuffix("_label")
                parts = (chip / f"in{number}_input", chip / f"curr{number}_input")
                if all(part.exists() for part in parts):  # the seventh is the sum of shunt voltages
                    yield label.read_text(encoding="ascii").strip(), parts, 1e-6
            if (chip / "power1_input").exists():
                yield (chip / "name").read_text(encoding="ascii").strip(), (chip / "power1_input",), 1e-6
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        number = label.name.removeprefix("rail_name_")
        with contextlib.suppress(OSError):
            yield label.read_text(encoding="ascii").strip(), (label.with_name(f"in_power{number}_input"),), 1e-3


def _nvidia(ask: Ask, *, use_nvml: bool) -> Sources:
    """Joules from NVML where its Python package is installed, watts from nvidia-smi otherwise."""
    meters: tuple[Counter | Gauge, ...] = tuple(_nvml()) if use_nvml else ()
    if meters:
        return Sources(meters, ())
    query = ("nvidia-smi", "--query-gpu=index,power.draw", "--format=csv,noheader,nounits")
    try:
        lines = [line.split(",") for line in ask(query).strip().splitlines()]
        gpus = [(index.strip(), float(watts)) for index, watts in lines]
    except OSError as error:
        return Sources((), (f"NVML: {error}",))
    except ValueError:
        return Sources((), ("NVML: nvidia-smi tells no power of this GPU",))

    def watts_of(index: str) -> Callable[[], float]:
        return lambda: float(ask((query[0], f"--id={index}", "--query-gpu=power.draw", query[2])).strip())

    return Sources(tuple(Gauge(f"GPU {index} (nvidia-smi)", watts_of(index)) for index, _ in gpus), ())


def _nvml() -> Iterator[Counter]:
    if importlib.util.find_spec("pynvml") is None:
        return
    nvml: Any = importlib.import_module("pynvml")
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # not on chips before Volta

            def joules(handle: Any = handle) -> float:
                return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

            yield Counter(f"GPU {index} (NVML)", joules)


def _macos(ask: Ask) -> Sources:
    if platform.system() != "Darwin":
        return Sources((), ())
    if os.geteuid() != 0:
        return Sources((), ("powermetrics: readable by root only: run with sudo",))

    def watts() -> float:
        return parse_powermetrics(ask(POWERMETRICS))

    try:
        watts()
    except (OSError, ValueError) as error:
        return Sources((), (f"powermetrics: {error}",))
    return Sources((Gauge("CPU, GPU and ANE (powermetrics)", watts),), ())


def parse_powermetrics(text: str) -> float:
    """Watts that powermetrics printed: its combined line, or the sum of CPU and GPU where it has none.

    Raises:
        ValueError: it printed no power.
    """
    powers = {name: float(value) / 1e3 for name, value in re.findall(r"^(.*?) Power.*?: (\d+) mW", text, re.MULTILINE)}
    if "Combined" in powers:
        return powers["Combined"]
    if not powers:
        raise ValueError("it prints no power")
    return sum(powers.get(name, 0.0) for name in ("CPU", "GPU", "ANE"))


def _printed(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no {command[0]}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} does not answer") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise OSError(f"{command[0]} failed ({lines[0][:200]})")
    return done.stdout


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii"))


def _reader(path: Path, factor: float) -> Callable[[], float]:
    return lambda: _number(path) * factor


def _product(parts: tuple[Path, ...], factor: float) -> Callable[[], float]:
    def watts() -> float:
        result = factor
        for part in parts:
            result *= _number(part)
        return result

    return watts
