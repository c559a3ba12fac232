"""The channel layer: Redis' pub/sub, each message sealed for its channel, all of a process over one connection.

A frame that crosses Redis holds a user's rows, and whoever reads or writes Redis must neither read it nor move it to
another's channel. What channels_redis offers costs ten times as much a message, does not say whether anybody was
listening, and cannot tell a listener that it has missed something. Here a connection that redis-py has opened is read
by hiredis where the bytes arrive, and what is to be sent in one turn of the loop is one write.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Queue, Transport
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast
from uuid import uuid4

import hiredis
import orjson
from django.conf import settings
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from adiuva.crypto import SealBroken
from adiuva.errors import Unavailable
from adiuva.observability import log

Message = dict[str, Any]

# What a listener gets when the connection was lost and is back: messages may have passed meanwhile.
INTERRUPTED: Final[Message] = {"type": "interrupted"}

_PREFIX: Final = "adiuva."
_TEND_S: Final = 0.25
_AGAIN_S: Final = 1.0
_QUIET_S: Final = 10.0  # without a word from Redis, after which it is asked whether it is there
_PATIENCE_S: Final = 10.0  # for an answer of Redis


class LayerAway(Unavailable, ConnectionError):
    """Redis cannot be reached: nothing was sent. A plain ConnectionError says that it is not known."""

    code = "channel_layer_away"

    def __init__(self) -> None:
        super().__init__("the servers cannot reach each other for now")


class Layer:
    """Channels of one process. Whoever takes one with `new_channel` gives it back with `end_channel`."""

    extensions: Sequence[str] = ()

    def __init__(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        (self._host,) = hosts
        self._cipher = settings.KEY_RING.transit
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}

    async def send(self, channel: str, message: Message) -> int:
        """How many were listening: 0 says that nobody got it. Raise LayerAway, or ConnectionError when the
        connection broke before Redis had answered."""
        sealed = self._cipher.seal(orjson.dumps(message), channel.encode())
        return await self._line().publish(channel, sealed)

    async def new_channel(self, prefix: str = "") -> str:
        """A channel of one's own. What is sent to it from now on arrives. Raise ConnectionError."""
        channel = f"{_PREFIX}{prefix}{uuid4().hex}"
        await self._line().subscribe(channel)
        return channel

    async def receive(self, channel: str) -> Message:
        """The next message on a channel that was taken here."""
        queue = self._line().channels[channel]
        while True:
            if (message := self._open(channel, await queue.get())) is not None:
                return message

    def end_channel(self, channel: str) -> list[Message]:
        """Give a channel back; returns what has arrived on it and was not read."""
        queue = self._line().end(channel)
        left = [self._open(channel, queue.get_nowait()) for _ in range(queue.qsize())] if queue else []
        return [message for message in left if message is not None]

    def _open(self, channel: str, sealed: bytes | None) -> Message | None:
        if sealed is None:
            return INTERRUPTED
        try:
            return cast(Message, orjson.loads(self._cipher.unseal(sealed, channel.encode())))
        except SealBroken:
            log.error("layer.seal_broken", channel=channel)
            return None

    def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        found = self._lines.get(loop)
        if found is None:
            found = self._lines[loop] = _Line(self._host, loop, self._lines)
        return found


