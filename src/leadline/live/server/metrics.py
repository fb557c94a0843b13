"""Counters, gauges and histograms in the text format that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PICTURES = (1.0, 2.0, 4.0, 8.0)

Labels = tuple[str, ...]


class Counter:
    """A number that only rises, one for each set of labels.

    Args:
        name: of the metric.
        text: what it counts.
        labels: names of the labels.
    """

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Labels = ()) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._values: defaultdict[Labels, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count one more; from any thread."""
        with self._lock:
            self._values[labels] += amount

    def lines(self) -> Iterator[str]:
        """The samples."""
        with self._lock:
            values = dict(self._values)
        if not self.labels:
            values.setdefault((), 0)
        for labels, value in values.items():
            yield f"{self.name}{_braces(self.labels, labels)} {value:g}"


class Gauge:
    """A number that is asked for when the metrics are.

    Args:
        name: of the metric.
        text: what it says.
        ask: gives it.
    """

    kind = "gauge"

    def __init__(self, name: str, text: str, ask: Callable[[], float]) -> None:
        self.name, self.text, self.ask = name, text, ask

    def lines(self) -> Iterator[str]:
        """The sample."""
        yield f"{self.name} {self.ask():.10g}"


class Histogram:
    """How often a value lay below each of some bounds.

    Args:
        name: of the metric.
        text: what is measured.
        labels: names of the labels.
        bounds: upper ones, rising.
    """

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Labels = (), bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: defaultdict[Labels, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, value: float, *labels: str) -> None:
        """Take one value; from any thread."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
            counts[sum(value > bound for bound in self.bounds)] += 1
            self._sums[labels] += value

    def mean(self) -> float:
        """Of all values; 0 where there is none."""
        with self._lock:
            count = sum(map(sum, self._counts.values()))
            return sum(self._sums.values()) / count if count else 0.0

    def lines(self) -> Iterator[str]:
        """The samples: cumulative buckets, sum and count."""
        with self._lock:
            taken = [(labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items()]
        for labels, counts, total in taken:
            below = 0
            for bound, count in zip((*(f"{bound:g}" for bound in self.bounds), "+Inf"), counts, strict=True):
                below += count
                yield f"{self.name}_bucket{_braces((*self.labels, 'le'), (*labels, bound))} {below}"
            yield f"{self.name}_sum{_braces(self.labels, labels)} {total:.9g}"
            yield f"{self.name}_count{_braces(self.labels, labels)} {below}"


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        model = ("model", "runtime")
        self.requests = Counter("leadline_requests_total", "HTTP requests answered.", ("route", "method", "status"))
        self.refused = Counter("leadline_refused_total", "Requests and streams refused, by reason.", ("reason",))
        self.frames = Counter("leadline_stream_frames_total", "Frames of streams, by what became of them.", ("fate",))
        self.reloads = Counter("leadline_reloads_total", "Models opened again, by outcome.", ("model", "outcome"))
        self.request_s = Histogram("leadline_depth_request_seconds", "From a request's header to its answer.", model)
        self.wait_s = Histogram("leadline_wait_seconds", "Wait for the engine.", model)
        self.network_s = Histogram("leadline_network_seconds", "The engine's run for one picture.", model)
        self.joined = Histogram("leadline_batch_pictures", "Pictures that a run took together.", model, PICTURES)
        self._metrics: list[Counter | Gauge | Histogram] = [
            *(self.requests, self.refused, self.frames, self.reloads),
            *(self.request_s, self.wait_s, self.network_s, self.joined),
        ]

    def gauge(self, name: str, text: str, ask: Callable[[], float]) -> None:
        """Add a number that `ask` gives when the metrics are read."""
        self._metrics.append(Gauge(name, text, ask))

    def text(self) -> str:
        """All of them."""
        lines = []
        for metric in self._metrics:
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def resident_bytes() -> float:
    """Memory that this process holds."""
    import psutil

    return float(psutil.Process().memory_info().rss)


def _braces(names: Labels, values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
