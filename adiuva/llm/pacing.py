"""Batches the pieces of streamed answers in a process that handles many streams.

Each piece of a stream wakes the process by itself, and most of its cost is that the caches are cold: handled right
after another one, the same piece costs a third. Where many come, each waits for a few milliseconds until the others of
that time have come, too; below that nothing waits.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from adiuva.core.per_loop import PerLoop

# A process that gets fewer pieces a second handles each at once.
_MANY_A_S: Final = 500
_PAUSE_S: Final = 0.004
_WINDOW_S: Final = 0.25


class Deferrable(Protocol):
    def hand_on(self) -> None: ...


class Pacer:
    """Of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Deferrable] = []
        self._arrivals, self._counted_since, self._are_many = 0, 0.0, False

    def defers(self, now: float, arrived: Deferrable) -> bool:
        """Count what has arrived now, on the loop's clock. True: its `hand_on` is called in a few milliseconds."""
        self._arrivals += 1
        took_s = now - self._counted_since
        if took_s >= _WINDOW_S:
            self._are_many = self._arrivals > _MANY_A_S * took_s
            self._arrivals, self._counted_since = 0, now
        if not self._are_many:
            return False
        if not self._waiting:
            self._loop.call_later(_PAUSE_S, self._hand_on)
        self._waiting.append(arrived)
        return True

    def _hand_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.hand_on()


_pacers = PerLoop(Pacer)


def pacer() -> Pacer:
    """The running event loop's."""
    return _pacers.get()
