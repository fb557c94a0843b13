"""Ctrl-C in a run: the first ends it after the current iteration, the second at once."""

from __future__ import annotations

import signal
import sys
import threading


class Stop:
    """Ctrl-C or SIGTERM once: `asked` becomes True; a second one interrupts at once.

    Args:
        patient: only note it, however often: torchrun hands a signal on to processes that already have it from the
            terminal, and kills after 30 s itself.
        quiet: say nothing.
    """

    def __init__(self, *, patient: bool = False, quiet: bool = False) -> None:
        self.asked = False
        self.patient, self.quiet = patient, quiet

    def __enter__(self) -> Stop:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
            for name in self._before:
                signal.signal(name, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked and not self.patient:
            raise KeyboardInterrupt
        if not self.asked and not self.quiet:
            again = "" if self.patient else "; again: stop at once, without it"
            sys.stderr.write(f"\nstopping after this iteration, with the state saved{again}\n")
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for name, handler in self._before.items():
                signal.signal(name, handler)
