"""What `leadline benchmark` prints beyond latency and size: floors, slowest layers, energy, lasting speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.cli.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from leadline.cli.benchmark_table import Row
    from leadline.evaluation.energy import Energy
    from leadline.evaluation.roofline import Roofline
    from leadline.evaluation.sustained import Sustained, Window
    from leadline.runtimes.layer_time import LayerTime

FLOOR = ("floor ms", "of floor", "compute ms", "memory ms", "peak of")
STRETCHES = 10  # lines of a sustained measurement


def print_floors(console: Console, measured: Sequence[tuple[str, Row]], peaks: Roofline) -> None:
    """One line per model: its floor, and what share of that speed it reaches."""
    lines = []
    for letter, row in measured:
        floor, latency = row.floor, row.timing.latency
        if floor is None or latency is None:
            console.print(f"{letter}: floor n/a: {row.no_floor}", soft_wrap=True)
            continue
        times = [f"{floor.ms:.2f}", f"{floor.reached(latency.p50):.0%}"]
        lines.append((letter, [*times, f"{floor.compute_ms:.2f}", f"{floor.memory_ms:.2f}", floor.precision]))
    if lines:
        print_table(console, FLOOR, lines)
    told = [f"{name} {peak.best:.0f} G/s" for name, peak in peaks.peaks.items()]
    age = "kept since" if peaks.cached else "measured"
    console.print(f"roofline {age} {peaks.date}: {', '.join(told)}, memory {peaks.bandwidth.best:.1f} GB/s")
    if peaks.busy:
        mend = "measure it again when idle: leadline doctor --roofline --fresh"
        console.print(f"the machine was busy when its roofline was measured: floors are too high; {mend}")


def print_probe(console: Console, letter: str, row: Row, peaks: Roofline | None, layers: int) -> None:
    """All answers about one model."""
    found = row.probe
    if found is None:
        return
    if found.layers is not None:
        _layers(console, letter, row, found.layers, peaks, layers)
    if found.energy is not None:
        console.print(f"{letter}: {energy_words(found.energy)}", soft_wrap=True)
    if found.sustained is not None:
        _sustained(console, letter, found.sustained)
    if found.failure:
        console.print(f"{letter}: {found.failure}", soft_wrap=True)


def energy_words(found: Energy) -> str:
    """Energy in one line: joules of a picture, or why they are not known."""
    if found.joules is None or found.by_source is None:
        return f"energy n/a: {found.reason}"
    apart = ", ".join(f"{name} {joules:.3f}" for name, joules in found.by_source.items())
    powers = f"{found.running_watts:.1f} W running, {found.idle_watts:.1f} W idle"
    return f"energy {found.joules:.3f} J a picture above idle ({apart}; {powers}; {found.pictures} pictures)"


def _layers(
    console: Console, letter: str, row: Row, found: Sequence[LayerTime], peaks: Roofline | None, count: int
) -> None:
    if not found:
        console.print(f"{letter}: layers n/a: {row.timing.engine} has no profiler here", soft_wrap=True)
        return
    whole = sum(layer.ms for layer in found)
    console.print(f"{letter}: {whole:.2f} ms in {len(found)} layers by the engine's profiler; the slowest:")
    titles = ("ms", "share", *(("of floor",) if peaks else ()), "kind", "layer")
    lines = []
    for number, layer in enumerate(found[:count], start=1):
        floors = [_layer_share(layer, peaks, row.timing.precision_ran)] if peaks else []
        lines.append((str(number), [f"{layer.ms:.3f}", f"{layer.ms / whole:.1%}", *floors, layer.kind, layer.name]))
    print_table(console, titles, lines)


def _layer_share(layer: LayerTime, peaks: Roofline, precision_ran: str) -> str:
    """Share of the floor's speed; `-` where operations or peak are not known."""
    from leadline.evaluation.roofline import arithmetic

    peak = peaks.peaks.get(arithmetic(precision_ran))
    if peak is None or not layer.operations or not layer.ms:
        return "-"
    floor = max(layer.operations / peak.best, (layer.bytes or 0) / peaks.bandwidth.best) / 1e6
    return f"{floor / layer.ms:.0%}"


def _sustained(console: Console, letter: str, found: Sustained) -> None:
    stretch = "minute" if found.span >= 60 else "half"
    words = f"{found.first_ms:.2f} ms in the first {stretch}, {found.last_ms:.2f} ms in the last: {found.ratio:.2f}"
    console.print(
        f"{letter}: {found.seconds:.0f} s without a pause: {words}; slowest stretch {found.slowest_ms:.2f} ms"
    )
    groups = _stretches(found.windows)
    clocks = any(window.mhz is not None for window in found.windows)
    heat = any(window.celsius is not None for window in found.windows)
    titles = ("ms", "runs", *(("MHz",) if clocks else ()), *(("°C",) if heat else ()))
    lines, digits = [], 0 if found.seconds >= 20 else 1
    for group in groups:
        middle = sorted(window.ms for window in group)[len(group) // 2]
        cells = [f"{middle:.2f}", str(sum(window.runs for window in group))]
        cells += [_mean([window.mhz for window in group])] if clocks else []
        cells += [_mean([window.celsius for window in group])] if heat else []
        lines.append((f"to {group[-1].at:.{digits}f} s", cells))
    print_table(console, titles, lines)
    if not clocks:
        console.print("this system tells no clock frequency (no cpufreq)")


def _stretches(windows: Sequence[Window]) -> list[Sequence[Window]]:
    """At most STRETCHES groups of neighbours."""
    size = -(-len(windows) // STRETCHES)
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.0f}" if known else "-"
