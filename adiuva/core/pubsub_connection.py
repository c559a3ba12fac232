"""Connection to Redis for publishing, subscribing and commands. It reads data where the bytes arrive.

It takes over a connection that redis-py has opened and signed in (its private `_writer` and `_reader`), parses what
arrives with hiredis, and writes everything sent in one turn of the event loop at once. After an upgrade of redis-py run
tests/core/test_channel_layer.py.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Transport
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol, cast

import hiredis
import structlog
from channels_redis.utils import create_pool
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from adiuva.core.errors import Unavailable

log = structlog.get_logger(__name__)

_CHECK_INTERVAL_S: Final = 0.25  # seconds between checks of the connection
_RECONNECT_PAUSE_S: Final = 1.0
_PING_AFTER_S: Final = 10.0  # after this much silence a PING shows whether Redis still answers
ANSWER_TIMEOUT_S: Final = 10.0

# The fate of a command: the number that Redis answered (for something published, how many subscribers got it),
# "unavailable" (Redis refused it, so nothing happened), or "lost" (the connection broke before Redis answered, so it
# may have happened).
Fate = int | Literal["unavailable", "lost"]


class ChannelLayerUnavailable(Unavailable, ConnectionError):
    """Error for a Redis that cannot be reached: nothing was sent. A plain ConnectionError leaves that open."""

    code = "channel_layer_away"

    def __init__(self) -> None:
        super().__init__("the servers cannot reach each other for now")


class Subscriber(Protocol):
    """User of a connection. `NoSubscriber` is one that subscribes to nothing."""

    def names(self) -> list[str]:
        """Return the channels to subscribe to, also after a reconnect."""
        ...

    def arrived(self, name: bytes, payload: bytes) -> None:
        """Handle what was published under a name that is subscribed to."""
        ...

    def lost(self) -> None:
        """Handle the loss of the connection: published messages without an answer are "lost", others may be missed."""
        ...

    def interrupted(self) -> None:
        """Handle the connection's return after a loss: messages may have been missed."""
        ...

    def closed(self) -> None:
        """Handle the end of the connection, because the event loop's tasks were cancelled."""
        ...


class NoSubscriber:
    def names(self) -> list[str]:
        return []

    def arrived(self, name: bytes, payload: bytes) -> None:
        pass

    def lost(self) -> None:
        pass

    def interrupted(self) -> None:
        pass

    def closed(self) -> None:
        pass


# More than 15 methods: asyncio calls some of them, and reconnecting is a chain of small steps over the same state.
class PubSubConnection(asyncio.Protocol):
    """Connection that opens when needed, reconnects while there are subscriptions, and closes with the loop's tasks."""

    def __init__(
        self, host: Mapping[str, Any], subscriber: Subscriber, loop: asyncio.AbstractEventLoop
    ) -> None:
        # With RESP3 a connection can both subscribe and send commands.
        self._pool: ConnectionPool = create_pool({**host, "protocol": 3})
        self._subscriber, self._loop = subscriber, loop
        self._transport: Transport | None = None
        self._stream: asyncio.StreamWriter  # kept: it closes the transport when it is garbage-collected
        self._connecting = asyncio.Lock()
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._unanswered: deque[tuple[Callable[[Fate], object], float]] = deque()
        self._subscribing: dict[bytes, Future[None]] = {}
        self._last_read_at = 0.0
        self._maintenance = loop.create_task(self._maintain(), name="channel layer")

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    async def ready(self) -> None:
        """Connect, if that is needed. Raises ChannelLayerUnavailable if Redis cannot be reached."""
        if self._transport is None:
            await self._connect()

    def publish(self, name: str, payload: bytes, answered: Callable[[Fate], object]) -> None:
        """Publish a message. `answered` is called once, with what became of it. The connection must be open."""
        self.command(answered, "PUBLISH", name, payload)

    def command(self, answered: Callable[[Fate], object], *words: str | bytes) -> None:
        """Send any command that Redis answers with a number; otherwise as `publish`."""
        self._unanswered.append((answered, self._loop.time()))
        self._write(*words)

    async def subscribe(self, name: str) -> None:
        """Subscribe to a name. Raises ConnectionError."""
        await self.ready()
        if (future := self._subscribing.get(name.encode())) is None:
            future = self._subscribing[name.encode()] = self._loop.create_future()
            self._write("SUBSCRIBE", name)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await asyncio.shield(future)  # others may wait for it too
        except TimeoutError:
            raise ConnectionError("Redis did not confirm a subscription") from None

    def unsubscribe(self, name: str) -> None:
        if self._transport is not None:
            self._write("UNSUBSCRIBE", name)

    def abort(self) -> None:
        """Close the connection; the next use opens a new one."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, *command: str | bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows no str and bytes

    def _flush(self) -> None:
        batch, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(b"".join(batch))

    # ── What Redis sends ────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        self._last_read_at = self._loop.time()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if type(reply) is not hiredis.PushNotification:
                answered, _ = self._unanswered.popleft()
                # Read only, out of memory, loading: whatever the reason, Redis has not carried the command out.
                answered("unavailable" if isinstance(reply, Exception) else cast(int, reply))
            elif reply[0] == b"message":
                self._subscriber.arrived(reply[1], reply[2])
            elif reply[0] == b"subscribe":
                confirmed = self._subscribing.pop(reply[1], None)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._outgoing = []
        unanswered, self._unanswered = self._unanswered, deque()
        subscribing, self._subscribing = self._subscribing, {}
        for future in subscribing.values():
            if not future.done():
                future.set_exception(ConnectionError("the connection to Redis was lost"))
        for answered, _ in unanswered:
            answered("lost")
        self._subscriber.lost()

    # ── Connecting and reconnecting ─────────────────────────────────────────────────────────────────────

    async def _connect(self) -> None:
        async with self._connecting:
            if self._transport is not None:
                return
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                raise ChannelLayerUnavailable from error
            assert connection._writer is not None
            self._reader = hiredis.Reader()
            self._last_read_at = self._loop.time()
            # redis-py has signed in and awaits no reply, so this protocol can take over the transport.
            self._stream = connection._writer
            connection._reader = connection._writer = None
            self._transport = cast(Transport, self._stream.transport)
            self._transport.set_protocol(self)
            if names := self._subscriber.names():
                self._write("SUBSCRIBE", *names)
                self._subscriber.interrupted()

    async def _maintain(self) -> None:
        """Reconnect while there are subscriptions, detect a Redis that hangs, close when this task is cancelled."""
        try:
            while True:
                await asyncio.sleep(_CHECK_INTERVAL_S)
                if self._transport is None:
                    if self._subscriber.names():
                        await self._reconnect()
                elif self._unanswered and self._loop.time() - self._unanswered[0][1] > ANSWER_TIMEOUT_S:
                    log.warning("channel_layer.redis_hung")
                    self._transport.abort()
                elif not self._unanswered and self._loop.time() - self._last_read_at > _PING_AFTER_S:
                    self._unanswered.append((lambda _: None, self._loop.time()))
                    self._write("PING")
        finally:
            self._subscriber.closed()
            if self._transport is not None:
                self._transport.close()

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except ChannelLayerUnavailable:
            log.warning("channel_layer.disconnected")
            await asyncio.sleep(_RECONNECT_PAUSE_S)
        else:
            log.info("channel_layer.reconnected")
