"""Energy: counters that wrap, sensors that are integrated, idle that is subtracted, and reasons where nothing is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leadline.evaluation import power
from leadline.evaluation.energy import Meter, consumed, energy_of, measure_energy
from leadline.evaluation.power import Counter, Gauge, Sources, find_sources, parse_powermetrics


def refused(command: tuple[str, ...]) -> str:
    raise FileNotFoundError(f"there is no {command[0]}")


def put(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def zone(root: Path, number: str, name: str, microjoules: int, wrap: int = 262_143_328_850) -> Path:
    folder = root / "sys/class/powercap" / f"intel-rapl:{number}"
    put(folder / "name", name)
    put(folder / "max_energy_range_uj", wrap)
    return put(folder / "energy_uj", microjoules)


def read(source: Counter | Gauge) -> float:
    return source.joules() if isinstance(source, Counter) else source.watts()


class TestRapl:
    def test_packages_and_memory_count_and_cores_inside_a_package_do_not(self, tmp_path: Path) -> None:
        zone(tmp_path, "0", "package-0", 5_000_000)
        zone(tmp_path, "0:0", "core", 3_000_000)
        zone(tmp_path, "0:1", "dram", 2_000_000)
        zone(tmp_path, "1", "package-1", 7_000_000)
        found = find_sources(tmp_path, refused).meters
        assert {source.name: read(source) for source in found} == {
            "package-0 (RAPL intel-rapl:0)": 5.0,
            "dram (RAPL intel-rapl:0:1)": 2.0,
            "package-1 (RAPL intel-rapl:1)": 7.0,
        }
        assert {source.wrap for source in found if isinstance(source, Counter)} == {262143.32885}

    def test_the_whole_platform_is_not_counted_beside_its_parts(self, tmp_path: Path) -> None:
        zone(tmp_path, "0", "package-0", 5_000_000)
        zone(tmp_path, "1", "psys", 9_000_000)
        assert [read(source) for source in find_sources(tmp_path, refused).meters] == [9.0]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_counter_of_root_only_is_named_with_its_file(self, tmp_path: Path) -> None:
        path = zone(tmp_path, "0", "package-0", 5)
        path.chmod(0)
        self._root_only(tmp_path, path)

    def test_a_counter_that_may_not_be_read_is_named_with_its_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same for a test that runs as root."""
        path, plain = zone(tmp_path, "0", "package-0", 5), Path.read_text

        def read_text(self: Path, *words: Any, **named: Any) -> str:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return plain(self, *words, **named)

        monkeypatch.setattr(Path, "read_text", read_text)
        self._root_only(tmp_path, path)

    def _root_only(self, root: Path, path: Path) -> None:
        found = find_sources(root, refused)
        assert found.meters == ()
        assert any(f"{path} is readable by root only" in reason for reason in found.missing)

    def test_damaged_counters_are_reasons_too(self, tmp_path: Path) -> None:
        put(zone(tmp_path, "0", "package-0", 5), "many")
        found = find_sources(tmp_path, refused)
        assert found.meters == ()
        assert any("cannot read" in reason and "intel-rapl:0" in reason for reason in found.missing)


