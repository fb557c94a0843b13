"""Steps of a pipeline at the same time: each in its own thread, never far ahead of the next, so that memory is flat."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")
POLL_S = 0.1  # between looks whether anybody still wants what waits


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def ahead(items: Generator[T], room: int = 3) -> Generator[T]:
    """What `items` yields, made in a thread of its own up to `room` items ahead; its errors are raised here.

    Closing this generator closes `items` too, and waits until it is.
    """
    waiting: queue.Queue[_Item[T] | _End] = queue.Queue(room)
    unwanted = threading.Event()

    def hand_over(entry: _Item[T] | _End) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(entry, timeout=POLL_S)
                return

    def work() -> None:
        error: BaseException | None = None
        try:
            with contextlib.closing(items):
                for item in items:
                    hand_over(_Item(item))
                    if unwanted.is_set():
                        return
        except BaseException as raised:  # noqa: BLE001  nothing is swallowed: it is raised where the items are taken
            error = raised
        hand_over(_End(error))

    thread = threading.Thread(target=work, name=f"leadline {getattr(items, '__name__', '')}", daemon=True)
    thread.start()
    try:
        while True:
            entry = waiting.get()
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry.value
    finally:
        unwanted.set()
        thread.join()
