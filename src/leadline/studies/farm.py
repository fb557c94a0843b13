"""A farm of devices: bundles travel to them by content hash, measurements come back, a lost device costs its rows only.

What carries orders to the devices is a `Link`; `leadline.studies.farm_ray` is the one over Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from leadline import __version__
from leadline.errors import ConfigError, LeadlineError, closest
from leadline.evaluation.isolation import TIMEOUT
from leadline.evaluation.latency import Latency, Ratio, Timing
from leadline.runtimes.base import runtime
from leadline.studies.farm_tasks import content_hash, packed
from leadline.studies.measurement import Status
from leadline.studies.planning import Candidate, ended

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from leadline.studies.measurement import Measurement
    from leadline.studies.study import Cell, Study

    Steps = Generator[tuple[str, dict[str, Any]], dict[str, Any], Timing]

PATIENCE = 1.0  # seconds between two looks at which devices are still there
ARRIVAL = 15.0  # seconds within which a device must answer the first question
AGAIN = "the same command tries it again"


class DeviceLostError(LeadlineError):
    """A device left the farm while it had an order."""

    exit_status = 1


class Link(Protocol):
    """What carries orders to devices. A ticket stands for an order that is under way."""

    def devices(self) -> set[str]:
        """Names of the devices that are there now."""

    def submit(self, device: str, task: str, order: dict[str, Any]) -> Any:
        """Send an order of `leadline.studies.farm_tasks.TASKS`; returns its ticket."""

    def ready(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        """Those of the tickets that are answered, after at most so many seconds."""

    def answer(self, ticket: Any) -> dict[str, Any]:
        """The answer of a ticket that is ready.

        Raises:
            DeviceLostError: the device is gone.
            LeadlineError: the order failed, in its own words.
        """

    def close(self) -> None:
        """Let go of the devices."""


@dataclass(frozen=True)
class Device:
    """What a device told about itself.

    Args:
        name: in the farm.
        machine: fingerprint.
        leadline: version there.
        engines: by name: `available`, `version`, `reason`, `install`, `export_only`.
    """

    name: str
    machine: dict[str, Any]
    leadline: str
    engines: dict[str, dict[str, Any]]


@dataclass
class _Line:
    """A device's cells, one after the other."""

    device: str
    cells: list[Candidate]
    steps: Steps | None = None
    ticket: Any = None