class TestSensors:
    def test_jetson_orin_millivolts_times_milliamperes(self, tmp_path: Path) -> None:
        chip = tmp_path / "sys/class/hwmon/hwmon3"
        put(chip / "name", "ina3221")
        for number, (rail, millivolt, milliampere) in enumerate(
            (("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, 500)), start=1
        ):
            put(chip / f"in{number}_label", rail)
            put(chip / f"in{number}_input", millivolt)
            put(chip / f"curr{number}_input", milliampere)
        put(chip / "in7_label", "sum of shunt voltages")
        put(chip / "in7_input", 12)
        [source] = find_sources(tmp_path, refused).meters
        assert source.name == "VDD_IN (INA sensor)"  # the others lie behind it
        assert read(source) == pytest.approx(10.0)

    def test_without_a_rail_of_the_whole_all_rails_count(self, tmp_path: Path) -> None:
        folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0"
        for number, (rail, milliwatt) in enumerate((("GPU", 1500), ("CPU", 900))):
            put(folder / f"rail_name_{number}", rail)
            put(folder / f"in_power{number}_input", milliwatt)
        found = find_sources(tmp_path, refused).meters
        assert {source.name: read(source) for source in found} == {
            "GPU (INA sensor)": pytest.approx(1.5),
            "CPU (INA sensor)": pytest.approx(0.9),
        }

    def test_other_chips_of_the_board_are_left_alone(self, tmp_path: Path) -> None:
        put(tmp_path / "sys/class/hwmon/hwmon0/name", "k10temp")
        put(tmp_path / "sys/class/hwmon/hwmon0/in1_label", "VDD_IN")
        assert find_sources(tmp_path, refused).meters == ()

    def test_nvidia_smi_tells_watts_of_each_gpu(self, tmp_path: Path) -> None:
        def ask(command: tuple[str, ...]) -> str:
            if command[0] != "nvidia-smi":
                return refused(command)
            return {"--id=0": "71.25\n", "--id=1": "300.5\n"}.get(command[1], "0, 71.00\n1, 300.00\n")

        found = find_sources(tmp_path, ask).meters
        assert [(source.name, read(source)) for source in found] == [
            ("GPU 0 (nvidia-smi)", 71.25),
            ("GPU 1 (nvidia-smi)", 300.5),
        ]

    def test_a_gpu_that_tells_no_power_is_a_reason(self, tmp_path: Path) -> None:
        found = find_sources(tmp_path, lambda command: "0, [N/A]\n")
        assert found.meters == ()
        assert "NVML: nvidia-smi tells no power of this GPU" in found.missing

    def test_powermetrics(self) -> None:
        old = "CPU Power: 1200 mW\nGPU Power: 34 mW\nANE Power: 0 mW\nPackage Power: 1400 mW\n"
        assert parse_powermetrics(old) == pytest.approx(1.234)
        assert parse_powermetrics(old + "Combined Power (CPU + GPU + ANE): 1250 mW\n") == pytest.approx(1.25)
        with pytest.raises(ValueError, match="no power"):
            parse_powermetrics("nothing")

    def test_a_mac_without_root_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(power.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(power.os, "geteuid", lambda: 501)
        assert "powermetrics: readable by root only: run with sudo" in find_sources(tmp_path, refused).missing

    def test_nothing_at_all_gives_every_reason(self, tmp_path: Path) -> None:
        found = find_sources(tmp_path, refused)
        assert found.meters == ()
        text = "; ".join(found.missing)
        assert f"RAPL: there is no {tmp_path}/sys/class/powercap/intel-rapl:*" in text
        assert "NVML: there is no nvidia-smi" in text
        assert "INA sensor: none in" in text


def series(values: list[float]) -> Callable[[], float]:
    source: Iterator[float] = iter(values)
    return lambda: next(source)


class TestMeter:
    def test_a_counter_that_wraps_is_continued(self) -> None:
        """2 J before the end of a range of 65 J, then 3 J after its start, then on."""
        meter = Meter([Counter("package", series([63.0, 3.0, 10.0]), 65.0)], series([0.0, 1.0, 2.0]), every=0)
        with meter:
            meter.read()
        assert meter.joules == {"package": pytest.approx(5.0 + 7.0)}
        assert meter.seconds == 2.0

    def test_watts_are_integrated_by_the_trapezoidal_rule(self) -> None:
        """Power that rises evenly from 2 to 6 W within 2 s, and stays for 1 s, is 8 + 6 J."""
        meter = Meter([Gauge("rail", series([2.0, 6.0, 6.0]))], series([0.0, 2.0, 3.0]), every=0)
        with meter:
            meter.read()
        assert meter.joules == {"rail": pytest.approx(14.0)}

    def test_going_back_without_a_range_is_a_fault(self) -> None:
        assert consumed(3.0, 1.0, 10.0) == 8.0
        with pytest.raises(ValueError, match="went back"):
            consumed(3.0, 1.0, 0.0)
        meter = Meter([Counter("GPU 0", series([3.0, 1.0]))], series([0.0, 1.0]), every=0)
        with meter:
            pass
        assert meter.fault == "GPU 0: the counter went back"

    def test_in_the_background_it_reads_by_itself(self) -> None:
        readings = iter(range(10_000))
        with Meter([Counter("c", lambda: float(next(readings)))], every=0.01) as meter:
            while meter.joules["c"] < 3:
                pass
        assert meter.joules["c"] >= 3
        assert meter.seconds > 0

    def test_idle_is_subtracted_for_the_time_of_the_runs(self) -> None:
        """10 W idle; 80 J within 4 s of 20 pictures: (80 - 40) / 20 = 2 J, and memory 1 W idle, 8 J: 0.2 J."""
        waiting = SimpleNamespace(joules={"cpu": 30.0, "ram": 3.0}, seconds=3.0)
        busy = SimpleNamespace(joules={"cpu": 80.0, "ram": 8.0}, seconds=4.0)
        found = energy_of(waiting, busy, 20)  # type: ignore[arg-type]
        assert found.by_source == {"cpu": pytest.approx(2.0), "ram": pytest.approx(0.2)}
        assert found.joules == pytest.approx(2.2)
        assert (found.idle_watts, found.running_watts) == (pytest.approx(11.0), pytest.approx(22.0))


class Runner:
    """An isolated session of batch 2 that runs 5 times."""

    job = SimpleNamespace(batch=2)

    def last(self, seconds: float) -> list[float]:
        return [seconds] * 5


class TestMeasuring:
    def test_a_batch_is_shared_among_its_pictures(self) -> None:
        source = Counter("package", series([0.0, 20.0, 20.0, 120.0]))
        clock = series([0.0, 2.0, 2.0, 6.0])
        found = measure_energy(
            Runner(),  # type: ignore[arg-type]
            Sources((source,), ()),
            wait=lambda seconds: None,
            meter=lambda sources: Meter(sources, clock, every=0),
        )
        assert found.pictures == 10
        assert found.joules == pytest.approx((100 - 4 * 10) / 10)  # 100 J in 4 s beside 10 W

    def test_without_a_source_there_is_a_reason_and_no_figure(self) -> None:
        found = measure_energy(Runner(), Sources((), ("RAPL: none", "NVML: none")))  # type: ignore[arg-type]
        assert found.joules is None
        assert found.reason == "RAPL: none; NVML: none"

    def test_a_source_that_breaks_off_is_no_figure(self) -> None:
        def broken() -> float:
            raise OSError("gone")

        found = measure_energy(
            Runner(),  # type: ignore[arg-type]
            Sources((Counter("GPU 0", broken),), ()),
            wait=lambda seconds: None,
            meter=lambda sources: Meter(sources, every=0),
        )
        assert found.joules is None
        assert found.reason == "a source failed while it was read: GPU 0: gone"
