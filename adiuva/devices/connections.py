"""One timer a process for all of its sockets: hello and pong deadlines, pings, stuck readers, leases, sessions.

A task a socket would cost memory and wake-ups by the thousand; a pass over 5,000 connections costs a millisecond.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

from adiuva.accounts import services as accounts
from adiuva.core import db
from adiuva.core.logging import log
from adiuva.devices import presence
from adiuva.devices.protocol import Close

_TICK_S = 0.5
_LOOK_S = 0.02
_SESSIONS_S = 3.0  # a revoked session's sockets are to close within 5 s


class Connection(Protocol):
    """What the heart needs of a socket."""

    pk: uuid.UUID | None
    epoch: int
    session_id: uuid.UUID

    def beat(self, now: float) -> int | None:
        """Do what is due by now; a close code says that the connection has to end."""
        ...

    def end(self, code: int) -> None: ...


class ConnectionRegistry:
    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.greeted: dict[uuid.UUID, Connection] = {}
        self._task: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    def add(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="heart")

    def greet(self, connection: Connection, pk: uuid.UUID, epoch: int) -> Connection | None:
        """Its device said hello; returns this process's older connection of the same device."""
        connection.pk, connection.epoch = pk, epoch
        older = self.greeted.get(pk)
        self.greeted[pk] = connection
        return older

    def remove(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.pk is not None and self.greeted.get(connection.pk) is connection:
            del self.greeted[connection.pk]
        if not self.connections and self._task is not None:
            self._task.cancel()
            self._task = None

    def find(self, pk: uuid.UUID, epoch: int) -> Connection | None:
        """This process's own connection to a device, if it is the one that is meant."""
        found = self.greeted.get(pk)
        return found if found is not None and found.epoch == epoch else None

    async def close_all(self, code: int, *, within_s: float) -> None:
        """Close every connection, and wait until they are gone."""
        try:
            async with asyncio.timeout(within_s):
                while self.connections:  # also those that come meanwhile
                    for connection in list(self.connections):
                        connection.end(code)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            log.info("heart.connections_left", count=len(self.connections))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        sessions_due = loop.time() + _SESSIONS_S
        leases_due = loop.time() + presence.RENEW_S
        while True:
            await asyncio.sleep(_TICK_S)
            now = loop.time()
            for connection in list(self.connections):
                try:
                    if (code := connection.beat(now)) is not None:
                        connection.end(code)
                except Exception:
                    # One connection's fault must not end the leases of all.
                    log.exception("heart.beat_failed")
            if now >= sessions_due:
                sessions_due = now + _SESSIONS_S
                self._chore(self._check_sessions)
            if now >= leases_due:
                leases_due = now + presence.RENEW_S
                self._chore(self._renew_leases)

    def _chore(self, work: Callable[[], object]) -> None:
        """Start database work unless the same is still under way: the beat itself never waits."""
        name = work.__name__
        if any(task.get_name() == name for task in self._chores):
            return
        task = asyncio.get_running_loop().create_task(self._logged(work), name=name)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _logged(self, work: Callable[[], object]) -> None:
        try:
            await work()  # type: ignore[misc]
        except Exception:
            # The database is away: connections stay, and the next round asks again.
            log.exception("heart.chore_failed", chore=work.__name__)

    async def _check_sessions(self) -> None:
        mine = list(self.connections)
        live = await db.run(accounts.live_sessions, {connection.session_id for connection in mine})
        for connection in mine:
            if connection.session_id not in live:
                connection.end(Close.NOT_AUTHENTICATED)

    async def _renew_leases(self) -> None:
        mine = dict(self.greeted)
        renewed = await db.run(
            presence.renew_leases, [(pk, connection.epoch) for pk, connection in mine.items()]
        )
        for pk, connection in mine.items():
            if pk not in renewed:
                connection.end(Close.SUPERSEDED)


_hearts: WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionRegistry] = WeakKeyDictionary()


def current() -> ConnectionRegistry:
    loop = asyncio.get_running_loop()
    heart = _hearts.get(loop)
    if heart is None:
        heart = _hearts[loop] = ConnectionRegistry()
    return heart