@dataclass
class Farm:
    """The devices of a study.

    Args:
        link: carries orders to them.
        names: of the devices that the study wants.
    """

    link: Link
    names: Sequence[str]
    devices: dict[str, Device] = field(default_factory=dict)

    def greet(self, seconds: float = ARRIVAL) -> None:
        """Ask every device about itself; one that does not answer is left out, and its cells become lost rows.

        Raises:
            ConfigError: none of the devices is there.
        """
        there = self.link.devices()
        if not there & set(self.names):
            known = f"the farm has {', '.join(sorted(there))}" if there else "no device has joined the farm"
            mend = closest(self.names[0], there) if there else JOIN.format(name=self.names[0])
            raise ConfigError("no such device", where=", ".join(self.names), why=known, mend=mend)
        tickets = {name: self.link.submit(name, "hello", {}) for name in self.names if name in there}
        for name, ticket in tickets.items():
            if self.link.ready([ticket], seconds):
                try:
                    self.devices[name] = Device(name, **self.link.answer(ticket))
                except (LeadlineError, TypeError):  # told per cell: unreachable
                    continue

    def unreachable(self, name: str) -> str:
        """Why a device's cells are lost from the start; empty where it answered."""
        if name in self.devices:
            return ""
        return f"device lost: {name} is not in the farm, or did not answer; {AGAIN} once it has joined"

    def lacks(self, cell: Cell) -> str:
        """Why a cell cannot run on its device; empty where it can, or nothing is known of the device."""
        device = self.devices.get(cell.on)
        if device is None:
            return ""
        state = device.engines.get(cell.runtime)
        if state is None:
            return f"leadline {device.leadline} on {cell.on} does not know {cell.runtime}; install {__version__} there"
        if not state["available"]:
            return f"on {cell.on}: {state['reason']}; {state['install']}"
        return f"on {cell.on}: {state['export_only']}" if state["export_only"] else ""

    def differs(self, cell: Cell) -> list[str]:
        """What of a cell is another version on the device than here, in words."""
        device = self.devices[cell.on]
        found = []
        if device.leadline != __version__:
            found.append(f"leadline {device.leadline} on {cell.on}, {__version__} here")
        there, here = device.engines[cell.runtime]["version"], runtime(cell.runtime).availability().version
        if there != here:
            found.append(f"exported by {cell.runtime} {here} here, run by {there} on {cell.on}")
        return found

    def measure(
        self,
        study: Study,
        todo: Sequence[Candidate],
        references: Mapping[str, Candidate],
        answers: dict[Cell, dict[str, Any]],
        record: Callable[[Candidate, Timing], None],
        finish: Callable[[Candidate, Measurement], None],
    ) -> None:
        """Time cells on their devices, all devices at once, one cell of each at a time.

        Args:
            study: what is compared.
            todo: the cells, exported and scored.
            references: by device; timed in turn with each of its cells.
            answers: what export and accuracy said, by the cell that is exported; a device that alone can run an
                engine adds its accuracy.
            record: takes each timing.
            finish: takes each row without figures.
        """
        lines = {name: _Line(name, [one for one in todo if one.cell.on == name]) for name in self.devices}
        lines = {name: line for name, line in lines.items() if line.cells}
        for line in lines.values():
            self._next(line, study, references, answers)
        while lines:
            there = self.link.devices()
            ready = self.link.ready([line.ticket for line in lines.values()], PATIENCE)
            for line in list(lines.values()):
                if line.ticket in ready:
                    self._advance(line, study, references, answers, record, finish)
                elif line.device not in there:
                    self._lose(line, finish, f"{line.device} left the farm")
                if not line.cells:
                    del lines[line.device]

    def _next(
        self, line: _Line, study: Study, references: Mapping[str, Candidate], answers: dict[Cell, dict[str, Any]]
    ) -> None:
        """Begin with the first of the line's cells."""
        one = line.cells[0]
        line.steps = _steps(study, one, references[line.device], answers)
        line.ticket = self.link.submit(line.device, *next(line.steps))

    def _advance(
        self,
        line: _Line,
        study: Study,
        references: Mapping[str, Candidate],
        answers: dict[Cell, dict[str, Any]],
        record: Callable[[Candidate, Timing], None],
        finish: Callable[[Candidate, Measurement], None],
    ) -> None:
        """Take the answer of the device, and send the next order."""
        assert line.steps is not None
        one = line.cells[0]
        try:
            order = line.steps.send(self.link.answer(line.ticket))
            line.ticket = self.link.submit(line.device, *order)
            return
        except StopIteration as done:
            base = one.base.model_copy(update={"notes": (*one.base.notes, *self.differs(one.cell))})
            record(replace(one, base=base), done.value)
        except DeviceLostError as error:
            self._lose(line, finish, str(error))
            return
        except LeadlineError as error:
            finish(one, ended(one.base, Status.FAILED, f"on {line.device}: {error}"))
        del line.cells[0]
        if line.cells:
            self._next(line, study, references, answers)

    def _lose(self, line: _Line, finish: Callable[[Candidate, Measurement], None], why: str) -> None:
        for one in line.cells:
            finish(one, ended(one.base, Status.FAILED, f"device lost: {why}; {AGAIN}", lost=True))
        line.cells.clear()


JOIN = "on the device: ray start --address=HEAD:6379 --resources='{{\"{name}\": 1}}'"


def _steps(study: Study, one: Candidate, reference: Candidate, answers: dict[Cell, dict[str, Any]]) -> Steps:
    """The orders for one cell, each with the answer of the one before it; returns the timing."""
    from leadline.studies.running import ROUNDS, WARMUP, scoring_order

    for bundle in dict.fromkeys((reference.bundle, one.bundle)):
        name = content_hash(bundle)
        told = yield "lacks", {"name": name}
        if told["lacks"]:
            yield "receive", {"name": name, "files": packed(bundle)}
    answer = answers[one.cell.exported]
    if "rows" not in answer:  # only the device can run this engine
        scored = yield "score", {"name": content_hash(one.bundle), "order": scoring_order(study, one.cell)}
        answer |= scored | {"scored_on": one.cell.on}
    jobs = [
        {"name": content_hash(each.bundle), "batch": each.cell.batch, "device": each.cell.device}
        for each in ((one,) if one.base.key == reference.base.key else (reference, one))
    ]
    plan = {"runs": study.runs, "warmup": WARMUP, "rounds": ROUNDS, "timeout": study.timeout or TIMEOUT}
    told = yield "time", {"jobs": jobs, "threads": study.threads, **plan}
    return timing_of(told["timing"])


def timing_of(values: dict[str, Any]) -> Timing:
    """A timing that travelled as plain values.

    Raises:
        LeadlineError: another version of Leadline wrote it in other words.
    """
    try:
        parts = {
            "latency": Latency(**values["latency"]) if values["latency"] else None,
            "ratio": Ratio(**values["ratio"]) if values["ratio"] else None,
            "size": tuple(values["size"]),
            "notes": tuple(values["notes"]),
        }
        return Timing(**(values | parts))
    except (KeyError, TypeError) as error:
        mend = f"install leadline {__version__} on the device"
        raise LeadlineError("the device answers in the words of another version", why=str(error), mend=mend) from error
