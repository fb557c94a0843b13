"""The latest picture of a source: taken in a thread of its own, so that what is slow never falls behind.

A source that is lost is opened again, with growing pauses, a bounded number of times.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadline.errors import DataError, LeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadline.live.capture import Shot, Source

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
LOOK_S = 0.1


@dataclass
class Latest:
    """Takes pictures from a source and keeps the latest.

    Args:
        source: it.
        drop: replace a picture that nobody has taken; otherwise the source waits.
        retries: how often in a row a lost source is opened again.
        wait_s: longest time without any sign of life.
        say: takes one sentence about what happens.
    """

    source: Source
    drop: bool
    retries: int = 5
    wait_s: float = 10.0
    say: Callable[[str], None] = lambda text: None
    dropped: int = 0
    reopened: int = 0
    _slot: Shot | None = None
    _over: bool = False
    _error: BaseException | None = None
    _alive: float = field(default_factory=time.monotonic)
    _change: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Latest:
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="leadline camera", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._change:
            self._change.notify_all()
        self._thread.join(timeout=1.0)  # a driver that hangs must not hold the program

    def take(self, stopped: Callable[[], bool] = lambda: False) -> Shot | None:
        """The latest picture, as soon as there is one that was not taken; None at the end, or once `stopped` is true.

        Raises:
            DataError: the source was lost for good, or gave no sign of life for too long.
        """
        while not stopped():
            with self._change:
                if self._slot is None and not self._over:
                    self._change.wait(LOOK_S)
                if self._slot is not None:
                    shot, self._slot = self._slot, None
                    self._change.notify_all()
                    return shot
                if self._over:
                    if self._error is not None:
                        raise self._error
                    return None
                silent = time.monotonic() - self._alive
            if silent > self.wait_s + 2:  # a little more than the waits inside the source
                why = f"no picture for {silent:.0f} s"
                raise DataError(
                    "the source is silent", where=self.source.name, why=why, mend="check it, or --timeout S"
                )
        return None

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            self._take_and_reopen()
        except BaseException as raised:  # noqa: BLE001  nothing is swallowed: `take` raises it
            error = raised
        with self._change:
            self._error, self._over = error, True
            self._change.notify_all()

    def _take_and_reopen(self) -> None:
        tried = 0
        while not self._stop.is_set():
            try:
                with contextlib.closing(self.source.shots(self._stop, self.say)) as shots:
                    for shot in shots:
                        tried = 0
                        self._put(shot)
                        if self._stop.is_set():
                            return
                return
            except LeadlineError as error:
                if self.source.ends or self._stop.is_set():
                    raise
                tried += 1
                if tried > self.retries:
                    times = f"gave up after {self.retries} more attempts" if self.retries else "--retries is 0"
                    raise DataError(
                        error.what, where=error.where, why=f"{error.why}; {times}", mend=error.mend
                    ) from error
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tried - 1))
                self.say(f"{error.what}: {error.why}; trying again in {pause:g} s ({tried} of {self.retries})")
                self._alive = time.monotonic() + pause
                self._stop.wait(pause)
                self.reopened += 1
                self._alive = time.monotonic()

    def _put(self, shot: Shot) -> None:
        with self._change:
            self._alive = time.monotonic()
            while self._slot is not None and not self.drop and not self._stop.is_set():
                self._change.wait(LOOK_S)
                self._alive = time.monotonic()
            if self._slot is not None:
                self.dropped += 1
            self._slot = shot
            self._change.notify_all()
