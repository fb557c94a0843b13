"""The models that a server offers, each in its engines; a bundle that is replaced is opened anew, and proven first."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError, closest
from leadline.live.server.batching import Batching, EngineThread
from leadline.live.server.limits import RefusedError
from leadline.live.server.opening import Wanted, open_wanted
from leadline.manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from leadline.contract import Contract
    from leadline.live.server.metrics import Metrics
    from leadline.runtimes.base import Session

Stamp = tuple[int, int, int]


class Opened:
    """A session in its thread, as long as somebody uses it.

    Args:
        session: proven.
        batching: how runs are joined.
        name: of the model.
    """

    def __init__(self, session: Session, batching: Batching, name: str) -> None:
        self.contract: Contract = session.contract
        self.runtime, self.precision, self.notes = session.engine, session.precision_ran, tuple(session.notes)
        self.thread = EngineThread(session, batching, f"{name} {session.engine}")
        self.name = name
        self._users, self._is_retired = 0, False

    @contextmanager
    def used(self) -> Iterator[Opened]:
        """Keep it open for the block; on the event loop only."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close it once its last user has finished."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and self._users == 0:
            self.thread.close()


@dataclass
class Served:
    """A model under its name, and its engines by name, the default one first."""

    wanted: Wanted
    engines: dict[str, Opened]
    stamp: Stamp | None
    refused: Stamp | None = None  # of a newer folder that did not pass
    reloads: int = 0

    def facts(self) -> dict[str, Any]:
        """What clients may know of it; no path of this machine."""
        first = next(iter(self.engines.values()))
        contract = first.contract
        return {
            "name": self.wanted.name,
            "kind": contract.output.kind.value,
            "unit": contract.output.kind.unit,
            "input": {
                "height": contract.input.height,
                "width": contract.input.width,
                "dynamic": contract.input.dynamic,
                "resize": contract.input.resize,
            },
            "corrects_for_camera": contract.assumed_camera(3, 4) is not None,
            "licence": contract.licence,
            "runtimes": [{"runtime": name, "precision": each.precision} for name, each in self.engines.items()],
            "reloads": self.reloads,
            "newer_refused": self.refused is not None,
        }


@dataclass
class Models:
    """All models of a server, the default one first.

    Args:
        batching: how runs are joined.
        say: takes a line for whoever runs the server.
    """

    batching: Batching = field(default_factory=Batching)
    say: Callable[[str], None] = print
    served: dict[str, Served] = field(default_factory=dict)

    def open(self, wanted: Sequence[Wanted]) -> None:
        """Open every model in every engine.

        Raises:
            LeadlineError: one cannot be opened.
        """
        for each in wanted:
            stamp = _stamp(each)
            self.served[each.name] = Served(each, self._opened(each), stamp)

    def pick(self, model: str | None, runtime: str | None) -> tuple[Served, Opened]:
        """A model in an engine, the defaults where a name is None.

        Raises:
            RefusedError: 404, there is none of that name.
        """
        name = next(iter(self.served)) if model is None else model
        served = self.served.get(name)
        if served is None:
            raise RefusedError(404, f"No model {name[:80]!r} here; {closest(name[:80], self.served)}", "model")
        if runtime is None:
            return served, next(iter(served.engines.values()))
        if runtime not in served.engines:
            mend = closest(runtime[:80], served.engines)
            raise RefusedError(404, f"The model {name!r} does not run in {runtime[:80]!r} here; {mend}", "model")
        return served, served.engines[runtime]

    async def watch(self, every_s: float, metrics: Metrics) -> None:
        """Look for replaced folders until cancelled."""
        with ThreadPoolExecutor(1, "reload") as pool:
            loop = asyncio.get_running_loop()
            while True:
                await asyncio.sleep(every_s)
                for served in self.served.values():
                    stamp = await loop.run_in_executor(pool, _stamp, served.wanted)
                    if stamp is None or stamp in (served.stamp, served.refused):
                        continue
                    await self._reload(served, stamp, pool, metrics)

    async def _reload(self, served: Served, stamp: Stamp, pool: ThreadPoolExecutor, metrics: Metrics) -> None:
        name = served.wanted.name
        try:
            engines = await asyncio.get_running_loop().run_in_executor(pool, self._opened, served.wanted)
        except (LeadlineError, OSError) as error:
            served.refused = stamp
            metrics.reloads.add(name, "refused")
            self.say(f"{name}: the new one is refused and the old one stays: {error}")
            return
        old, served.engines = served.engines, engines
        served.stamp, served.refused = stamp, None
        served.reloads += 1
        metrics.reloads.add(name, "done")
        self.say(f"{name}: replaced while running; {described(served)}")
        for opened in old.values():
            opened.retire()

    def _opened(self, wanted: Wanted) -> dict[str, Opened]:
        sessions: list[Session] = []
        try:
            for engine in wanted.runtimes:
                sessions.append(open_wanted(wanted, engine))
        except BaseException:
            for session in sessions:
                session.close()
            raise
        return {session.engine: Opened(session, self.batching, wanted.name) for session in sessions}

    def close(self) -> None:
        """Let every engine end once its users have finished."""
        for served in self.served.values():
            for opened in served.engines.values():
                opened.retire()


def described(served: Served) -> str:
    """`relative_disparity, 224 x 288, openvino fp32`."""
    contract = next(iter(served.engines.values())).contract
    size = f"{contract.input.height} x {contract.input.width}"
    engines = ", ".join(f"{name} {opened.precision}" for name, opened in served.engines.items())
    return f"{contract.output.kind}, input {size} (height x width), {engines}"


def _stamp(wanted: Wanted) -> Stamp | None:
    """What changes when a folder's manifest is written anew; None where there is no folder, or none just now."""
    if wanted.folder is None:
        return None
    try:
        state = (wanted.folder / MANIFEST).stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
