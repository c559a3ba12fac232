"""Batching of the pieces of streamed answers in a process that handles many streams.

Each piece of a stream wakes the process by itself, and most of its cost is that the caches are cold: handled right
after another one, the same piece costs a third. If many pieces come, each is only put aside as it arrives, and all are
handed on together after a pause; if few come, none waits. The more come, the longer is the pause, up to the time
between two words of a quick model: then some words of one stream are handed on together, and cost as much as one.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from adiuva.core.per_loop import PerLoop

# A process that gets fewer pieces a second handles each at once.
_MANY_A_S: Final = 500
# The pause, for each piece that comes in a second, and its bounds.
_PAUSE_S: Final = 0.000_004
_LEAST_PAUSE_S: Final = 0.004
_MOST_PAUSE_S: Final = 0.020
_WINDOW_S: Final = 0.25


class Paced(Protocol):
    """Receiver of pieces. It must not raise."""

    # Pieces that were put aside.
    put_aside: list[bytes]

    def put_pieces_aside(self, is_on: bool) -> None:
        """Set whether pieces are put aside, or handed on as they arrive."""
        ...

    def hand_on(self) -> None:
        """Hand on the pieces that were put aside."""
        ...


class Pacer:
    """Pacer of one event loop. It counts pieces, and tells all receivers whether to put them aside."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._all: dict[Paced, None] = {}
        self._are_many, self._pause_s = False, _LEAST_PAUSE_S
        self._arrivals, self._counted_since = 0, self._loop.time()

    def add(self, one: Paced) -> None:
        self._all[one] = None
        one.put_pieces_aside(self._are_many)

    def remove(self, one: Paced) -> None:
        self._all.pop(one, None)

    def count(self, now: float) -> None:
        """Count a piece that arrives now, on the loop's clock, and is handed on at once."""
        self._arrivals += 1
        if now - self._counted_since >= _WINDOW_S:
            self._look(now)

    def _look(self, now: float) -> None:
        a_second = self._arrivals / (now - self._counted_since)
        self._arrivals, self._counted_since = 0, now
        self._pause_s = min(max(_PAUSE_S * a_second, _LEAST_PAUSE_S), _MOST_PAUSE_S)
        are_many = a_second > _MANY_A_S
        if are_many == self._are_many:
            return
        self._are_many = are_many
        for one in self._all:
            one.put_pieces_aside(are_many)
        if are_many:
            self._loop.call_later(self._pause_s, self._hand_on)

    def _hand_on(self) -> None:
        try:
            for one in list(self._all):
                if one.put_aside:
                    self._arrivals += len(one.put_aside)
                    one.hand_on()
            if (now := self._loop.time()) - self._counted_since >= _WINDOW_S:
                self._look(now)
        finally:
            if self._are_many:
                self._loop.call_later(self._pause_s, self._hand_on)


_pacers = PerLoop(Pacer)


def pacer() -> Pacer:
    """Return the running event loop's pacer."""
    return _pacers.get()
