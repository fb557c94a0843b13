"""Ctrl-C or SIGTERM once: finish what is under way; twice: at once."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass
class Interruption:
    """Whether a signal asked for the end, and the exit status that it stands for."""

    status: int = 0
    _event: threading.Event = field(default_factory=threading.Event)

    def is_set(self) -> bool:
        """Whether it did."""
        return self._event.is_set()

    def ask(self, number: int) -> None:
        """Note it."""
        self.status = STATUS[signal.Signals(number)]
        self._event.set()


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """The first signal is noted, so that what is under way is finished; the second one interrupts."""
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may set handlers
        return

    def on_first(number: int, frame: FrameType | None) -> None:
        noted.ask(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, on_first) for each in STATUS}
    try:
        yield noted
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
