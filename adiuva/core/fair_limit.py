"""Limit on concurrent work. Callers take turns, and no caller can take up all of it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable


class FairLimit:
    """Limit of `most` places on one event loop, and of `per_caller` for each caller.

    Waiting callers get the next free place by turns, and a caller's waiters in their order. The caller None stands for
    nobody in particular, and has no bound of its own.

    `lends`: while one caller holds all places, another caller gets a place beyond them. So nobody can keep all of even
    one or two places from the others.
    """

    def __init__(self, most: int, *, per_caller: int | None = None, lends: bool = False) -> None:
        self._most, self._free, self._per_caller, self._lends = most, most, per_caller, lends
        self._held: Counter[Hashable] = Counter()
        # The caller whose turn is next comes first.
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @property
    def free(self) -> int:
        """Return the free places; below zero while more are held than a lowered limit allows."""
        return self._free

    @property
    def is_waited_for(self) -> bool:
        """Return whether a caller waits for a place."""
        return bool(self._waiting)

    def resize(self, most: int, *, per_caller: int | None = None) -> None:
        """Change how many places there are. Places that are held stay held."""
        self._free += most - self._most
        self._most, self._per_caller = most, per_caller
        for _ in range(max(1, self._free)):
            self._hand_out()

    def slot(self, caller: Hashable = None) -> _Slot:
        """Return a place to be held with `async with`."""
        return _Slot(self, caller)

    async def acquire(self, caller: Hashable) -> None:
        """Wait for a place, and take it."""
        # While a place is free, nobody waits who could have it, so this overtakes nobody.
        if self._has_room_for(caller):
            self._take(caller)
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(caller)  # it was given at the moment of the cancellation
            else:
                self._forget(caller, place)
            raise

    def _has_room_for(self, caller: Hashable) -> bool:
        if self._free > 0:
            return caller is None or self._per_caller is None or self._held[caller] < self._per_caller
        return self._lends and len(self._held) == 1 and caller not in self._held

    def _take(self, caller: Hashable) -> None:
        self._free -= 1
        self._held[caller] += 1

    def release(self, caller: Hashable) -> None:
        """Give a place back."""
        self._free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._hand_out()

    def _forget(self, caller: Hashable, place: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(caller)
        if waiting and place in waiting:
            waiting.remove(place)
            if not waiting:
                del self._waiting[caller]

    def _hand_out(self) -> None:
        """Give a place to the first caller in turn who may have one."""
        for caller in list(self._waiting):
            if not self._has_room_for(caller):
                continue
            waiting = self._waiting.pop(caller)
            # A task that was cancelled just now has not yet run to leave the line.
            while waiting and waiting[0].done():
                waiting.popleft()
            if not waiting:
                continue
            place = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting  # behind the others
            self._take(caller)
            place.set_result(None)
            return


class _Slot:
    """Place of a caller, from the beginning to the end of an `async with`."""

    __slots__ = ("_caller", "_limit")

    def __init__(self, limit: FairLimit, caller: Hashable) -> None:
        self._limit, self._caller = limit, caller

    async def __aenter__(self) -> None:
        await self._limit.acquire(self._caller)

    async def __aexit__(self, *_: object) -> None:
        self._limit.release(self._caller)