class _Line(asyncio.Protocol):
    """One event loop's connection. It comes back by itself while a channel is open, and ends with the loop."""

    def __init__(
        self,
        host: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        lines: dict[asyncio.AbstractEventLoop, _Line],
    ) -> None:
        # RESP3: answers and what is published can share a connection.
        options = {name: value for name, value in host.items() if name != "address"}
        self._pool: ConnectionPool = ConnectionPool.from_url(host["address"], protocol=3, **options)
        self._loop = loop
        self.channels: dict[str, Queue[bytes | None]] = {}
        self._transport: Transport | None = None
        self._stream: asyncio.StreamWriter  # kept, since it closes the transport when it goes
        self._connecting = asyncio.Lock()
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._unanswered: deque[tuple[Future[int], float]] = deque()
        self._subscribing: dict[bytes, Future[None]] = {}
        self._heard_at = 0.0
        self._tending = loop.create_task(self._tend(lines), name="channel layer")

    async def publish(self, channel: str, message: bytes) -> int:
        if self._transport is None:
            await self._connect()
        return await self._ask("PUBLISH", channel, message)

    async def subscribe(self, channel: str) -> None:
        if self._transport is None:
            await self._connect()
        self.channels[channel] = Queue()
        try:
            await self._confirmed(channel)
        except BaseException:
            self.end(channel)
            raise

    def end(self, channel: str) -> Queue[bytes | None] | None:
        found = self.channels.pop(channel, None)
        if found is not None and self._transport is not None:
            self._write("UNSUBSCRIBE", channel)
        return found

    def _ask(self, *command: str | bytes) -> Future[int]:
        future: Future[int] = self._loop.create_future()
        self._unanswered.append((future, self._loop.time()))
        self._write(*command)
        return future

    async def _confirmed(self, channel: str) -> None:
        future = self._subscribing[channel.encode()] = self._loop.create_future()
        self._write("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await future
        except TimeoutError:
            raise ConnectionError("Redis did not confirm a subscription") from None

    def _write(self, *command: str | bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows no str and bytes

    def _flush(self) -> None:
        batch, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(b"".join(batch))

    # What Redis says

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        while (said := self._reader.gets()) is not False:
            if type(said) is not hiredis.PushNotification:
                future, _ = self._unanswered.popleft()
                if future.done():
                    continue  # who asked was cancelled meanwhile
                if isinstance(said, Exception):
                    future.set_exception(LayerAway())  # refused: read only, out of memory, still loading
                else:
                    future.set_result(said)
            elif said[0] == b"message":
                if (queue := self.channels.get(said[1].decode())) is not None:
                    queue.put_nowait(said[2])
            elif said[0] == b"subscribe":
                waiting = self._subscribing.pop(said[1], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._outgoing = []
        waiting = [future for future, _ in self._unanswered] + list(self._subscribing.values())
        self._unanswered.clear()
        self._subscribing.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError("the connection to Redis was lost"))

    # Coming and going

    async def _connect(self) -> None:
        async with self._connecting:
            if self._transport is not None:
                return
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                raise LayerAway from error
            assert connection._writer is not None
            self._reader = hiredis.Reader()
            self._heard_at = self._loop.time()
            # It has signed in and nothing is under way, so what comes from here on is ours to read.
            self._stream = connection._writer
            connection._reader = connection._writer = None
            self._transport = cast(Transport, self._stream.transport)
            self._transport.set_protocol(self)
            missed = list(self.channels.values())
            if missed:
                self._write("SUBSCRIBE", *self.channels)
            for queue in missed:
                queue.put_nowait(None)

    async def _tend(self, lines: dict[asyncio.AbstractEventLoop, _Line]) -> None:
        """Bring subscriptions back, notice a Redis that hangs, and close when the loop ends its tasks."""
        try:
            while True:
                await asyncio.sleep(_TEND_S)
                if self._transport is None:
                    if self.channels:
                        await self._come_back()
                elif self._unanswered and self._loop.time() - self._unanswered[0][1] > _PATIENCE_S:
                    log.warning("layer.redis_hangs")
                    self._transport.abort()
                elif not self._unanswered and self._loop.time() - self._heard_at > _QUIET_S:
                    self._ask("PING").add_done_callback(Future.exception)
        finally:
            if lines.get(self._loop) is self:
                del lines[self._loop]
            if self._transport is not None:
                self._transport.close()

    async def _come_back(self) -> None:
        try:
            await self._connect()
        except LayerAway:
            log.warning("layer.redis_away", channels=len(self.channels))
            await asyncio.sleep(_AGAIN_S)
        else:
            log.info("layer.redis_back", channels=len(self.channels))
