"""How many requests may be under way to one mailbox, and when the next one may go: for all its readers together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Final
from weakref import WeakValueDictionary

from integrations.mail.errors import Throttled

AT_ONCE: Final = 4  # what Outlook allows an app in a mailbox; the others take it well
LONGEST_WAIT_S: Final = 60.0  # that a provider may ask of us before we tell the caller instead


class Gate:
    """`async with gate:` holds one of the places. Readers may be on event loops of several threads."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._free = AT_ONCE
        self._not_before = 0.0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    def hold(self, seconds: float) -> None:
        """Let nobody through for so long."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Until the provider may be asked. Raise Throttled if that is too long to wait."""
        while (pause := self._not_before - time.monotonic()) > 0:
            if pause > LONGEST_WAIT_S:
                raise Throttled(self._provider, pause)
            await asyncio.sleep(pause)

    async def __aenter__(self) -> None:
        """Take a place, once the provider may be asked. Raise Throttled as `wait` does."""
        loop = asyncio.get_running_loop()
        while True:
            await self.wait()
            with self._lock:
                if self._free:
                    self._free -= 1
                    more = self._free > 0
                    break
                turn = loop.create_future()
                self._waiting.append((loop, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # the place was offered to us: to the next
                raise
        if more:
            self._wake()  # several places may have become free while all had to wait

    async def __aexit__(self, *_: object) -> None:
        with self._lock:
            self._free += 1
        self._wake()

    def _wake(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                loop, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            try:
                loop.call_soon_threadsafe(_offer, self, turn)
                return
            except RuntimeError:
                continue  # its loop has ended


def _offer(gate: Gate, turn: asyncio.Future[None]) -> None:
    if turn.done():
        gate._wake()
    else:
        turn.set_result(None)


_gates: WeakValueDictionary[tuple[str, str], Gate] = WeakValueDictionary()
_guard = threading.Lock()


def gate(provider: str, mailbox: str) -> Gate:
    """The one gate of a mailbox in this process."""
    with _guard:
        found = _gates.get((provider, mailbox))
        if found is None:
            found = _gates[provider, mailbox] = Gate(provider)
        return found
