"""Registry of this process's device connections, with one timer for all of them.

The timer checks deadlines for hello and pong, sends pings, ends connections whose peer does not read, renews the
process' lease and closes connections of revoked sessions. One task per socket would cost memory and wake-ups by the
thousand; one pass over 5,000 connections takes a millisecond.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from adiuva.accounts import session_check
from adiuva.core import db, metrics
from adiuva.core.logging import log_failure
from adiuva.core.per_loop import PerLoop
from adiuva.devices import presence
from adiuva.devices.presence import Target
from adiuva.devices.protocol import Close
from adiuva.devices.reply_routing import Reply

_TICK_S: Final = 0.5
# `close_all` looks so often whether all connections are closed.
_CLOSE_POLL_S: Final = 0.02
# A revoked session's sockets have to close within 5 s.
_SESSION_CHECK_S: Final = 3.0
# Each check looks at the sessions that were changed, and at one share of all, so each session gets a look once a
# minute.
_SHARES: Final = 20

log = structlog.get_logger(__name__)


class Connection(Protocol):
    """Socket of one device in this process."""

    pk: uuid.UUID | None
    epoch: int
    user_id: uuid.UUID
    session_id: uuid.UUID
    tier: str

    def target(self) -> Target:
        """Return what a link needs to know of the connection, once the device has said hello."""
        ...

    async def deliver(self, text: bytes, reply: Reply, *, calls: Sequence[str], run: str | None) -> bool:
        """Send a frame. Answers to `calls` and frames of `run` go to `reply`. Returns False if nothing was sent."""
        ...

    def run_over(self, run: str) -> None:
        """Forget the reply for a run's frames."""
        ...

    def tick(self, now: float) -> int | None:
        """Do what is due at `now` (the loop's clock). Returns a close code if the connection has to end."""
        ...

    def end(self, code: int) -> None:
        """Start to close the socket, unless it is closing already."""
        ...


class ConnectionRegistry:
    """Registry of the connections of one event loop. The timer runs while there are any."""

    def __init__(self) -> None:
        # Rows of devices name this process by this id while they are connected here.
        self.process = uuid.uuid4()
        self._connections: set[Connection] = set()
        # The device's key as a number → its newest connection, once it has said hello. A UUID hashes itself in Python.
        self._by_device: dict[int, Connection] = {}
        # Device and epoch of connections that have ended, until the database knows.
        self._unrecorded_ends: set[tuple[uuid.UUID, int]] = set()
        self._task: asyncio.Task[None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        # The time of the last check of sessions, by PostgreSQL's clock, and whose turn it is.
        self._sessions_checked_at: dt.datetime | None = None
        self._share = 0

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)
        metrics.SOCKETS.inc()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="connection timer")

    def register(self, connection: Connection, pk: uuid.UUID, epoch: int) -> Connection | None:
        """Make a connection its device's newest; return the one in this process that it replaces."""
        connection.pk, connection.epoch = pk, epoch
        older = self._by_device.get(pk.int)
        self._by_device[pk.int] = connection
        return older

    def remove(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            metrics.SOCKETS.dec()
        if connection.pk is not None and self._by_device.get(connection.pk.int) is connection:
            del self._by_device[connection.pk.int]
        if not self._connections and self._task is not None:
            self._task.cancel()
            self._task = None

    async def record_end(self, pk: uuid.UUID, epoch: int) -> None:
        """Record in the database that a connection has ended. Raises what the database does.

        If that fails, each renewal of the lease tries again, as the device would stay online otherwise. Once no socket
        is left, nothing renews the lease, and the devices go offline with it.
        """
        self._unrecorded_ends.add((pk, epoch))
        await db.run(presence.close_connection, pk=pk, epoch=epoch)
        self._unrecorded_ends.discard((pk, epoch))

    def find(self, pk: uuid.UUID, epoch: int) -> Connection | None:
        """Return a device's connection of this epoch, if it is in this process."""
        found = self._by_device.get(pk.int)
        return found if found is not None and found.epoch == epoch else None

    def newest(self, pk: uuid.UUID) -> Connection | None:
        """Return a device's newest connection in this process."""
        return self._by_device.get(pk.int)

    async def close_all(self, code: int, *, within_s: float) -> None:
        """Close every connection, including those that open meanwhile, and wait until they are gone."""
        try:
            async with asyncio.timeout(within_s):
                while self._connections:
                    for connection in list(self._connections):
                        connection.end(code)
                    await asyncio.sleep(_CLOSE_POLL_S)
        except TimeoutError:
            log.info("connections.close_timed_out", count=len(self._connections))

    async def leave(self) -> None:
        """Mark devices that could not be closed in time as gone, since this process ends. Raises what the database
        does."""
        await db.run(presence.forget_processes, self.process)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        sessions_due = loop.time() + _SESSION_CHECK_S
        lease_due = loop.time() + presence.RENEW_S
        while True:
            await asyncio.sleep(_TICK_S)
            now = loop.time()
            for connection in list(self._connections):
                try:
                    if (code := connection.tick(now)) is not None:
                        connection.end(code)
                except Exception as error:
                    # An error of one connection must not end the lease of all.
                    log_failure("connection.tick_failed", error)
            if now >= sessions_due:
                sessions_due = now + _SESSION_CHECK_S
                self._start_job(self._check_sessions)
            if now >= lease_due:
                lease_due = now + presence.RENEW_S
                self._start_job(self._renew_lease)

    def _start_job(self, job: Callable[[], Awaitable[None]]) -> None:
        """Start a database job unless the last one is still running. The timer itself never waits."""
        name = getattr(job, "__name__", "")
        if any(task.get_name() == name for task in self._jobs):
            return
        task = asyncio.get_running_loop().create_task(self._run_job(job, name), name=name)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _run_job(self, job: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await job()
        except Exception as error:
            # While the database is away, connections stay open and the next round asks again.
            log_failure("connections.job_failed", error, job=name)

    async def _check_sessions(self) -> None:
        connections = list(self._connections)
        connected = {connection.session_id for connection in connections}
        self._share = (self._share + 1) % _SHARES
        self._sessions_checked_at, tiers = await db.run(
            session_check.recheck,
            connected=connected,
            share={session_id for session_id in connected if session_id.int % _SHARES == self._share},
            since=self._sessions_checked_at,
        )
        if not tiers:
            return
        for connection in connections:
            if (tier := tiers.get(connection.session_id, connection.tier)) is None:
                connection.end(Close.NOT_AUTHENTICATED)
            else:
                connection.tier = tier

    async def _renew_lease(self) -> None:
        if connections := dict(self._by_device):
            mine = [(uuid.UUID(int=key), connection.epoch) for key, connection in connections.items()]
            for pk in await db.run(presence.renew, self.process, mine):
                connections[pk.int].end(Close.SUPERSEDED)
            await db.run(_forget_lost)
        for pk, epoch in list(self._unrecorded_ends):
            await self.record_end(pk, epoch)


def _forget_lost() -> None:
    with db.conflicts_put_off("connections.lost_not_forgotten"):
        presence.forget_processes()


_registries = PerLoop(ConnectionRegistry)


def current() -> ConnectionRegistry:
    """Return the running event loop's registry."""
    return _registries.get()
